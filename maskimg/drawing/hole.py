"""A picture of any size, the tokens of it to redraw, and the way back for the pixels.

The picture is laid on a canvas of whole tokens, at least as large as the model's grid. Every pixel belongs to the token
that its centre falls into, both here and when the result is pasted back, so no stroke is lost and none is widened
between the picture's size and the canvas's.

Shapes: H W the picture's pixels, h w tokens of the canvas.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from maskimg.drawing.paint import Mask, read_paint
from maskimg.masking import token_mask
from maskimg.values import WrongType, real_number, shown, whole_number
from vqgan.colour import WHITE
from vqgan.original import Original, original_of

EVERYTHING = "all of the picture, so it is drawn anew"
LARGEST = 2048  # side of a canvas in pixels; more asks for more memory than a laptop has
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Hole:
    """Which tokens of a picture are redrawn, and where its pixels lie.

    Attributes:
        original: the picture, of any size.
        canvas: the picture as the model sees it: whole tokens, white where there is none of it.
        box: what the picture fills of the canvas, in pixels: left, top, right, bottom.
        tokens: (1, h, w) bool, True where redrawn.
        rows, columns: the token row of each of the original's pixel rows, and likewise for columns.
        feather: over how much of a token the original fades into what is drawn, inside the hole.
        note: what a person should know about the mask; mostly empty.
    """

    original: Original
    canvas: Image.Image
    box: Box
    tokens: torch.Tensor
    rows: np.ndarray
    columns: np.ndarray
    feather: float = 0.0
    note: str = ""

    @property
    def everything(self) -> bool:
        """Nothing of the picture is kept, so that drawing into the hole is drawing a picture anew."""
        return bool(self._cells()[self.rows][:, self.columns].all())

    def pixels(self) -> Image.Image:
        """White where the original picture will be replaced, at its own size."""
        return Image.fromarray((self._cells()[self.rows][:, self.columns] * 255).astype(np.uint8))

    def paste(self, drawn: Image.Image) -> Image.Image:
        """The original picture with the redrawn tokens, and only these, taken from `drawn` (of the canvas's size).

        It keeps its mode, transparency and colour profile, as `Original` says.
        """
        top, bottom = _span(np.any(self._cells(), axis=1)[self.rows])
        left, right = _span(np.any(self._cells(), axis=0)[self.columns])
        opacity = self._opacity(self.rows[top:bottom], self.columns[left:right])
        filled, size = drawn.crop(self.box), self.original.size
        if filled.size == size:
            patch = filled.crop((left, top, right, bottom))
        else:  # only the part that is needed: a picture may be large, and its hole small
            across, down = (length / whole for length, whole in zip(filled.size, size, strict=True))
            part = (left * across, top * down, min(right * across, filled.width), min(bottom * down, filled.height))
            patch = filled.resize((right - left, bottom - top), Image.Resampling.BICUBIC, part)
        return self.original.with_drawn(patch, Image.fromarray(opacity), (left, top))

    def _cells(self) -> np.ndarray:
        return self.tokens[0].cpu().numpy()

    def _opacity(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """How much of what is drawn shows: uint8 (rows, columns), 0 in every token that is kept."""
        hole = self._cells()
        opacity = np.ones((len(rows), len(columns)), np.float32)
        if self.feather:
            # What is kept beside the hole; nothing is outside the picture.
            kept = np.pad(~hole, 1)
            kept[: self.rows.min() + 1], kept[self.rows.max() + 2 :] = False, False
            kept[:, : self.columns.min() + 1], kept[:, self.columns.max() + 2 :] = False, False
            down, across = _depth(rows), _depth(columns)
            for dy, y in ((-1, down), (0, 0 * down), (1, 1 - down)):
                for dx, x in ((-1, across), (0, 0 * across), (1, 1 - across)):
                    beside = kept[1 + dy :, 1 + dx :][rows][:, columns]
                    distance = np.maximum(y[:, None], x) / self.feather
                    opacity = np.where(beside, np.minimum(opacity, distance), opacity)
        return (255 * opacity * hole[rows][:, columns]).round().astype(np.uint8)


def lay_out(image: Image.Image, grid: tuple[int, int], stride: int, window: int | None) -> tuple[Image.Image, Box]:
    """A picture on a canvas of whole tokens, at least `grid`, and the box it fills there.

    Args:
        window: pixels of the picture along the side of the square that the model sees at a time; if not given, the
            whole picture.

    Raises:
        ValueError: the window is not positive, or so small that the canvas would be too large.
    """
    fitting = min(tokens * stride / length for length, tokens in zip(image.size, grid[::-1], strict=True))
    if window is not None and whole_number("window", window) < 1:
        raise ValueError(f"the window must be 1 pixel or more, got {window}")
    scale = fitting if window is None else max(fitting, grid[0] * stride / window)
    if max(image.size) * scale > max(LARGEST, *(tokens * stride for tokens in grid)):
        least = -(-grid[0] * stride * max(image.size) // LARGEST)
        raise ValueError(
            f"a window of {window} pixels is too small for a picture of {image.width}x{image.height}: "
            f"use {least} or more"
        )
    sizes, whole = [], []
    for length, tokens in zip(image.size, grid[::-1], strict=True):
        scaled = max(1, round(length * scale))
        if scaled > tokens * stride:  # larger than the model's grid: no token may be cut by the edge
            scaled = round(length * scale / stride) * stride
        sizes.append(scaled)
        whole.append(max(scaled, tokens * stride))
    left, top = ((all_ - part) // 2 for all_, part in zip(whole, sizes, strict=True))
    canvas = Image.new("RGB", (whole[0], whole[1]), WHITE)
    canvas.paste(image.resize((sizes[0], sizes[1]), Image.Resampling.LANCZOS), (left, top))
    return canvas, (left, top, left + sizes[0], top + sizes[1])


def make_hole(
    image: Image.Image | Original,
    mask: Mask,
    grid: tuple[int, int],
    stride: int,
    *,
    coverage: float = 0.0,
    grow: int = 1,
    feather: float = 0.5,
    window: int | None = None,
) -> Hole:
    """Which tokens of `image` the painted `mask` asks to redraw.

    Args:
        coverage, grow: which tokens the paint reaches, as in `token_mask`.
        feather: width of the fade from the picture to what is drawn, as a share of a token. It lies in the ring that
            `grow` adds, so painted pixels are always fully replaced; with `grow=0` there is no fade.
        window: as in `lay_out`.

    Raises:
        ImageError: a file cannot be read. ValueError: nothing is painted, the sizes differ, or a number is out of
            range.
    """
    real_number("feather", feather, 0, 1)
    original = original_of(image)
    paint = read_paint(mask, original)
    canvas, box = lay_out(original.rgb, grid, stride, window)
    rows = tokens_along(original.size[1], box[1], box[3], stride)
    columns = tokens_along(original.size[0], box[0], box[2], stride)
    tokens = tokens_to_redraw(
        paint.pixels, rows, columns, (canvas.height // stride, canvas.width // stride), coverage=coverage, grow=grow
    )
    return Hole(original, canvas, box, tokens, rows, columns, feather if grow else 0.0, paint.note)


def make_margins(
    image: Image.Image | Original,
    margins: tuple[int, int, int, int],
    grid: tuple[int, int],
    stride: int,
    window: int,
) -> Hole:
    """The hole around a picture that new margins (left, top, right, bottom; in tokens) are drawn into.

    Args:
        window: as in `lay_out`; at most the picture's shorter side, so that the model never sees white around it.

    Raises:
        ValueError: a margin or the window is out of range.
    """
    h, w = grid
    limits = (w // 2, h // 2, w // 2, h // 2)
    if not isinstance(margins, Sequence | np.ndarray) or isinstance(margins, str | bytes) or len(margins) != 4:
        raise WrongType(f"margins must be four whole numbers, of left, top, right and bottom, got {shown(margins)}")
    left, top, right, bottom = (whole_number("each of the margins", margin) for margin in margins)
    margins = (left, top, right, bottom)
    if any(not 0 <= margin <= limit for margin, limit in zip(margins, limits, strict=True)) or not any(margins):
        raise ValueError(
            f"margins must be between 0 and {h // 2} tokens, half the model's grid, and not all 0, got "
            f"{','.join(map(str, margins))}: for more, draw again"
        )
    original = original_of(image)
    width, height = original.size
    inner, box = lay_out(original.rgb, grid, stride, window)
    if box != (0, 0, *inner.size):
        raise ValueError(f"the window must be at most the picture's shorter side, {min(width, height)}, got {window}")

    # The same margins in pixels of the picture, and on the canvas.
    scales = (width * stride / inner.width, height * stride / inner.height)
    pixels = tuple(round(margin * scale) for margin, scale in zip(margins, scales * 2, strict=True))
    if any(margin and not added for margin, added in zip(margins, pixels, strict=True)):
        raise ValueError(f"a picture of {width}x{height} is too small to be extended by single tokens")
    side = (inner.width + (left + right) * stride, inner.height + (top + bottom) * stride)
    if max(side) > max(LARGEST, h * stride):
        raise ValueError(f"the picture would be {side[0]}x{side[1]} pixels for the model: at most {LARGEST} a side")
    canvas = Image.new("RGB", side, WHITE)
    canvas.paste(inner, (left * stride, top * stride))

    tokens = torch.ones(1, side[1] // stride, side[0] // stride, dtype=torch.bool)
    tokens[:, top : top + inner.height // stride, left : left + inner.width // stride] = False

    def along(before: int, length: int, after: int, counts: tuple[int, int, int]) -> np.ndarray:
        parts = zip((before, length, after), counts, np.cumsum((0, *counts[:2])), strict=True)
        return np.concatenate([start + tokens_along(n, 0, count, 1) for n, count, start in parts])

    rows = along(pixels[1], height, pixels[3], (top, inner.height // stride, bottom))
    columns = along(pixels[0], width, pixels[2], (left, inner.width // stride, right))
    larger = original.extended((pixels[0], pixels[1], pixels[2], pixels[3]))
    return Hole(larger, canvas, (0, 0, *side), tokens, rows, columns)


def tokens_along(length: int, start: int, stop: int, stride: int) -> np.ndarray:
    """The token of each of `length` pixels that are scaled to fill [start, stop) of the model's square: (length,)."""
    centres = start + (2 * np.arange(length) + 1) * (stop - start) // (2 * length)
    return centres // stride


def tokens_to_redraw(
    painted: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    grid: tuple[int, int],
    *,
    coverage: float = 0.0,
    grow: int = 1,
) -> torch.Tensor:
    """Painted (H, W) bool and the token of each row and column -> (1, h, w) bool; the options are `token_mask`'s.

    Raises:
        ValueError: an option is out of range, or no token is covered enough.
    """
    h, w = grid
    token = rows[:, None] * w + columns
    total = np.bincount(token.ravel(), minlength=h * w)
    hit = np.bincount(token.ravel(), painted.ravel(), minlength=h * w)
    share = torch.from_numpy(hit / np.maximum(total, 1)).reshape(1, h, w)
    if not 0 <= real_number("coverage", coverage) < 1:
        raise ValueError(f"coverage must be in [0, 1), got {coverage}")
    # More rings than the canvas is wide reach all of it, too.
    tokens = token_mask(share > coverage, 1, grow=min(whole_number("grow", grow, 0), max(grid)))
    if not tokens.any():
        raise ValueError("no token is covered enough to be redrawn: paint more, or lower the coverage")
    return tokens


def _depth(tokens: np.ndarray) -> np.ndarray:
    """How far through its token each pixel along a side lies: (n,) on (0, 1)."""
    _, first, inverse, count = np.unique(tokens, return_index=True, return_inverse=True, return_counts=True)
    return ((np.arange(len(tokens)) - first[inverse] + 0.5) / count[inverse]).astype(np.float32)


def _span(wanted: np.ndarray) -> tuple[int, int]:
    """From the first True to the last."""
    places = np.flatnonzero(wanted)
    return int(places[0]), int(places[-1]) + 1
