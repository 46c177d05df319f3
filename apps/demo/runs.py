"""What the values of the page mean: what is asked for, what is to be redrawn, and the facts about a model."""

import dataclasses
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maskimg.drawing.edits import Edit
from maskimg.drawing.hole import EVERYTHING, Hole
from maskimg.drawing.paint import NOTHING, Paint, read_paint
from maskimg.drawing.reconstruction import Reconstruction
from maskimg.drawing.request import Request, expand_seeds
from maskimg.evaluation.card import plainly
from maskimg.noise import SEEDS
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import mark
from maskimg.sampler import Sampler, describe
from maskimg.values import one_of, real_number, text, truth, written_whole
from maskimg_apps.demo import tokens
from maskimg_apps.demo.serving.uploads import Drawing, open_mask, open_upload
from vqgan.original import Original, original_of

MAX_IMAGES = 16
MAX_BEST_OF = 8
COVERAGE = {"any pixel": 0.0, "10 %": 0.1, "25 %": 0.25, "50 %": 0.5}
SIGHT = {"the whole picture": 1, "half of it at a time": 2, "a quarter at a time": 4, "an eighth at a time": 8}
SIDES = ("left", "top", "right", "bottom")
SIZES = {"the model's": None, "up to 256": 256, "up to 512": 512}  # longer sides of a picture to be reconstructed
NOT_OPEN = "no picture is open: drop one on the canvas"


def label_key(field: str) -> str:
    """The name of a label field among the page's values."""
    return "label_" + re.sub(r"\W", "_", field)


def read_request(pipeline: Pipeline, values: Mapping[str, Any]) -> Request:
    """The values of the controls as a Request with a whole Sampler. A preset overrides the controls it has moved.

    Raises:
        ValueError: a value is missing, no number, or out of range.
    """
    label = {field: values[label_key(field)] for field in pipeline.labels.names if values.get(label_key(field))}
    count = whole("images", values["images"], 1, MAX_IMAGES)
    random = truth("random seed", values["random_seed"])
    seed = secrets.randbelow(SEEDS) if random else whole("seed", values["seed"], 0, SEEDS - 1)
    start = Sampler(**values["base"]) if values.get("base") else pipeline.recipe
    changed: dict[str, Any] = {"order": values["order"], "schedule": values["schedule"]}
    changed["steps"] = whole("steps", values["steps"], 1, 1024)
    changed |= {name: number(name, values[name]) for name in _NUMBERS if name in values}
    if "guidance_schedule" in values:
        changed["guidance_schedule"] = values["guidance_schedule"]
    # A list over the steps is shown as one number; it stays a list until somebody moves the slider.
    changed = {name: value for name, value in changed.items() if value != shown_number(getattr(start, name))}
    if "steps" in changed:
        changed["counts"] = ()
    if values.get("preset"):
        start, changed = pipeline.sampler(values["preset"]), {}
    best_of = whole("best of", values.get("best_of", 1), 1, MAX_BEST_OF)
    if best_of > 1 and not pipeline.generator.has_critic:
        raise ValueError("best of needs a critic, and this model has none")
    words = [text(name, values.get(name) or "").strip() for name in ("prompt", "negative")]
    sampler = dataclasses.replace(start, **changed)
    request = Request(
        label, words[0] or None, words[1] or None, seeds=expand_seeds(seed, count), sampler=sampler, best_of=best_of
    )
    pipeline.reader.condition(request)  # what the model does not know is said before anything begins
    return request


_NUMBERS = (
    "guidance", "guidance_start", "guidance_end", "token_temperature", "choice_temperature", "revise", "top_p",
)  # fmt: skip


def shown_number(value: Any) -> Any:
    """What a slider shows of a number that may be a list over the steps: its mean."""
    return round(sum(value) / len(value), 2) if isinstance(value, tuple) and value else value


def read_canvas(drawing: Drawing, mask_file: str | None) -> tuple[Original, Paint]:
    """The picture on a canvas and what is to be redrawn: the strokes and the paint of the file, together.

    Raises:
        ImageError, ValueError: nothing is open or painted, the sizes differ, or a file cannot be read.
    """
    if drawing.picture is None:
        raise ValueError(NOT_OPEN)
    picture, strokes = original_of(drawing.picture), drawing.painted
    if strokes is None or strokes.shape != picture.size[::-1] or not strokes.any():
        if not mask_file:
            raise ValueError(NOTHING)
        return picture, read_paint(open_mask(mask_file), picture)
    if not mask_file:
        return picture, Paint(strokes)
    paint = read_paint(open_mask(mask_file), picture)
    return picture, dataclasses.replace(paint, pixels=paint.pixels | strokes)


