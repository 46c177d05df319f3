"""What keeps numbers that are not finite out of the weights, and a step that is too large inside the memory."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maskimg import distributed
from maskimg.training.loop.errors import TrainingError
from vqgan import files

MOST, OF = 10, 100  # steps that may be skipped, of the last so many


class NonFinite:
    """Counts the steps that were skipped because their loss or gradient was not finite.

    Attributes:
        skipped: those of the last hundred steps; part of a run's state.
    """

    def __init__(self, directory: Path, stage: str, warn: Callable[[str], None]):
        self.directory, self.stage, self.warn = directory, stage, warn
        self.skipped: list[int] = []
        self._late: list[tuple[torch.Tensor, Any, int, dict[str, Any]]] = []

    def skip(self, step: int, about: dict[str, Any]) -> None:
        """Note that `step` was skipped.

        Raises:
            TrainingError: too many were.
        """
        self.skipped = [earlier for earlier in self.skipped if earlier > step - OF] + [step]
        values = {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in about.items()}
        if len(self.skipped) <= MOST:
            self.warn(
                f"step {step} was skipped: its loss is {values['loss']:.3g} and its gradient's norm "
                f"{values['gradient_norm']:.3g} ({len(self.skipped)} of the last {OF} steps)"
            )
            return
        path = self.directory / f"nonfinite-{step}.json"
        if distributed.is_first():
            shown = {name: str(value) if isinstance(value, float) else value for name, value in values.items()}
            files.write_json(path, {"step": step, "skipped": self.skipped, **shown})
        raise TrainingError(
            f"the {self.stage}'s loss or gradient was not finite in {len(self.skipped)} of the last {OF} steps, at "
            f"step {step} at last: lower the learning rate, or use `--dtype fp32`; `{path}` holds the details, and the "
            "last checkpoint is good"
        )

    def watch(self, finite: torch.Tensor, step: int, about: dict[str, Any]) -> None:
        """Note a step that skips itself on the device, and read, without waiting, what has become of earlier ones.

        The tensors are copied to the host behind the step; only those that have arrived are looked at.
        """
        about = {n: v.to("cpu", non_blocking=True) if isinstance(v, torch.Tensor) else v for n, v in about.items()}
        there, event = finite.to("cpu", non_blocking=True), None
        if finite.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._late.append((there, event, step, about))
        while self._late and (self._late[0][1] is None or self._late[0][1].query()):
            there, _, earlier, about = self._late.pop(0)
            if not there.item():
                self.skip(earlier, about)


SMALL_MEMORY = "there is not enough memory: ask for fewer or smaller pictures at a time"  # to those who draw


def memory_ran_out(error: BaseException) -> bool:
    """Whether a device's or the machine's memory was too small for what was asked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def more_parts(size: int, accumulation: int, stage: str) -> tuple[int, str]:
    """Twice as many parts a step, in every process, and a sentence about it.

    Raises:
        TrainingError: a part cannot be smaller.
    """
    world = distributed.world()
    now = -(-size // (world * accumulation))
    more = min(size // world, 2 * accumulation)
    if more == accumulation:
        each = "one sample" if now == 1 else f"{now} samples"
        raise TrainingError(f"the {stage} does not fit into memory even with {each} at a time: use a smaller network")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = -(-size // (world * more))
    where = "a process's memory" if distributed.several() else "memory"
    return more, (
        f"{now} samples at a time do not fit into {where}: going on with {half} at a time in {more} parts a step, "
        f"which leaves the batch at {size}; a batch_size of {half * world * accumulation}, or accumulation {more}, "
        "would have fitted"
    )


def too_large(size: int, accumulation: int, stage: str) -> TrainingError:
    """What to say where processes are in the midst of an exchange, so that they cannot try again.

    Raises:
        TrainingError: a part cannot be smaller.
    """
    more, _ = more_parts(size, accumulation, stage)
    now, half = (-(-size // (distributed.world() * parts)) for parts in (accumulation, more))
    return TrainingError(
        f"{now} samples at a time do not fit into a process's memory: set accumulation to {more}, which leaves the "
        f"batch at {size}, or try batch_size {half * distributed.world() * accumulation}"
    )
