"""What several commands share: how arguments are read, refused and turned into what the library takes."""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from maskimg.cli.endings import Refused, fail
from maskimg.cli.help import ShowAll, ShowHelp
from maskimg.values import shown

SOURCE = (
    "folder of pictures, .zip or .tar archive, shards such as s-{000..127}.tar, hf://owner/name, or "
    "torchvision://NAME?root=DIR"
)
MAY_BE_EMPTY = ("prompt", "negative")  # an empty prompt is drawn, with a note


class Parser(ArgumentParser):
    """Errors as one kind line, exit code 2; `--help` for every day, `--help-all` for the rest."""

    def __init__(self, *others: Any, add_help: bool = True, **options: Any):
        super().__init__(*others, add_help=False, **options)
        if add_help:  # not in the parsers that jsonargparse makes for parts of a plan
            self.add_argument("-h", "--help", action=ShowHelp, help="show the everyday options")
            self.add_argument("--help-all", action=ShowAll, dest="help", help="show every option")

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Namespace:
        """As in the library, except that an option given twice is refused; the library would keep the last one."""
        # jsonargparse takes argparse's mark of a required option away while it parses.
        self.needed = frozenset(action.dest for action in self._actions if action.required)
        found: set[str] = set()
        for argument in args or []:
            if _is_no_text(argument):
                self.error(f"{shown(argument)} contains characters that are not text: leave them out")
        for argument in itertools.takewhile(lambda argument: argument != "--", args or []):
            option = argument.partition("=")[0]
            action = self._action_of(option)
            if action is None or action.dest == "config" or isinstance(action, argparse._AppendAction):
                continue
            if action.dest in found:
                self.error(f"{option} is given twice: give it once")
            found.add(action.dest)
        try:
            parsed = super().parse_args(args, *others, **options)
        except UnicodeDecodeError as error:
            self.error(f"the --config file is not UTF-8 text ({error.reason}): save it as UTF-8")
        for file in parsed.get("config") or []:
            if twice := _said_twice(Path(str(file)).read_text(encoding="utf-8")):
                self.error(f"`{file}` {twice}: set it once")
        self._refuse_empty(parsed)
        return parsed

    def _refuse_empty(self, parsed: Namespace) -> None:
        """An unset variable of a shell must not make the current folder the one to write to."""
        for action in self._actions:
            given = parsed.get(action.dest) if action.dest not in ("help", *MAY_BE_EMPTY) else None
            for each in given if isinstance(given, list) else [given]:
                if isinstance(each, str) and not each.strip() and each != action.default:
                    option = action.option_strings[-1] if action.option_strings else action.dest.upper()
                    self.error(f"{option} is empty: give it a value, or leave it out")

    def _action_of(self, option: str) -> argparse.Action | None:
        """What an option sets; it may be abbreviated as long as only one option begins like that."""
        if option in self._option_string_actions:
            return self._option_string_actions[option]
        begun = [name for name in self._option_string_actions if option.startswith("--") and name.startswith(option)]
        return self._option_string_actions[begun[0]] if len(begun) == 1 and len(option) > 2 else None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{_plainly(str(message))} (see `{self.prog} --help`)")


def _is_no_text(argument: str) -> bool:
    """Whether an argument could be neither a file name nor a prompt."""
    try:
        return b"\0" in os.fsencode(argument)
    except UnicodeEncodeError:  # half a character
        return True


def _said_twice(text: str) -> str:
    """The key that a YAML file sets twice, of which a reader would keep the last; empty where there is none."""
    import yaml

    nodes: list[Any] = [yaml.compose(text)]
    while nodes:
        node, found = nodes.pop(), {}
        if not isinstance(node, yaml.MappingNode):
            continue
        for key, value in node.value:
            if key.value in found:
                return f"sets `{key.value}` twice, on lines {found[key.value]} and {key.start_mark.line + 1}"
            found[key.value] = key.start_mark.line + 1
            nodes.append(value)
    return ""


