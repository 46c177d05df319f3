"""What the buttons do: the values of the page -> the pipeline -> status lines, token panels and pictures.

Shapes: b images, h w tokens.
"""

import dataclasses
import json
import math
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskimg.hole import Hole
from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline, expand_seeds
from maskimg.recipe import write_png
from maskimg.reconstruction import Reconstruction
from maskimg.sampler import Sampler
from maskimg.sampler import describe as describe_sampler
from maskimg_apps import tokens
from maskimg_apps.uploads import Drawing, open_upload
from vqgan.images import heat_map, to_pil

MAX_IMAGES = 16
MAX_BEST_OF = 8
COVERAGE = {"any pixel": 0.0, "10 %": 0.1, "25 %": 0.25, "50 %": 0.5}
SIZES = {"the model's": None, "up to 256": 256, "up to 512": 512}  # longer sides of a picture to be reconstructed
NOT_OPEN = "no picture is open: drop one on the canvas"
NOT_PAINTED = "nothing is painted. Paint the part to redraw"

# Previews may take this much time, and this share of it: a slow decoder must not slow the drawing down.
FREE_SECONDS, SHARE = 0.4, 0.25


@dataclasses.dataclass(frozen=True)
class Order:
    """What a person asked for, checked."""

    label: dict[str, str]
    seeds: list[int]
    sampler: Sampler
    best_of: int = 1


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the page shows now; `pictures` (b) are there at the end only."""

    status: str
    panel: str
    pictures: list[Image.Image] | None = None


def label_key(field: str) -> str:
    """The name of a label field among the page's values."""
    return "label_" + re.sub(r"\W", "_", field)


def read_order(pipeline: Pipeline, values: Mapping[str, Any]) -> Order:
    """The values of the controls as labels, seeds and a sampler. A preset overrides the controls it has moved.

    Raises:
        ValueError: a value is missing, no number, or out of range.
    """
    label = {field: values[label_key(field)] for field in pipeline.labels.names if values.get(label_key(field))}
    count = _whole("images", values["images"], 1, MAX_IMAGES)
    seed = secrets.randbelow(SEEDS) if values["random_seed"] else _whole("seed", values["seed"], 0, SEEDS - 1)
    start = pipeline.recipe
    changed: dict[str, Any] = {"order": values["order"], "schedule": values["schedule"]}
    changed["steps"] = _whole("steps", values["steps"], 1, 1024)
    changed |= {name: _number(name, values[name]) for name in _NUMBERS if name in values}
    if "guidance_schedule" in values:
        changed["guidance_schedule"] = values["guidance_schedule"]
    # A list over the steps is shown as one number; it stays a list until somebody moves the slider.
    changed = {name: value for name, value in changed.items() if value != shown_number(getattr(start, name))}
    if "steps" in changed:
        changed["counts"] = ()
    if values.get("preset"):
        start, changed = pipeline.sampler(values["preset"]), {}
    best_of = _whole("best of", values.get("best_of", 1), 1, MAX_BEST_OF)
    if best_of > 1 and not pipeline.generator.has_critic:
        raise ValueError("best of needs a critic, and this model has none")
    return Order(label, expand_seeds(seed, count), dataclasses.replace(start, **changed), best_of)


_NUMBERS = (
    "guidance", "guidance_start", "guidance_end", "token_temperature", "choice_temperature", "revise", "top_p",
)  # fmt: skip


def shown_number(value: Any) -> Any:
    """What a slider shows of a number that may be a list over the steps: its mean."""
    return round(sum(value) / len(value), 2) if isinstance(value, tuple) and value else value


