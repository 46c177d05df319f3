"""Drawing as the page shows it: a status line, now and then a token panel, in the end pictures and a replay.

Shapes: b images, h w tokens of the model's grid, H W tokens of the canvas.
"""

import contextlib
import copy
import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit, Progress
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import tokens
from maskimg_apps.demo.runs import Order, file_name, fresh_folder
from vqgan.colour import to_rgb8
from vqgan.images import to_pil
from vqgan.writing import atomic_file

SHARE = 0.05  # of the time that a run has taken so far, for token panels; the first one is free
EVERY = 0.25  # seconds between two status lines: each costs the page's way to the browser
MAX_FRAMES = 32  # of a replay
FRAME_SECONDS, LAST_SECONDS = 0.25, 1.5  # of an animation
ANIMATED = 256  # its smallest side in pixels
GREY = (176, 180, 190)
VIEWS = ("Tokens", "Confidence", "Critic")


@dataclasses.dataclass(frozen=True)
class Shot:
    """The first picture after a step, as codes: a few kB, of which a frame of the replay is made if somebody asks.

    Attributes:
        part, scores, masked: (h, w) of the grid at its place; MASK where nothing is drawn yet.
        chosen: no step: `part` stays at its place.
    """

    step: int
    steps: int
    place: int
    part: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor
    chosen: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Reel:
    """How the first picture was drawn, on the board that it began with."""

    order: Order
    board: "Board"
    shots: tuple[Shot, ...]


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


