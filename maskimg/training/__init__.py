"""Training loops: `run` (budget, checkpoints, log), `tokenizer` and `generator` (one loop per stage)."""
