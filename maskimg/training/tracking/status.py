"""status.json: how far a training is, for whatever watches it from outside, as the page does.

It is small and always whole; `log.jsonl` has the history.
"""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from vqgan import files
from vqgan.writing import atomic_file

NAME = "status.json"
FORMAT = 1
SECONDS = 1.0  # between two writings, but for a change of stage or state
STATES = ("running", "stopped", "failed", "done")
MOST_WARNINGS = 20


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a training is.

    Attributes:
        state: running, stopped, failed or done; one that was killed still says running.
        started: when the process began, in seconds since 1970.
        stage: pictures, tokenizer, codes, generator or critic; empty before the first.
        activity: what it does in that stage, in words: the stage itself, or such as `reading pictures`.
        step, steps: how many were made, and of how many; `steps` is None where the budget is of minutes.
        minutes, of_minutes: the same in minutes.
        share: of the stage, 0 to 1.
        rate: steps a second. seconds_left: of the stage. None while they are not known.
        figures: the last value of each figure in the log, such as `loss` and `held_out_loss`.
        warnings: of all stages; of those that differ only in their numbers, the last.
        message: why it failed, or how to continue.
    """

    state: str = "running"
    started: float = 0.0
    stage: str = ""
    activity: str = ""
    step: int = 0
    steps: int | None = None
    minutes: float = 0.0
    of_minutes: float | None = None
    share: float = 0.0
    rate: float | None = None
    seconds_left: float | None = None
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    message: str = ""


class StatusFile:
    """Keeps `path` up to date: once a second, and whenever stage, activity or state change.

    A file of the same name that is not ours is left alone, and a disk that is full stops no training.

    Args:
        active: not in the other processes of a training, of which the first alone writes.
    """

    def __init__(self, path: Path, *, active: bool = True):
        self.path = path
        before = read_status(path)
        self.active = active and (before is not None or not os.path.lexists(path))
        self.status = Status(started=time.time(), warnings=before.warnings if before else ())
        self._written = float("-inf")

    @property
    def due(self) -> bool:
        return self.active and time.monotonic() - self._written >= SECONDS

    def note(self, **changes: Any) -> None:
        """Change fields of the status."""
        before, self.status = self.status, dataclasses.replace(self.status, **changes)
        if self.due or any(
            getattr(before, name) != getattr(self.status, name) for name in ("state", "stage", "activity")
        ):
            self.write()

    def warn(self, sentence: str) -> None:
        self.note(warnings=tuple(without_repetitions([*self.status.warnings, sentence])[-MOST_WARNINGS:]))

    def write(self) -> None:
        """Write it now."""
        if not self.active:
            return
        with contextlib.suppress(OSError), atomic_file(self.path) as temporary:
            files.write_json(temporary, {"format": FORMAT, **dataclasses.asdict(self.status)})
        self._written = time.monotonic()


def read_status(path: Path) -> Status | None:
    """What `StatusFile` wrote; None where nothing, or something else, is there."""
    try:
        found = files.read_json(path)
    except files.ModelError:
        return None
    if found.pop("format", None) != FORMAT or found.get("state") not in STATES:
        return None
    try:
        return Status(**{**found, "warnings": tuple(found["warnings"])})
    except (KeyError, TypeError):
        return None


def without_repetitions(warnings: list[str]) -> list[str]:
    """Of warnings that differ only in their numbers, the last, at the place of the first."""

    def words(warning: str) -> str:
        return "".join(sign for sign in warning.partition(":")[0] if not (sign.isdigit() or sign in ".,"))

    return list({words(warning): warning for warning in warnings}.values())