class Board:
    """The pictures of a run as they are while it lasts: at the model's scale, the grid's place decoded."""

    def __init__(self, edit: Edit, stride: int, b: int):
        self.stride, self.places, self.grid = stride, edit.places, edit.grid
        self.masked = edit.masked.cpu().numpy()  # at the beginning
        # Not the hole itself: a reel would keep the picture at its full size.
        self.canvases = [edit.hole.canvas.copy() for _ in range(b)] if edit.hole else None
        self.cells = edit.hole.tokens[0].cpu().numpy() if edit.hole else self.masked[0]
        H, W = edit.codes.shape[1:]
        self.seen = edit.hole.box if edit.hole else edit.box or (0, 0, W * stride, H * stride)
        left, top, right, bottom = (side / stride for side in self.seen)
        self.box: tokens.Box = (left, top, right, bottom)
        self.settled: list[tuple[int, torch.Tensor]] = []  # places that are done and not on the canvases yet

    def before(self) -> list[Image.Image] | None:
        """What is seen (b) before anything is drawn; None where that is nothing."""
        return [canvas.crop(self.seen) for canvas in self.canvases] if self.canvases else None

    def settle(self, place: int, part: torch.Tensor) -> None:
        """Codes (b, h, w) that stay at their place; decoded when they are seen next."""
        self.settled.append((place, part))

    def look(self, pipeline: Pipeline, place: int, part: torch.Tensor) -> list[Image.Image]:
        """Complete codes (b, h, w) at a place -> what is seen of the pictures (b)."""
        if self.canvases is None:
            return [to_pil(image).crop(self.seen) for image in pipeline.decode(part)]
        for there, codes in self.settled:
            self._paste(pipeline, self.canvases, there, codes)
        self.settled = []
        canvases = [canvas.copy() for canvas in self.canvases]
        self._paste(pipeline, canvases, place, part)
        return [canvas.crop(self.seen) for canvas in canvases]

    def spread(self, place: int, scores: torch.Tensor) -> list[np.ndarray]:
        """Scores (b, h, w) of the model's grid -> of the whole canvas, NaN outside it and where codes were given."""
        whole = np.full((len(scores), *self.masked.shape[1:]), np.nan, np.float32)
        (top, left), (h, w) = self.places[place], self.grid
        whole[:, top : top + h, left : left + w] = scores.float().cpu().numpy()
        return list(np.where(self.masked[: len(scores)], whole, np.nan))

    def _paste(self, pipeline: Pipeline, canvases: list[Image.Image], place: int, part: torch.Tensor) -> None:
        (top, left), (h, w) = self.places[place], self.grid
        cells = self.cells[top : top + h, left : left + w]
        size = w * self.stride, h * self.stride
        cover = Image.fromarray((cells * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        for canvas, image in zip(canvases, pipeline.decode(part), strict=True):
            canvas.paste(to_pil(image), (left * self.stride, top * self.stride), cover)


def draw(
    pipeline: Pipeline,
    order: Order,
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
    b, stride = len(order.seeds), pipeline.tokenizer.stride
    board, began_with = Board(edit, stride, b), Board(edit, stride, 1)
    masked = before = board.masked.repeat(b // len(board.masked), 0)
    unknown = int(masked[0].sum())
    shots: list[Shot] = []
    candidates: list[list[Shot]] = []  # of the place where the grid is
    progress, told = None, time.perf_counter()

    def panel(pictures: Sequence[Image.Image] | None, now: np.ndarray, words: str, scores: dict[str, list]) -> str:
        tiles = [
            tokens.tile(
                pictures[i] if pictures else None,
                board.box,
                veiled=now[i],
                fresh=masked[i] & ~now[i],
                caption=f"seed {order.seeds[i]}",
                hatch=hatch,
                **{name: values[i] for name, values in scores.items()},
            )
            for i in range(b)
        ]
        return tokens.panel(tiles, words, live=True, hatch=hatch)

    shown = panel(board.before(), masked, "nothing is drawn yet", {})
    yield Moment(tokens.status("starting", running=True), shown)

    purse = Purse(SHARE if share is None else share)
    options: dict[str, Any] = {"sampler": order.sampler, "best_of": order.best_of, "complete": False}
    for progress in edits.draw_steps(pipeline, edit, order.asked, order.seeds, **options):
        if progress.chosen:
            kept = [each for each in candidates if bool((each[-1].part == progress.part[0]).all())]
            shots, candidates = [*shots, *kept[0], _shot(edit, progress)], []
            board.settle(progress.place, progress.part)
            masked = before = progress.masked.cpu().numpy()
            continue
        if progress.candidate == len(candidates):
            candidates.append([])
            masked = before
        candidates[-1].append(_shot(edit, progress))
        status = tokens.status(_status(order, edit, progress, purse.elapsed), progress.share, running=True)
        if progress.share < 1 and purse.allows():  # after the last step the pictures themselves are next
            with purse.paid():
                now = progress.masked.cpu().numpy()
                pictures, scores = _look(pipeline, order, board, progress, view)
                shown = panel(pictures, now, _words(progress, int(now[0].sum()), unknown), scores)
                yield Moment(status, shown)
            masked, told = now, time.perf_counter()
        elif purse.share and time.perf_counter() - told > EVERY:
            yield Moment(status)
            told = time.perf_counter()
    if progress is None:
        raise ValueError("there is nothing to draw: no token is masked")

    pictures = edit.finish(pipeline.decode(progress.codes))
    done = f"{b} {'picture' if b == 1 else 'pictures'} in {purse.elapsed:.1f} s"
    reel = Reel(order, began_with, _fewer(shots))
    yield Moment(tokens.status(done, 1), replay(reel, pictures[0], hatch=hatch), pictures, reel)


def replay(reel: Reel, picture: Image.Image, *, hatch: str = "maskimg-hatch") -> str:
    """The finished picture over a slider; the page asks for `frames` when somebody comes near."""
    count = sum(not shot.chosen for shot in reel.shots)
    unknown = int(reel.board.masked[0].sum())
    last = next(shot for shot in reversed(reel.shots) if not shot.chosen)
    tile = tokens.tile(thumbnail(picture), reel.board.box)
    title = f"How seed {reel.order.seeds[0]} was drawn"
    return tokens.replay(tile, count, _words(last, 0, unknown), title, hatch=hatch)


def frames(pipeline: Pipeline, reel: Reel, *, scored: bool = True) -> list[Frame]:
    """The steps of a reel as pictures.

    Args:
        scored: with what network and critic believe, a forward pass of each for a frame.
    """
    board, order = copy.deepcopy(reel.board), reel.order
    before = standing = board.masked[0]  # (H, W), of the frame before, and where no place has been finished
    unknown, found = int(standing.sum()), []
    for shot in reel.shots:
        (top, left), (h, w) = board.places[shot.place], board.grid
        now = standing.copy()
        now[top : top + h, left : left + w] = shot.masked.cpu().numpy()
        if shot.chosen:
            board.settle(shot.place, shot.part[None])
            before = standing = now
            continue
        part, scores = shot.part[None], shot.scores[None]
        part, scores = _completed(pipeline, order, part, scores) if scored else (_nearest(pipeline, part), scores)
        picture = thumbnail(board.look(pipeline, shot.place, part)[0])
        layers = _scores(pipeline, order, board, shot.place, part, scores, VIEWS) if scored else {}
        layers = {name: values[0] for name, values in layers.items()}
        found.append(Frame(_words(shot, int(now.sum()), unknown), picture, board.box, now, before & ~now, **layers))
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


def save(
    pipeline: Pipeline, order: Order, pictures: Sequence[Image.Image], folder: str | Path, edit: Edit | None = None
) -> list[tuple[str, str]]:
    """Write PNGs with their recipes under `folder` -> (path, caption) for the gallery."""
    directory = fresh_folder(folder)
    saved = []
    for seed, picture in zip(order.seeds, pictures, strict=True):
        path = directory / f"{file_name(pipeline)}-{seed}.png"
        write_png(picture, recipe_of(pipeline, order, seed, edit), path)
        saved.append((str(path), f"seed {seed}"))
    return saved


def save_animation(pipeline: Pipeline, reel: Reel, folder: str | Path) -> str:
    """Write how the first picture was drawn as an animation under `folder` -> its path."""
    path = fresh_folder(folder) / f"{file_name(pipeline)}-{reel.order.seeds[0]}.webp"
    with atomic_file(path) as temporary:
        temporary.write_bytes(animate(frames(pipeline, reel, scored=False)))
    return str(path)


def recipe_of(pipeline: Pipeline, order: Order, seed: int, edit: Edit | None) -> dict:
    """What the PNG of a seed holds, as `Pipeline.edit` writes it."""
    recipe = pipeline.recipe_for(
        order.asked, seed, order.sampler, task=edit.task if edit else "generate", best_of=order.best_of
    )
    return recipe | edit.numbers if edit else recipe


def _status(order: Order, edit: Edit, progress: Progress, elapsed: float) -> str:
    words = [f"place {progress.place + 1}/{len(edit.places)}"] if len(edit.places) > 1 else []
    words += [f"candidate {progress.candidate + 1}/{order.best_of}"] if order.best_of > 1 else []
    words += [f"step {progress.step}/{progress.steps}", f"{elapsed:.1f} s"]
    return " · ".join([*words, f"~{elapsed * (1 - progress.share) / progress.share:.1f} s left"])


def _words(at: Progress | Shot, left: int, unknown: int) -> str:
    return f"step {at.step} of {at.steps}, {unknown - left} of {unknown} tokens fixed"


def _shot(edit: Edit, progress: Progress) -> Shot:
    (top, left), (h, w) = edit.places[progress.place], edit.grid
    masked = progress.masked[0, top : top + h, left : left + w].clone()
    part, scores = progress.part[0].clone(), progress.scores[0].clone()  # not views, which would keep all pictures'
    return Shot(progress.step, progress.steps, progress.place, part, scores, masked, progress.chosen)


def _fewer(shots: Sequence[Shot]) -> tuple[Shot, ...]:
    """At most MAX_FRAMES steps, evenly spread, and all places; off the accelerator."""
    steps = [i for i, shot in enumerate(shots) if not shot.chosen]
    kept = {steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(MAX_FRAMES, len(steps)))}
    return tuple(
        dataclasses.replace(shot, part=shot.part.cpu(), scores=shot.scores.cpu(), masked=shot.masked.cpu())
        for i, shot in enumerate(shots)
        if shot.chosen or i in kept
    )


def _look(
    pipeline: Pipeline, order: Order, board: Board, progress: Progress, view: str
) -> tuple[list[Image.Image], dict[str, list[np.ndarray]]]:
    """The pictures (b) after a step, and the scores that the view shows."""
    if view == VIEWS[0]:
        return board.look(pipeline, progress.place, _nearest(pipeline, progress.part)), {}
    part, scores = _completed(pipeline, order, progress.part, progress.scores)
    layers = _scores(pipeline, order, board, progress.place, part, scores, [view])
    return board.look(pipeline, progress.place, part), layers


def _scores(
    pipeline: Pipeline,
    order: Order,
    board: Board,
    place: int,
    part: torch.Tensor,
    scores: torch.Tensor,
    views: Sequence[str],
) -> dict[str, list[np.ndarray]]:
    """What the views of scores show of complete codes (b, h, w)."""
    found = {}
    if "Confidence" in views and order.sampler.order != "critic":  # whose scores are the critic's
        found["confidence"] = board.spread(place, scores.float().exp())
    if pipeline.generator.has_critic and ("Critic" in views or order.sampler.order == "critic"):
        found["critic"] = board.spread(place, (-pipeline.doubts(order.asked, part.to(pipeline.device))).sigmoid())
    return found


def _completed(
    pipeline: Pipeline, order: Order, part: torch.Tensor, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, h, w) with what the network would draw now where they are MASK, and the scores of all."""
    masked = part == pipeline.generator.mask_id
    if not masked.any():
        return part, scores
    at_once = dataclasses.replace(order.sampler, order="confidence", steps=1, counts=())
    *_, last = pipeline.steps(order.asked, codes=part, seeds=order.seeds[: len(part)], sampler=at_once)
    return last.codes, torch.where(masked, last.scores.to(scores.device), scores)


def _nearest(pipeline: Pipeline, part: torch.Tensor) -> torch.Tensor:
    """Codes (b, h, w) with the nearest drawn code where they are MASK: lies under the hatching, and costs no pass."""
    _, h, w = part.shape
    cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).to(part.device, torch.float32)  # (n, 2)
    filled = []
    for codes in part.flatten(1):
        known = codes != pipeline.generator.mask_id
        drawn = codes[known] if known.any() else torch.zeros_like(codes)
        places = cells[known] if known.any() else cells
        filled.append(drawn[torch.cdist(cells, places).argmin(1)])
    return torch.stack(filled).view(-1, h, w)


def thumbnail(picture: Image.Image) -> Image.Image:
    smaller = to_rgb8(picture)
    smaller.thumbnail((tokens.MAX_SIDE, tokens.MAX_SIDE))
    return smaller
