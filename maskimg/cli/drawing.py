"""Commands that draw and edit pictures with a finished model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from maskimg.cli.options import (
    Parser,
    Refused,
    add_asking,
    add_drawing,
    add_force,
    add_machine,
    add_max_megapixels,
    add_model,
    load_pipeline,
    max_pixels,
    output,
    outputs,
    progress_bar,
    to_prompt,
    to_sampler,
)
from maskimg.values import whole_number

SIDES = ("left", "top", "right", "bottom")
PLACES = {"left": "on the left", "top": "at the top", "right": "on the right", "bottom": "at the bottom"}
MOST = 10_000_000  # pictures of a run


def sample(parser: Parser, arguments: list[str]) -> None:
    add_model(parser)
    parser.add_argument("--out", type=str, required=True, help="folder to write the pictures to")
    parser.add_argument("--count", type=int, help="number of pictures, 16 by default")
    parser.add_argument(
        "--per-class",
        type=int,
        help="number of pictures of each class (the model's first label field); replaces --count",
    )
    parser.add_argument(
        "--from", type=str, help="CSV file of labels and prompts, one picture for each row; replaces --count"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture; each next one adds 1")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="pictures drawn at a time; has no influence on the pictures"
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="yes",
        default="auto",
        help="yes, no or auto: compile the networks, which draws many pictures two to three times as fast; by default "
        "only long runs on a CPU do",
    )
    parser.add_argument(
        "--npz", type=str, help="also write all pictures into one .npz file, in the layout of ADM's evaluation"
    )
    parser.add_argument("--sheet", type=str, help="also write a PNG contact sheet of the first hundred pictures")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace existing files at --npz and --sheet that maskimg did not make; never files in --out",
    )
    add_drawing(parser)
    given = parser.parse_args(arguments)
    inputs = (given.model, given["from"])
    npz, sheet = outputs(given, "sample", {"npz": "", "sheet": ".png"}, inputs, folder=given.out)
    if given.compile not in ("auto", "yes", "no"):
        raise Refused(f"--compile must be auto, yes or no, got `{given.compile}`")
    from maskimg.drawing.claims import require_drawable
    from maskimg.drawing.folders import compiles_itself, sample_folder

    require_drawable(Path(given.out), but=[path for path in (npz, sheet) if path])
    pipeline = load_pipeline(given, compile=given.compile == "yes")
    labels, sampler = _labels_to_draw(given, pipeline), to_sampler(given, pipeline)
    if given.compile == "auto":
        pipeline.compiled = compiles_itself(pipeline, given.out, labels, sampler, given.best_of)
    written = sample_folder(
        pipeline,
        given.out,
        labels,
        seed=given.seed,
        sampler=sampler,
        best_of=given.best_of,
        batch_size=given.batch_size,
    )
    _export(given, pipeline, labels, npz, sheet)
    print(f"done: {written} new, {len(labels)} in all in {given.out}")


def _labels_to_draw(given: Namespace, pipeline: Any) -> Sequence[Any]:
    """A label for each picture that is asked for."""
    from maskimg.drawing.folders import each_name, read_table

    if sum(given[name] is not None for name in ("count", "per_class", "from")) > 1:
        raise Refused("give one of --count, --per-class and --from")
    asked = to_prompt(given)
    if given["from"]:
        return read_table(given["from"], pipeline.reader, asked)
    for option, count in (("--count", given.count), ("--per-class", given.per_class)):
        if count is not None:
            whole_number(option, count, 1, MOST)
    if given.per_class is not None:
        return each_name(pipeline.labels, asked, given.per_class)
    return [asked] * (16 if given.count is None else given.count)


def _export(given: Namespace, pipeline: Any, labels: Sequence[Any], npz: Path | None, page: Path | None) -> None:
    """--npz and --sheet, once everything is drawn; by the first of several processes."""
    from maskimg import distributed
    from maskimg.drawing.exports import contact_sheet, write_npz
    from maskimg.drawing.folders import picture_paths
    from maskimg.outputs import write_png
    from maskimg.recipe import mark

    if not distributed.is_first():
        return
    paths = picture_paths(Path(given.out), len(labels), given.seed)
    names = next(iter(pipeline.labels.names.values()), [])
    if npz:
        classes = [int(pipeline.reader.condition(asked).labels[0, 0]) for asked in labels] if names else [0]
        known = max(classes) < len(names)  # else some are of no class
        write_npz(paths, classes if known else None, npz, force=given.force, progress=progress_bar())
    if page:
        shown = contact_sheet(paths, len(names) if given.per_class else None)
        write_png(shown, mark("sample"), page, force=given.force)


def inpaint(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to edit")
    parser.add_argument(
        "mask", type=str, help="picture of the same size: white is redrawn, black and transparent areas are kept"
    )
    _add_edit(parser)
    parser.add_argument(
        "--coverage", type=float, default=0.0, help="redraw a token if more than this share of it is masked"
    )
    parser.add_argument("--grow", type=int, default=1, help="rings of tokens to redraw around the masked area")
    parser.add_argument(
        "--feather", type=float, default=0.5, help="share of the innermost ring that fades into the picture, 0 to 1"
    )
    parser.add_argument(
        "--window", type=int, help="side in pixels of what the model sees at a time; the whole picture by default"
    )
    add_drawing(parser)
    given = parser.parse_args(arguments)
    paths = _paths(given, "inpaint", given.image, given.mask)
    pipeline = load_pipeline(given)
    options = {name: given[name] for name in ("coverage", "grow", "feather", "window")}
    image, mask = _opened(given), _mask(given)
    _save(pipeline.inpaint(image, mask, **options, **_drawing(given, pipeline)), paths, given)
    from maskimg.drawing.hole import EVERYTHING

    if pipeline.hole(image, mask, **options).everything:
        print(f"note: the mask reaches {EVERYTHING}", file=sys.stderr)


def outpaint(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to extend")
    parser.add_argument(
        "--margins", type=str, help="all four sides at once, in tokens: LEFT,TOP,RIGHT,BOTTOM such as 2,0,2,0"
    )
    for side in SIDES:
        parser.add_argument(f"--{side}", type=int, help=f"tokens to add {PLACES[side]}")
    parser.add_argument(
        "--window",
        type=int,
        help="side in pixels of what the model sees at a time; the shorter side of the picture by default",
    )
    _add_edit(parser)
    add_drawing(parser)
    given = parser.parse_args(arguments)
    margins = _margins(given)
    paths = _paths(given, "outpaint", given.image)
    pipeline = load_pipeline(given)
    _save(pipeline.outpaint(_opened(given), margins, window=given.window, **_drawing(given, pipeline)), paths, given)


def vary(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to vary")
    parser.add_argument(
        "--strength", type=float, default=0.5, help="share of the tokens to redraw, above 0 and up to 1"
    )
    parser.add_argument("--mask", type=str, help="mask: only white areas may change, everywhere by default")
    _add_edit(parser)
    add_drawing(parser)
    given = parser.parse_args(arguments)
    paths = _paths(given, "vary", given.image, given.mask)
    pipeline = load_pipeline(given)
    mask = _mask(given) if given.mask else None
    _save(pipeline.vary(_opened(given), given.strength, mask=mask, **_drawing(given, pipeline)), paths, given)


def _add_edit(parser: Parser) -> None:
    add_model(parser)
    parser.add_argument("--out", type=str, required=True, help="PNG to write; a folder if --count is above 1")
    parser.add_argument("--count", type=int, default=1, help="number of versions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first version; each next one adds 1")
    add_force(parser)
    add_max_megapixels(parser)


def _paths(given: Namespace, task: str, *inputs: str | None) -> list[Path]:
    """Where the versions are written, the names of all of them checked before anything is drawn."""
    from maskimg.noise import SEEDS
    from maskimg.outputs import require_folder, require_free

    if given.count == 1:
        return [output(given, task, *inputs, given.model)]
    folder = Path(given.out)
    require_folder(folder)
    paths = [folder / f"{(given.seed + i) % SEEDS:06d}.png" for i in range(given.count)]
    for path in paths:
        require_free(path, task=task, force=given.force, inputs=(*inputs, given.model), option="--out")
    return paths


def _opened(given: Namespace) -> Any:
    """The picture that a command begins with."""
    from vqgan.original import load_original

    return load_original(given.image, max_pixels=max_pixels(given))


def _mask(given: Namespace) -> Any:
    from vqgan.images import read_image

    return read_image(given.mask, max_pixels=max_pixels(given))


def _drawing(given: Namespace, pipeline: Any) -> dict[str, Any]:
    """What all that edits takes besides its picture."""
    return {
        "label": to_prompt(given),
        "seeds": given.seed,
        "count": given.count,
        "sampler": to_sampler(given, pipeline),
        "best_of": given.best_of,
    }


def _margins(given: Namespace) -> tuple[int, int, int, int]:
    sides = [given[side] for side in SIDES]
    if given.margins is None:
        left, top, right, bottom = (side or 0 for side in sides)
        return left, top, right, bottom
    if any(side is not None for side in sides):
        raise Refused("give either --margins or single sides, not both")
    try:
        left, top, right, bottom = (int(part) for part in given.margins.split(","))
    except ValueError:
        raise Refused(f"--margins must be four whole numbers such as 2,0,2,0, got `{given.margins}`") from None
    return left, top, right, bottom


def _save(result: Any, paths: list[Path], given: Namespace) -> None:
    """One picture as a PNG, several as a folder of them."""
    from maskimg.outputs import write_png

    for image, recipe, path in zip(result.images, result.recipes, paths, strict=True):
        write_png(image, recipe, path, force=given.force)
    print(f"done: {result.recipes[0]['tokens_redrawn']} of {result.codes[0].numel()} tokens redrawn, in {given.out}")


def translate(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument(
        "image", type=str, help="picture to translate, of the kind that the model was trained on, such as grey ones"
    )
    _add_edit(parser)
    add_drawing(parser)
    given = parser.parse_args(arguments)
    paths = _paths(given, "translate", given.image)
    pipeline = load_pipeline(given)
    _save(pipeline.translate(_opened(given), **_drawing(given, pipeline)), paths, given)


def reconstruct(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to encode and decode")
    add_model(parser)
    parser.add_argument("--tokenizer", type=str, help="tokenizer directory; replaces --model, and takes any size")
    parser.add_argument("--out", type=str, required=True, help="PNG to write")
    parser.add_argument(
        "--size", type=int, help="longer side in pixels; the model's own by default, padded to a square"
    )
    add_force(parser)
    add_max_megapixels(parser)
    add_machine(parser)
    given = parser.parse_args(arguments)
    out = output(given, "reconstruct", given.image, given.tokenizer or given.model)
    from maskimg.outputs import write_png
    from maskimg.recipe import mark

    if given.tokenizer:
        restored = _reconstruct_alone(given)
    else:
        restored = load_pipeline(given).reconstruct(_opened(given), size=given.size)
    write_png(restored.image, mark("reconstruct"), out, force=given.force)
    for name, value in restored.facts().items():
        print(f"{name}: {value}")
    print(f"done: in {given.out}")


def _reconstruct_alone(given: Namespace) -> Any:
    """With a tokenizer that belongs to no model: the whole picture, as large as it is."""
    from maskimg.drawing.reconstruction import LARGEST, reconstruct
    from maskimg.hardware import pick_device
    from vqgan import Tokenizer
    from vqgan.images import to_tensor

    device = pick_device(given.device)
    tokenizer = Tokenizer.from_pretrained(given.tokenizer).to(device)
    image = _opened(given).rgb
    return reconstruct(
        image,
        lambda picture: tokenizer.encode(to_tensor(picture)[None].to(device)),
        tokenizer.decode,
        stride=tokenizer.stride,
        vocab_size=tokenizer.vocab_size,
        square=0,
        size=given.size or min(LARGEST, max(tokenizer.stride, *image.size)),
    )


def doubts(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to judge")
    add_model(parser)
    parser.add_argument(
        "--out", type=str, required=True, help="PNG to write: the picture, in red where the critic doubts it"
    )
    add_force(parser)
    add_asking(parser)
    add_max_megapixels(parser)
    add_machine(parser)
    given = parser.parse_args(arguments)
    out = output(given, "doubts", given.image, given.model)
    from maskimg.outputs import write_png
    from maskimg.recipe import mark
    from vqgan.images import heat_map, pad_square

    pipeline = load_pipeline(given)
    square, box = pad_square(_opened(given).rgb, pipeline.image_size)
    asked = to_prompt(given)
    pipeline.reader.warn([asked])
    chances = pipeline.doubts(asked, pipeline.encode(square)).sigmoid()[0].cpu()
    write_png(heat_map(square, chances).crop(box), mark("doubts"), out, force=given.force)
    worst = divmod(int(chances.argmax()), chances.shape[1])
    print(
        f"done: the critic expects {chances.mean():.0%} of the tokens to be wrong, most likely row {worst[0] + 1}, "
        f"column {worst[1] + 1} ({chances.max():.0%}); heat map in {given.out}"
    )
