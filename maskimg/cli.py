"""The `maskimg` command. Torch and gradio are imported by the commands that need them, so `--help` costs nothing."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from maskimg import __version__

COMMANDS = {
    "demo": "open the browser demo",
    "train": "a folder or archive of pictures -> a model that the demo opens",
    "train-tokenizer": "only the first stage: pictures -> tokenizer",
    "encode": "only the second stage: pictures and tokenizer -> codes",
    "train-generator": "only the third stage: codes and tokenizer -> generator, critic and model",
    "plot": "the curves of one or several trainings, as a picture",
    "sample": "draw pictures into a folder",
    "inpaint": "redraw the painted part of a picture",
    "reconstruct": "a picture through the tokenizer and back",
    "eval-tokenizer": "how well a tokenizer keeps a folder of pictures",
    "convert": "another project's tokenizer, or its generator with its tokenizer -> maskimg's",
    "check-data": "what a source of pictures holds, and which files cannot be read",
    "doubts": "where a model's critic doubts a picture, as a heat-map",
    "info": "what a model can do, or how a picture was made",
}


TRAININGS = ("train", "train-tokenizer", "train-generator")  # that torchrun may start several times
SOURCE = (
    "folder of pictures, .zip or .tar archive, shards as s-{000..127}.tar, hf://owner/name, or "
    "torchvision://NAME?root=DIR"
)
# How many training pictures `eval-tokenizer` reads: to train a classifier with, and only to count codes over.
MOST_TRAINING, FEW_TRAINING = 10_000, 4_000


class Refused(Exception):
    """Bad input; the message is shown on one line and the exit code is 2."""


class Parser(ArgumentParser):
    """Errors as one kind line, exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for kind, words in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false")):
            message = str(message).replace(f"Expected a <class '{kind}'>.", f"expected {words}.")
        fail(f"{' '.join(message.split())} (see `{self.prog} --help`)")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"maskimg {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        fail(f"there is no command `{name}`; `maskimg --help` lists them")
    command = globals()[name.replace("-", "_")]
    # Threads that spin while they wait make a busy machine several times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = Parser(prog=f"maskimg {name}", description=COMMANDS[name].capitalize() + ".")
    try:
        with _together(name):
            return command(parser, rest) or 0
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except Refused as refused:
        fail(str(refused))
    except Exception as error:
        if _is_stop(error):  # asked for, and everything is saved
            if os.environ.get("RANK", "0") == "0":
                print(f"maskimg: {error}")
            return 0
        if not _is_kind(error):
            raise
        fail(str(error))


def _together(name: str) -> contextlib.AbstractContextManager[None]:
    """Of a training command that torchrun started several times, one training."""
    if name not in TRAININGS or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    from maskimg.training.ranks import joined

    return joined()


def overview() -> str:
    """What `maskimg --help` prints."""
    lines = [f"  {name:<16} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "maskimg: generate and edit images with a masked generative transformer",
            "",
            "usage: maskimg COMMAND [options]      maskimg COMMAND --help",
            "",
            *lines,
            "",
            "A first try: `maskimg demo`. On one's own pictures: `maskimg train FOLDER --out MODEL`.",
        ]
    )


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    print(f"maskimg: {message}", file=sys.stderr)
    raise SystemExit(2)


def demo(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("--model", type=str, help="bundled name, directory or hub repository")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="first port to try")
    parser.add_argument("--share", action="store_true", help="a public link; needs --user and --password-file")
    parser.add_argument("--user", type=str, help="name to log in with")
    parser.add_argument("--password-file", type=str, help="file that holds the password")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    _add_machine(parser)
    given = parser.parse_args(arguments)
    from maskimg_apps.demo import serve

    serve(
        given.model,
        host=given.host,
        port=given.port,
        share=given.share,
        user=given.user,
        password_file=given.password_file,
        device=given.device,
        dtype=given.dtype,
        open_browser=given.open,
    )


