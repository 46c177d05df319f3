"""What the two algorithms of the paper consist of: how a training step corrupts codes and weighs its losses, and how a
sampling step predicts, draws and ranks. It knows codes and networks, but no file, picture or tokenizer."""
