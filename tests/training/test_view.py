"""What a run shows at the terminal: read back through a terminal of our own, with a clock of our own."""

import io
import os
import re
import sys

import pytest

from maskimg.training.loop.run import Budget, Run
from maskimg.training.tracking.view import Line, Live, in_words, open_view, progress_bar, sparkline


class Screen(io.StringIO):
    """Enough of a terminal: what a person would see after all that was written."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        seen: list[str] = [""]
        row = 0
        for part in re.split(r"(\x1b\[[0-9;]*[A-Za-z]|\n)", self.getvalue()):
            if part == "\n":
                row += 1
                seen += [""] * (row + 1 - len(seen))
            elif match := re.fullmatch(r"\x1b\[(\d*)F", part):
                row -= int(match[1])
            elif part == "\x1b[0J":
                seen[row:] = [""]
            elif not part.startswith("\x1b["):
                seen[row] += part
        return seen[:-1] if seen[-1] == "" else seen


def _live(screen: Screen, columns: int = 80, step: int = 0, progress: float = 0.0) -> tuple[Live, list[float]]:
    now = [0.0]
    size = os.terminal_size((columns, 24))
    return Live("generator", step, progress, out=screen, clock=lambda: now[0], size=lambda: size), now


def test_a_few_lines_tell_stage_step_rate_time_left_and_figures():
    screen = Screen()
    view, now = _live(screen)
    with view:
        view.show(1000, 100.0, 0.1)  # a run that is continued: only what is seen now counts for the rate
        for i in range(20):
            view.add({"step": i, "loss": 5.0 - 0.1 * i, "seconds": 3.0})
        view.add({"held_out_loss": 3.5, "codes_used": 0.87, "accuracy": float("nan"), "warning": "oh"})
        now[0] = 1.0
        view.show(1400, 110.0, 0.2)
    assert screen.lines() == [
        "generator   step 1,400, 40/s, 80 s left",
        "            " + "━" * 8 + "╌" * 32 + "  20%",
        "loss        3.1000      ██▇▇▇▆▆▅▅▅▄▄▄▃▃▂▂▂▁▁",
        "held out    3.5000      ▁",
        "codes used  87.0%       ▁",
    ]


def test_it_is_redrawn_in_place_and_only_twice_a_second():
    screen = Screen()
    view, now = _live(screen)
    with view:
        view.show(1, 0.1, 0.1)
        once = screen.getvalue()
        now[0] = 0.4
        view.show(2, 0.2, 0.2)
        assert screen.getvalue() == once
        now[0] = 0.6
        view.show(3, 0.3, 0.3)
    assert screen.lines()[0] == "generator   step 3, 10/s, 1 s left"
    assert len(screen.lines()) == 2


def test_a_sentence_stays_above_the_lines():
    screen = Screen()
    view, now = _live(screen)
    with view:
        for step in range(5):
            now[0] += 1
            view.show(step, 1.0 + step, step / 5)
            if step in (1, 3):
                view.say(f"warning at step {step}: beware")
    assert screen.lines()[:3] == [
        "warning at step 1: beware",
        "warning at step 3: beware",
        "generator   step 4, 1/s, 1 s left",
    ]
    assert len(screen.lines()) == 4


@pytest.mark.parametrize("columns", [1, 30, 50, 200])
def test_no_line_is_wider_than_the_terminal(columns):
    """A line that wraps cannot be redrawn in place."""
    screen = Screen()
    view, _ = _live(screen, columns)
    with view:
        for i in range(100):
            view.add({"loss": 5.0 - i, "codes_entropy": 1.0})
        view.show(1000, 10.0, 0.5)
    assert max(map(len, screen.lines())) <= max(20, columns - 1)


def test_a_sparkline_shows_the_whole_curve():
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([8, 8, 1, 1], 2) == "█▁"
    assert sparkline([3.0, 3.0], 10) == "▁▁"
    assert len(sparkline(range(1001), 40)) == 40
    assert sparkline([1.0], 0) == "▁"


def test_a_bar_is_as_full_as_the_work_is_done():
    assert [progress_bar(share, 4) for share in (0, 0.5, 1, 1.5)] == ["╌╌╌╌", "━━╌╌", "━━━━", "━━━━"]


def test_times_are_said_in_words():
    seconds = (0, 40, 89, 600, 12_000, 200_000)
    assert [in_words(each) for each in seconds] == ["0 s", "40 s", "89 s", "10 min", "3 h 20 min", "2 d 8 h"]


def test_a_terminal_gets_live_lines_and_anything_else_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(open_view("toy", 5, 0, 0.0), Line)  # pytest's is no terminal
    monkeypatch.setattr(sys, "stdout", Screen())
    assert isinstance(open_view("toy", 5, 0, 0.0), Live)
    monkeypatch.setattr(Screen, "encoding", "latin-1")
    assert isinstance(open_view("toy", 5, 0, 0.0), Line)
    monkeypatch.setattr(Screen, "encoding", "utf-8")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view("toy", 5, 0, 0.0), Line)


@pytest.mark.parametrize("budget", [Budget(steps=120), Budget(steps=120, minutes=5)])
def test_a_run_shows_itself_on_a_terminal_and_in_its_log(tmp_path, monkeypatch, budget):
    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    run = Run(tmp_path / "run", budget, stage="toy", identity={})
    run.restore()
    for step, _ in run.steps():
        run.log(loss=3.0)
        if step == 60:
            run.warn("mind the gap")
    lines = screen.lines()
    assert lines[0] == "warning at step 60: mind the gap"
    assert lines[1].startswith("toy         step 120, ")
    assert lines[3].startswith("loss        3.0000")
    assert (tmp_path / "run" / "log.jsonl").read_text().count("loss") == 4  # steps 49, 60, 99 and the end


def test_elsewhere_it_shows_the_bar(tmp_path, capsys):
    run = Run(tmp_path / "run", Budget(minutes=0.1 / 60), stage="toy", identity={})
    run.restore()
    for _ in run.steps():
        run.log(loss=3.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"toy step \d+, \d+\.\d/s, 0\.0 min left", captured.err)
