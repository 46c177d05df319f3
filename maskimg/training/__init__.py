"""Training loops: `tokenizer` and `generator` (one loop per stage), `folder` (all stages), and what they stand on."""
