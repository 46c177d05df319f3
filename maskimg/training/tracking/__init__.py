"""How a training is watched: its log, its curves, sheets and trackers.
Nothing here changes what is trained."""