def train(parser: Parser, arguments: list[str]) -> None:
    given, plan, listing = _parse_plan(parser, arguments, out="model directory to write")
    from maskimg.training import ranks
    from maskimg.training.folder import train_folder, working_directory

    _allow_tf32(given.dtype)
    _say_plan(listing, plan, working_directory(Path(given.out)))
    pipeline = train_folder(
        listing,
        plan,
        given.out,
        device=given.device,
        dtype=given.dtype,
        max_bad=given.max_bad,
        about={"licence": given.licence} if given.licence else None,
        track=given.track,
        progress=_bar(),
        shard=given.shard,
    )
    if not ranks.is_first():
        return
    _say_bad(working_directory(Path(given.out)) / "pictures" / "bad.txt")
    for name, value in pipeline.about["measured"].items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(f"learnt by heart? {pipeline.about['memorisation']['in_words']}")
    print(f"done: samples in {given.out}/samples.png; open it with `maskimg demo --model {given.out}`")


def train_tokenizer(parser: Parser, arguments: list[str]) -> None:
    given, plan, listing = _parse_plan(parser, arguments, out="tokenizer directory to write")
    from maskimg.pictures import read_pictures
    from maskimg.training import ranks
    from maskimg.training.folder import tokenizer_stage, working_directory

    work = working_directory(Path(given.out))
    _allow_tf32(given.dtype)
    _say_plan(listing, plan, work)
    with ranks.first_goes_ahead():
        pictures = read_pictures(listing, plan.size, work / "pictures", max_bad=given.max_bad, progress=_bar())
    tokenizer = tokenizer_stage(
        pictures, plan, work / "tokenizer", track=given.track, device=given.device, dtype=given.dtype
    )
    if not ranks.is_first():
        return
    _say_bad(work / "pictures" / "bad.txt")
    tokenizer.save_pretrained(given.out)
    print(f"done: reconstructions in {work / 'tokenizer' / 'reconstructions.png'}; next, `maskimg encode`")


