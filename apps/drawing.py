"""Drawing as the page shows it: after every step a status line and token panel, in the end pictures and a replay.

Shapes: b images, h w tokens of the canvas.
"""

import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskimg import editing
from maskimg.editing import Edit, Progress
from maskimg.pipeline import Pipeline
from maskimg.recipe import write_png
from maskimg_apps import tokens
from maskimg_apps.runs import Order, file_name, fresh_folder
from vqgan.images import to_pil

# Previews may take this much time, and this share of it: a slow decoder must not slow the drawing down.
FREE_SECONDS, SHARE = 0.3, 0.1
MAX_FRAMES = 32  # of a replay
FRAME_SECONDS, LAST_SECONDS = 0.25, 1.5  # of an animation
ANIMATED = 256  # its smallest side in pixels
GREY = (176, 180, 190)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The first picture after a step.

    Attributes:
        picture: at most `tokens.MAX_SIDE` pixels a side.
        masked, fresh: (h, w) bool, still to be drawn, and drawn in this step.
        confidence, critic: (h, w) on [0, 1], NaN where unknown; `critic` is how much it believes each token.
        box: what the picture fills of the canvas.
    """

    words: str
    picture: Image.Image
    box: tokens.Box
    masked: np.ndarray
    fresh: np.ndarray
    confidence: np.ndarray | None
    critic: np.ndarray | None
    progress: Progress


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the page shows now; `pictures` (b) and `frames` are there at the end only."""

    status: str
    panel: str
    pictures: list[Image.Image] | None = None
    frames: tuple[Frame, ...] = ()


class Board:
    """The pictures of a run as they are while it lasts: at the model's scale, the grid's place decoded."""

    def __init__(self, pipeline: Pipeline, edit: Edit, b: int):
        self.pipeline, self.edit = pipeline, edit
        self.stride = pipeline.tokenizer.stride
        self.canvases = [edit.hole.canvas.copy() for _ in range(b)] if edit.hole else None
        h, w = edit.codes.shape[1:]
        corners = [side / self.stride for side in edit.hole.box] if edit.hole else [0.0, 0.0, w, h]
        self.box: tokens.Box = (corners[0], corners[1], corners[2], corners[3])

    def look(self, progress: Progress | None = None) -> list[Image.Image] | None:
        """What is seen of the pictures (b); None where there is nothing yet."""
        if progress is None:
            return [self._shown(canvas) for canvas in self.canvases] if self.canvases else None
        drawn = [to_pil(image) for image in self.pipeline.decode(progress.part)]
        if self.canvases is None or self.edit.hole is None:
            return drawn
        (top, left), (h, w) = self.edit.places[progress.place], self.edit.grid
        cells = self.edit.hole.tokens[0, top : top + h, left : left + w].cpu().numpy()
        cover = Image.fromarray((cells * 255).astype(np.uint8)).resize(drawn[0].size, Image.Resampling.NEAREST)
        pictures = []
        for canvas, picture in zip(self.canvases, drawn, strict=True):
            shown = canvas if progress.chosen else canvas.copy()
            shown.paste(picture, (left * self.stride, top * self.stride), cover)
            pictures.append(self._shown(shown))
        return pictures

    def spread(self, progress: Progress, scores: torch.Tensor) -> list[np.ndarray]:
        """Scores (b, h, w) of the model's grid -> of the whole canvas, NaN outside it and where codes were given."""
        whole = np.full((len(scores), *self.edit.codes.shape[1:]), np.nan, np.float32)
        (top, left), (h, w) = self.edit.places[progress.place], self.edit.grid
        whole[:, top : top + h, left : left + w] = scores.cpu().numpy()
        return list(np.where(self.edit.masked.cpu().numpy()[: len(scores)], whole, np.nan))

    def _shown(self, canvas: Image.Image) -> Image.Image:
        return canvas.crop(self.edit.hole.box) if self.edit.hole else canvas


