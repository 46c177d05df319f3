"""What every training loop needs around its step: when to stop, checkpoints, a log, a progress bar.

Nothing here is random: the order of the samples follows from seed and step (`order`), their chance from seed, step and
place (`noise.Chance`), so a run that is stopped and resumed sees what an uninterrupted one sees.
"""

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from maskimg import distributed
from maskimg.training.loop import checkpoints
from maskimg.training.loop.alone import only_trainer
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.budget import Budget, learning_rate_scale
from maskimg.training.loop.checkpoints import Checkpoints, fill, read_state, tensors_of
from maskimg.training.loop.errors import TrainingError
from maskimg.training.loop.guards import NonFinite
from maskimg.training.loop.order import batch_indices, step_generator
from maskimg.training.loop.session import Session
from maskimg.training.loop.signals import StopSignals
from maskimg.training.tracking.logs import is_number
from maskimg.training.tracking.status import NAME as STATUS
from maskimg.training.tracking.status import StatusFile
from maskimg.training.tracking.trackers import open_tracker
from maskimg.training.tracking.view import Line, Live, open_view
from vqgan import files

__all__ = [
    "Budget",
    "Ema",
    "Run",
    "TrainingError",
    "batch_indices",
    "data_identity",
    "identity_of",
    "learning_rate_scale",
    "step_generator",
]

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 50  # steps


