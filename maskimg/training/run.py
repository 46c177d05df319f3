"""What every training loop needs around its step: a budget, checkpoints, a log, a progress bar, a clean stop.

Nothing here is random: a step's randomness comes from `step_generator(seed, step)` and the order of the pictures
from `batch_indices(seed, step, ...)`, so a run that is stopped and resumed sees what an uninterrupted one sees.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from maskimg.training.trackers import open_tracker
from maskimg.training.view import Line, Live, open_view
from vqgan import files

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 50  # steps


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, of minutes spent in the loop, or whichever ends first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")

    @property
    def long(self) -> bool:
        """Whether half a minute of compiling is well spent."""
        return (self.minutes or 0) > 3 or (self.steps or 0) > 1000

    def progress(self, step: int, seconds: float) -> float:
        """The share used up, 0 to 1."""
        by_steps = step / self.steps if self.steps else float(self.steps == 0)
        by_time = seconds / (60 * self.minutes) if self.minutes else float(self.minutes == 0)
        return min(1.0, max(by_steps, by_time))


def learning_rate_scale(progress: float, *, warmup: float = 0.02, cooldown: float = 0.4) -> float:
    """Warm-up, constant, linear cool-down to zero: most of a short run's loss falls in the cool-down."""
    return min(1.0, (progress + 1e-3) / warmup, max(0.0, 1 - progress) / cooldown)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one training step, the same whenever it is run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> torch.Tensor:
    """Which of `count` samples step `step` trains on: (batch_size,) int64, each once an epoch, reshuffled."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    indices = torch.empty_like(positions)
    for epoch in (positions // count).unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7_919 + epoch))
        here = positions // count == epoch
        indices[here] = order[positions[here] % count]
    return indices


class Ema:
    """Exponential moving average of a module's weights, with a ramp so that short runs profit too.

    Buffers are copied: a codebook that moves by averages is one already, and averaged again its restarted codes would
    lie between where they were and where they are.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.averaged = {name for name, _ in module.named_parameters()}
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            if name in self.averaged:
                self.shadow[name].lerp_(tensor, 1 - decay)
            else:
                self.shadow[name].copy_(tensor)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.shadow)


