"""`make check` runs the files of tests/fast.txt: they exist, reach every room, and start nothing slow."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "tests" / "fast.txt").read_text(encoding="utf-8").splitlines()
ROOMS = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
# A browser, other processes, a server, or a compiler: each takes seconds to begin.
SLOW = ("subprocess", "playwright", "torchrun", "torch.compile", "compile=True", "Popen")


def test_the_list_is_sorted_and_without_doubles():
    assert sorted(set(LINES)) == LINES


@pytest.mark.parametrize("line", LINES)
def test_a_listed_file_exists_and_starts_nothing_that_is_slow(line):
    text = (ROOT / line).read_text(encoding="utf-8")
    if line != "tests/test_fast.py":
        assert not [word for word in SLOW if word in text]


def test_every_room_is_checked():
    checked = {(ROOT / line).parent for line in LINES}
    assert {room.name for room in ROOMS - checked} == set()


def test_the_commands_of_the_makefile_are_the_two_layers():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = dict(re.findall(r"^(\w+): lint[^\n]*\n\t(.*)$", makefile, re.MULTILINE))
    assert rules["check"].removesuffix(" $$(cat tests/fast.txt)") == rules["test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