def draw(
    pipeline: Pipeline, order: Order, *, hole: Hole | None = None, hatch: str = "maskimg-hatch"
) -> Iterator[Moment]:
    """Draw and yield what to show after every step; the last moment has the pictures and the film of the first."""
    b, steps = len(order.seeds), order.sampler.steps
    codes = hole.codes.expand(b, -1, -1) if hole else None
    unknown = hole.tokens[0].cpu().numpy() if hole else np.ones(pipeline.grid, bool)
    small = _small(pipeline, hole) if hole else None
    box = _in_tokens(pipeline, hole)
    films: list[list[str]] = []
    started, spent, elapsed = time.perf_counter(), 0.0, 0.0
    drawn: list[Image.Image] = []

    def tiles(pictures: Sequence[Image.Image | None], masked: np.ndarray, fresh: np.ndarray | None) -> list[str]:
        return [
            tokens.tile(
                picture,
                box,
                veiled=masked[i],
                fresh=fresh[i] if fresh is not None else None,
                caption=f"seed {order.seeds[i]}",
                hatch=hatch,
            )
            for i, picture in enumerate(pictures)
        ]

    blank = [small.image if small else None] * b
    masked = np.repeat(unknown[None], b, 0)
    shown = tokens.panel(tiles(blank, masked, None), "nothing is drawn yet", live=True, hatch=hatch)
    yield Moment(tokens.status(f"step 0/{steps} · starting", running=True), shown)

    found: list[torch.Tensor] = []
    for candidate in range(order.best_of):
        # Candidates of one picture are numbered in the upper half of its seed, as in `Pipeline.generate`.
        seeds = [seed + candidate * SEEDS for seed in order.seeds]
        words_before = f"candidate {candidate + 1}/{order.best_of} · " if order.best_of > 1 else ""
        masked, frames = np.repeat(unknown[None], b, 0), []
        films.append(frames)
        for preview in pipeline.steps(order.label, codes=codes, seeds=seeds, sampler=order.sampler):
            now = preview.masked.cpu().numpy()
            elapsed = time.perf_counter() - started
            last = preview.step == steps or not now.any()
            through = (candidate + preview.step / steps) / order.best_of
            line = f"{words_before}step {preview.step}/{steps} · {elapsed:.1f} s · "
            line += f"~{elapsed * (1 - through) / through:.1f} s left"
            if last or spent <= FREE_SECONDS + SHARE * elapsed:
                began = time.perf_counter()
                drawn = [to_pil(image) for image in pipeline.decode(preview.codes)]
                pictures = [small.paste(each) for each in drawn] if small else drawn
                fixed = int((unknown & ~now[0]).sum())
                words = f"step {preview.step} of {steps}, {fixed} of {int(unknown.sum())} tokens fixed"
                shown = tokens.panel(tiles(pictures, now, masked & ~now), words, live=True, hatch=hatch)
                frames.append(tokens.tile(pictures[0], box, veiled=now[0], caption=f"step {preview.step}", hatch=hatch))
                masked = now
                spent += time.perf_counter() - began
            yield Moment(tokens.status(line, through, running=True), shown)
            if last:
                found.append(preview.codes)
                break
    best = found[0]
    if order.best_of > 1:
        best = pipeline.most_believed(order.label, found)
        drawn = [to_pil(image) for image in pipeline.decode(best)]
        frames = next(film for film, codes in zip(films, found, strict=True) if torch.equal(codes[0], best[0]))

    if pipeline.generator.has_critic:
        chances = pipeline.doubts(order.label, best[:1]).sigmoid()[0].cpu()
        heat = heat_map(drawn[0], chances)
        heat = heat.crop(hole.box) if hole else heat
        frames = [*frames, tokens.tile(heat, box, caption="critic's doubts", hatch=hatch)]
    done = f"{b} {'picture' if b == 1 else 'pictures'} in {time.perf_counter() - started:.1f} s"
    film = tokens.film(frames, f"How seed {order.seeds[0]} was drawn", hatch=hatch)
    yield Moment(tokens.status(done, 1), film, [hole.paste(each) for each in drawn] if hole else drawn)


def save(
    pipeline: Pipeline, order: Order, pictures: Sequence[Image.Image], folder: str | Path, *, hole: Hole | None = None
) -> list[tuple[str, str]]:
    """Write PNGs with their recipes under `folder` -> (path, caption) for the gallery."""
    directory = Path(folder) / secrets.token_hex(16)
    directory.mkdir(parents=True)
    saved = []
    for seed, picture in zip(order.seeds, pictures, strict=True):
        recipe = pipeline.recipe_for(order.label, seed, order.sampler, best_of=order.best_of)
        if hole:
            recipe |= {"task": "inpaint", "tokens_redrawn": int(hole.tokens.sum())}
        path = directory / f"{_file_name(pipeline)}-{seed}.png"
        write_png(picture, recipe, path)
        saved.append((str(path), f"seed {seed}"))
    return saved


def read_hole(pipeline: Pipeline, drawing: Drawing, mask_file: str | None, grow: float, coverage: str) -> Hole:
    """What is to be redrawn: the paint and the white of the mask file, together.

    Raises:
        ImageError, ValueError: nothing is open or painted, the sizes differ, or a file cannot be read.
    """
    picture, painted = drawing
    if picture is None:
        raise ValueError(NOT_OPEN)
    mask = np.zeros(picture.size[::-1], bool)
    if painted is not None and painted.shape == mask.shape:
        mask |= painted
    if mask_file:
        white = open_upload(mask_file, "mask")
        if white.size != picture.size:
            raise ValueError(
                f"the mask is {white.width}x{white.height} but the picture is {picture.width}x{picture.height}: "
                "use a mask of the same size"
            )
        mask |= np.asarray(white.convert("L")) > 127
    if not mask.any():
        raise ValueError(NOT_PAINTED)
    return make_hole(pipeline, picture, mask, grow, coverage)


