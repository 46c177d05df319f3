"""Commands that measure: pictures, tokenizers, generators and their samplers, and the curves of trainings."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from maskimg.cli.options import (
    SOURCE,
    Parser,
    Refused,
    add_device,
    add_force,
    add_machine,
    add_max_bad,
    add_max_megapixels,
    add_sampler,
    load_pipeline,
    max_pixels,
    output,
    outputs,
    say_bad,
    say_left_out,
    to_sampler,
)
from maskimg.cli.places import working_out

MODEL = "bundled model, model directory or hub repository"
# How many training pictures `eval-tokenizer` reads: to train a classifier with, and only to count codes over.
MOST_TRAINING, FEW_TRAINING = 10_000, 4_000


def eval_tokenizer(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("tokenizer", type=str, help="tokenizer or model: bundled name, directory or hub repository")
    parser.add_argument("folder", type=str, help=f"{SOURCE}; with labels, more is measured")
    parser.add_argument("--count", type=int, default=5000, help="number of held-out pictures to measure at most")
    parser.add_argument(
        "--held-out",
        type=float,
        help="share to hold out at random, for a tokenizer that was not trained on the folder; by default the `split` "
        "column of labels.csv decides, or else the one in twenty that `maskimg train` holds out",
    )
    parser.add_argument(
        "--size", type=int, default=0, help="side in pixels; the model's, or that of the pictures, by default"
    )
    _add_classifier(parser)
    parser.add_argument("--json", type=str, help="also write the figures to this file")
    parser.add_argument("--sheet", type=str, help="also write a PNG of originals, reconstructions and differences")
    add_force(parser)
    add_max_bad(parser)
    add_max_megapixels(parser)
    add_device(parser)
    given = parser.parse_args(arguments)
    _check_evaluation(given)
    inputs = (given.tokenizer, given.folder)
    figures, sheet = outputs(given, "eval-tokenizer", {"json": "", "sheet": ".png"}, inputs)
    import dataclasses

    from tqdm import tqdm

    from maskimg.evaluation.judge import judge_for
    from maskimg.evaluation.outside import load_inception, load_lpips
    from maskimg.evaluation.tokenizer_report import evaluate_tokenizer, reconstruction_sheet, summary
    from maskimg.hardware import pick_device
    from maskimg.outputs import write_figures, write_png
    from maskimg.recipe import mark

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
    print(f"{report.pictures} {kind}pictures of {report.size[1]}x{report.size[0]} pixels\n\n{summary(report)}")
    if figures:
        write_figures(dataclasses.asdict(report), "eval-tokenizer", figures, force=given.force)
    if sheet:
        write_png(reconstruction_sheet(tokenizer, pictures), mark("eval-tokenizer"), sheet, force=given.force)
    written = [f"`{path}`" for path in (given.json, given.sheet) if path]
    print(f"\ndone{': in ' + ' and '.join(written) if written else ''}")


def eval(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("model", type=str, help=MODEL)
    _add_pictures(parser)
    parser.add_argument("--count", type=int, default=1000, help="number of samples, labelled as the pictures are")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sample; each next one adds 1")
    parser.add_argument("--json", type=str, help="also write the figures to this file")
    parser.add_argument("--sheet", type=str, help="also write a PNG of samples above their nearest training pictures")
    add_force(parser)
    parser.add_argument("--write", action="store_true", help="add the figures to the model's card and pipeline.json")
    add_sampler(parser)
    given = parser.parse_args(arguments)
    figures, page = outputs(given, "eval", {"json": "", "sheet": ".png"}, (given.model, given.folder))
    import dataclasses

    from tqdm import tqdm

    from maskimg.evaluation import quality
    from maskimg.evaluation.judge import judge_for
    from maskimg.evaluation.outside import load_inception
    from maskimg.evaluation.sample_report import summary
    from maskimg.outputs import write_figures, write_png
    from maskimg.recipe import mark

    _check_generator(given)
    pipeline = load_pipeline(given)
    sampler = to_sampler(given, pipeline)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = _pictures_of_model(given, pipeline, Path(temporary) / "pictures")  # mapped beyond their file
    samples = quality.draw_samples(
        pipeline, pictures.part(held_out=False), given.count,
        sampler=sampler, best_of=given.best_of, seed=given.seed, progress=tqdm,
    )  # fmt: skip
    reference = quality.refer(pictures, judge_for(pictures, given.classifier_steps, progress=tqdm))
    report, nearest = quality.measure_samples(
        pipeline, samples, reference, inception=load_inception(pipeline.device), progress=tqdm
    )
    print(summary(report))
    if figures:
        write_figures(dataclasses.asdict(report), "eval", figures, force=given.force)
    if page:
        write_png(quality.nearest_page(samples, reference, nearest), mark("eval"), page, force=given.force)
    if given.write:
        _write_quality(given, report, _command("eval", arguments))
    written = [f"`{path}`" for path in (given.json, given.sheet, given.write and given.model) if path]
    print(f"\ndone{': in ' + ', '.join(written) if written else ''}")


def tune(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("model", type=str, help=MODEL)
    _add_pictures(parser)
    parser.add_argument(
        "--out", type=str, required=True, help="directory for the measurements; a rerun resumes the search there"
    )
    parser.add_argument(
        "--budgets",
        type=str,
        default="8,18,36",
        help="forward passes of the presets fast, balanced and best",
    )
    parser.add_argument("--candidates", type=int, default=18, help="samplers to try for each budget")
    parser.add_argument("--count", type=int, default=400, help="pictures drawn for a full measurement")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search")
    parser.add_argument("--force", action="store_true", help="replace a pareto.png in OUT that maskimg did not make")
    parser.add_argument("--write", action="store_true", help="save the presets in the model, its recipe and its card")
    add_machine(parser)
    given = parser.parse_args(arguments)
    from tqdm import tqdm

    from maskimg.drawing.model_files import locate_model
    from maskimg.evaluation import quality
    from maskimg.evaluation import tune as tuning
    from maskimg.evaluation.card import amend, weights_in
    from maskimg.evaluation.judge import kept_judge
    from maskimg.outputs import require_free, write_png
    from maskimg.recipe import mark
    from maskimg.training.loop.alone import working_in

    _check_generator(given)
    budgets = _budgets(given.budgets)
    out = working_out(given.out, {"FOLDER": given.folder, "MODEL": given.model})
    tuning.require_directory(out)
    inputs = (given.model, given.folder)
    require_free(out / "pareto.png", task="tune", force=given.force, inputs=inputs, option="--out")
    pipeline = load_pipeline(given)
    with working_in(out):
        pictures = _pictures_of_model(given, pipeline, out / "pictures", leave_out=(out,))
        about = {"model": weights_in(locate_model(given.model)), "pictures": pictures.fingerprint}
        tuning.require_same(out, about | {"classifier": given.classifier_steps})
        reference = quality.refer(pictures, kept_judge(out / "judge", pictures, given.classifier_steps, progress=tqdm))
        bench = tuning.Bench(pipeline, reference, out / "log.jsonl", progress=tqdm)
        found = tuning.tune(bench, budgets=budgets, candidates=given.candidates, count=given.count, seed=given.seed)
        text = "\n".join(tuning.table(found))
        plot = tuning.pareto_plot(list(bench.trials.values()), found, tuning.floor_of(reference, given.count))
        write_png(plot, mark("tune"), out / "pareto.png", force=given.force)
    print(text)
    if given.write:
        command = _command("tune", arguments)
        words = f"Found by `{command}`, {_today()}, {given.count} pictures each.\n\n{text}"
        amend(given.model, lambda about: tuning.write_presets(about, found, command), "Presets", words)
    print(f"\ndone: {len(bench.trials)} measurements in {out}{', presets in ' + given.model if given.write else ''}")


def _add_pictures(parser: Parser) -> None:
    parser.add_argument(
        "folder", type=str, help=f"the pictures that the model was trained on, with their labels: {SOURCE}"
    )
    _add_classifier(parser)
    add_max_bad(parser)
    add_max_megapixels(parser)


def _add_classifier(parser: Parser) -> None:
    parser.add_argument(
        "--classifier-steps",
        type=int,
        default=600,
        help="training steps of the classifier that judges the pictures; 0 measures without it",
    )


def _check_generator(given: Namespace) -> None:
    if given.count < 1 or given.classifier_steps < 0:
        raise Refused("--count must be 1 or more, --classifier-steps 0 or more")
    if given.write and not Path(given.model).is_dir():
        raise Refused(f"--write needs a model directory, and `{given.model}` is not one")
    if given.write:
        from vqgan.writing import require_amendable

        require_amendable(given.model)


def _budgets(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise Refused(f"--budgets must be three numbers such as 8,18,36, got `{text}`") from None


def _pictures_of_model(given: Namespace, pipeline: Any, cache: Path, leave_out: Sequence[Path] = ()) -> Any:
    """Training and held-out pictures, at the model's size."""
    from tqdm import tqdm

    from maskimg.data.listing import require_training, subset
    from maskimg.data.pictures import list_pictures, read_pictures

    listing = require_training(list_pictures(given.folder, leave_out=leave_out))
    say_left_out(listing)
    listing = subset(listing, held_out=MOST_TRAINING, training=MOST_TRAINING)
    limits: dict[str, Any] = {"max_bad": given.max_bad, "max_pixels": max_pixels(given)}
    pictures = read_pictures(listing, pipeline.image_size, cache, progress=tqdm, **limits)
    say_bad(cache / "bad.txt")
    return pictures


