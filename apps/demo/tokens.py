"""Token grids as HTML: which tokens of a picture are fixed, which are still masked, which will be redrawn.

A picture is an inline PNG; above it lies an SVG in token units, so hatching and outlines stay sharp at any size and
take the colours of the page, light or dark.

Shapes: h w tokens of one picture.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from vqgan.colour import to_rgb8

PIXELS = 128  # pictures up to this side are shown with sharp pixels
MAX_SIDE = 384  # larger ones are made smaller: a preview must cost little
LEVELS = 6  # of colour in a view of scores

Box = tuple[float, float, float, float]  # left, top, right, bottom, in tokens


def tile(
    image: Image.Image | None,
    box: Box,
    *,
    veiled: np.ndarray | None = None,
    fresh: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    critic: np.ndarray | None = None,
    caption: str = "",
    hatch: str = "maskimg-hatch",
) -> str:
    """One picture with its grid.

    Args:
        image: shows `box`; None where nothing is drawn yet.
        veiled, fresh: (h, w) bool; hatched over, outlined.
        confidence, critic: (h, w) on [0, 1], NaN where there is no score; shown when the page's view asks.
        hatch: the id of the panel's hatching.
    """
    layers = []
    if veiled is not None and veiled.any():
        layers.append(f'<path class="mk-veil" d="{_runs(veiled)}" fill="url(#{hatch})"/>')
    if fresh is not None and fresh.any():
        layers.append(f'<path class="mk-fresh" d="{_squares(fresh)}"/>')
    for name, shares in (("confidence", confidence), ("critic", critic)):
        if shares is not None:
            layers.append(f'<g class="mk-heat mk-{name}">{_heat(shares, veiled)}</g>')
    return _layered(image, box, layers, caption)


def hole_tile(image: Image.Image | None, box: Box, cells: np.ndarray) -> str:
    """One picture with the lines of its grid, and the `cells` (h, w) that will be redrawn tinted."""
    layers = [f'<path class="mk-lines" d="{_lines(*cells.shape)}"/>']
    if cells.any():
        layers.append(f'<path class="mk-tint" d="{_runs(cells)}"/><path class="mk-edge" d="{_edges(cells)}"/>')
    return _layered(image, box, layers)


def _layered(image: Image.Image | None, box: Box, layers: Sequence[str], caption: str = "") -> str:
    """A picture under layers of SVG in token units."""
    left, top, right, bottom = box
    picture = ""
    if image is not None:
        kind = ' class="mk-pixels"' if max(image.size) <= PIXELS else ""
        picture = f'<img{kind} src="{data_uri(image)}" alt="">'
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="mk-tile" style="aspect-ratio:{right - left:.4f}/{bottom - top:.4f}">{picture}'
        f'<svg viewBox="{left:.4f} {top:.4f} {right - left:.4f} {bottom - top:.4f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(layers)}</svg></div>{words}</figure>'
    )


def panel(tiles: Iterable[str], words: str, *, live: bool = False, hatch: str = "maskimg-hatch") -> str:
    """Tiles side by side; `words` is what a screen reader says. A live panel hides the finished pictures."""
    tiles = list(tiles)
    # Large tiles for few pictures, small ones for many.
    columns = 1 if len(tiles) == 1 else 2 if len(tiles) <= 4 else 3 if len(tiles) <= 9 else 4
    return (
        f'<div class="mk-panel{" mk-live" if live else ""}" role="img" aria-label="{html.escape(words)}" '
        f'style="--columns:{columns}">{_hatching(hatch)}{"".join(tiles)}</div>'
    )


def replay(frame: str, count: int, caption: str, title: str, *, hatch: str = "maskimg-hatch") -> str:
    """The last of `count` steps of a picture over a slider; the page's script asks for the others, and moves it."""
    last = count - 1
    return (
        f'<div class="mk-replay"><p>{html.escape(title)}</p>{_hatching(hatch)}<div class="mk-frames">'
        f'<div class="mk-frame mk-now" data-words="{html.escape(caption)}">{frame}</div></div>'
        f'<div class="mk-scrub"><input type="range" min="0" max="{last}" value="{last}" step="1" '
        f'aria-label="Step of the replay"><output>{html.escape(caption)}</output></div></div>'
    )


