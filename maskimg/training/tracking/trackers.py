"""TensorBoard, trackio and wandb behind one face: figures and pictures of a run, beside its own log.

None of them is needed, and none may harm a training: what they raise while it runs ends the tracking, not the run.
"""

import importlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from maskimg.training.tracking.logs import is_number
from vqgan.writing import atomic_file

EXTRAS = {"tensorboard": "tb", "trackio": "track", "wandb": "wandb"}  # by the name that --track takes


class TrackerError(ValueError):
    """A tracker that cannot be used; the message says why and what to do."""


class Tracker(Protocol):
    """What stands behind the face: it may raise whatever it likes."""

    def figures(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, path: Path, step: int) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """A tracker that is dropped with one warning as soon as it fails."""

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]):
        self.name, self.say = name, say
        self.tracker: Tracker | None = tracker

    def figures(self, values: dict[str, Any], step: int) -> None:
        """Of one line of the log what is a finite number."""
        numbers = {name: float(value) for name, value in values.items() if is_number(value) and name != "step"}
        if numbers:
            self._try(lambda tracker: tracker.figures(numbers, step))

    def picture(self, path: Path, step: int) -> None:
        if path.is_file():
            self._try(lambda tracker: tracker.picture(path.stem, path, step))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())
        self.tracker = None

    def _try(self, act: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            act(self.tracker)
        except Exception as error:
            self.tracker = None
            self.say(f"warning: {self.name} has failed and is told no more ({error}); training goes on")


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown or not installed, before anything is trained.

    Raises:
        TrackerError: with what to do.
    """
    if name is None:
        return
    if name not in EXTRAS:
        raise TrackerError(f"--track must be {', '.join(EXTRAS)}, got `{name}`")
    _module(name)


def open_tracker(
    name: str | None,
    directory: Path,
    stage: str,
    config: dict[str, Any],
    say: Callable[[str], None] = print,
) -> Tracking | None:
    """The tracker `name` for the run in `directory`; None for no name. `say` is called if it fails later on.

    A run that is continued goes on under its own name, which is kept in the file `tracker-id`.

    Raises:
        TrackerError: it is unknown, not installed, or cannot be started.
    """
    if name is None:
        return None
    check_tracker(name)
    project = directory.resolve().parent.name.removesuffix(".training") or "maskimg"
    run_name = f"{stage}-{_identifier(directory)}"
    makers = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
    try:
        return Tracking(name, makers[name](directory, project, run_name, config), say)
    except Exception as error:
        raise TrackerError(f"{name} cannot be started ({error}): set it up, or leave --track out") from error


class TensorBoard:
    """Event files in `tensorboard/` of the run: `tensorboard --logdir MODEL.training`."""

    def __init__(self, directory: Path, project: str, run_name: str, config: dict[str, Any]):
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(log_dir=str(directory / "tensorboard"))
        self.writer.add_text("config", f"```\n{config}\n```")

    def figures(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a run that is killed should have told all

    def picture(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A local dashboard: `trackio show`."""

    def __init__(self, directory: Path, project: str, run_name: str, config: dict[str, Any]):
        self.trackio = _module("trackio")
        self.run = self.trackio.init(project=project, name=run_name, config=config, resume="allow", embed=False)

    def figures(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class Wandb:
    """Weights & Biases; offline with WANDB_MODE=offline."""

    def __init__(self, directory: Path, project: str, run_name: str, config: dict[str, Any]):
        self.wandb = _module("wandb")
        self.run = self.wandb.init(
            project=project, name=run_name, id=run_name, dir=str(directory), config=config, resume="allow"
        )
        # Its own count of steps may never go back, ours does after a crash.
        self.run.define_metric("*", step_metric="training_step")

    def figures(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "training_step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.wandb.Image(str(path)), "training_step": step})

    def close(self) -> None:
        self.run.finish()


def _module(name: str) -> Any:
    """The tracker's own module, imported only now: it may take seconds, and most people have none of them."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrackerError(f"{name} is not installed: `pip install 'maskimg[{EXTRAS[name]}]'`") from error


def _identifier(directory: Path) -> str:
    path = directory / "tracker-id"
    if not path.is_file():
        with atomic_file(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
