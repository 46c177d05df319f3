"""Tokenizers of other projects: the networks they are made of, and how their files are read.
It knows nothing of training or of what codes are used for."""