def encode(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("folder", type=str, help=SOURCE)
    parser.add_argument("tokenizer", type=str, help="tokenizer or model directory")
    parser.add_argument("--out", type=str, required=True, help="directory to write the codes to")
    parser.add_argument("--size", type=int, required=True, help="side of the pictures in pixels")
    parser.add_argument("--versions", type=int, default=4, help="how often each picture is encoded, moved a little")
    parser.add_argument("--flip", action="store_true", help="mirror every second version")
    parser.add_argument("--crops", type=int, help="instead: the whole picture, and so many random crops less one")
    parser.add_argument("--flips", action="store_true", help="each crop mirrored as well")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of unreadable files that is tolerated")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    given = parser.parse_args(arguments)
    import time

    from tqdm import tqdm

    from maskimg.codes import encode_pictures, require_same_codes
    from maskimg.crops import Crops
    from maskimg.hardware import pick_device
    from maskimg.pictures import list_pictures, read_pictures
    from maskimg.training.folder import working_directory
    from vqgan import Tokenizer

    tokenizer = Tokenizer.from_pretrained(given.tokenizer).to(pick_device(given.device))
    if given.size < 1 or given.size % tokenizer.stride or given.versions < 1:
        raise Refused(f"--size must be a multiple of the tokenizer's stride {tokenizer.stride}, --versions 1 or more")
    if given.flips and given.crops is None:
        raise Refused("--flips goes with --crops; with --versions, give --flip")
    out = Path(given.out)
    _check_out(out)
    crops = Crops(given.size, given.crops, given.flips) if given.crops is not None else None
    listing = list_pictures(given.folder)
    size = crops.source_size if crops else given.size
    work = working_directory(out)
    pictures = read_pictures(listing, size, work / "pictures", max_bad=given.max_bad, progress=tqdm)
    _say_bad(work / "pictures" / "bad.txt")
    require_same_codes(out, tokenizer, pictures)
    started = time.perf_counter()
    cache = encode_pictures(
        tokenizer, pictures, out, versions=given.versions, flip=given.flip, crops=crops, progress=tqdm
    )
    rate = len(cache.names) / (time.perf_counter() - started)
    versions, count, h, w = cache.codes.shape
    print(f"done: {count} pictures, {versions} versions each, {h}x{w} codes; {rate:,.0f} pictures/s")


def train_generator(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("codes", type=str, help="directory that `maskimg encode` wrote")
    parser.add_argument("tokenizer_directory", type=str, help="the tokenizer that encoded them")
    given, plan, cache = _parse_plan(parser, arguments, out="model directory to write", codes=True)
    from maskimg.codes import require_tokenizer
    from maskimg.training import ranks
    from maskimg.training.folder import generator_stage, working_directory
    from vqgan import Tokenizer

    out = Path(given.out)
    _allow_tf32(given.dtype)
    tokenizer = Tokenizer.from_pretrained(given.tokenizer_directory)
    require_tokenizer(cache, tokenizer)
    pipeline = generator_stage(
        cache, tokenizer, plan, working_directory(out),
        track=given.track, device=given.device, dtype=given.dtype, shard=given.shard,
    )  # fmt: skip
    if not ranks.is_first():
        return
    pipeline.about.update({"name": out.name, "data": {"pictures": cache.codes.shape[1]}})
    pipeline.save_pretrained(out)
    print(f"done: open it with `maskimg demo --model {out}`")


def plot(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="models, their .training directories, or single stages of it")
    parser.add_argument("--out", type=str, required=True, help="PNG to write")
    given = parser.parse_args(arguments)
    from maskimg.curves import draw_runs, find_runs

    out = _png_path(given.out)
    runs = find_runs(given.runs)
    for run in runs:
        if run.log.damaged:
            where = f"{run.name}, {run.stage}" if run.stage else run.name
            print(f"left out: {run.log.damaged} damaged lines in the log of {where}", file=sys.stderr)
    draw_runs(runs).save(out, format="PNG")
    print(f"done: in {out}")


def sample(parser: Parser, arguments: list[str]) -> None:
    _add_model(parser)
    parser.add_argument("--out", type=str, required=True, help="folder to write the pictures to")
    parser.add_argument("--count", type=int, default=16, help="how many pictures")
    parser.add_argument("--seed", type=int, default=0, help="picture i uses seed + i")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures drawn at a time; changes no picture")
    parser.add_argument("--compile", action="store_true", help="worth it for hundreds: seconds once, then faster")
    _add_drawing(parser)
    given = parser.parse_args(arguments)
    from maskimg_apps.sample import sample_folder

    pipeline = _pipeline(given)
    written = sample_folder(
        pipeline,
        given.out,
        count=given.count,
        seed=given.seed,
        label=_label(given.label),
        sampler=_sampler(given, pipeline),
        best_of=given.best_of,
        batch_size=given.batch_size,
    )
    print(f"done: {written} new, {given.count} in all in {given.out}")


def inpaint(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to change")
    parser.add_argument("mask", type=str, help="picture of the same size, white where to redraw")
    _add_model(parser)
    parser.add_argument("--out", type=str, required=True, help="PNG to write; with --count above 1, a folder")
    parser.add_argument("--count", type=int, default=1, help="how many versions")
    parser.add_argument("--seed", type=int, default=0, help="version i uses seed + i")
    parser.add_argument("--coverage", type=float, default=0.0, help="painted share above which a token is redrawn")
    parser.add_argument("--grow", type=int, default=1, help="rings of tokens redrawn around the paint")
    _add_drawing(parser)
    given = parser.parse_args(arguments)
    pipeline = _pipeline(given)
    result = pipeline.inpaint(
        given.image,
        given.mask,
        _label(given.label),
        seeds=given.seed,
        count=given.count,
        sampler=_sampler(given, pipeline),
        best_of=given.best_of,
        coverage=given.coverage,
        grow=given.grow,
    )
    tokens = pipeline.grid[0] * pipeline.grid[1]
    redrawn = result.recipes[0]["tokens_redrawn"]
    if given.count == 1:
        from maskimg.recipe import write_png

        path = _png_path(given.out)
        write_png(result.images[0], result.recipes[0], path)
    else:
        path = Path(given.out)
        result.save(path)
    print(f"done: {redrawn} of {tokens} tokens redrawn, in {path}")


def reconstruct(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to encode and decode")
    _add_model(parser)
    parser.add_argument("--tokenizer", type=str, help="tokenizer directory, instead of a model; takes any size")
    parser.add_argument("--out", type=str, required=True, help="PNG to write")
    parser.add_argument("--size", type=int, help="longer side in pixels; if not given, the model's, padded to a square")
    _add_machine(parser)
    given = parser.parse_args(arguments)
    if given.tokenizer:
        restored = _reconstruct_alone(given)
    else:
        restored = _pipeline(given).reconstruct(given.image, size=given.size)
    restored.image.save(_png_path(given.out), format="PNG")
    for name, value in restored.facts().items():
        print(f"{name}: {value}")
    print(f"done: in {given.out}")


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
    sheet = _png_path(given.sheet, "--sheet") if given.sheet else None
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
        _say_bad(cache / "bad.txt")
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


def _reconstruct_alone(given: Namespace) -> Any:
    """With a tokenizer that belongs to no model: the whole picture, as large as it is."""
    from maskimg.hardware import pick_device
    from maskimg.reconstruction import LARGEST, reconstruct
    from vqgan import Tokenizer, load_image
    from vqgan.images import to_tensor

    device = pick_device(given.device)
    tokenizer = Tokenizer.from_pretrained(given.tokenizer).to(device)
    image = load_image(given.image)
    return reconstruct(
        image,
        lambda picture: tokenizer.encode(to_tensor(picture)[None].to(device)),
        tokenizer.decode,
        stride=tokenizer.stride,
        vocab_size=tokenizer.vocab_size,
        square=0,
        size=given.size or min(LARGEST, max(tokenizer.stride, *image.size)),
    )


def convert(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("source", type=str, help="tokenizer, or (with --tokenizer) generator of another project")
    parser.add_argument("--tokenizer", type=str, help="the tokenizer that the generator SOURCE was trained on")
    parser.add_argument("--out", type=str, required=True, help="directory to write")
    parser.add_argument("--to", type=str, default="maskimg", help="maskimg; for a tokenizer also diffusers")
    parser.add_argument("--trust-pickle", action="store_true", help="read .ckpt, .pt, .pth and .bin files as well")
    parser.add_argument(
        "--pixels", type=str, help="of a tokenizer: unit for [0, 1], symmetric for [-1, 1]; or as known"
    )
    parser.add_argument("--heads", type=int, help="attention heads of a Halton-MaskGIT of no published size")
    parser.add_argument("--classes", type=int, default=1000, help="that a Google MaskGIT knows")
    given = parser.parse_args(arguments)
    _check_out(Path(given.out))
    if given.tokenizer:
        _convert_generator(given)
    else:
        _convert_tokenizer(given)


def _convert_tokenizer(given: Namespace) -> None:
    from vqgan.convert import to_diffusers
    from vqgan.tokenizer import Tokenizer

    if given.to not in ("maskimg", "diffusers"):
        raise Refused(f"--to must be maskimg or diffusers, got `{given.to}`")
    tokenizer = Tokenizer.from_pretrained(given.source, trust_pickle=given.trust_pickle, pixels=given.pixels)
    if given.to == "diffusers":
        to_diffusers(tokenizer, given.out)
    else:
        tokenizer.save_pretrained(given.out)
    millions = sum(p.numel() for p in tokenizer.parameters()) / 1e6
    print(
        f"done: {tokenizer.vocab_size} codes, {tokenizer.stride} pixels per token side, {millions:.1f} million "
        f"parameters, in {given.out}"
    )


def _convert_generator(given: Namespace) -> None:
    from maskimg.convert import convert_pair
    from maskimg.sampler import describe
    from vqgan import Tokenizer

    if given.to != "maskimg":
        raise Refused("a generator can only become a model of maskimg's: leave --to out")
    out = Path(given.out)
    pipeline = convert_pair(
        Tokenizer.from_pretrained(given.tokenizer, trust_pickle=given.trust_pickle, pixels=given.pixels),
        given.source,
        name=out.name,
        trust_pickle=given.trust_pickle,
        heads=given.heads,
        classes=given.classes,
    )
    pipeline.save_pretrained(out)
    millions = sum(p.numel() for p in pipeline.net.parameters()) / 1e6
    print(f"{pipeline.net.architecture}: {millions:.1f} million parameters, {pipeline.image_size} pixels")
    print(f"recipe: {describe(pipeline.recipe)}")
    print(f"done: draw with `maskimg sample --model {out}`, or open it with `maskimg demo --model {out}`")


def _check_out(out: Path) -> None:
    """Writing replaces the whole directory: that must not be one that maskimg did not write."""
    if out.exists() and not (out.is_dir() and ((out / "manifest.json").is_file() or not any(out.iterdir()))):
        raise Refused(f"`{out}` exists and is no model directory of maskimg's: choose a new one")


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


def doubts(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("image", type=str, help="picture to judge")
    _add_model(parser)
    parser.add_argument("--out", type=str, required=True, help="PNG to write: the picture, redder where it looks wrong")
    parser.add_argument("--label", type=str, action="append", help="NAME, or FIELD=NAME; repeatable")
    _add_machine(parser)
    given = parser.parse_args(arguments)
    from maskimg.pipeline import opened
    from vqgan.images import heat_map, pad_square

    pipeline = _pipeline(given)
    square, box = pad_square(opened(given.image), pipeline.image_size)
    chances = pipeline.doubts(_label(given.label), pipeline.encode(square)).sigmoid()[0].cpu()
    heat_map(square, chances).crop(box).save(_png_path(given.out), format="PNG")
    worst = divmod(int(chances.argmax()), chances.shape[1])
    print(
        f"done: tokens that look wrong: {chances.mean():.0%} expected, most of all row {worst[0] + 1}, column "
        f"{worst[1] + 1} ({chances.max():.0%}); in {given.out}"
    )


def info(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("what", type=str, nargs="?", default="emoji-64", help="a model, or a PNG that maskimg made")
    given = parser.parse_args(arguments)
    if Path(given.what).is_file():
        _info_picture(given.what)
    else:
        _info_model(given.what)


def _info_picture(path: str) -> None:
    import json

    from maskimg.recipe import read_recipe

    recipe = read_recipe(path)
    if recipe is None:
        raise Refused(f"`{path}` holds no maskimg recipe")
    print(json.dumps(recipe, indent=2, ensure_ascii=False))


def _info_model(name: str) -> None:
    from maskimg.pipeline import Pipeline
    from maskimg.sampler import describe

    pipeline = Pipeline.from_pretrained(name, device="cpu")
    millions = {
        part: sum(p.numel() for p in module.parameters()) / 1e6
        for part, module in (
            ("tokenizer", pipeline.tokenizer),
            ("generator", pipeline.generator.net),
            ("critic", pipeline.critic),
        )
        if module is not None
    }
    h, w = pipeline.grid
    print(f"{pipeline.name}: {pipeline.image_size} pixels, {h}x{w} tokens, {pipeline.tokenizer.vocab_size} codes")
    print("parameters: " + ", ".join(f"{part} {size:.1f} million" for part, size in millions.items()))
    for field, names in pipeline.labels.names.items():
        print(f"{field}: {', '.join(names)}")
    for name, sampler in {"recipe": pipeline.recipe, **pipeline.presets}.items():
        print(f"{name} ({sampler.forwards} forwards): " + describe(sampler))
    for key in ("data", "licence", "measured", "minutes"):
        if key in pipeline.about:
            print(f"{key}: {pipeline.about[key]}")


def _add_model(parser: Parser) -> None:
    parser.add_argument("--model", type=str, default="emoji-64", help="bundled name, directory or hub repository")


def _add_machine(parser: Parser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, fp32 or bf16")


def _add_drawing(parser: Parser) -> None:
    """What a person may set about one drawing; what is not given comes from the preset, or the model's recipe."""
    parser.add_argument("--label", type=str, action="append", help="NAME, or FIELD=NAME; repeatable")
    parser.add_argument("--preset", type=str, help="fast, balanced or best, as the model has them")
    parser.add_argument("--steps", type=int, help="forward passes")
    parser.add_argument("--counts", type=str, help="tokens revealed by each step, as 2,6,14,42; instead of --steps")
    parser.add_argument("--order", type=str, help="confidence, halton, random, moment or critic")
    parser.add_argument("--schedule", type=str, help="cosine, linear, arccos, square or beta(a, b)")
    several = "; several, as 3,2,1, are spread over the steps"
    parser.add_argument("--guidance", type=str, help="towards the label; 1 is off" + several)
    parser.add_argument("--guidance-schedule", type=str, help="constant, linear or power-cosine")
    parser.add_argument("--guidance-power", type=float, help="of power-cosine")
    parser.add_argument("--guidance-start", type=float, help="share revealed before guidance begins")
    parser.add_argument("--guidance-end", type=float, help="share revealed when guidance ends")
    parser.add_argument("--token-temperature", type=str, help="of the draw; lower is plainer" + several)
    parser.add_argument("--choice-temperature", type=str, help="of the choice of tokens to keep" + several)
    parser.add_argument("--top-k", type=int, help="draw among the k most probable codes")
    parser.add_argument("--top-p", type=float, help="draw among the fewest codes of this probability")
    parser.add_argument("--revise", type=float, help="share of the drawn tokens that each step draws again")
    parser.add_argument("--critic-keeps", action="store_true", help="a critic may not revise a token once kept")
    parser.add_argument("--best-of", type=int, default=1, help="candidates of each picture; the critic keeps the best")
    _add_machine(parser)


def _parse_plan(parser: Parser, arguments: list[str], *, out: str, codes: bool = False) -> tuple[Namespace, Any, Any]:
    """Arguments of a training command, the plan, and the listing (or the code cache) that it is for.

    Parsed twice: what the folder holds decides the defaults of the plan that the arguments then change.
    """
    import dataclasses

    from maskimg.training.folder import PRESETS, Plan, plan_for
    from maskimg.training.trackers import check_tracker

    if not codes:
        parser.add_argument("folder", type=str, help=f"{SOURCE}; subfolders or a labels.csv become labels")
        parser.add_argument("--max-bad", type=float, default=0.01, help="share of unreadable files that is tolerated")
        parser.add_argument("--licence", type=str, help="of the pictures; kept with the model")
    parser.add_argument("--out", type=str, required=True, help=out)
    parser.add_argument("--preset", type=str, default="auto", help="auto, cpu or gpu")
    parser.add_argument("--minutes", type=float, help="of training in all, instead of the preset's")
    parser.add_argument("--track", type=str, help="tensorboard, trackio or wandb: figures and pictures there, too")
    _add_machine(parser)
    parser.add_argument(
        "--shard", action="store_true", help="split the generator over torchrun's processes (FSDP2), not only the batch"
    )
    parser.add_argument("--config", action="config", help="YAML file with what differs from the plan")
    parser.add_class_arguments(Plan)
    parser.set_defaults(size=0)  # 0: as the pictures are
    given = parser.parse_args(arguments)
    if given.preset not in ("auto", *PRESETS):
        raise Refused(f"--preset must be auto, {' or '.join(PRESETS)}, got `{given.preset}`")
    check_tracker(given.track)
    if given.minutes is not None and not 0 < given.minutes < 1e6:
        raise Refused(f"--minutes must be more than 0, got {given.minutes}")

    if codes:
        from maskimg.codes import read_codes

        found = read_codes(given.codes)
        count, labelled, usual = found.codes.shape[1], bool(found.fields), 0
    else:
        from maskimg.pictures import list_pictures
        from maskimg.training.folder import usual_side

        found = list_pictures(given.folder)
        count, labelled, usual = len(found), bool(found.fields), usual_side(found)
    plan = plan_for(count, usual, preset=given.preset, labelled=labelled, minutes=given.minutes, size=given.size)
    parser.set_defaults(dataclasses.asdict(plan))
    given = parser.parse_args(arguments)
    values = parser.instantiate(given)
    chosen = Plan(**{field.name: values[field.name] for field in dataclasses.fields(Plan)})
    return given, chosen if chosen.size else dataclasses.replace(chosen, size=plan.size), found


def _pipeline(given: Namespace) -> Any:
    from maskimg.pipeline import Pipeline

    return Pipeline.from_pretrained(
        given.model, device=given.device, dtype=given.dtype, compile=bool(given.get("compile"))
    )


def _sampler(given: Namespace, pipeline: Any) -> Any:
    """The preset or the model's recipe, with what was given on the command line."""
    import dataclasses

    start = pipeline.sampler(given.preset)
    names = {field.name for field in dataclasses.fields(start)}
    changed = {name: given[name] for name in names if given.get(name) is not None}
    for name in ("counts", "guidance", "token_temperature", "choice_temperature"):
        if name in changed:
            changed[name] = _numbers(f"--{name.replace('_', '-')}", changed[name], whole=name == "counts")
    if "steps" in changed:
        changed.setdefault("counts", ())
    if given.critic_keeps:
        changed["critic_revises"] = False
    return dataclasses.replace(start, **changed)


def _numbers(option: str, text: str, *, whole: bool) -> Any:
    """ "3" -> 3.0, "3,2,1" -> (3.0, 2.0, 1.0); always several where they are whole."""
    try:
        values = tuple(int(part) if whole else float(part) for part in text.split(","))
    except ValueError:
        raise Refused(f"{option} must be a number, or several as 3,2,1, got `{text}`") from None
    return values[0] if len(values) == 1 and not whole else values


def _label(given: list[str] | None) -> dict[str, str] | str | None:
    """["bird", "style=noto"] -> what `LabelFields.encode` takes."""
    given = given or []
    plain = [text for text in given if "=" not in text]
    if len(plain) > 1:
        raise Refused(f"give one plain --label, and the others as FIELD=NAME; got {', '.join(plain)}")
    named = dict(text.split("=", 1) for text in given if "=" in text)
    if plain and named:
        return {"": plain[0], **named}
    return named or (plain[0] if plain else None)


def _png_path(text: str, option: str = "--out") -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise Refused(f"{option} must end in .png, got `{text}`")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _say_plan(listing: Any, plan: Any, work: Path) -> None:
    labels = ", ".join(f"{len(names)} x {field}" for field, names in listing.fields.items()) or "no labels"
    minutes = sum(b.minutes or 0 for b in (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget))
    print(f"{len(listing)} pictures ({labels}), {int(listing.held_out.sum())} of them held out")
    print(
        f"plan: {plan.size} pixels, {plan.grid[0]}x{plan.grid[1]} tokens, {plan.tokenizer.vocab_size} codes, generator "
        f"{plan.generator.depth} x {plan.generator.dim}; about {minutes:.0f} minutes; logs and sheets in {work}"
    )


def _say_bad(path: Path) -> None:
    bad = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)


def _allow_tf32(dtype: str) -> None:
    """What is not bf16 anyway need not be exact to the last bit either, unless fp32 was asked for."""
    import torch

    if dtype != "fp32" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def _bar() -> Any:
    """A progress bar, once: of several processes the first has it."""
    from tqdm import tqdm

    return tqdm if os.environ.get("RANK", "0") == "0" else None


def _is_stop(error: Exception) -> bool:
    from maskimg.training.folder import Stopped

    return isinstance(error, Stopped)


def _is_kind(error: Exception) -> bool:
    """Whether an error's own sentence is meant for the person at the terminal."""
    from maskimg.training.run import TrainingError

    return isinstance(error, ValueError | OSError | TrainingError)
