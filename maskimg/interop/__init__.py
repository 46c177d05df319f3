"""Models of other projects become ours, and ours become theirs.
It knows their formats, so that no other room has to."""
