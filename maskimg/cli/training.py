"""Commands that train: the whole way from pictures to a model, and each stage on its own."""

import math
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from maskimg.cli.options import (
    SOURCE,
    Parser,
    Refused,
    add_machine,
    add_max_bad,
    add_max_megapixels,
    max_pixels,
    progress_bar,
    say_bad,
    say_left_out,
)
from maskimg.cli.places import out_directory
from maskimg.cli.plan_words import GROUPS, reword


def train(parser: Parser, arguments: list[str]) -> None:
    given, plan, listing = _parse_plan(parser, arguments, out="model directory to write")
    from maskimg import distributed
    from maskimg.training.folder import train_folder, working_directory
    from maskimg.training.tracking.watch import unlearnt_warning

    _allow_tf32(given.dtype)
    _say_plan(listing, plan, working_directory(Path(given.out)))
    pipeline = train_folder(
        listing,
        plan,
        given.out,
        _session(given),
        max_bad=given.max_bad,
        max_pixels=max_pixels(given),
        about={"licence": given.licence} if given.licence else None,
    )
    if not distributed.is_first():
        return
    say_bad(working_directory(Path(given.out)) / "pictures" / "bad.txt")
    measured = pipeline.about["measured"]
    for name, value in measured.items():
        print(f"{name.replace('_', ' ')}: {value}")
    print(f"memorisation: {pipeline.about['memorisation']['in_words']}")
    nats = (measured.get(f"held_out_nats_{name}", math.nan) for name in ("per_masked_token", "by_guessing"))
    if warning := unlearnt_warning(*nats):
        print(f"warning: {warning}")
    print(f"done: samples in {given.out}/samples.png; open it with `maskimg demo --model {given.out}`")


def train_tokenizer(parser: Parser, arguments: list[str]) -> None:
    given, plan, listing = _parse_plan(parser, arguments, out="tokenizer directory to write")
    from maskimg import distributed
    from maskimg.data.pictures import read_pictures
    from maskimg.training.folder import working_directory
    from maskimg.training.stages import tokenizer_stage

    work = working_directory(Path(given.out))
    _allow_tf32(given.dtype)
    with _session(given).working_in(work) as session:
        _say_plan(listing, plan, work)
        kept = work / "pictures"
        with distributed.first_goes_ahead():
            pictures = read_pictures(
                listing, plan.size, kept,
                max_bad=given.max_bad, max_pixels=max_pixels(given), progress=session.counted("pictures"),
            )  # fmt: skip
        tokenizer = tokenizer_stage(pictures, plan, work / "tokenizer", session)
        if not distributed.is_first():
            return
        say_bad(kept / "bad.txt")
        tokenizer.save_pretrained(given.out)
    print(f"done: reconstructions in {work / 'tokenizer' / 'reconstructions.png'}; next, `maskimg encode`")


def encode(parser: Parser, arguments: list[str]) -> None:
    given, out = _parse_encoding(parser, arguments)
    import time

    from maskimg import distributed
    from maskimg.data.codes import encode_pictures, require_same_codes
    from maskimg.data.crops import Crops, Versions
    from maskimg.data.pictures import list_pictures, read_pictures
    from maskimg.data.source_pictures import kind_of, read_sources
    from maskimg.drawing.model_files import locate_model
    from maskimg.hardware import pick_device
    from maskimg.training.folder import input_codes, working_directory
    from maskimg.training.loop.session import Session
    from vqgan import Tokenizer
    from vqgan.writing import require_replaceable

    if given.source:
        require_replaceable(input_codes(out))

    def read_tokenizer(name: str) -> Tokenizer:
        return Tokenizer.from_pretrained(locate_model(name)).to(pick_device(given.device))

    tokenizer = read_tokenizer(given.tokenizer)
    _check_encoding(given, tokenizer.stride)
    views = Versions(given.versions, given.flip)
    size = given.size
    if given.crops is not None:
        views = Crops(given.size, given.crops, given.flips)
        size = views.source_size
    work = working_directory(out)
    listing = list_pictures(given.folder, leave_out=(out, work))
    options: dict[str, Any] = {"max_bad": given.max_bad, "max_pixels": max_pixels(given)}
    if distributed.is_first():
        say_left_out(listing)
    with Session(given.device, progress=progress_bar()).working_in(work) as session:
        options["progress"] = session.counted("pictures")
        with distributed.first_goes_ahead():
            pictures = read_pictures(listing, size, work / "pictures", **options)
        if distributed.is_first():
            say_bad(work / "pictures" / "bad.txt")
        require_same_codes(out, tokenizer, pictures)
        started = time.perf_counter()
        cache = encode_pictures(tokenizer, pictures, out, views=views, progress=session.counted("codes"))
        rate = len(cache.names) / (time.perf_counter() - started)
        if given.source:
            with distributed.first_goes_ahead():
                _, inputs = read_sources(given.source, pictures, work, **options)
            other = read_tokenizer(given.source_tokenizer) if given.source_tokenizer else tokenizer
            place, kind = input_codes(out), kind_of(given.source)
            encode_pictures(other, inputs, place, views=views, kind=kind, progress=session.counted("codes"))
    versions, count, h, w = cache.codes.shape
    print(f"done: {count} pictures, {versions} versions each, {h}x{w} codes; {rate:,.0f} pictures/s")


