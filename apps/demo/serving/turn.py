"""Whose turn it is: a machine draws for one visitor at a time."""

import threading
from typing import Any

# All that draws on a page waits in one line: the model is there once.
DRAWING: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 1}
# The pages of several models have a line each; of these, too, only one draws at a time.
TURN = threading.Lock()
