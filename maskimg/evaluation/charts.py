"""Small charts with nothing but Pillow: curves as small multiples, and the use of a codebook.

Lengths are points, of which a PNG has DENSITY pixels; drawn twice as large and scaled down, so that lines are smooth.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

DENSITY = 2  # pixels a point
FINE = 2  # times finer while drawing
INK, FAINT, GRID, GROUND, PAGE = "#20262e", "#77808c", "#e6e9ed", "#ffffff", "#f5f6f8"
# Told apart by the colour-blind as well, after Okabe and Ito.
COLOURS: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f3c8d", "#4d4d4d")
PANEL = (400, 250)
MARGIN, GAP, TOP, BOTTOM, LEFT, RIGHT = 18, 16, 34, 26, 46, 14
MANY = 60  # points, from which a curve is drawn as a moving mean over a pale one

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One series.

    Attributes:
        steps, values: its points, steps rising.
        label: what the legend says; nothing for an empty one.
        dots: mark each point, as of few evaluations.
        joined: draw the line from point to point.
        band: lower and upper values around it, drawn as a pale ribbon.
    """

    steps: Sequence[float]
    values: Sequence[float]
    colour: str
    label: str = ""
    dots: bool = False
    joined: bool = True
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart. `note` stands behind the title; `percent` shows 0.5 as 50 %; `log` needs values above 0."""

    title: str
    curves: Sequence[Curve]
    note: str = ""
    percent: bool = False
    log: bool = False


def draw_panels(panels: Sequence[Panel], *, title: str = "", legend: Sequence[tuple[str, str]] = ()) -> Image.Image:
    """All panels on one page; `legend` gives (colour, name) of what has the same colour in every panel.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not panels:
        raise ValueError("a page needs at least one panel")
    columns = min(2 if len(panels) <= 6 else 3, len(panels))
    width = 2 * MARGIN + columns * PANEL[0] + (columns - 1) * GAP
    entries = _legend_rows(legend, width - 2 * MARGIN)
    head = MARGIN + (26 if title else 0) + 20 * len(entries) + (8 if title or entries else 0)
    rows = -(-len(panels) // columns)
    page = _Canvas(width, head + rows * (PANEL[1] + GAP) - GAP + MARGIN, PAGE)
    if title:
        page.text((MARGIN, MARGIN + 7), title, 16, INK)
    for row, names in enumerate(entries):
        x = float(MARGIN)
        for colour, name in names:
            x = page.legend_entry((x, head - 16 - 20 * (len(entries) - 1 - row)), name, colour) + 16
    for i, panel in enumerate(panels):
        place = (MARGIN + i % columns * (PANEL[0] + GAP), head + i // columns * (PANEL[1] + GAP))
        page.paste(_panel(panel), place)
    return page.finished()


def usage_chart(counts: Sequence[int]) -> Image.Image:
    """How often each code was used, the commonest first, on a logarithmic scale."""
    shares = np.sort(np.asarray(counts, np.float64))[::-1]
    total, size = max(1.0, shares.sum()), len(shares)
    shares = shares / total
    used = int((shares > 0).sum())
    bits = float(-(shares[:used] * np.log2(shares[:used])).sum()) if used else 0.0
    canvas = _Canvas(640, 328, GROUND)
    left, top, right, bottom = 58, 66, 622, 284
    canvas.text((18, 24), "Use of the codebook", 16, INK)
    most = math.log2(size) if size > 1 else 0.0
    canvas.text(
        (18, 45),
        f"{used:,} of {size:,} codes used ({100 * used / size:.0f} %); {bits:.1f} of {most:.1f} bits, "
        f"as much as {2**bits:,.0f} codes used evenly",
        11,
        FAINT,
    )
    highest = float(shares[0]) if used else 1.0
    low = math.floor(math.log10(float(shares[used - 1]))) if used else -1
    high = max(low + 1, math.ceil(math.log10(highest)))
    height = _scale(low, high, bottom, top)

    def across(rank: float) -> float:
        return left + (right - left) * rank / size

    for power in range(low, high + 1):
        canvas.line([(left, height(power)), (right, height(power))], GRID, 1)
        canvas.text((left - 8, height(power)), _percent(10.0**power), 10, FAINT, "rm")
    points = [(across(0), bottom)]
    for rank in range(used):  # a step for each code
        y = height(math.log10(shares[rank]))
        points += [(across(rank), y), (across(rank + 1), y)]
    if used:
        canvas.area([*points, (across(used), bottom)], COLOURS[0])
    if used < size:
        canvas.area([(across(used), bottom), (across(used), top), (right, top), (right, bottom)], "#f1f2f4")
        words = f"{size - used:,} never used"
        if across(size) - across(used) > canvas.width_of(words, 11) + 12:
            canvas.text(((across(used) + right) / 2, bottom - 14), words, 11, FAINT, "mm")
    even = height(math.log10(1 / size))
    if top <= even <= bottom:
        canvas.dashes((left, even), (right, even), COLOURS[1], 1.4)
        canvas.text((right - 4, even - 9), "if all were used alike", 10, COLOURS[1], "rm")
    canvas.line([(left, bottom), (right, bottom)], FAINT, 1)
    for tick in _ticks(0, size, 6):
        if tick == int(tick) and tick <= size:
            canvas.text((across(tick), bottom + 12), f"{int(tick):,}", 10, FAINT, "mm")
    canvas.text(((left + right) / 2, bottom + 27), "codes, the commonest first", 10, FAINT, "mm")
    return canvas.finished()


def _panel(panel: Panel) -> "_Canvas":
    canvas = _Canvas(*PANEL, GROUND)
    canvas.text((14, 16), panel.title, 13, INK)
    if panel.note:
        canvas.text((14 + canvas.width_of(panel.title, 13) + 8, 16.5), panel.note, 10.5, FAINT)
    x = 14.0
    for curve in panel.curves:
        if curve.label:
            x = canvas.legend_entry((x, 34), curve.label, curve.colour, dots=curve.dots) + 12
    curves = [curve for curve in panel.curves if len(curve.steps)]
    if not curves:
        canvas.text((PANEL[0] / 2, PANEL[1] / 2), "nothing logged yet", 11, FAINT, "mm")
        return canvas
    named = any(curve.label for curve in curves)
    left, top, right, bottom = LEFT, TOP + 18 * named, PANEL[0] - RIGHT, PANEL[1] - BOTTOM

    def value(y: float) -> float:
        return math.log10(max(y, 1e-12)) if panel.log else y

    last = 1.0 + max(curve.steps[-1] for curve in curves)  # steps count from 0, ticks tell how many were done
    across = _scale(0, last, left, right)
    low, high = _limits(curves, value)
    height = _scale(low, high, bottom, top)
    for tick in _log_ticks(low, high) if panel.log else _ticks(low, high, 5):
        canvas.line([(left, height(tick)), (right, height(tick))], GRID, 1)
        number = 10.0**tick if panel.log else tick
        canvas.text((left - 6, height(tick)), _percent(number) if panel.percent else _number(number), 10, FAINT, "rm")
    for tick in _ticks(0, last, 6):
        canvas.text((across(tick), bottom + 11), _number(tick), 10, FAINT, "mm")
    canvas.line([(left, bottom), (right, bottom)], FAINT, 1)

    with canvas.clipped((left, top - 3, right + 6, bottom + 3)) as area:

        def at(steps: Sequence[float], values: Sequence[float]) -> list[Point]:
            return [(across(step), height(value(y))) for step, y in zip(steps, values, strict=True)]

        for curve in curves:
            _draw_pale(area, curve, at)
        for curve in curves:
            _draw_curve(area, curve, at)
    return canvas


def _draw_pale(area: "_Canvas", curve: Curve, at: Callable[[Sequence[float], Sequence[float]], list[Point]]) -> None:
    """What stands behind all curves: bands, and the points of those that are smoothed."""
    if curve.band and len(curve.steps) > 1:
        area.area([*at(curve.steps, curve.band[1]), *at(curve.steps, curve.band[0])[::-1]], _pale(curve.colour, 0.78))
    elif _smoothed(curve):
        area.line(at(curve.steps, curve.values), _pale(curve.colour, 0.7), 1)


def _draw_curve(area: "_Canvas", curve: Curve, at: Callable[[Sequence[float], Sequence[float]], list[Point]]) -> None:
    values = _moving_mean(curve.values, len(curve.values) // 30) if _smoothed(curve) else curve.values
    points = at(curve.steps, values)
    if curve.joined:
        area.line(points, curve.colour, 1.8)
    if curve.dots or len(points) == 1:
        for point in points:
            area.dot(point, 2.9, curve.colour)


def _smoothed(curve: Curve) -> bool:
    return len(curve.steps) >= MANY and not curve.dots


def _limits(curves: Sequence[Curve], value: Callable[[float], float]) -> tuple[float, float]:
    """A range for all curves in which the first values of a long run, often far above the rest, may be cut off."""
    everything = sorted(value(y) for curve in curves for y in curve.values)
    recent = [value(y) for curve in curves for y in curve.values[len(curve.values) // 10 :]]
    low, high = everything[0], everything[-1]
    if len(everything) >= 20:
        high = max(max(recent), everything[int(0.9 * (len(everything) - 1))])
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):
        room = abs(low) * 0.1 or 0.5
        return low - room, high + room
    room = 0.06 * (high - low)
    return low - room, high + room


def _moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean over `reach` points to either side, or as many as there are."""
    return [statistics.fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda x: start + (end - start) * (x - low) / (high - low)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten in the range, or only of powers; of any round numbers in less."""
    if high - low < 1:
        return [math.log10(tick) for tick in _ticks(10**low, 10**high, 4)]
    factors = (1, 2, 5) if high - low < 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [power + math.log10(factor) for power in powers for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks[:: max(1, math.ceil(len(ticks) / 8))]


def _number(x: float) -> str:
    """Short: 12k, 1.5M, 0.25, 3."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.4g}{letter}"
    return f"{x:.4g}"


def _percent(x: float) -> str:
    return f"{100 * x:.4g} %"


def _pale(colour: str, how: float) -> str:
    mixed = [round(c + (255 - c) * how) for c in ImageColor.getrgb(colour)[:3]]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _legend_rows(legend: Sequence[tuple[str, str]], width: float) -> list[list[tuple[str, str]]]:
    rows: list[list[tuple[str, str]]] = []
    x = width
    for colour, name in legend:
        need = _font(11).getlength(name) / (DENSITY * FINE) + 36
        if x + need > width or not rows:
            rows.append([])
            x = 0.0
        rows[-1].append((colour, name))
        x += need
    return rows


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * DENSITY * FINE)


class _Canvas:
    """A picture whose coordinates are points."""

    def __init__(self, width: float, height: float, ground: str):
        size = round(width * DENSITY * FINE), round(height * DENSITY * FINE)
        self.image = Image.new("RGB", size, ground)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.resize((self.image.width // FINE, self.image.height // FINE), Image.Resampling.LANCZOS)

    def paste(self, other: "_Canvas", place: Point) -> None:
        x, y = (round(each * DENSITY * FINE) for each in place)
        self.image.paste(other.image, (x, y))

    def clipped(self, box: tuple[float, float, float, float]) -> "_Clip":
        return _Clip(self, box)

    def width_of(self, text: str, size: float) -> float:
        return _font(size).getlength(text) / (DENSITY * FINE)

    def text(self, place: Point, text: str, size: float, colour: str, anchor: str = "lm") -> None:
        self.draw.text(self._pixels(place), text, fill=colour, font=_font(size), anchor=anchor)

    def legend_entry(self, place: Point, name: str, colour: str, *, dots: bool = False) -> float:
        """A stroke and a name; returns where it ends."""
        x, y = place
        self.line([(x, y), (x + 14, y)], colour, 2)
        if dots:
            self.dot((x + 7, y), 2.9, colour)
        self.text((x + 19, y), name, 11, INK)
        return x + 19 + self.width_of(name, 11)

    def line(self, points: Sequence[Point], colour: str, width: float) -> None:
        if len(points) > 1:
            pixels = [self._pixels(point) for point in points]
            self.draw.line(pixels, fill=colour, width=max(1, round(width * DENSITY * FINE)), joint="curve")

    def dashes(self, start: Point, end: Point, colour: str, width: float) -> None:
        x = start[0]
        while x < end[0]:
            self.line([(x, start[1]), (min(x + 5, end[0]), end[1])], colour, width)
            x += 9

    def area(self, points: Sequence[Point], colour: str) -> None:
        self.draw.polygon([self._pixels(point) for point in points], fill=colour)

    def dot(self, place: Point, radius: float, colour: str) -> None:
        x, y = self._pixels(place)
        r = radius * DENSITY * FINE
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=GROUND, width=round(r / 3))

    def _pixels(self, place: Point) -> Point:
        return place[0] * DENSITY * FINE, place[1] * DENSITY * FINE


class _Clip:
    """What is drawn while it is open changes the canvas inside a box only."""

    def __init__(self, canvas: _Canvas, box: tuple[float, float, float, float]):
        self.canvas = canvas
        left, top, right, bottom = (round(each * DENSITY * FINE) for each in box)
        self.box = left, top, right, bottom

    def __enter__(self) -> _Canvas:
        self.before = self.canvas.image.copy()
        return self.canvas

    def __exit__(self, *_: object) -> None:
        inside = self.canvas.image.crop(self.box)
        self.canvas.image.paste(self.before)
        self.canvas.image.paste(inside, self.box[:2])
