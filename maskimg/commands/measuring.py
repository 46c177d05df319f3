"""Commands that measure: pictures, tokenizers, and the curves of trainings."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from maskimg.commands.options import SOURCE, Parser, Refused, png_path, say_bad

# How many training pictures `eval-tokenizer` reads: to train a classifier with, and only to count codes over.
MOST_TRAINING, FEW_TRAINING = 10_000, 4_000


def eval_tokenizer(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("tokenizer", type=str, help="tokenizer, or a model that holds one: bundled, directory or hub")
    parser.add_argument("folder", type=str, help=f"{SOURCE}; labels make more figures possible")
    parser.add_argument("--count", type=int, default=5000, help="at most so many held-out pictures are measured")
    parser.add_argument(
        "--held-out",
        type=float,
        help="hold out this share at random, for a tokenizer that was not trained on the folder; if not given, what "
        "the `split` of labels.csv keeps out, or else the one in twenty that `maskimg train` does",
    )
    parser.add_argument("--size", type=int, default=0, help="side in pixels; the model's, or as the pictures are, if 0")
    parser.add_argument("--classifier-steps", type=int, default=600, help="of our own classifier; 0 leaves it out")
    parser.add_argument("--json", type=str, help="file to write the figures to")
    parser.add_argument("--sheet", type=str, help="PNG to write: originals, reconstructions and errors")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of unreadable files that is tolerated")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    given = parser.parse_args(arguments)
    _check_evaluation(given)
    sheet = png_path(given.sheet, "--sheet") if given.sheet else None
    import dataclasses

    from tqdm import tqdm

    from maskimg.evaluate import describe, evaluate_tokenizer, judge_for, reconstruction_sheet
    from maskimg.hardware import pick_device
    from maskimg.outside import load_inception, load_lpips

    device = pick_device(given.device)
    tokenizer, size = _tokenizer(given.tokenizer)
    tokenizer = tokenizer.to(device)
    pictures = _pictures_to_measure(given, size, tokenizer.stride)
    report = evaluate_tokenizer(
        tokenizer,
        pictures,
        judge=judge_for(pictures, given.classifier_steps, progress=tqdm),
        lpips=load_lpips(device),
        inception=load_inception(device),
        progress=tqdm,
    )
    kind = "held-out " if report.held_out else ""
    print(f"{report.pictures} {kind}pictures of {report.size[1]}x{report.size[0]} pixels\n\n{describe(report)}")
    if given.json:
        from vqgan.files import write_json

        write_json(Path(given.json), dataclasses.asdict(report))
    if sheet:
        reconstruction_sheet(tokenizer, pictures).save(sheet, format="PNG")
    written = [f"`{path}`" for path in (given.json, given.sheet) if path]
    print(f"\ndone{': in ' + ' and '.join(written) if written else ''}")


def _check_evaluation(given: Namespace) -> None:
    if given.count < 1 or given.classifier_steps < 0 or given.size < 0:
        raise Refused("--count must be 1 or more, --classifier-steps and --size 0 or more")
    if given.held_out is not None and not 0 < given.held_out <= 1:
        raise Refused(f"--held-out must be more than 0 and at most 1, got {given.held_out}")
    if given.json and Path(given.json).is_dir():
        raise Refused(f"--json must name a file, and `{given.json}` is a folder")
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)


def _pictures_to_measure(given: Namespace, size: int, stride: int) -> Any:
    """The held-out pictures, and training pictures to count codes over and to train a classifier with."""
    import tempfile

    from tqdm import tqdm

    from maskimg.listing import subset
    from maskimg.pictures import list_pictures, read_pictures
    from maskimg.training.folder import usual_side

    listing = list_pictures(given.folder)
    size = given.size or size or max(1, min(usual_side(listing), 256) // stride) * stride
    if size % stride:
        raise Refused(f"--size must be a multiple of the tokenizer's stride {stride}, got {size}")
    training = MOST_TRAINING if given.classifier_steps and listing.fields else FEW_TRAINING
    listing = subset(listing, held_out=given.count, training=training, share=given.held_out)
    with tempfile.TemporaryDirectory() as temporary:  # the array stays mapped after its file is gone
        cache = Path(temporary) / "pictures"
        pictures = read_pictures(listing, size, cache, max_bad=given.max_bad, progress=tqdm)
        say_bad(cache / "bad.txt")
    return pictures


def _tokenizer(name: str) -> tuple[Any, int]:
    """The tokenizer of a model, or one on its own, and the side of the model's pictures, 0 where it does not say."""
    from maskimg.pipeline import locate_model
    from vqgan import Tokenizer, files

    directory = locate_model(name)
    tokenizer = Tokenizer.from_pretrained(directory)
    about = files.read_json(directory / "pipeline.json") if (directory / "pipeline.json").is_file() else {}
    size = about.get("image_size", 0)
    return tokenizer, size if isinstance(size, int) else 0


def check_data(parser: Parser, arguments: list[str]) -> int:
    parser.add_argument("source", type=str, help=SOURCE)
    parser.add_argument("--jobs", type=int, help="pictures decoded at a time; if not given, one for each core")
    parser.add_argument("--out", type=str, help="text file to write: what cannot be read and why, a line each")
    given = parser.parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        raise Refused(f"--jobs must be 1 or more, got {given.jobs}")
    if given.out and Path(given.out).is_dir():
        raise Refused(f"--out must name a file, and `{given.out}` is a folder")
    from tqdm import tqdm

    from maskimg.check import check_pictures, describe
    from maskimg.pictures import list_pictures, write_bad

    report = check_pictures(list_pictures(given.source), jobs=given.jobs, progress=tqdm)
    print(describe(report))
    if given.out:
        Path(given.out).parent.mkdir(parents=True, exist_ok=True)
        write_bad(report.bad, Path(given.out))
        print(f"done: {len(report.bad)} lines in {given.out}")
    return 1 if report.bad else 0


def plot(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="models, their .training directories, or single stages of it")
    parser.add_argument("--out", type=str, required=True, help="PNG to write")
    given = parser.parse_args(arguments)
    from maskimg.curves import draw_runs, find_runs

    out = png_path(given.out)
    runs = find_runs(given.runs)
    for run in runs:
        if run.log.damaged:
            where = f"{run.name}, {run.stage}" if run.stage else run.name
            print(f"left out: {run.log.damaged} damaged lines in the log of {where}", file=sys.stderr)
    draw_runs(runs).save(out, format="PNG")
    print(f"done: in {out}")