def _parse_encoding(parser: Parser, arguments: list[str]) -> tuple[Namespace, Path]:
    """The arguments of `encode`, and where the codes go."""
    parser.add_argument("folder", type=str, help=SOURCE)
    parser.add_argument("tokenizer", type=str, help="tokenizer or model: bundled name, directory or hub")
    parser.add_argument("--out", type=str, required=True, help="directory to write the codes to")
    parser.add_argument("--size", type=int, required=True, help="side of the pictures in pixels")
    parser.add_argument("--versions", type=int, default=4, help="how often each picture is encoded, moved a little")
    parser.add_argument("--flip", action="store_true", help="mirror every second version")
    parser.add_argument("--crops", type=int, help="instead: the whole picture, and so many random crops less one")
    parser.add_argument("--flips", action="store_true", help="each crop mirrored as well")
    parser.add_argument("--source", type=str, help="what they are drawn from: grey, edges, lowres or a folder")
    parser.add_argument("--source-tokenizer", type=str, help="for the sources, instead of the same one")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of unreadable files that is tolerated")
    add_max_megapixels(parser)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    given = parser.parse_args(arguments)
    reads = {"FOLDER": given.folder, "TOKENIZER": given.tokenizer}
    reads |= {"the source": given.source, "the source's tokenizer": given.source_tokenizer}
    return given, out_directory(given.out, reads, working=True)


def _check_encoding(given: Namespace, stride: int) -> None:
    if given.size < 1 or given.size % stride or given.versions < 1:
        raise Refused(f"--size must be a multiple of the tokenizer's stride {stride}, --versions 1 or more")
    if given.source_tokenizer and not given.source:
        raise Refused("--source-tokenizer goes with --source")
    if given.flips and given.crops is None:
        raise Refused("--flips goes with --crops; with --versions, give --flip")


def train_generator(parser: Parser, arguments: list[str]) -> None:
    parser.add_argument("codes", type=str, help="directory of codes that `maskimg encode` wrote")
    parser.add_argument(
        "tokenizer_directory", type=str, help="tokenizer that encoded them: bundled name, directory or hub repository"
    )
    given, plan, cache = _parse_plan(parser, arguments, out="model directory to write", codes=True)
    from maskimg import distributed
    from maskimg.data.codes import read_codes, require_tokenizer
    from maskimg.data.sources import text
    from maskimg.drawing.model_files import locate_model
    from maskimg.training.folder import input_codes, working_directory
    from maskimg.training.stages import generator_stage
    from vqgan import Tokenizer

    out = Path(given.out)
    _allow_tf32(given.dtype)
    tokenizer = Tokenizer.from_pretrained(locate_model(given.tokenizer_directory))
    require_tokenizer(cache, tokenizer)
    other = None
    if input_codes(Path(given.codes)).is_dir():
        cache = cache.translated_from(read_codes(input_codes(Path(given.codes))))
        if plan.source_tokenizer:
            other = Tokenizer.from_pretrained(locate_model(plan.source_tokenizer))
        require_tokenizer(cache.inputs, other or tokenizer)
    elif plan.source:
        raise Refused(f"`{given.codes}` holds no input pictures: give `--source` to `maskimg encode` as well")
    work = working_directory(out)
    with _session(given).working_in(work) as session:
        pipeline = generator_stage(cache, tokenizer, plan, work, source_tokenizer=other, session=session)
        if not distributed.is_first():
            return
        pipeline.about.update({"name": text(out.name), "data": {"pictures": cache.codes.shape[1]}})
        pipeline.save_pretrained(out)
    print(f"done: open it with `maskimg demo --model {out}`")