def hole_options(picture: Original, grow: Any, coverage: Any, sight: Any) -> dict[str, Any]:
    """The page's values as the options of `Pipeline.inpaint`."""
    for name, value, known in (("redraw a token when", coverage, COVERAGE), ("the model sees", sight, SIGHT)):
        one_of(name, value, known)
    window = None if SIGHT[sight] == 1 else -(-max(picture.size) // SIGHT[sight])
    return {"coverage": COVERAGE[coverage], "grow": whole("grow", grow, 0, 4), "window": window}


def read_margins(values: Mapping[str, Any], pipeline: Pipeline) -> tuple[int, int, int, int]:
    """How many tokens are drawn on each side."""
    limit = pipeline.grid[0] // 2
    left, top, right, bottom = (whole(side, values[side], 0, limit) for side in SIDES)
    if not left + top + right + bottom:
        raise ValueError("no side is chosen: say how many tokens to draw on one of them")
    return left, top, right, bottom


def show_hole(pipeline: Pipeline, hole: Hole, word: str = "redrawn") -> str:
    """The picture with its token grid, the tokens to be redrawn tinted, and how many they are."""
    cells = hole.tokens[0].cpu().numpy()
    words = f"{cells.sum()} of {cells.size} tokens ({cells.mean():.0%}) will be {word}".replace("%", " %")
    words += f": {EVERYTHING}" if hole.everything else ""
    return _show_tinted(pipeline, hole, words)


def show_variation(pipeline: Pipeline, edit: Edit) -> str:
    """The same of a variation: the tokens in reach tinted, and how many of them are redrawn."""
    hole = edit.hole
    if hole is None:
        raise ValueError("a variation begins with a picture")
    words = f"{edit.numbers['tokens_redrawn']} of {int(hole.tokens.sum())} tokens will be redrawn, others for each seed"
    return _show_tinted(pipeline, hole, words)


def _show_tinted(pipeline: Pipeline, hole: Hole, words: str) -> str:
    cells = hole.tokens[0].cpu().numpy()
    left, top, right, bottom = (side / pipeline.tokenizer.stride for side in hole.box)
    tile = tokens.hole_tile(hole.original.rgb, (left, top, right, bottom), cells)
    note = tokens.note(hole.note) if hole.note else ""
    return f'<p class="mk-count" role="status">{words}</p>{note}' + tokens.panel(
        [tile], words, live=True, hatch="maskimg-hole"
    )


def reconstruct(pipeline: Pipeline, path: str | None, size: str) -> Reconstruction:
    """An upload through the tokenizer and back.

    Raises:
        ImageError: it cannot be used. ValueError: there is no such size.
    """
    one_of("size", size, SIZES)
    return pipeline.reconstruct(open_upload(path), size=SIZES[size])


def in_a_line(result: Reconstruction) -> str:
    """How close a reconstruction is, and in how many tokens."""
    facts = result.facts()
    closeness = facts["PSNR"] if facts["PSNR"] == "identical" else f"PSNR {facts['PSNR']}"
    return f"{closeness} · SSIM {facts['SSIM']} · {result.tokens:,} tokens, {facts['different codes']} codes in use"


def save_reconstruction(pipeline: Pipeline, result: Reconstruction, folder: str | Path) -> str:
    """Write the reconstruction as a PNG under `folder` -> its path."""
    path = fresh_folder(folder) / f"{file_name(pipeline)}-reconstruction.png"
    write_png(result.image, mark("reconstruct"), path)
    return str(path)


def fresh_folder(folder: str | Path) -> Path:
    """A new folder whose name nobody can guess."""
    directory = Path(folder) / secrets.token_hex(16)
    directory.mkdir(parents=True)
    return directory


def brush_radius(drawing: Drawing) -> int:
    """A stroke about an eighth of the picture wide, whatever its size."""
    return max(1, round(min(drawing.picture.size) / 16)) if drawing.picture else 0


def headline(pipeline: Pipeline) -> list[str]:
    """The model in a few facts, for the header."""
    (h, w), side = pipeline.grid, pipeline.image_size
    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16"}.get(pipeline.dtype, str(pipeline.dtype))
    return [
        f"{side}×{w * pipeline.tokenizer.stride} pixels",
        f"{h}×{w} tokens",
        f"{pipeline.tokenizer.vocab_size} codes",
        f"{pipeline.device} {dtype}",
    ]


def learnt_from(pipeline: Pipeline) -> str:
    """A sentence about the pictures it was trained on, where its directory tells their number; else nothing."""
    data = pipeline.about.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("pictures"), int):
        return ""
    held_out = data.get("held_out")
    count = data["pictures"] - (held_out if isinstance(held_out, int) else 0)
    return f"Trained on {count:,} pictures; it draws nothing else."