# What jsonargparse calls a type -> the same in words.
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [1,2]",
}


def _plainly(message: str) -> str:
    """The library's error as one line about the option."""
    message = " ".join(message.split())
    if "Unexpected config" in message:
        return "the --config file must consist of lines such as `size: 64`, each a name and a value"
    if broken := re.match(r"(?:Problems parsing config|.*\"config\"): (while .*)", message):
        return f"the --config file is not valid YAML ({broken[1]})"
    named = re.match(r'(?:Parser|Configuration) key "([^"]+)": (.*)', message)
    if not named:
        return message
    option, words = f"--{named[1]}", named[2]
    kinds = [kind for kind in re.findall(r"Expected a <class '(\w+)'>", words) if kind in _EXPECTED]
    value = re.match(r".*value: ?(.*)$", words)  # the last of several
    if kinds:
        wanted = " or ".join(dict.fromkeys(_EXPECTED[kind] for kind in kinds))
        return f"{option} must be {wanted}, got {shown(value[1] if value else '')}"
    if "Unable to load config" in words:
        return f"{option} must be the path of a YAML file, or its values written as {{name: value}}"
    return f"{option}: {words}"


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model", type=str, default="emoji-64", help="bundled model, model directory or hub repository"
    )


def add_device(parser: Any) -> None:
    """To a parser, or a group of one."""
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or mps; by default the fastest there is")


def add_machine(parser: Any) -> None:
    """To a parser, or a group of one."""
    add_device(parser)
    parser.add_argument(
        "--dtype", type=str, default="auto", help="fp32 or bf16; by default bf16 where the device computes faster in it"
    )


def add_max_bad(parser: Any) -> None:
    """To a parser, or a group of one."""
    parser.add_argument(
        "--max-bad", type=float, default=0.01, help="share of unreadable files above which the command stops"
    )


def add_max_megapixels(parser: Any) -> None:
    """To a parser, or a group of one."""
    parser.add_argument(
        "--max-megapixels", type=float, default=100.0, help="refuse larger pictures, before they are decoded"
    )


def max_pixels(given: Namespace) -> int:
    if not 0 < given.max_megapixels <= 10_000:
        raise Refused(f"--max-megapixels must be above 0 and at most 10000, got {given.max_megapixels:g}")
    return round(given.max_megapixels * 1e6)


def add_asking(parser: Parser) -> None:
    """What pictures are to show."""
    parser.add_argument(
        "--label", type=str, action="append", help="what to draw: NAME, or FIELD=NAME; repeat it for several fields"
    )
    parser.add_argument(
        "--prompt", type=str, help="what to draw, in words; needs a model that was trained with captions"
    )
    parser.add_argument("--negative", type=str, help="negative prompt: what the pictures should not show")
    parser.add_argument(
        "--towards", type=str, action="append", help="second label; the pictures lie between --label and this one"
    )
    parser.add_argument("--share", type=float, help="how far to go from --label to --towards, 0 to 1; 0.5 by default")


def add_drawing(parser: Parser) -> None:
    """What a person may set about one drawing."""
    add_asking(parser)
    add_sampler(parser)


