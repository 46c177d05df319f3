"""What several commands share: how arguments are read, refused and turned into what the library takes."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

SOURCE = (
    "folder of pictures, .zip or .tar archive, shards as s-{000..127}.tar, hf://owner/name, or "
    "torchvision://NAME?root=DIR"
)


class Refused(Exception):
    """Bad input; the message is shown on one line and the exit code is 2."""


class Parser(ArgumentParser):
    """Errors as one kind line, exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for kind, words in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false")):
            message = str(message).replace(f"Expected a <class '{kind}'>.", f"expected {words}.")
        fail(f"{' '.join(message.split())} (see `{self.prog} --help`)")


BAD_INPUT, CANNOT_GO_ON, DISK_FULL = 2, 3, 4  # exit codes


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Print one line and exit."""
    print(f"maskimg: {message}", file=sys.stderr)
    raise SystemExit(code)


def add_model(parser: Parser) -> None:
    parser.add_argument("--model", type=str, default="emoji-64", help="bundled name, directory or hub repository")


def add_machine(parser: Any) -> None:
    """To a parser, or a group of one."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, fp32 or bf16")


def add_asking(parser: Parser) -> None:
    """What pictures are to show."""
    parser.add_argument("--label", type=str, action="append", help="NAME, or FIELD=NAME; repeatable")
    parser.add_argument("--prompt", type=str, help="what to draw, in words, where the model was trained with captions")
    parser.add_argument("--negative", type=str, help="in words, what guidance is to move away from")
    parser.add_argument("--towards", type=str, action="append", help="another label, to go part of the way to")
    parser.add_argument("--share", type=float, help="how far from --label to --towards, 0 to 1; half-way if not given")


def add_drawing(parser: Parser) -> None:
    """What a person may set about one drawing."""
    add_asking(parser)
    add_sampler(parser)


def add_sampler(parser: Parser) -> None:
    """How it is drawn; what is not given comes from the preset, or the model's recipe."""
    parser.add_argument("--preset", type=str, help="fast, balanced or best, as the model has them")
    parser.add_argument("--steps", type=int, help="forward passes")
    parser.add_argument("--counts", type=str, help="tokens revealed by each step, as 2,6,14,42; instead of --steps")
    parser.add_argument("--order", type=str, help="confidence, halton, random, moment or critic")
    parser.add_argument("--schedule", type=str, help="cosine, linear, arccos, square or beta(a, b)")
    several = "; several, as 3,2,1, are spread over the steps"
    parser.add_argument("--guidance", type=str, help="towards what is asked for; 1 is off" + several)
    parser.add_argument(
        "--guide",
        type=str,
        action="append",
        help="FIELD=STRENGTH: guidance by one field, or by words; repeatable",
    )
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
    add_machine(parser)


def load_pipeline(given: Namespace, *, compile: bool = False) -> Any:
    from maskimg.pipeline import Pipeline

    return Pipeline.from_pretrained(given.model, device=given.device, dtype=given.dtype, compile=compile)


def to_sampler(given: Namespace, pipeline: Any) -> Any:
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
    if given.guide:
        changed["field_guidance"] = tuple(_strength(text) for text in given.guide)
    if given.critic_keeps:
        changed["critic_revises"] = False
    return pipeline.sampler(dataclasses.replace(start, **changed))


def _strength(text: str) -> tuple[str, float]:
    """ "style=3" -> ("style", 3.0)."""
    field, equals, strength = text.rpartition("=")
    try:
        return field, float(strength) if equals and field else float("nope")
    except ValueError:
        raise Refused(f"--guide must be FIELD=STRENGTH, such as style=3, got `{text}`") from None


def to_prompt(given: Namespace) -> Any:
    """--label, --prompt and what goes with them -> what a Pipeline takes."""
    from maskimg.prompt import Prompt

    if given.share is not None and not given.towards:
        raise Refused("--share goes with --towards")
    return Prompt(
        to_label(given.label),
        given.prompt,
        given.negative,
        to_label(given.towards),
        0.5 if given.share is None else given.share,
    )


def _numbers(option: str, text: str, *, whole: bool) -> Any:
    """ "3" -> 3.0, "3,2,1" -> (3.0, 2.0, 1.0); always several where they are whole."""
    try:
        values = tuple(int(part) if whole else float(part) for part in text.split(","))
    except ValueError:
        raise Refused(f"{option} must be a number, or several as 3,2,1, got `{text}`") from None
    return values[0] if len(values) == 1 and not whole else values


def to_label(given: list[str] | None) -> dict[str, str] | str | None:
    """["bird", "style=noto"] -> what `LabelFields.encode` takes."""
    given = given or []
    plain = [text for text in given if "=" not in text]
    if len(plain) > 1:
        raise Refused(f"give one plain --label, and the others as FIELD=NAME; got {', '.join(plain)}")
    named = dict(text.split("=", 1) for text in given if "=" in text)
    if plain and named:
        return {"": plain[0], **named}
    return named or (plain[0] if plain else None)


def add_force(parser: Parser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="replace a file that maskimg did not make; never one that is read"
    )


def output(given: Namespace, task: str, *inputs: str | None) -> Path:
    """--out of a command that writes one picture, checked before the work."""
    outputs(given, task, {"out": ".png"}, inputs)
    return Path(given.out)


def outputs(
    given: Namespace, task: str, suffixes: dict[str, str], inputs: Iterable[str | None], folder: str | None = None
) -> list[Path | None]:
    """The files that a command is asked to write, each checked before the work; None for those it is not asked for.

    Args:
        suffixes: for the name of each option, what its file must end in; nothing if that does not matter.
        inputs: what is read, and must not be replaced.
        folder: what else the command writes.
    """
    from maskimg.outputs import require_apart, require_free

    files: dict[str, Path | None] = {}
    for name, suffix in suffixes.items():
        option, text = f"--{name}", given[name]
        files[option] = None if text is None else Path(text)
        if text is None:
            continue
        if suffix and Path(text).suffix.lower() != suffix:
            raise Refused(f"{option} must end in {suffix}, got `{text}`")
        require_free(Path(text), task=task, force=given.force, inputs=inputs, option=option)
    require_apart(files, Path(folder) if folder else None)
    return list(files.values())


def check_out(out: Path) -> None:
    """Writing replaces the whole directory: that must not be one that maskimg did not write."""
    if out.exists() and not (out.is_dir() and ((out / "manifest.json").is_file() or not any(out.iterdir()))):
        raise Refused(f"`{out}` exists and is no model directory of maskimg's: choose a new one")


def progress_bar() -> Any:
    """A progress bar, once: of several processes the first has it."""
    from tqdm import tqdm

    return tqdm if os.environ.get("RANK", "0") == "0" else None


def say_bad(path: Path) -> None:
    bad = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)
