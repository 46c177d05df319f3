"""What `--help` and `--help-all` promise: a short page for every day, every option on the long one, plain English."""

import argparse
import contextlib
import io
import re

import pytest

from maskimg.cli.help import EVERYDAY, in_words
from maskimg.cli.main import COMMANDS, GROUPS, command_named, main, overview
from maskimg.cli.options import Parser
from maskimg.cli.plan_words import WORDS
from maskimg.training.plan import PRESETS

MOST_OPTIONS, MOST_LINES = 12, 30
TRAININGS = ("train", "train-tokenizer", "train-generator")


def page(command: str, option: str, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as end:
        main([command, option])
    assert end.value.code == 0
    return shown.getvalue()


def parser_of(command: str) -> Parser:
    parser = Parser(prog=f"maskimg {command}")
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        command_named(command)(parser, ["--help"])
    return parser


def test_the_overview_lists_every_command_in_a_group_with_a_line(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == overview().strip()
    assert [title for title in GROUPS if f"\n{title}:\n" in shown] == ["Draw", "Edit", "Train", "Measure", "Other"]
    for command in COMMANDS:
        (line,) = re.findall(rf"^  {command} .*$", shown, re.MULTILINE)
        assert len(line) < 100 and line.endswith(".")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_says_where_the_rest_is(command, monkeypatch):
    shown = page(command, "--help", monkeypatch)
    lines = shown.splitlines()
    assert lines[0].startswith(f"usage: maskimg {command}") and len(lines) <= MOST_LINES
    assert lines[-1] == f"`maskimg {command} --help-all` lists the rest."
    options = re.findall(r"^  --([a-z-]+)", shown, re.MULTILINE)
    assert [option.replace("-", "_") for option in options] == EVERYDAY[command].split()
    assert len(options) <= MOST_OPTIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_lists_every_option_with_words(command, monkeypatch):
    shown = page(command, "--help-all", monkeypatch)
    for action in parser_of(command)._actions:
        if action.help == argparse.SUPPRESS:  # jsonargparse adds --print_shtab where shtab is installed
            continue
        for option in action.option_strings:
            assert re.search(rf"^  (-h, )?{re.escape(option)}\b", shown, re.MULTILINE), option
        assert action.help and action.help[0] != " ", action.dest


@pytest.mark.parametrize("option", ["--help", "--help-all"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_speaks_of_types_or_of_null(command, option, monkeypatch):
    shown = page(command, option, monkeypatch)
    for word in ("type:", "null", "None", "False", "True", "default:", "<class"):
        assert word not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_shows_what_a_command_cannot_do_without(command, monkeypatch, capsys):
    shown = page(command, "--help", monkeypatch).splitlines()[0]
    if command not in ("demo", "info"):
        with pytest.raises(SystemExit):
            main([command])
        for name in re.findall(r"--[a-z-]+", capsys.readouterr().err.partition(" (see")[0]):
            assert name in shown
    required = {"sample", "inpaint", "outpaint", "vary", "translate", "reconstruct", "doubts", "plot", "tune", "encode"}
    assert (" --out " in shown) == (command in {*required, *TRAININGS, "convert"})


@pytest.mark.parametrize("command", TRAININGS)
def test_every_option_of_a_plan_has_words_and_no_others_have(command):
    parser = parser_of(command)
    plan = {action.dest for group in (parser.groups or {}).values() for action in group._group_actions} | {
        "print_config"
    }
    assert plan == set(WORDS)
    assert all(action.help == WORDS[action.dest] for action in parser._actions if action.dest in WORDS)


def test_the_minutes_that_the_help_names_are_the_presets(monkeypatch):
    shown = " ".join(page("train", "--help", monkeypatch).split())
    for preset, plan in PRESETS.items():
        budgets = (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)
        minutes = sum(budget.minutes or 0 for budget in budgets)
        named = {"cpu": "11 minutes with the preset cpu", "gpu": "27 with gpu"}[preset]
        assert named in shown and abs(int(named.split()[0]) - minutes) <= 0.5


@pytest.mark.parametrize(
    ("default", "words"),
    [
        (None, ""),
        ("", ""),
        ((), ""),
        (True, "on"),
        (False, "off"),
        (0, "0"),
        (100.0, "100"),
        ((8, 5), "8,5"),
        ("a", "a"),
    ],
)
def test_a_default_is_written_as_a_person_would(default, words):
    assert in_words(default) == words
