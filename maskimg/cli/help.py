"""What `--help` and `--help-all` of a command print: the options of every day, or all of them, in plain English."""

import argparse
import shutil
import textwrap
from collections.abc import Collection, Iterable
from typing import Any

# What `--help` shows of each command, in this order; `--help-all` shows everything.
EVERYDAY = {
    "demo": "model models host port share user password_file open mcp device",
    "train": "out preset minutes size flip patience source words config device track",
    "train-tokenizer": "out preset minutes size source config device track",
    "encode": "out size versions flip crops flips source device",
    "train-generator": "out preset minutes patience config device shard track",
    "plot": "out force",
    "sample": "out model count label prompt negative seed preset steps guidance best_of sheet",
    "inpaint": "out model label prompt count seed preset grow window force",
    "outpaint": "out left top right bottom model label prompt count seed window force",
    "vary": "out strength mask model label prompt count seed preset force",
    "translate": "out model label prompt count seed preset force",
    "reconstruct": "out model tokenizer size force device",
    "eval-tokenizer": "count held_out size json sheet force device",
    "eval": "count seed preset best_of json sheet write force device",
    "tune": "out budgets candidates count seed write force device",
    "convert": "out tokenizer to trust_pickle pixels heads classes",
    "check-data": "jobs out force max_megapixels",
    "doubts": "out model label prompt force device",
    "info": "",
}
NARROWEST, WIDEST, INDENT = 40, 120, 24  # columns of a page, and where its second column begins


class ShowHelp(argparse._HelpAction):
    """`--help`; a help action of argparse's, so that jsonargparse takes it for no setting."""

    def __call__(self, parser: Any, *_: Any) -> None:
        print(everyday_help(parser, parser.needed))
        parser.exit()


class ShowAll(argparse._HelpAction):
    """`--help-all`."""

    def __call__(self, parser: Any, *_: Any) -> None:
        print(full_help(parser, parser.needed))
        parser.exit()


def everyday_help(parser: argparse.ArgumentParser, required: Collection[str]) -> str:
    """The usage with its `required` options, the purpose and the options of every day."""
    name = parser.prog.removeprefix("maskimg ")
    options = {action.dest: action for action in parser._actions if action.option_strings}
    shown = [options[dest] for dest in EVERYDAY.get(name, " ".join(options)).split()]
    parts = [*_beginning(parser, required), *_section("", _positionals(parser)), *_section("Options", shown)]
    return "\n".join([*parts, f"`{parser.prog} --help-all` lists the rest."])


def full_help(parser: argparse.ArgumentParser, required: Collection[str]) -> str:
    """The usage with its `required` options, the purpose and every option, in groups."""
    parts = [*_beginning(parser, required), *_section("", _positionals(parser))]
    for group in parser._action_groups:
        found = [action for action in group._group_actions if action.option_strings]
        title = "Options" if group.title == "options" else group.title or ""
        parts += _section(title, found)
    return "\n".join(parts).rstrip()


def _beginning(parser: argparse.ArgumentParser, required: Collection[str]) -> list[str]:
    names = [_metavar(action) + (" ..." if action.nargs == "+" else "") for action in _positionals(parser)]
    optional = [action.nargs == "?" for action in _positionals(parser)]
    usual = [f"[{name}]" if free else name for name, free in zip(names, optional, strict=True)]
    needed = [_invocation(action) for action in parser._actions if action.option_strings and action.dest in required]
    usage = " ".join(["usage:", parser.prog, *usual, *needed, "[option ...]"])
    return [usage, "", *textwrap.wrap(parser.description or "", _width()), ""]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _section(title: str, actions: Iterable[argparse.Action]) -> list[str]:
    """A heading, and two columns below it."""
    lines = [line for action in actions if action.help != argparse.SUPPRESS for line in _entry(action)]
    return [*([f"{title}:"] if title else []), *lines, ""] if lines else []


def _entry(action: argparse.Action) -> list[str]:
    name = f"  {_invocation(action)}"
    words = textwrap.wrap(_words(action), _width() - INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    beside = f"{name:<{INDENT}}{words.pop(0)}" if len(name) <= INDENT - 2 else name
    return [beside.rstrip(), *(" " * INDENT + line for line in words)]


def _invocation(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = _metavar(action)
    return f"{names} [{value}]" if names and action.nargs == "?" else f"{names} {value}".strip()


def _metavar(action: argparse.Action) -> str:
    return str(action.metavar or action.dest.rpartition(".")[2].upper())


def _words(action: argparse.Action) -> str:
    """What an option does, and what happens without it."""
    words, default = (action.help or "").strip().removesuffix("."), in_words(action.default)
    if action.nargs == 0 or action.required or not default or "default" in words:
        return words
    return f"{words} ({default} by default)"


def in_words(default: Any) -> str:
    """A default as a person would write it; nothing where there is none."""
    if default is None or default in (argparse.SUPPRESS, "", ()):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _width() -> int:
    """Of the terminal, or what COLUMNS says, within limits."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))
