"""From folders, archives and data sets to pictures in memory and codes for training.
Nothing here knows a network that is trained on them, or what is drawn."""
