"""What the controls of the page send, but for labels and pictures."""

VALUES = {
    "images": 1,
    "seed": 7,
    "random_seed": False,
    "preset": "",
    "best_of": 1,
    "steps": 4,
    "order": "halton",
    "guidance": 1.0,
    "schedule": "cosine",
    "token_temperature": 1.0,
    "choice_temperature": 1.0,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "guidance_schedule": "constant",
    "revise": 0.0,
    "top_p": 1.0,
}