def make_hole(pipeline: Pipeline, picture: Image.Image, mask: Any, grow: float, coverage: str) -> Hole:
    """`Pipeline.hole` with the values of the page."""
    if coverage not in COVERAGE:
        raise ValueError(f"redraw a token when must be one of {', '.join(COVERAGE)}, got `{coverage}`")
    return pipeline.hole(picture, mask, coverage=COVERAGE[coverage], grow=_whole("grow", grow, 0, 4))


def show_hole(pipeline: Pipeline, hole: Hole) -> str:
    """The picture with its token grid, the tokens to be redrawn tinted, and how many they are."""
    cells = hole.tokens[0].cpu().numpy()
    words = f"{cells.sum()} of {cells.size} tokens ({cells.mean():.0%}) will be redrawn".replace("%", " %")
    tile = tokens.tile(hole.image, _in_tokens(pipeline, hole), tinted=cells)
    return f'<p class="mk-count" role="status">{words}</p>' + tokens.panel(
        [tile], words, live=True, hatch="maskimg-hole"
    )


def reconstruct(pipeline: Pipeline, path: str | None, size: str) -> Reconstruction:
    """An upload through the tokenizer and back.

    Raises:
        ImageError: it cannot be used. ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got `{size}`")
    return pipeline.reconstruct(open_upload(path), size=SIZES[size])


def in_a_line(result: Reconstruction) -> str:
    """How close a reconstruction is, and in how many tokens."""
    facts = result.facts()
    closeness = facts["PSNR"] if facts["PSNR"] == "identical" else f"PSNR {facts['PSNR']}"
    return f"{closeness} · SSIM {facts['SSIM']} · {result.tokens:,} tokens, {facts['different codes']} codes in use"


def save_reconstruction(pipeline: Pipeline, result: Reconstruction, folder: str | Path) -> str:
    """Write the reconstruction as a PNG under `folder` -> its path."""
    directory = Path(folder) / secrets.token_hex(16)
    directory.mkdir(parents=True)
    path = directory / f"{_file_name(pipeline)}-reconstruction.png"
    result.image.save(path, format="PNG")
    return str(path)


def brush_radius(drawing: Drawing) -> int:
    """A stroke about an eighth of the picture wide, whatever its size."""
    return max(1, round(min(drawing.picture.size) / 16)) if drawing.picture else 0


def describe(pipeline: Pipeline) -> list[str]:
    """The model in a few facts, for the header."""
    (h, w), side = pipeline.grid, pipeline.image_size
    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(pipeline.dtype, str(pipeline.dtype))
    return [
        f"{side}×{w * pipeline.tokenizer.stride} pixels",
        f"{h}×{w} tokens",
        f"{pipeline.tokenizer.vocab_size} codes",
        f"{pipeline.device} {dtype}",
    ]


def facts(pipeline: Pipeline) -> dict[str, str]:
    """Everything the model says about itself, for the table at the foot of the page."""
    labels = {f"labels: {field}": ", ".join(names) for field, names in pipeline.labels.names.items()}
    skipped = ("format", "labels", "recipe", "presets", "heads", "versions")
    about = {key: _plain(value) for key, value in pipeline.about.items() if key not in skipped}
    presets = {
        f"preset: {name}": f"{describe_sampler(sampler)} ({sampler.forwards} forward passes)"
        for name, sampler in pipeline.presets.items()
    }
    critic = {"critic": "yes" if pipeline.generator.has_critic else "no"}
    return about | labels | {"recipe": describe_sampler(pipeline.recipe)} | presets | critic


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _small(pipeline: Pipeline, hole: Hole) -> Hole:
    """The hole at the model's size: a preview must not paste into a photo of 20 megapixels at every step."""
    left, top, right, bottom = hole.box
    image = hole.image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    rows, columns = (np.arange(*span) // pipeline.tokenizer.stride for span in ((top, bottom), (left, right)))
    return dataclasses.replace(hole, image=image, rows=rows, columns=columns)


def _file_name(pipeline: Pipeline) -> str:
    return re.sub(r"[^\w.-]+", "-", pipeline.name)


def _in_tokens(pipeline: Pipeline, hole: Hole | None) -> tokens.Box:
    if hole is None:
        return (0, 0, pipeline.grid[1], pipeline.grid[0])
    left, top, right, bottom = (side / pipeline.tokenizer.stride for side in hole.box)
    return left, top, right, bottom


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name.replace('_', ' ')} must be a number, got `{value}`")
    return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _number(name, value)
    if number != int(number) or not low <= number <= high:
        raise ValueError(f"{name} must be a whole number between {low} and {high}, got {value}")
    return int(number)