class Run:
    """One stage of training in a directory: `steps()` drives the loop.

        run = Run(directory, budget, describe="tokenizer")
        run.restore(model=model, ema=ema, optimizer=optimizer)
        for step, progress in run.steps():
            ...
            run.log(loss=loss)

    `track` names a tracker (see `trackers`) that is told what is logged, too.

    Checkpoints are written every minute, when the loop is stopped (SIGINT, SIGTERM) and at the end.
    """

    def __init__(
        self,
        directory: str | Path,
        budget: Budget,
        *,
        describe: str,
        identity: dict[str, Any],
        track: str | None = None,
    ):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.budget, self.describe = budget, describe
        # What must not change between a stop and its continuation, as JSON reads it back.
        self.identity = json.loads(json.dumps(identity))
        self.step, self.seconds = 0, 0.0
        self.stopped = False
        self._ended = False
        self._state: dict[str, Any] = {}
        self._pending: dict[str, list[torch.Tensor]] = {}
        self._view: Line | Live | None = None
        self._tracking = open_tracker(track, self.directory, describe, self.identity, self.say)
        self._spared = False

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

    def restore(self, **state: Any) -> bool:
        """Continue from the newest whole checkpoint, if there is one. `state`: modules, optimizers, EMAs by name.

        Raises:
            ModelError: the checkpoint belongs to other settings or other data.
        """
        self._state = state
        for directory in sorted(self._checkpoints(), reverse=True):
            try:
                files.verify(directory)
            except files.ModelError as error:
                print(f"skipping a checkpoint: {error}")
                continue
            self._load(directory)
            return True
        return False

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, progress in [0, 1)) until the budget is used up or the run is stopped."""
        saved = last = time.perf_counter()
        with torch.random.fork_rng(), _StopSignals() as signals, self._open_view() as self._view:
            while not self.finished and not signals.received:
                # Dropout and a codebook's restarts draw from torch's own generator: its state is the step's, too.
                torch.manual_seed(self.step)
                yield self.step, self.budget.progress(self.step, self.seconds)
                self.step += 1
                now = time.perf_counter()
                self.seconds += now - last
                last = now
                self._view.show(self.step, self.seconds, self.budget.progress(self.step, self.seconds))
                if now - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = last = time.perf_counter()
            self.save()
            if self._pending:
                self.write_log()
            self.stopped = signals.received
        self._view = None

    def log(self, **values: torch.Tensor | float) -> None:
        """Collect a step's figures; a line with their means is written every fiftieth step."""
        for name, value in values.items():
            self._pending.setdefault(name, []).append(torch.as_tensor(value).detach())
        if self.logs_now:
            self.write_log()

    def warn(self, sentence: str | None) -> None:
        """Print a warning above the progress bar and put it into the log; None is no warning."""
        if sentence:
            self.say(f"warning at step {self.step}: {sentence}")
            self.write_log(warning=sentence)

    def say(self, sentence: str) -> None:
        """Print a sentence above the progress bar."""
        if self._view is not None:
            self._view.say(sentence)
        else:
            print(sentence, file=sys.stderr)

    @contextlib.contextmanager
    def sparing(self) -> Iterator[None]:
        """What is only there to be seen may fail, as on a full disk; that is said once, and training goes on."""
        try:
            yield
        except OSError as error:
            if not self._spared:
                self.say(
                    f"warning at step {self.step}: a log or sheet could not be written ({error}); training goes on"
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

    def require_finite(self, loss: torch.Tensor) -> None:
        """Raises: TrainingError where the loss is not a finite number, before it can reach the weights."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the {self.describe}'s loss became {loss.item()} at step {self.step}: lower the learning rate, or use "
                f"`--dtype fp32`; the last checkpoint in `{self.directory}` is good"
            )

    def write_log(self, **extra: Any) -> None:
        """Append one JSON line: step, seconds, means since the last line, and `extra`."""
        means = {name: torch.stack([v.float().cpu() for v in vs]).mean().item() for name, vs in self._pending.items()}
        self._pending.clear()
        line = {"step": self.step, "seconds": round(self.seconds, 1), **means, **extra}
        with self.sparing(), (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._view is not None:
            self._view.add(line)
        if self._tracking is not None:
            self._tracking.figures(line, self.step)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all, and only then drop the older ones."""
        older = self._checkpoints()
        target = self.directory / "checkpoints" / f"step-{self.step:09d}"
        with files.atomic_directory(target) as directory:
            for name, part in self._state.items():
                save_file(_tensors(part), directory / f"{name}.safetensors")
            state = {"format": 1, "step": self.step, "seconds": self.seconds, "identity": self.identity}
            files.write_json(directory / "state.json", state)
        for directory in older:
            if directory != target:
                shutil.rmtree(directory, ignore_errors=True)

    def _load(self, directory: Path) -> None:
        about = files.read_json(directory / "state.json")
        changed = _difference(about["identity"], self.identity)
        if changed:
            name, before, now = changed
            raise files.ModelError(
                f"`{self.directory}` holds a {self.describe} run with {name} {_short(before)}, now {_short(now)}: "
                "use the same settings and pictures to continue it, or another --out to start anew"
            )
        for name, part in self._state.items():
            _fill(part, load_file(directory / f"{name}.safetensors"))
        self.step, self.seconds = about["step"], about["seconds"]

    def _checkpoints(self) -> list[Path]:
        return sorted((self.directory / "checkpoints").glob("step-*"))

    def _open_view(self) -> Line | Live:
        total = self.budget.steps if self.budget.minutes is None else None
        return open_view(self.describe, total, self.step, self.budget.progress(self.step, self.seconds))


class _StopSignals:
    """While active, SIGINT and SIGTERM only set `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def _tensors(part: nn.Module | torch.optim.Optimizer | Ema) -> dict[str, torch.Tensor]:
    if isinstance(part, Ema):
        tensors = part.shadow
    elif isinstance(part, nn.Module):
        tensors = part.state_dict()
    else:
        state = part.state_dict()["state"]
        tensors = {f"{i}.{key}": torch.as_tensor(value) for i, values in state.items() for key, value in values.items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _fill(part: nn.Module | torch.optim.Optimizer | Ema, tensors: dict[str, torch.Tensor]) -> None:
    if isinstance(part, Ema):
        for name, tensor in tensors.items():
            part.shadow[name].copy_(tensor)
    elif isinstance(part, nn.Module):
        part.load_state_dict(tensors)
    else:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two JSON values differ: its dotted name and both sides."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            found = _difference(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if before == now else (name, before, now)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 40 else text[:37] + "..."