def add_sampler(parser: Parser) -> None:
    """How it is drawn; what is not given comes from the preset, or the model's recipe."""
    parser.add_argument(
        "--preset", type=str, help="fast, balanced or best, if the model has presets; its own recipe by default"
    )
    parser.add_argument("--steps", type=int, help="steps of the sampling loop; by default those of the preset")
    parser.add_argument(
        "--counts", type=str, help="how many tokens each step reveals, such as 2,6,14,42; replaces --steps"
    )
    parser.add_argument(
        "--order", type=str, help="which tokens are kept first: confidence, halton, random, moment or critic"
    )
    parser.add_argument("--schedule", type=str, help="mask schedule: cosine, linear, arccos, square or beta(a, b)")
    several = "; several, such as 3,2,1, are spread over the steps"
    parser.add_argument(
        "--guidance", type=str, help="guidance scale: higher follows the request more closely, 1 is off" + several
    )
    parser.add_argument(
        "--guide",
        type=str,
        action="append",
        help="FIELD=STRENGTH: extra guidance by one label field, the words or the picture; repeatable",
    )
    parser.add_argument(
        "--guidance-schedule", type=str, help="guidance over the steps: constant, linear or power-cosine"
    )
    parser.add_argument("--guidance-power", type=float, help="exponent of the power-cosine schedule")
    parser.add_argument("--guidance-start", type=float, help="share of revealed tokens at which guidance starts")
    parser.add_argument("--guidance-end", type=float, help="share of revealed tokens at which guidance ends")
    parser.add_argument(
        "--token-temperature", type=str, help="sampling temperature; lower is safer and plainer" + several
    )
    parser.add_argument(
        "--choice-temperature", type=str, help="randomness in the choice of which tokens to keep" + several
    )
    parser.add_argument("--top-k", type=int, help="sample only from the k most probable codes")
    parser.add_argument("--top-p", type=float, help="sample only from the most probable codes that sum to this much")
    parser.add_argument("--revise", type=float, help="share of the drawn tokens that each step draws again")
    parser.add_argument("--critic-keeps", action="store_true", help="do not let the critic revise tokens already kept")
    parser.add_argument(
        "--best-of", type=int, default=1, help="candidates for each picture, of which the critic keeps the best"
    )
    add_machine(parser)


def load_pipeline(given: Namespace, *, compile: bool = False) -> Any:
    from maskimg.pipeline import Pipeline

    return Pipeline.from_pretrained(given.model, device=given.device, dtype=given.dtype, compile=compile)


def to_sampler(given: Namespace, pipeline: Any) -> Any:
    """The preset or the model's recipe, changed as the command line says."""
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
    from maskimg.drawing.request import Request

    if given.share is not None and not given.towards:
        raise Refused("--share goes with --towards")
    return Request(
        to_label(given.label),
        given.prompt,
        given.negative,
        to_label(given.towards, "--towards"),
        0.5 if given.share is None else given.share,
    )


def _numbers(option: str, text: str, *, whole: bool) -> Any:
    """ "3" -> 3.0, "3,2,1" -> (3.0, 2.0, 1.0); always several where they are whole."""
    try:
        values = tuple(int(part) if whole else float(part) for part in text.split(","))
    except ValueError:
        raise Refused(f"{option} must be a number, or several such as 3,2,1, got `{text}`") from None
    return values[0] if len(values) == 1 and not whole else values


def to_label(given: list[str] | None, option: str = "--label") -> dict[str, str] | str | None:
    """["bird", "style=noto"] -> what `LabelFields.encode` takes."""
    found: dict[str, str] = {}
    for text in given or []:
        field, equals, name = text.partition("=") if "=" in text else ("", "", text)
        if equals and not field:
            raise Refused(f"{option} must be NAME or FIELD=NAME, got {shown(text)}")
        if field in found:
            if not field:
                both = f"{shown(found[field])} and {shown(name)}"
                raise Refused(f"give one plain {option}, and the others as FIELD=NAME; got {both}")
            raise Refused(f"{option} names {field} twice, as {shown(found[field])} and {shown(name)}: give one of them")
        found[field] = name
    return found.get("") if found.keys() == {""} else found or None


def add_force(parser: Parser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace existing files that maskimg did not make; never a file that the command reads",
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


def progress_bar() -> Any:
    """A progress bar, once: of several processes the first has it."""
    from tqdm import tqdm

    return tqdm if os.environ.get("RANK", "0") == "0" else None


def say_left_out(listing: Any) -> None:
    """Print what is odd about a source of pictures and which files in it are not read, a line for each reason."""
    for remark in listing.remarks:
        print(remark, file=sys.stderr)


def say_bad(path: Path) -> None:
    bad = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)