def frames(tiles: Sequence[str], captions: Sequence[str]) -> str:
    """The tiles of one picture's steps, of which the page's script shows one."""
    return "".join(
        f'<div class="mk-frame" data-words="{html.escape(words)}">{tile}</div>'
        for tile, words in zip(tiles, captions, strict=True)
    )


def legend() -> str:
    """What the colours of the two score views mean."""
    steps = "".join(f'<i class="mk-r{level}"></i>' for level in range(LEVELS))
    return f'<p class="mk-legend" aria-hidden="true"><span>unsure</span><b>{steps}</b><span>sure</span></p>'


def status(words: str, share: float = 0.0, *, running: bool = False) -> str:
    """One line that a screen reader announces, above a bar filled to `share`."""
    return (
        f'<div class="mk-status{" mk-running" if running else ""}"><span role="status">{html.escape(words)}</span>'
        f'<i style="width:{100 * share:.0f}%"></i></div>'
    )


def figures(rows: Mapping[str, str]) -> str:
    """Names and values as a table, which a screen reader reads row by row."""
    lines = "".join(f"<tr><th scope=row>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="mk-figures">{lines}</table>'


def facts(rows: Mapping[str, str]) -> str:
    """Names and longer values as a table."""
    lines = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="mk-table">{lines}</table>'


def note(words: str) -> str:
    """Something to know, and no fault."""
    return f'<p class="mk-note">{html.escape(words[:1].upper() + words[1:])}.</p>'


def data_uri(image: Image.Image) -> str:
    """A picture for the inside of a page: exact where it is small, else a JPEG of at most MAX_SIDE."""
    file = io.BytesIO()
    image = to_rgb8(image)
    if max(image.size) <= PIXELS:
        image.save(file, format="PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(file, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _runs(cells: np.ndarray) -> str:
    """Cells (h, w) as an SVG path, neighbours in a row as one rectangle, so that no seam shows."""
    steps = []
    for y, row in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        steps += [f"M{x} {y}H{end}V{y + 1}H{x}Z" for x, end in edges.reshape(-1, 2)]
    return "".join(steps)


def _heat(shares: np.ndarray, veiled: np.ndarray | None) -> str:
    """Shares (h, w) on [0, 1] in LEVELS colours; smaller squares, so that they are told apart, where still masked."""
    levels = np.where(np.isnan(shares), -1, np.clip(np.nan_to_num(shares) * LEVELS, 0, LEVELS - 1).astype(int))
    open_ = np.zeros(shares.shape, bool) if veiled is None else veiled
    parts = []
    for level in range(LEVELS):
        small = "".join(f"M{x + 0.3} {y + 0.3}h.4v.4h-.4Z" for y, x in np.argwhere((levels == level) & open_))
        if path := _runs((levels == level) & ~open_) + small:
            parts.append(f'<path class="mk-r{level}" d="{path}"/>')
    return "".join(parts)


def _squares(cells: np.ndarray) -> str:
    return "".join(f"M{x} {y}h1v1h-1Z" for y, x in np.argwhere(cells))


def _edges(cells: np.ndarray) -> str:
    """The outline of all cells (h, w) together."""
    framed = np.pad(cells.astype(np.int8), 1)
    across = np.argwhere(np.diff(framed, axis=0)[:, 1:-1])  # (y, x): an edge above row y
    down = np.argwhere(np.diff(framed, axis=1)[1:-1])  # (y, x): an edge left of column x
    return "".join(f"M{x} {y}h1" for y, x in across) + "".join(f"M{x} {y}v1" for y, x in down)


def _lines(h: int, w: int) -> str:
    return "".join(f"M0 {y}H{w}" for y in range(1, h)) + "".join(f"M{x} 0V{h}" for x in range(1, w))


def _hatching(name: str) -> str:
    """The pattern has its own svg in each panel: one inside a hidden tab would not be drawn."""
    return (
        f'<svg class="mk-defs" width="0" height="0" aria-hidden="true"><defs><pattern id="{name}" width=".34" '
        'height=".34" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="mk-ground" width="1" '
        'height="1"/><rect class="mk-line" width=".07" height="1"/></pattern></defs></svg>'
    )
