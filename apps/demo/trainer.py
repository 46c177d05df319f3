"""The training that the page runs: `maskimg train` in a process of its own, which outlives a reload of the page.

What is shown of it is read from what it prints and from MODEL.training, as a person at a terminal would.
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
from pathlib import Path
from typing import Any

from maskimg.data.listing import require_training
from maskimg.data.pictures import list_pictures
from maskimg.data.sources import DataError
from maskimg.training.folder import PRESETS, plan_for, working_directory
from maskimg.training.tracking.logs import read_log
from maskimg.training.tracking.view import in_words
from vqgan import files
from vqgan.files import ModelError

BEGUN, PRINTED, UPLOADS = "begun.json", "printed.txt", "upload"  # in MODEL.training
STAGES = ("tokenizer", "generator", "critic")
# What else is counted on the way, and the stage it belongs to.
PHASES = {"reading pictures": "pictures", "classifier": "tokenizer", "encoding": "codes", "reading captions": "codes"}
STEP = re.compile(
    r"(\w+) step (\d+), ([\d.]+)/s, ([\d.]+) min left"
)  # as `maskimg.training.tracking.view.Line` writes it
SHARE = re.compile(r"([a-z ]+):\s+(\d+)%\|")  # as tqdm does
TAIL = 2**13  # bytes of what it printed that are looked at
PATIENCE = 120  # seconds that a checkpoint may take when the page is closed
MOST_MINUTES = 100_000


@dataclasses.dataclass(frozen=True)
class Order:
    """What a person asked for; `pictures` and `upload` are paths or empty."""

    name: str
    pictures: str = ""
    upload: str = ""
    preset: str = "auto"
    minutes: float = 10.0


@dataclasses.dataclass(frozen=True)
class Look:
    """How far the training is.

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
        self.order: Order | None = None
        self.process: subprocess.Popen | None = None
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

    def start(self, order: Order) -> None:
        """Begin a training, or go on with the one of that name.

        Raises:
            ValueError: what was asked for cannot be trained, the name is taken, or nothing can be written there.
        """
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                raise ValueError(f"`{self.order.name if self.order else ''}` is being trained: stop it first, or wait")
            out = self.out(order.name)
            if not 0 < order.minutes <= MOST_MINUTES:
                raise ValueError(f"minutes must be more than 0 and at most {MOST_MINUTES:,}, got {order.minutes:g}")
            if order.preset not in ("auto", *PRESETS):
                raise ValueError(f"preset must be auto, {' or '.join(PRESETS)}, got `{order.preset}`")
            try:
                pictures = self._pictures(order, out)
                printed = (working_directory(out) / PRINTED).open("wb")
            except OSError as error:
                raise ValueError(f"`{self.folder}` cannot be written to ({error.strerror or error})") from error
            with printed:
                self.process = subprocess.Popen(
                    self._command(order, pictures, out),
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    # A file called `random.py` in the current folder must not stand in for Python's own.
                    env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"},
                    start_new_session=True,  # Ctrl-C is for the page, which then stops it
                )
            self.order, self.stopping = order, False

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

    def look(self) -> Look:
        if self.order is None or self.process is None:
            return Look()
        code = self.process.poll()
        work = working_directory(self.folder / self.order.name)
        lines = _last_lines(work / PRINTED)
        state = ("stopping" if self.stopping else "running") if code is None else _ending(code, lines)
        stage, share, left = _progress(lines, _budgets(self.order))
        stage = "generator" if state == "done" else stage
        losses = read_log(work / stage / "log.jsonl").series("loss")[1] if stage in STAGES else []
        loss = [f"loss {losses[-1]:.3f}"] if losses else []
        time_left = [f"about {in_words(left)} left"] if left else []
        words = {
            "running": " · ".join([_now(lines), *loss, *time_left]),
            "stopping": "stopping: a checkpoint is being written",
            "stopped": "stopped: Start goes on from there",
            "done": f"trained: {self.order.name}",
        }
        return Look(
            state,
            self.order.name,
            words.get(state) or _fault(code or 0, lines, work / PRINTED),
            stage,
            1.0 if state == "done" else share,
            tuple(losses),
            tuple(_warnings(work)),
            tuple(_sheets(work)),
        )

    def _command(self, order: Order, pictures: Path, out: Path) -> list[str]:
        command = [sys.executable, "-m", "maskimg", "train", str(pictures), "--out", str(out)]
        command += ["--preset", order.preset, "--minutes", f"{order.minutes:g}"]
        return [*command, "--device", self.device, "--dtype", self.dtype]

    def _pictures(self, order: Order, out: Path) -> Path:
        """What to train on; noted in MODEL.training, so that the name stays with these pictures."""
        work = working_directory(out)
        before = _begun(work)
        if order.pictures and order.upload:
            raise ValueError("give a folder or an upload, not both")
        if not order.pictures and not order.upload:
            if "pictures" not in before:
                raise ValueError("there are no pictures: type the path of a folder, or upload a .zip of them")
            return Path(before["pictures"])

        if order.upload:
            pictures = work / UPLOADS / Path(order.upload).name
            mark = files.checksum(Path(order.upload))
        else:
            pictures = Path(order.pictures).expanduser().absolute()
            mark = hashlib.sha256(os.fsencode(pictures.resolve())).hexdigest()
        if before.get("mark") != mark and (out.exists() or (work / "tokenizer").exists()):
            raise ValueError(
                f"the name `{order.name}` is taken by another model, or by other pictures: choose a new one"
            )
        try:
            require_training(list_pictures(order.upload or pictures, leave_out=(out, work)))
        except DataError as error:
            raise DataError(str(error).replace(order.upload or "\0", Path(order.upload).name)) from error
        work.mkdir(parents=True, exist_ok=True)
        if order.upload:
            pictures.parent.mkdir(exist_ok=True)
            shutil.copyfile(order.upload, pictures)
        files.write_json(work / BEGUN, {"pictures": str(pictures), "mark": mark})
        return pictures