def facts(pipeline: Pipeline) -> dict[str, str]:
    """What the model says about itself, for people: a name and a value in words each."""
    skipped = ("name", "format", "labels", "recipe", "presets", "heads", "versions", "words", "plan", "memorisation")
    rows: dict[str, str] = {}
    for key, value in pipeline.about.items():
        if key not in skipped:
            rows |= _rows(key, value)
    memorisation = pipeline.about.get("memorisation")
    if isinstance(memorisation, Mapping) and memorisation.get("in_words"):
        rows["memorisation"] = str(memorisation["in_words"])
    if "plan" in pipeline.about:
        rows["how it was trained"] = "the whole plan is in the model's pipeline.json"
    rows |= {f"labels: {field}": ", ".join(names) for field, names in pipeline.labels.names.items()}
    rows["recipe"] = describe(pipeline.recipe)
    for name, sampler in pipeline.presets.items():
        rows[f"preset: {name}"] = f"{describe(sampler)} ({sampler.forwards} forward passes)"
    return rows | {"critic": "yes" if pipeline.generator.has_critic else "no"}


def _rows(name: str, value: Any) -> dict[str, str]:
    """A value as a row, or its parts as one each, their names behind its own; what is empty is left out."""
    if isinstance(value, Mapping):
        return {key: words for part, each in value.items() for key, words in _rows(f"{name} · {part}", each).items()}
    words = plainly(value)
    return {name.replace("_", " "): words} if words else {}


def file_name(pipeline: Pipeline) -> str:
    return re.sub(r"[^\w.-]+", "-", pipeline.name)


def read_settings(pipeline: Pipeline, recipe: Any) -> tuple[str, dict[str, Any], list[str]]:
    """A recipe -> its task, the values of the controls that draw it again, and what stands against that in words.

    Raises:
        ValueError: it is none, or none of this version's.
    """
    if isinstance(recipe, dict) and set(recipe) == set(mark("")):
        raise ValueError(f"maskimg made this picture (`{recipe['task']}`) without a sampler: it has no settings to use")
    try:
        sampler, task = Sampler(**recipe["sampler"]), str(recipe["task"])
        seed = whole("seed", recipe["seed"], 0, SEEDS - 1)
        values: dict[str, Any] = {name: shown_number(value) for name, value in vars(sampler).items()}
        values |= {"base": sampler.numbers(), "seed": seed, "random_seed": False, "preset": ""}
        values["images"] = whole("images", recipe.get("images", 1), 1, MAX_IMAGES)
        values["best_of"] = whole("best of", recipe.get("best_of", 1), 1, MAX_BEST_OF)
        label = {str(field): str(name) for field, name in recipe["label"].items()}
        values |= {name: str(recipe.get(name, "")) for name in ("prompt", "negative")}
        if task == "outpaint":
            values |= {side: whole(side, n, 0, 64) for side, n in zip(SIDES, recipe["margins"], strict=True)}
        if task == "vary":
            values["strength"] = number("strength", recipe["strength"])
        if task == "inpaint":
            values["grow"] = whole("grow", recipe["grow"], 0, 4)
            values["coverage"] = next(key for key, share in COVERAGE.items() if share == recipe["coverage"])
    except (KeyError, TypeError, AttributeError, StopIteration, ValueError) as error:
        raise ValueError(f"this recipe cannot be used here ({error or 'a value is not offered'})") from error

    notes = []
    for field, names in pipeline.labels.names.items():
        found = label.pop(field, "")
        values[label_key(field)] = found if found in names else ("" if not pipeline.labels.required else names[0])
        if found and found not in names:
            notes.append(f"this model has no {field} `{found}`")
    notes += [f"this model has no labels of the kind `{field}`" for field in label]
    if (values["prompt"] or values["negative"]) and pipeline.words is None:
        notes.append("this model was trained without captions, so its words are left out")
    mine = pipeline.about.get("manifest_sha256")
    if recipe.get("model") != pipeline.name or (mine and recipe.get("model_sha256") not in (None, mine)):
        notes.append(f"it was drawn by the model `{recipe.get('model')}`, and this is another one")
    if recipe.get("dtype") not in (None, str(pipeline.dtype).removeprefix("torch.")):
        notes.append(f"it was drawn in {recipe['dtype']}: a few tokens may differ")
    if recipe.get("compiled") and not pipeline.compiled:
        notes.append("it was drawn by a compiled network, which rounds otherwise: in bf16 another picture will come")
    return task, values, notes


def number(name: str, value: Any) -> float:
    """A finite number that came from a browser or a recipe. Raises ValueError."""
    return real_number(name.replace("_", " "), value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number that came from there. Raises ValueError."""
    return written_whole(name.replace("_", " "), value, low, high)
