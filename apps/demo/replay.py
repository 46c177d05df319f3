"""How a picture was drawn: kept as codes while it is drawn, shown as frames and as an animation when somebody asks.

Shapes: h w tokens of the model's grid, H W tokens of the canvas.
"""

import copy
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from maskimg.drawing.request import Request
from maskimg.drawing.runner import Progress
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import tokens
from maskimg_apps.demo.board import VIEWS, Board, completed, layers_of, nearest
from maskimg_apps.demo.runs import file_name, fresh_folder
from vqgan.colour import to_rgb8
from vqgan.writing import atomic_file

MAX_FRAMES = 32  # of a replay
FRAME_SECONDS, LAST_SECONDS = 0.25, 1.5  # of an animation
ANIMATED = 256  # its smallest side in pixels
GREY = (176, 180, 190)


@dataclasses.dataclass(frozen=True, eq=False)
class Reel:
    """How the first picture was drawn: its own states, a few kB each, and the board that it began with.

    A state that is `chosen` is no step: its `part` stays at its place.
    """

    request: Request
    board: Board
    states: tuple[Progress, ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """A step of a replay.

    Attributes:
        picture: at most `tokens.MAX_SIDE` pixels a side; it fills `box` of the canvas.
        masked, fresh: (H, W) bool, still to be drawn, and drawn since the frame before.
        confidence, critic: (H, W) on [0, 1], NaN where unknown; `critic` is how much it believes each token.
    """

    words: str
    picture: Image.Image
    box: tokens.Box
    masked: np.ndarray
    fresh: np.ndarray
    confidence: np.ndarray | None = None
    critic: np.ndarray | None = None


class Recorder:
    """The states of the first picture, as they come: of each place those of the candidate that was chosen."""

    def __init__(self):
        self.states: list[Progress] = []
        self.candidates: list[list[Progress]] = []  # of the place where the grid is

    def add(self, progress: Progress) -> None:
        state = first_picture(progress)
        if progress.chosen:
            chosen = next(each for each in self.candidates if bool((each[-1].part == state.part).all()))
            self.states, self.candidates = [*self.states, *chosen, state], []
            return
        if progress.candidate == len(self.candidates):
            self.candidates.append([])
        self.candidates[-1].append(state)

    def kept(self) -> tuple[Progress, ...]:
        """At most MAX_FRAMES steps, evenly spread, and all places; off the accelerator."""
        steps = [i for i, state in enumerate(self.states) if not state.chosen]
        kept = {steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(MAX_FRAMES, len(steps)))}
        return tuple(
            dataclasses.replace(state, part=state.part.cpu(), scores=state.scores.cpu(), masked=state.masked.cpu())
            for i, state in enumerate(self.states)
            if state.chosen or i in kept
        )


def first_picture(progress: Progress) -> Progress:
    """The state of the first picture alone, without the canvas's codes.

    Copies, not views, which would keep all pictures' tensors.
    """
    part, scores, masked = (each[:1].clone() for each in (progress.part, progress.scores, progress.masked))
    return dataclasses.replace(progress, part=part, scores=scores, masked=masked, codes=progress.codes.new_empty(0))


def replay(reel: Reel, picture: Image.Image, *, hatch: str = "maskimg-hatch") -> str:
    """The finished picture over a slider; the page asks for `frames` when somebody comes near."""
    count = sum(not state.chosen for state in reel.states)
    unknown = int(reel.board.masked[0].sum())
    last = next(state for state in reversed(reel.states) if not state.chosen)
    tile = tokens.tile(thumbnail(picture), reel.board.box)
    title = f"How seed {reel.request.seeds[0]} was drawn"
    return tokens.replay(tile, count, step_in_words(last, 0, unknown), title, hatch=hatch)


def frames(pipeline: Pipeline, reel: Reel, *, scored: bool = True) -> list[Frame]:
    """The steps of a reel as pictures.

    Args:
        scored: with what network and critic believe, a forward pass of each for a frame.
    """
    board, request = copy.deepcopy(reel.board), reel.request
    before = board.masked[0]  # (H, W), of the frame before
    unknown, found = int(before.sum()), []
    for state in reel.states:
        now = state.masked[0].numpy()
        if state.chosen:
            board.settle(state.place, state.part)
            before = now
            continue
        part, scores = state.part, state.scores
        part, scores = completed(pipeline, request, part, scores) if scored else (nearest(pipeline, part), scores)
        picture = thumbnail(board.pictures(pipeline, state.place, part)[0])
        layers = layers_of(pipeline, request, board, state.place, part, scores, VIEWS) if scored else {}
        layers = {name: values[0] for name, values in layers.items()}
        words = step_in_words(state, int(now.sum()), unknown)
        found.append(Frame(words, picture, board.box, now, before & ~now, **layers))
        before = now
    return found


def show_frames(shown: Sequence[Frame], *, hatch: str = "maskimg-hatch") -> str:
    """What goes over the slider of a replay."""
    tiles = [
        tokens.tile(
            frame.picture,
            frame.box,
            veiled=frame.masked,
            fresh=frame.fresh,
            confidence=frame.confidence,
            critic=frame.critic,
            hatch=hatch,
        )
        for frame in shown
    ]
    return tokens.frames(tiles, [frame.words for frame in shown])


def animate(shown: Sequence[Frame]) -> bytes:
    """The frames as an animated WebP, what is still masked in grey."""
    pictures = []
    for frame in shown:
        scale = max(1, -(-ANIMATED // min(frame.picture.size)))
        size = frame.picture.width * scale, frame.picture.height * scale
        veil = Image.fromarray((frame.masked * 200).astype(np.uint8)).resize(size, Image.Resampling.NEAREST, frame.box)
        pictures.append(
            Image.composite(Image.new("RGB", size, GREY), frame.picture.resize(size, Image.Resampling.NEAREST), veil)
        )
    file = io.BytesIO()
    spans = [round(1000 * FRAME_SECONDS)] * (len(pictures) - 1) + [round(1000 * LAST_SECONDS)]
    pictures[0].save(
        file, format="WEBP", save_all=True, append_images=pictures[1:], duration=spans, loop=0, quality=85, method=1
    )
    return file.getvalue()


def save_animation(pipeline: Pipeline, reel: Reel, folder: str | Path) -> str:
    """Write how the first picture was drawn as an animation under `folder` -> its path."""
    path = fresh_folder(folder) / f"{file_name(pipeline)}-{reel.request.seeds[0]}.webp"
    with atomic_file(path) as temporary:
        temporary.write_bytes(animate(frames(pipeline, reel, scored=False)))
    return str(path)


def step_in_words(at: Progress, left: int, unknown: int) -> str:
    return f"step {at.step} of {at.steps}, {unknown - left} of {unknown} tokens fixed"


def thumbnail(picture: Image.Image) -> Image.Image:
    smaller = to_rgb8(picture)
    smaller.thumbnail((tokens.MAX_SIDE, tokens.MAX_SIDE))
    return smaller
