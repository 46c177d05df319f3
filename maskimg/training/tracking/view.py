"""What a run shows at the terminal: a few live lines, or tqdm's one where the output goes elsewhere.

Both know the same five things: `show` a step, `add` a line of the log, `say` a sentence, and to be entered and left.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from maskimg.training.tracking.logs import is_number

BARS = "▁▂▃▄▅▆▇█"
REDRAW_SECONDS = 0.5
CLEAR_LINE, UP, DIM, PLAIN = "\x1b[2K", "\x1b[{}F", "\x1b[2m", "\x1b[0m"
LABEL = 12  # width of the first column
CURVE = 40  # most signs of a sparkline
# What the live lines show, where it is logged: its name in the log, its name here, and how to write it.
FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", "{:.4f}".format),
    ("held_out_loss", "held out", "{:.4f}".format),
    ("accuracy", "accuracy", "{:.1%}".format),
    ("codes_used", "codes used", "{:.1%}".format),
    ("codes_entropy", "entropy", "{:.2f} bits".format),
)


class Line:
    """tqdm's progress bar. `total` steps, or None where the budget is of minutes."""

    def __init__(self, stage: str, total: int | None, step: int, progress: float, *, silent: bool = False):
        self.stage, self.total = stage, total
        layout = "{desc}: {bar} {postfix}" if total is None else None
        self.bar = tqdm(
            total=total or 1.0, desc=stage, bar_format=layout, mininterval=1.0, dynamic_ncols=True, disable=silent
        )
        self.bar.n = step if total else progress
        self.shown: dict[str, str] = {}

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, step: int, seconds: float, progress: float) -> None:
        if self.total is not None:
            self.bar.update(1)
            return
        # tqdm's own rate means nothing where the total is a share of time, so say rate and time left in words.
        left = seconds / max(progress, 1e-9) - seconds
        self.bar.set_description(
            f"{self.stage} step {step}, {step / seconds:.1f}/s, {left / 60:.1f} min left", refresh=False
        )
        self.bar.update(progress - self.bar.n)

    def add(self, line: dict[str, Any]) -> None:
        self.shown |= {name: f"{line[name]:.3f}" for name, _, _ in FIGURES if is_number(line.get(name))}
        self.bar.set_postfix(self.shown, refresh=False)

    def say(self, sentence: str) -> None:
        tqdm.write(sentence, file=sys.stderr)


class Live:
    """A few lines that are redrawn in place, twice a second: progress, rate, time left, figures with their curves."""

    def __init__(
        self,
        stage: str,
        step: int,
        progress: float,
        *,
        out: TextIO,
        clock: Callable[[], float] = time.perf_counter,
        size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
    ):
        self.stage, self.out, self.clock, self.size = stage, out, clock, size
        self.start: tuple[int, float, float] | None = None  # step, seconds and progress when the view was opened
        self.now = (step, 0.0, progress)
        self.figures: dict[str, list[float]] = {}
        self.drawn_lines = 0
        self.drawn_at = float("-inf")

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self._draw()
        self.drawn_lines = 0

    def show(self, step: int, seconds: float, progress: float) -> None:
        self.now = (step, seconds, progress)
        self.start = self.start or self.now
        if self.clock() - self.drawn_at >= REDRAW_SECONDS:
            self._draw()

    def add(self, line: dict[str, Any]) -> None:
        for name, _, _ in FIGURES:
            if is_number(line.get(name)):
                self.figures.setdefault(name, []).append(float(line[name]))

    def say(self, sentence: str) -> None:
        """A sentence that stays, above the lines."""
        self._erase()
        self.out.write(sentence + "\n")
        self._draw()

    def _draw(self) -> None:
        self.drawn_at = self.clock()
        self._erase()
        lines = self._lines(max(20, self.size().columns - 1))
        for line in lines:
            self.out.write(f"{DIM}{line[:LABEL]}{PLAIN}{line[LABEL:]}\n")
        self.drawn_lines = len(lines)
        self.out.flush()

    def _erase(self) -> None:
        if self.drawn_lines:
            self.out.write(UP.format(self.drawn_lines) + "\x1b[0J")
            self.drawn_lines = 0

    def _lines(self, width: int) -> list[str]:
        step, _, progress = self.now
        head = f"{self.stage:<{LABEL}}step {step:,}{self._pace()}"
        bar = progress_bar(progress, min(CURVE, width - LABEL - 8))
        lines = [head, f"{'':<{LABEL}}{bar} {progress:4.0%}"]
        for name, title, written in FIGURES:
            values = self.figures.get(name)
            if values:
                curve = sparkline(values, min(CURVE, width - LABEL - 14))
                lines.append(f"{title:<{LABEL}}{written(values[-1]):<12}{curve}")
        return [line[:width] for line in lines]

    def _pace(self) -> str:
        """Steps a second and the time left, from what this view has seen itself."""
        if self.start is None or self.now[1] <= self.start[1] or self.now[2] <= self.start[2]:
            return ""
        steps, seconds, share = (now - start for now, start in zip(self.now, self.start, strict=True))
        left = (1 - self.now[2]) * seconds / share
        return f", {steps / seconds:.3g}/s, {in_words(left)} left"


def open_view(stage: str, total: int | None, step: int, progress: float, *, silent: bool = False) -> Line | Live:
    """Live lines where standard output is a terminal that can draw them, else tqdm's; none where `silent`."""
    if silent:
        return Line(stage, total, step, progress, silent=True)
    if sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb") and _writes_bars(sys.stdout):
        return Live(stage, step, progress, out=sys.stdout)
    return Line(stage, total, step, progress)


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in at most `width` signs, its lowest value at the bottom; of many values the means of equal parts."""
    width = max(1, min(width, len(values)))
    bounds = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * width
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


def progress_bar(share: float, width: int) -> str:
    done = round(max(0.0, min(1.0, share)) * width)
    return "━" * done + "╌" * (width - done)


def in_words(seconds: float) -> str:
    """40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _writes_bars(out: TextIO) -> bool:
    try:
        (BARS + "━╌").encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