def _write_quality(given: Namespace, report: Any, command: str) -> None:
    import dataclasses

    from maskimg.evaluation.card import amend
    from maskimg.evaluation.sample_report import markdown

    def change(about: dict[str, Any]) -> None:
        figures = {"command": command, "date": _today(), **dataclasses.asdict(report)}
        about["measured"] = {**about.get("measured", {}), "samples": figures}

    amend(given.model, change, "Measured with `maskimg eval`", markdown(report, command, _today()))


def _command(name: str, arguments: list[str]) -> str:
    return shlex.join(["maskimg", name, *arguments])


def _today() -> str:
    import datetime

    return datetime.date.today().isoformat()


def _check_evaluation(given: Namespace) -> None:
    if given.count < 1 or given.classifier_steps < 0 or given.size < 0:
        raise Refused("--count must be 1 or more, --classifier-steps and --size 0 or more")
    if given.held_out is not None and not 0 < given.held_out <= 1:
        raise Refused(f"--held-out must be more than 0 and at most 1, got {given.held_out}")


def _pictures_to_measure(given: Namespace, size: int, stride: int) -> Any:
    """The held-out pictures, and training pictures to count codes over and to train a classifier with."""
    from tqdm import tqdm

    from maskimg.data.listing import subset
    from maskimg.data.pictures import list_pictures, read_pictures
    from maskimg.training.plan import usual_side

    listing = list_pictures(given.folder)
    say_left_out(listing)
    size = given.size or size or max(1, min(usual_side(listing), 256) // stride) * stride
    if size % stride:
        raise Refused(f"--size must be a multiple of the tokenizer's stride {stride}, got {size}")
    training = MOST_TRAINING if given.classifier_steps and listing.fields else FEW_TRAINING
    listing = subset(listing, held_out=given.count, training=training, share=given.held_out)
    with tempfile.TemporaryDirectory() as temporary:  # the array stays mapped after its file is gone
        cache = Path(temporary) / "pictures"
        limits: dict[str, Any] = {"max_bad": given.max_bad, "max_pixels": max_pixels(given)}
        pictures = read_pictures(listing, size, cache, progress=tqdm, **limits)
        say_bad(cache / "bad.txt")
    return pictures


def _tokenizer(name: str) -> tuple[Any, int]:
    """The tokenizer of a model, or one on its own, and the side of the model's pictures, 0 where it does not say."""
    from maskimg.drawing.model_files import locate_model
    from vqgan import Tokenizer, files

    directory = locate_model(name)
    tokenizer = Tokenizer.from_pretrained(directory)
    about = files.read_json(directory / "pipeline.json") if (directory / "pipeline.json").is_file() else {}
    size = about.get("image_size", 0)
    return tokenizer, size if isinstance(size, int) else 0


def check_data(parser: Parser, arguments: list[str]) -> int:
    parser.add_argument("source", type=str, help=SOURCE)
    parser.add_argument("--jobs", type=int, help="pictures decoded at a time, one for each core by default")
    parser.add_argument("--out", type=str, help="also write a text file: the unreadable files and why, a line each")
    add_force(parser)
    add_max_megapixels(parser)
    given = parser.parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        raise Refused(f"--jobs must be 1 or more, got {given.jobs}")
    (out,) = outputs(given, "check-data", {"out": ""}, (given.source,))
    from tqdm import tqdm

    from maskimg.data.check import check_pictures, summary
    from maskimg.data.pictures import bad_lines, list_pictures
    from maskimg.outputs import write_lines

    report = check_pictures(list_pictures(given.source), jobs=given.jobs, max_pixels=max_pixels(given), progress=tqdm)
    print(summary(report))
    if out:
        write_lines(bad_lines(report.bad), "check-data", out, force=given.force)
        print(f"done: {len(report.bad)} unreadable pictures listed in {out}")
    return 1 if report.bad else 0


def plot(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument(
        "runs", type=str, nargs="+", help="models, their .training directories, or single stages in them"
    )
    parser.add_argument("--out", type=str, required=True, help="PNG to write")
    add_force(parser)
    given = parser.parse_args(arguments)
    out = output(given, "plot", *given.runs)
    from maskimg.outputs import write_png
    from maskimg.recipe import mark
    from maskimg.training.tracking.curves import draw_runs, find_runs

    runs = find_runs(given.runs)
    for run in runs:
        if run.log.damaged:
            where = f"{run.name}, {run.stage}" if run.stage else run.name
            print(f"left out: {run.log.damaged} damaged lines in the log of {where}", file=sys.stderr)
    write_png(draw_runs(runs), mark("plot"), out, force=given.force)
    print(f"done: in {out}")