class Run:
    """One stage of training in a directory: `steps()` drives the loop.

        run = Run(directory, budget, stage="tokenizer", identity=...)
        run.restore(model=model, ema=ema, optimizer=optimizer)
        for step, progress in run.steps():
            ...
            run.log(loss=loss)

    Checkpoints are written every minute, when the loop is stopped (SIGINT, SIGTERM, SIGUSR1, SIGHUP) and at the end.
    With several processes each has a Run; the first alone writes and logs, and all stop at the same step.

    Args:
        identity: what must not change between a stop and its continuation, as JSON; `data` in it may, where that is
            allowed.
        defaults: the values of what older checkpoints' identities do not name, because it did not exist yet.
        batch_size: samples a step, to tell how many the run has seen.
        session: whether another data set than before is accepted, which tracker receives what is logged, and where the
            status is written, if not to `directory`.
    """

    def __init__(
        self,
        directory: str | Path,
        budget: Budget,
        *,
        stage: str,
        identity: dict[str, Any],
        defaults: dict[str, Any] | None = None,
        batch_size: int = 1,
        session: Session = Session(),  # noqa: B008 (frozen)
    ):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(self.directory / "checkpoints")
        self.budget, self.stage, self.batch_size = budget, stage, batch_size
        self.allow_data_change = session.allow_data_change
        self.status = session.status or StatusFile(self.directory / STATUS, active=distributed.is_first())
        self.identity = json.loads(json.dumps(identity))
        self.defaults = json.loads(json.dumps(defaults or {}))
        self.step, self.seconds = 0, 0.0
        self.stopped = False
        self.nonfinite = NonFinite(self.directory, stage, self.warn)
        self._state: dict[str, checkpoints.Part] = {}
        self._saved: int | None = None
        self._ended = False
        self._pending: dict[str, list[torch.Tensor]] = {}
        self._view: Line | Live | None = None
        self._tracking = open_tracker(
            session.track if distributed.is_first() else None, self.directory, stage, self.identity, self.say
        )
        self._spared = False
        self._started = (0.0, 0, 0.0)  # seconds, step and share when the loop began

    @property
    def finished(self) -> bool:
        return self._ended or self.budget.progress(self.step, self.seconds) >= 1

    @property
    def logs_now(self) -> bool:
        """Whether this step ends with a line in the log: figures that cost something are taken then."""
        return self.step % LOG_EVERY == LOG_EVERY - 1

    def end(self) -> None:
        """Let this step be the last, as if the budget were used up."""
        self._ended = True

    @property
    def interrupted(self) -> bool:
        """Stopped before its end, so that whatever takes time can wait for the continuation."""
        return self.stopped and not self.finished

    @property
    def samples(self) -> int:
        """Samples seen so far."""
        return self.step * self.batch_size

    def restore(self, **state: Any) -> bool:
        """Continue from the newest whole checkpoint, if there is one. `state`: modules, optimizers, EMAs by name.

        Raises:
            ModelError: the checkpoint belongs to other settings or other data, or lacks a part.
        """
        self._state = state
        newest = distributed.of_first(self.checkpoints.newest() if distributed.is_first() else None)
        if newest is None:
            return False
        self._load(newest)
        return True

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, progress in [0, 1)) until the budget is used up or the run is stopped.

        Raises:
            TrainingError: another process trains in the directory, or the last checkpoint cannot be written.
        """
        saved = last = time.perf_counter()
        with torch.random.fork_rng(), self._alone(), StopSignals() as signals, self._open_view() as self._view:
            self._begin_status()
            stop, _ = self._agree(signals.received, False)
            while not self.finished and not stop:
                self.seed_torch()
                yield self.step, self.budget.progress(self.step, self.seconds)
                self.step += 1
                now = time.perf_counter()
                self.seconds += now - last
                last = now
                self._view.show(self.step, self.seconds, self.budget.progress(self.step, self.seconds))
                if self.status.due:
                    self.status.note(**self._progress())
                stop, due = self._agree(signals.received, now - saved > CHECKPOINT_SECONDS)
                if due and not stop and not self.finished:
                    self._save_on_the_way()
                    saved = last = time.perf_counter()
            self.status.note(**self._progress())
            self.status.write()
            self.save()
            if self._pending:
                self.write_log()
            late, _ = self._agree(signals.received, False)  # while the last checkpoint was written
            self.stopped = stop or late
        self._view = None

    def seed_torch(self) -> None:
        """Dropout and a codebook's restarts draw from torch's own generator: its state is the step's, too."""
        torch.manual_seed(self.step + (distributed.rank() << 40))

    def log(self, **values: torch.Tensor | float) -> None:
        """Collect a step's figures; a line with their means is written every fiftieth step."""
        if not distributed.is_first():
            return
        for name, value in values.items():
            self._pending.setdefault(name, []).append(torch.as_tensor(value).detach())
        if self.logs_now:
            self.write_log()

    def warn(self, sentence: str | None) -> None:
        """Print a warning above the progress bar and put it into the log; None is no warning."""
        if sentence and distributed.is_first():
            self.say(f"warning at step {self.step}: {sentence}")
            self.write_log(warning=sentence)
            self.status.warn(sentence)

    def say(self, sentence: str) -> None:
        """Print a sentence above the progress bar."""
        if self._view is not None:
            self._view.say(sentence)
        else:
            print(sentence, file=sys.stderr)

    @contextlib.contextmanager
    def tolerating_write_errors(self) -> Iterator[None]:
        """Inside, a log or sheet that cannot be written (a full disk) is warned of once, and training continues."""
        try:
            yield
        except OSError as error:
            if not self._spared:
                self.say(
                    f"warning at step {self.step}: a log or sheet could not be written ({error}); training continues"
                )
            self._spared = True

    def picture(self, name: str) -> None:
        """Tell the tracker, if there is one, of a picture that was written to the run's directory."""
        if self._tracking is not None:
            self._tracking.picture(self.directory / name, self.step)

    def close(self) -> None:
        """Nothing more will be logged."""
        if self._tracking is not None:
            self._tracking.close()

    def write_log(self, **extra: Any) -> None:
        """Append one JSON line: step, seconds, means since the last line, and `extra`."""
        if not distributed.is_first():
            return
        means = {name: _mean(values) for name, values in self._pending.items()}
        self._pending.clear()
        line = {"step": self.step, "seconds": round(self.seconds, 1), **means, **extra}
        if self.nonfinite.skipped:
            line["skipped"] = len(self.nonfinite.skipped)
        with self.tolerating_write_errors(), (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        figures = {name: value for name, value in line.items() if name not in ("step", "seconds") and is_number(value)}
        self.status.note(figures=self.status.status.figures | figures)
        if self._view is not None:
            self._view.add(line)
        if self._tracking is not None:
            self._tracking.figures(line, self.step)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all, and only then drop older ones.

        Raises:
            TrainingError: it cannot be written; the one before it is left.
        """
        if self._saved == self.step:
            return
        parts = {name: tensors_of(part) for name, part in self._state.items()}
        problem = None
        if distributed.is_first():
            try:
                self.checkpoints.write(self.step, parts, self._about(), keep=1 if self.finished else checkpoints.KEPT)
            except TrainingError as error:
                problem = error
        (failed,) = distributed.highest(problem is not None)
        if failed:
            raise problem or TrainingError("the first process could not write its checkpoint")
        self._saved = self.step

    def _save_on_the_way(self) -> None:
        """A disk that is full now may have room in a minute; only at the end it is too late."""
        try:
            self.save()
        except TrainingError as error:
            self.warn(f"{error}; training continues, and it is tried again in a minute")

    def _about(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "samples": self.samples,
            "skipped": self.nonfinite.skipped,
            "identity": self.identity,
        }

    def _load(self, directory: Path) -> None:
        about = read_state(directory)
        changed = _differences(_completed(about["identity"], self.defaults, self.identity), self.identity)
        others = [change for change in changed if change.name.split(".")[0] != "data"]
        if others:
            raise files.ModelError(
                f"`{self.directory}` holds a {self.stage} run with {others[0]}: use the same settings to continue "
                "it, or another --out to start anew"
            )
        new_data = ", ".join(map(str, changed))
        if new_data and not self.allow_data_change:
            raise files.ModelError(
                f"`{self.directory}` holds a {self.stage} run of other pictures, with {new_data}: use the same ones "
                "to continue it, --allow-data-change to go on with these, or another --out to start anew"
            )
        for name, part in self._state.items():
            fill(part, directory / f"{name}.safetensors")
        self.step, self.seconds = about["step"], about["seconds"]
        self.nonfinite.skipped = about["skipped"]
        if new_data:
            self.warn(f"going on with other pictures, as was asked: {new_data}")
        else:
            self._saved = self.step

    def _begin_status(self) -> None:
        self._started = (self.seconds, self.step, self.budget.progress(self.step, self.seconds))
        self.status.note(
            stage=self.stage, activity=self.stage, steps=self.budget.steps, of_minutes=self.budget.minutes, figures={},
            **self._progress(),
        )  # fmt: skip

    def _progress(self) -> dict[str, Any]:
        """What the status tells of the loop; rate and time left follow from what was trained since it began."""
        share = self.budget.progress(self.step, self.seconds)
        seconds, step, begun = self._started
        seconds = self.seconds - seconds
        found = {"step": self.step, "minutes": round(self.seconds / 60, 3), "share": share}
        found["rate"] = (self.step - step) / seconds if seconds > 0 else None
        found["seconds_left"] = (1 - share) * seconds / (share - begun) if share > begun else None
        return found

    def _alone(self):
        return only_trainer(self.directory, active=distributed.is_first(), says=False)

    def _agree(self, stop: bool, due: bool) -> tuple[bool, bool]:
        """Stop where anyone was asked to; it is the first process's clock that counts."""
        first = distributed.is_first()
        stop_somewhere, ended, due_there, self.seconds = distributed.highest(
            stop, self._ended, due and first, self.seconds if first else 0.0
        )
        self._ended = bool(ended)
        return bool(stop_somewhere), bool(due_there)

    def _open_view(self) -> Line | Live:
        total = self.budget.steps if self.budget.minutes is None else None
        progress = self.budget.progress(self.step, self.seconds)
        return open_view(self.stage, total, self.step, progress, silent=not distributed.is_first())


def identity_of(training: Any) -> dict[str, Any]:
    """A dataclass of settings, but for those that change no result."""
    return {name: value for name, value in dataclasses.asdict(training).items() if name != "accumulation"}


def data_identity(fingerprint: str, held_out: torch.Tensor, fields: dict[str, list[str]]) -> dict[str, Any]:
    """What a run was trained on, so that a refusal can say what has changed."""
    labels = {name: len(names) for name, names in fields.items()}
    counts = {"pictures": len(held_out), "held_out": int(held_out.sum()), "labels": labels}
    return {**counts, "fingerprint": fingerprint}


def _mean(values: list[torch.Tensor]) -> float | None:
    """Of what is finite: a skipped step must not hide the others, and JSON knows no NaN."""
    numbers = torch.stack([value.float().cpu() for value in values])
    mean = numbers[numbers.isfinite()].mean().item()
    return mean if math.isfinite(mean) else None


def _completed(before: Any, defaults: Any, now: Any) -> Any:
    """An older checkpoint's identity in today's terms: what it does not name has its default, and data had no count."""
    if isinstance(before, str) and isinstance(now, dict) and "fingerprint" in now:
        return now if before == now["fingerprint"] else {**now, "fingerprint": before}
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before
    given = defaults if isinstance(defaults, dict) else {}
    names = before.keys() | (given.keys() & now.keys())
    return {name: _completed(before.get(name, given.get(name)), given.get(name), now.get(name)) for name in names}


class _Change(NamedTuple):
    """A place in an identity, dotted, and what stands there."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} {_short(self.before)}, now {_short(self.now)}"


def _differences(before: Any, now: Any, name: str = "") -> list[_Change]:
    """All places where two JSON values differ; counts before fingerprints, which tell a person nothing."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [_Change(name, before, now)]
    keys = sorted(before.keys() | now.keys(), key=lambda key: (key == "fingerprint", key))
    return [each for key in keys for each in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else text[:37] + "..."
