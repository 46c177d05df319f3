"""The training that the page runs: `maskimg train` in a process of its own, which outlives a reload of the page.

What is shown of it is read from MODEL.training: status.json tells how far it is, the logs hold its curves.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from maskimg.data.listing import require_training
from maskimg.data.pictures import list_pictures
from maskimg.data.sources import DataError
from maskimg.training.folder import working_directory
from maskimg.training.plan import PRESETS, plan_for
from maskimg.training.tracking.logs import read_log
from maskimg.training.tracking.status import NAME as STATUS
from maskimg.training.tracking.status import Status, read_status, without_repetitions
from maskimg.training.tracking.view import in_words
from vqgan import files
from vqgan.files import ModelError

BEGUN, PRINTED, UPLOADS = "begun.json", "printed.txt", "upload"  # in MODEL.training
STAGES = ("tokenizer", "generator", "critic")
TAIL = 2**12  # bytes of what it printed that its last line is looked for in
PATIENCE = 120  # seconds that a checkpoint may take when the page is closed
MOST_MINUTES = 100_000


@dataclasses.dataclass(frozen=True)
class TrainingRequest:
    """What a person asked for; `pictures` and `upload` are paths or empty."""

    name: str
    pictures: str = ""
    upload: str = ""
    preset: str = "auto"
    minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """How far the training is, as the page shows it.

    Attributes:
        state: idle, running, stopping, stopped, failed or done.
        words: one line about it. stage: pictures, tokenizer, codes, generator, critic, or empty.
        share: of the whole, 0 to 1.
        losses: of the stage, oldest first. warnings: of all stages.
        sheets: those that are there, by their stage.
    """

    state: str = "idle"
    name: str = ""
    words: str = "nothing is being trained"
    stage: str = ""
    share: float = 0.0
    losses: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    sheets: tuple[tuple[str, Path], ...] = ()

    @property
    def active(self) -> bool:
        return self.state in ("running", "stopping")


class Trainer:
    """One training at a time, which writes a model to `folder`."""

    def __init__(self, folder: Path, *, device: str = "auto", dtype: str = "auto"):
        self.folder, self.device, self.dtype = folder.expanduser().absolute(), device, dtype
        self.request: TrainingRequest | None = None
        self.process: subprocess.Popen | None = None
        self.started = 0.0
        self.stopping = False
        self.lock = threading.Lock()

    def out(self, name: str) -> Path:
        """The directory of a model of that name.

        Raises:
            ValueError: the name cannot be a model's.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", name) or name.endswith(".training"):
            raise ValueError(
                "the model's name must be of letters, digits, dots, dashes and underscores, at most 60, and begin "
                f"with a letter or digit; got `{name}`"
            )
        return self.folder / name

    def start(self, request: TrainingRequest) -> None:
        """Begin a training, or go on with the one of that name.

        Raises:
            ValueError: what was asked for cannot be trained, the name is taken, or nothing can be written there.
        """
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                raise ValueError(
                    f"`{self.request.name if self.request else ''}` is being trained: stop it first, or wait"
                )
            out = self.out(request.name)
            if not 0 < request.minutes <= MOST_MINUTES:
                raise ValueError(f"minutes must be more than 0 and at most {MOST_MINUTES:,}, got {request.minutes:g}")
            if request.preset not in ("auto", *PRESETS):
                raise ValueError(f"preset must be auto, {' or '.join(PRESETS)}, got `{request.preset}`")
            try:
                pictures = self._pictures(request, out)
                printed = (working_directory(out) / PRINTED).open("wb")
            except OSError as error:
                raise ValueError(f"`{self.folder}` cannot be written to ({error.strerror or error})") from error
            self.started = time.time()
            with printed:
                self.process = subprocess.Popen(
                    self._command(request, pictures, out),
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    # A file called `random.py` in the current folder must not stand in for Python's own.
                    env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"},
                    start_new_session=True,  # Ctrl-C is for the page, which then stops it
                )
            self.request, self.stopping = request, False

    def stop(self) -> None:
        """Ask it to write a checkpoint and to end."""
        if self.process is None or self.process.poll() is not None:
            raise ValueError("nothing is being trained")
        self.stopping = True
        self.process.terminate()

    def close(self) -> None:
        """Stop it, if it runs, and wait until it has ended."""
        if self.process is None or self.process.poll() is not None:
            return
        self.stop()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def snapshot(self) -> Snapshot:
        """How far it is at this moment."""
        if self.request is None or self.process is None:
            return Snapshot()
        code = self.process.poll()
        work = working_directory(self.folder / self.request.name)
        status = read_status(work / STATUS)
        current = status if status and status.started >= self.started else Status()  # not of an earlier training
        state = ("stopping" if self.stopping else "running") if code is None else _ending(code, current)
        stage, share, left = _progress(current, _budgets(self.request))
        stage = "generator" if state == "done" else stage or _last_stage(work)
        losses = read_log(work / stage / "log.jsonl").series("loss")[1] if stage in STAGES else []
        loss = [f"loss {losses[-1]:.3f}"] if losses else []
        time_left = [f"about {in_words(left)} left"] if left else []
        words = {
            "running": " · ".join([_activity(current), *loss, *time_left]),
            "stopping": "stopping: a checkpoint is being written",
            "stopped": "stopped: Start goes on from there",
            "done": f"trained: {self.request.name}",
        }
        return Snapshot(
            state,
            self.request.name,
            words.get(state) or _fault(code or 0, current, work / PRINTED),
            stage,
            1.0 if state == "done" else share,
            tuple(losses),
            status.warnings if status else tuple(_logged_warnings(work)),
            tuple(_sheets(work)),
        )

    def _command(self, request: TrainingRequest, pictures: Path, out: Path) -> list[str]:
        command = [sys.executable, "-m", "maskimg", "train", str(pictures), "--out", str(out)]
        command += ["--preset", request.preset, "--minutes", f"{request.minutes:g}"]
        return [*command, "--device", self.device, "--dtype", self.dtype]

    def _pictures(self, request: TrainingRequest, out: Path) -> Path:
        """What to train on; noted in MODEL.training, so that the name stays with these pictures."""
        work = working_directory(out)
        before = _begun(work)
        if request.pictures and request.upload:
            raise ValueError("give a folder or an upload, not both")
        if not request.pictures and not request.upload:
            if "pictures" not in before:
                raise ValueError("there are no pictures: type the path of a folder, or upload a .zip of them")
            return Path(before["pictures"])

        if request.upload:
            pictures = work / UPLOADS / Path(request.upload).name
            mark = files.checksum(Path(request.upload))
        else:
            pictures = Path(request.pictures).expanduser().absolute()
            mark = hashlib.sha256(os.fsencode(pictures.resolve())).hexdigest()
        if before.get("mark") != mark and (out.exists() or (work / "tokenizer").exists()):
            raise ValueError(
                f"the name `{request.name}` is taken by another model, or by other pictures: choose a new one"
            )
        try:
            require_training(list_pictures(request.upload or pictures, leave_out=(out, work)))
        except DataError as error:
            raise DataError(str(error).replace(request.upload or "\0", Path(request.upload).name)) from error
        work.mkdir(parents=True, exist_ok=True)
        if request.upload:
            pictures.parent.mkdir(exist_ok=True)
            shutil.copyfile(request.upload, pictures)
        files.write_json(work / BEGUN, {"pictures": str(pictures), "mark": mark})
        return pictures


