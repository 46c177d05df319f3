"""Drawing as the page shows it: a status line, now and then a token panel, in the end pictures and a replay.

Shapes: b images, h w tokens of the model's grid, H W tokens of the canvas.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.drawing.request import Request
from maskimg.drawing.runner import Progress
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import tokens
from maskimg_apps.demo.board import VIEWS, Board, completed, layers_of, nearest
from maskimg_apps.demo.replay import Recorder, Reel, replay, step_in_words
from maskimg_apps.demo.runs import file_name, fresh_folder

SHARE = 0.05  # of the time that a run has taken so far, for token panels; the first one is free
EVERY = 0.25  # seconds between two status lines: each costs the page's way to the browser


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the page shows now: no panel means the one before; pictures (b) and reel are there at the end only."""

    status: str
    panel: str | None = None
    pictures: list[Image.Image] | None = None
    reel: Reel | None = None


class Purse:
    """What token panels may cost: a share of the time so far, the next one reckoned as dear as the last."""

    def __init__(self, share: float):
        self.share, self.begun = share, time.perf_counter()
        self.spent = self.last = 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    def allows(self) -> bool:
        return self.share > 0 and self.spent + self.last <= self.share * self.elapsed

    @contextlib.contextmanager
    def paid(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.last = time.perf_counter() - begun
        self.spent += self.last


class Screen:
    """The token panel of a run: a tile for each picture.

    Attributes:
        masked: (b, H, W) bool, what was still to be drawn when the panel was shown last.
        unknown: tokens of the first picture that the whole run draws.
    """

    def __init__(self, pipeline: Pipeline, request: Request, edit: Edit, *, hatch: str, view: str):
        self.pipeline, self.request, self.hatch, self.view = pipeline, request, hatch, view
        b = len(request.seeds)
        self.board = Board(edit, pipeline.stride, b)
        self.masked = self.begun = self.board.masked.repeat(b // len(self.board.masked), 0)
        self.unknown = int(self.masked[0].sum())

    def empty(self) -> str:
        """Before the first step."""
        return self._panel(self.board.before(), self.masked, "nothing is drawn yet", {})

    def show(self, progress: Progress) -> str:
        """After a step."""
        now = progress.masked.cpu().numpy()
        pictures, scores = self._seen(progress)
        words = step_in_words(progress, int(now[0].sum()), self.unknown)
        shown = self._panel(pictures, now, words, scores)
        self.masked = now
        return shown

    def begin_candidate(self) -> None:
        """What another candidate has drawn is to be drawn again."""
        self.masked = self.begun

    def settle(self, progress: Progress) -> None:
        """A place is finished."""
        self.board.settle(progress.place, progress.part)
        self.masked = self.begun = progress.masked.cpu().numpy()

    def _seen(self, progress: Progress) -> tuple[list[Image.Image], dict[str, list[np.ndarray]]]:
        """The pictures (b) after a step, and the scores that the view shows."""
        pipeline, request, board = self.pipeline, self.request, self.board
        if self.view == VIEWS[0]:
            return board.pictures(pipeline, progress.place, nearest(pipeline, progress.part)), {}
        part, scores = completed(pipeline, request, progress.part, progress.scores)
        layers = layers_of(pipeline, request, board, progress.place, part, scores, [self.view])
        return board.pictures(pipeline, progress.place, part), layers

    def _panel(
        self, pictures: Sequence[Image.Image] | None, now: np.ndarray, words: str, scores: dict[str, list[np.ndarray]]
    ) -> str:
        tiles = [
            tokens.tile(
                pictures[i] if pictures else None,
                self.board.box,
                veiled=now[i],
                fresh=self.masked[i] & ~now[i],
                caption=f"seed {seed}",
                hatch=self.hatch,
                **{name: values[i] for name, values in scores.items()},
            )
            for i, seed in enumerate(self.request.seeds)
        ]
        return tokens.panel(tiles, words, live=True, hatch=self.hatch)


def draw(
    pipeline: Pipeline,
    request: Request,
    edit: Edit | None = None,
    *,
    hatch: str = "maskimg-hatch",
    view: str = VIEWS[0],
    share: float | None = None,
) -> Iterator[Moment]:
    """Draw and yield what to show while that lasts; the last moment has the pictures and how the first was drawn.

    Args:
        edit: what is given; nothing if left out.
        view: one of VIEWS; the scores cost forward passes, so that with these fewer panels are shown.
        share: of the run's time, for token panels; SHARE if left out, and 0 shows none.
    """
    edit = edit or edits.generation(pipeline)
    screen, recorder = Screen(pipeline, request, edit, hatch=hatch, view=view), Recorder()
    began_with = Board(edit, pipeline.stride, 1)
    yield Moment(tokens.status("starting", running=True), screen.empty())

    purse = Purse(SHARE if share is None else share)
    progress, shown_at = None, time.perf_counter()
    for progress in pipeline.steps(edit, request):
        if progress.step == 1 and not progress.chosen:
            screen.begin_candidate()
        recorder.add(progress)
        if progress.chosen:
            screen.settle(progress)
            continue
        status = tokens.status(_status(request, edit, progress, purse.elapsed), progress.share, running=True)
        if progress.share < 1 and purse.allows():  # after the last step the pictures themselves are next
            with purse.paid():
                yield Moment(status, screen.show(progress))
            shown_at = time.perf_counter()
        elif purse.share and time.perf_counter() - shown_at > EVERY:
            yield Moment(status)
            shown_at = time.perf_counter()
    assert progress is not None  # an edit that leaves nothing to draw is refused

    pictures = edit.finish(pipeline.decode(progress.codes))
    b = len(pictures)
    done = f"{b} {'picture' if b == 1 else 'pictures'} in {purse.elapsed:.1f} s"
    reel = Reel(request, began_with, recorder.kept())
    yield Moment(tokens.status(done, 1), replay(reel, pictures[0], hatch=hatch), pictures, reel)


def save(
    pipeline: Pipeline, request: Request, pictures: Sequence[Image.Image], folder: str | Path, edit: Edit | None = None
) -> list[tuple[str, str]]:
    """Write PNGs with their recipes under `folder` -> (path, caption) for the gallery."""
    directory = fresh_folder(folder)
    saved = []
    for seed, picture in zip(request.seeds, pictures, strict=True):
        path = directory / f"{file_name(pipeline)}-{seed}.png"
        write_png(picture, pipeline.recipe_for(request, seed, edit), path)
        saved.append((str(path), f"seed {seed}"))
    return saved


def _status(request: Request, edit: Edit, progress: Progress, elapsed: float) -> str:
    words = [f"place {progress.place + 1}/{len(edit.places)}"] if len(edit.places) > 1 else []
    words += [f"candidate {progress.candidate + 1}/{request.best_of}"] if request.best_of > 1 else []
    words += [f"step {progress.step}/{progress.steps}", f"{elapsed:.1f} s"]
    return " · ".join([*words, f"~{elapsed * (1 - progress.share) / progress.share:.1f} s left"])