def _begun(work: Path) -> dict[str, Any]:
    try:
        return files.read_json(work / BEGUN)
    except ModelError:
        return {}


def _last_lines(path: Path) -> list[str]:
    """The end of what was printed, a line for each time that a bar was drawn."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _budgets(order: Order) -> dict[str, float]:
    """Seconds of each stage, as `maskimg train` shares them out."""
    plan = plan_for(1, 1, preset=order.preset, minutes=order.minutes)
    budgets = (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)
    return {stage: 60 * (budget.minutes or 0.0) for stage, budget in zip(STAGES, budgets, strict=True)}


def _progress(lines: list[str], budgets: dict[str, float]) -> tuple[str, float, float]:
    """The stage, the share of the whole that is done, and the seconds that are left, 0 if that is not known."""
    whole = sum(budgets.values())
    for line in reversed(lines):
        if (step := STEP.search(line)) and step[1] in budgets:
            place = STAGES.index(step[1])
            left = min(60 * float(step[4]), budgets[step[1]]) + sum(budgets[later] for later in STAGES[place + 1 :])
            return step[1], 1 - left / whole, left
        if (share := SHARE.search(line)) and share[1].strip() in PHASES:
            stage = PHASES[share[1].strip()]
            return stage, budgets["tokenizer"] / whole if stage == "codes" else 0.0, 0.0
    return "", 0.0, 0.0


def _now(lines: list[str]) -> str:
    """What it is doing, in a few words."""
    for line in reversed(lines):
        if step := STEP.search(line):
            return f"{step[1]}, step {int(step[2]):,}" if float(step[4]) else f"{step[1]}, finishing"
        if (share := SHARE.search(line)) and share[1].strip() in PHASES:
            return f"{share[1].strip()}, {share[2]} %"
    return "starting"


def _ending(code: int, lines: list[str]) -> str:
    if code == 0:
        return "done" if any(line.startswith("done: ") for line in lines) else "stopped"
    return "stopped" if code in (-signal.SIGTERM, 130) else "failed"  # before it could listen; by a second Ctrl-C


def _fault(code: int, lines: list[str], printed: Path) -> str:
    """Why it ended, in a sentence: its own, if it said one."""
    if lines and lines[-1].startswith("maskimg: "):
        return lines[-1].removeprefix("maskimg: ")
    if code == -9:
        return (
            "the training was killed, as systems do that run out of memory: give it a smaller preset, then Start again"
        )
    return f"the training ended unexpectedly (exit code {code}): what it said last is in `{printed}`"


def _warnings(work: Path) -> list[str]:
    """Those that the stages have logged; of those that differ in their figures only, the last."""
    logs = [read_log(work / stage / "log.jsonl") for stage in STAGES]
    found = [str(line["warning"]) for log in logs for line in log.lines if "warning" in line]
    return list({re.sub(r"[\d.,]+", "", warning.partition(":")[0]): warning for warning in found}.values())


def _sheets(work: Path) -> list[tuple[str, Path]]:
    found = [
        ("tokenizer", work / "tokenizer" / "reconstructions.png"),
        ("generator", work / "generator" / "samples.png"),
    ]
    return [(stage, path) for stage, path in found if path.is_file()]
