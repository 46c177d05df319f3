"""Writers of checkpoints that are killed while they write: python writers.py DIRECTORY COUNT SEED

A process of its own, so that it can fork before there are threads. Prints what went wrong, one line each, then `done`.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from maskimg.training.loop.checkpoints import Checkpoints, read_state


def state(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"weight": torch.full((64,), float(step))} for name in ("model", "ema", "optimizer")}


def write_for_ever(directory: Path) -> None:
    checkpoints = Checkpoints(directory)
    step = newest_step(checkpoints)
    while True:
        step += 1
        checkpoints.write(step, state(step), {"seconds": 0.0, "identity": {}}, keep=1)


def newest_step(checkpoints: Checkpoints) -> int:
    """The step of the newest checkpoint, every number of which is what was written; 0 without any."""
    newest = checkpoints.newest()
    if newest is None:
        return 0
    step = read_state(newest)["step"]
    for name, tensors in state(step).items():
        if not torch.equal(load_file(newest / f"{name}.safetensors")["weight"], tensors["weight"]):
            raise AssertionError(f"`{newest}` holds another step's numbers")
    return step


def main() -> None:
    directory, count, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    checkpoints, before = Checkpoints(directory), 0
    begun = time.monotonic()
    checkpoints.write(1, state(1), {"seconds": 0.0, "identity": {}})
    longest = 4 * (time.monotonic() - begun)  # until the kill
    for number in range(count):
        child = os.fork()
        if child == 0:
            write_for_ever(directory)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = newest_step(checkpoints)
        if now < max(before, 1):
            print(f"writer {number} left step {now} after step {before}")
        before = now
    print(f"done: {count} writers, {before} steps")


if __name__ == "__main__":
    main()