def _begun(work: Path) -> dict[str, Any]:
    try:
        return files.read_json(work / BEGUN)
    except ModelError:
        return {}


def _budgets(request: TrainingRequest) -> dict[str, float]:
    """Seconds of each stage, as `maskimg train` shares them out."""
    plan = plan_for(1, 1, preset=request.preset, minutes=request.minutes)
    budgets = (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)
    return {stage: 60 * (budget.minutes or 0.0) for stage, budget in zip(STAGES, budgets, strict=True)}


def _progress(status: Status, budgets: dict[str, float]) -> tuple[str, float, float]:
    """The stage, the share of the whole that is done, and the seconds that are left, 0 if that is not known."""
    whole = sum(budgets.values())
    if status.activity in budgets:
        place = STAGES.index(status.activity)
        budget = budgets[status.activity]
        left = (1 - status.share) * budget if status.seconds_left is None else min(status.seconds_left, budget)
        left += sum(budgets[later] for later in STAGES[place + 1 :])
        return status.stage, 1 - left / whole, left
    return status.stage, budgets["tokenizer"] / whole if status.stage == "codes" else 0.0, 0.0


def _activity(status: Status) -> str:
    """What it is doing, in a few words."""
    if status.activity in STAGES:
        return f"{status.activity}, step {status.step:,}" if status.share < 1 else f"{status.activity}, finishing"
    return f"{status.activity}, {status.share:.0%}".replace("%", " %") if status.activity else "starting"


def _ending(code: int, status: Status) -> str:
    if code == 0:
        return "done" if status.state == "done" else "stopped"
    return "stopped" if code in (-signal.SIGTERM, 130) else "failed"  # before it could listen; by a second Ctrl-C


def _fault(code: int, status: Status, printed: Path) -> str:
    """Why it ended, in a sentence: its own, if it said one."""
    if status.message:
        return status.message
    last = _last_line(printed)
    if last.startswith("maskimg: "):  # it was refused before it began
        return last.removeprefix("maskimg: ")
    if code == -9:
        return (
            "the training was killed, as systems do that run out of memory: give it a smaller preset, then Start again"
        )
    return f"the training ended unexpectedly (exit code {code}): what it said last is in `{printed}`"


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _last_stage(work: Path) -> str:
    """The last stage that has logged anything: what is known of a training without a status."""
    return next((stage for stage in reversed(STAGES) if (work / stage / "log.jsonl").is_file()), "")


def _logged_warnings(work: Path) -> list[str]:
    logs = [read_log(work / stage / "log.jsonl") for stage in STAGES]
    return without_repetitions([str(line["warning"]) for log in logs for line in log.lines if "warning" in line])


def _sheets(work: Path) -> list[tuple[str, Path]]:
    found = [
        ("tokenizer", work / "tokenizer" / "reconstructions.png"),
        ("generator", work / "generator" / "samples.png"),
    ]
    return [(stage, path) for stage, path in found if path.is_file()]
