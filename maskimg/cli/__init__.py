"""The `maskimg` command: options in, sentences and exit codes out.
It holds no work of its own, and knows no app."""