def draw(
    pipeline: Pipeline,
    order: Order,
    edit: Edit | None = None,
    *,
    hatch: str = "maskimg-hatch",
    with_critic: bool = False,
) -> Iterator[Moment]:
    """Draw and yield what to show after every step; the last moment has the pictures and the frames of the first.

    Args:
        edit: what is given; nothing if left out.
        with_critic: ask the critic at every step that is shown, which costs a forward pass for each picture.
    """
    edit = edit or editing.generation(pipeline)
    b, board = len(order.seeds), Board(pipeline, edit, len(order.seeds))
    masked = before = edit.masked.cpu().numpy().repeat(b // len(edit.codes), 0)
    unknown = int(masked[0].sum())
    started, spent = time.perf_counter(), 0.0

    def panel(pictures: Sequence[Image.Image] | None, now: np.ndarray, words: str, **scores: list) -> str:
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

    shown = panel(board.look(), masked, "nothing is drawn yet")
    yield Moment(tokens.status("starting", running=True), shown)

    frames: list[Frame] = []
    candidates: list[list[Frame]] = []  # of the place where the grid is
    progress = None
    options = {"sampler": order.sampler, "best_of": order.best_of}
    for progress in editing.draw_steps(pipeline, edit, order.asked, order.seeds, **options):
        if progress.chosen:
            if progress.place + 1 < len(edit.places):
                board.look(progress)  # stays on the board
            kept = [each for each in candidates if bool((each[-1].progress.part[0] == progress.part[0]).all())]
            frames, candidates = frames + kept[0], []
            masked = before = progress.masked.cpu().numpy()
            continue
        if progress.candidate == len(candidates):
            candidates.append([])
            masked = before
        elapsed = time.perf_counter() - started
        now = progress.masked.cpu().numpy()
        (top, left), (h, w) = edit.places[progress.place], edit.grid
        finished = not now[:, top : top + h, left : left + w].any()  # where little was masked, before the last step
        if finished or spent <= FREE_SECONDS + SHARE * elapsed:
            began = time.perf_counter()
            pictures = board.look(progress) or []
            scores = _scores(pipeline, board, order, progress, with_critic)
            words = f"step {progress.step} of {progress.steps}, {unknown - int(now[0].sum())} of {unknown} tokens fixed"
            shown = panel(pictures, now, words, **scores)
            first = {name: values[0] for name, values in scores.items()}
            frame = Frame(words, _thumbnail(pictures[0]), board.box, now[0], masked[0] & ~now[0], None, None, progress)
            candidates[-1].append(dataclasses.replace(frame, **first))
            masked = now
            spent += time.perf_counter() - began
        yield Moment(tokens.status(_status(order, edit, progress, elapsed), progress.share, running=True), shown)
    if progress is None:
        raise ValueError("there is nothing to draw: no token is masked")

    pictures = edit.finish(pipeline.decode(progress.codes))
    done = f"{b} {'picture' if b == 1 else 'pictures'} in {time.perf_counter() - started:.1f} s"
    frames = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(MAX_FRAMES, len(frames)))]
    yield Moment(tokens.status(done, 1), replay(order, frames, hatch=hatch), pictures, tuple(frames))


def judged(pipeline: Pipeline, order: Order, edit: Edit | None, frames: Sequence[Frame]) -> list[Frame]:
    """The frames with the critic's opinion of each; as they are where there is no critic."""
    if not pipeline.generator.has_critic:
        return list(frames)
    board = Board(pipeline, edit or editing.generation(pipeline), 1)
    found = []
    for frame in frames:
        if frame.critic is None:
            belief = (-pipeline.doubts(order.asked, frame.progress.part[:1])).sigmoid()
            frame = dataclasses.replace(frame, critic=board.spread(frame.progress, belief)[0])
        found.append(frame)
    return found


def replay(order: Order, frames: Sequence[Frame], *, hatch: str = "maskimg-hatch") -> str:
    """The frames under a slider."""
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
        for frame in frames
    ]
    return tokens.replay(tiles, [frame.words for frame in frames], f"How seed {order.seeds[0]} was drawn", hatch=hatch)


def animate(frames: Sequence[Frame]) -> bytes:
    """The frames as an animated WebP, what is still masked in grey."""
    pictures = []
    for frame in frames:
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


def save_animation(pipeline: Pipeline, order: Order, frames: Sequence[Frame], folder: str | Path) -> str:
    path = fresh_folder(folder) / f"{file_name(pipeline)}-{order.seeds[0]}.webp"
    path.write_bytes(animate(frames))
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


def _scores(
    pipeline: Pipeline, board: Board, order: Order, progress: Progress, with_critic: bool
) -> dict[str, list[np.ndarray]]:
    """What the views of scores show of each picture."""
    scores = progress.scores.float()
    if order.sampler.order == "critic":  # its own scores are the critic's
        return {"critic": board.spread(progress, scores.sigmoid())}
    found = {"confidence": board.spread(progress, scores.exp())}
    if with_critic and pipeline.generator.has_critic:
        found["critic"] = board.spread(progress, (-pipeline.doubts(order.asked, progress.part)).sigmoid())
    return found


def _thumbnail(picture: Image.Image) -> Image.Image:
    smaller = picture.copy()
    smaller.thumbnail((tokens.MAX_SIDE, tokens.MAX_SIDE))
    return smaller