def _parse_plan(parser: Parser, arguments: list[str], *, out: str, codes: bool = False) -> tuple[Namespace, Any, Any]:
    """Arguments of a training command, the plan, and the listing (or the code cache) that it is for.

    Parsed twice: what the folder holds decides the defaults of the plan that the arguments then change.
    """
    import dataclasses

    from maskimg.training.plan import PRESETS, Plan, plan_for
    from maskimg.training.tracking.trackers import check_tracker

    _add_options(parser, out=out, codes=codes)
    parser.add_class_arguments(Plan)
    for name, group in (parser.groups or {}).items():
        group.title = GROUPS[name]
    reword(parser._actions)
    parser.set_defaults(size=0)  # 0: as the pictures are
    given = parser.parse_args(arguments)
    place = out_directory(given.out, _reads(given, codes), working=True)
    if given.preset not in ("auto", *PRESETS):
        raise Refused(f"--preset must be auto, {' or '.join(PRESETS)}, got `{given.preset}`")
    check_tracker(given.track)
    if given.minutes is not None and not 0 < given.minutes < 1e6:
        raise Refused(f"--minutes must be more than 0, got {given.minutes}")

    if codes:
        from maskimg.data.codes import read_codes

        found = read_codes(given.codes)
        count, labelled, usual = found.codes.shape[1], bool(found.fields), 0
    else:
        from maskimg.data.listing import require_training
        from maskimg.data.pictures import list_pictures
        from maskimg.training.folder import working_directory
        from maskimg.training.plan import usual_side

        written = Path(given.out)
        found = require_training(list_pictures(given.folder, leave_out=(written, working_directory(written))))
        count, labelled, usual = len(found), bool(found.fields), usual_side(found)
    plan = plan_for(count, usual, preset=given.preset, labelled=labelled, minutes=given.minutes, size=given.size)
    parser.set_defaults(dataclasses.asdict(plan))
    given = parser.parse_args(arguments)
    given.out = str(place)
    values = parser.instantiate(given)
    chosen = Plan(**{field.name: values[field.name] for field in dataclasses.fields(Plan)})
    return given, chosen if chosen.size else dataclasses.replace(chosen, size=plan.size), found


def _reads(given: Namespace, codes: bool) -> dict[str, str | None]:
    """What a training reads, by the words that a person knows it by."""
    reads = {"the source": given.source, "the source's tokenizer": given.source_tokenizer}
    if not codes:
        return {"FOLDER": given.folder, **reads}
    from maskimg.training.folder import input_codes

    given_codes = input_codes(Path(given.codes))
    return {"CODES": given.codes, "CODES.source": str(given_codes), "TOKENIZER": given.tokenizer_directory, **reads}


def _add_options(parser: Parser, *, out: str, codes: bool) -> None:
    """The options that are no part of the plan; the plan's own follow, several dozen of them."""
    if not codes:
        parser.add_argument("folder", type=str, help=f"{SOURCE}; subfolders are labels")
    parser.add_argument("--out", type=str, required=True, help=out)
    parser.add_argument(
        "--preset",
        type=str,
        default="auto",
        help="cpu or gpu: sizes and minutes that suit it; by default what this machine has",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="training time; by default 11 minutes with the preset cpu, 27 with gpu, and a few more for classifiers",
    )
    parser.add_argument("--config", action="config", help="YAML file with further options; --print_config prints one")
    group = parser.add_argument_group("Machine, records and licence")
    if not codes:
        add_max_bad(group)
        add_max_megapixels(group)
        group.add_argument("--licence", type=str, help="licence of the pictures, kept with the model")
    group.add_argument(
        "--allow-data-change", action="store_true", help="resume a training even if its pictures have changed since"
    )
    add_machine(group)
    group.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun, split the generator's weights over the processes (FSDP2) instead of copying them (DDP)",
    )
    group.add_argument("--track", type=str, help="also log to tensorboard, trackio or wandb")


def _session(given: Namespace) -> Any:
    """Under which circumstances the training runs."""
    from maskimg.training.loop.session import Session

    return Session(
        given.device,
        given.dtype,
        shard=given.shard,
        track=given.track,
        allow_data_change=given.allow_data_change,
        progress=progress_bar(),
    )


def _say_plan(listing: Any, plan: Any, work: Path) -> None:
    labels = ", ".join(f"{len(names)} x {field}" for field, names in listing.fields.items()) or "no labels"
    minutes = sum(b.minutes or 0 for b in (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget))
    print(f"{len(listing)} pictures ({labels}), {int(listing.held_out.sum())} of them held out")
    say_left_out(listing)
    print(
        f"plan: {plan.size} pixels, {plan.grid[0]}x{plan.grid[1]} tokens, {plan.tokenizer.vocab_size} codes, generator "
        f"{plan.generator.depth} x {plan.generator.dim}; about {minutes:.0f} minutes; logs and sheets in {work}"
    )


def _allow_tf32(dtype: str) -> None:
    """What is not bf16 anyway need not be exact to the last bit either, unless fp32 was asked for."""
    import torch

    if dtype != "fp32" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
