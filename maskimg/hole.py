"""A painted picture of any size -> the tokens to redraw, and the way back for the pixels.

Every pixel belongs to the token that its centre falls into, both here and when the result is pasted back, so no stroke
is lost and none is widened between the picture's size and the model's.

Shapes: H W the picture's pixels, h w tokens.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskimg.masking import token_mask
from vqgan import load_image
from vqgan.images import to_rgb8

BLACK = (0, 0, 0)
Mask = Image.Image | np.ndarray | str | Path


@dataclasses.dataclass(frozen=True)
class Hole:
    """What inpainting redraws.

    Attributes:
        image: the original picture, of any size.
        box: what it fills of the model's square: left, top, right, bottom.
        codes: (1, h, w) with MASK in the hole. tokens: (1, h, w) bool, True in the hole.
        rows, columns: the token row of each of the original's pixel rows, and likewise for columns.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    codes: torch.Tensor
    tokens: torch.Tensor
    rows: np.ndarray
    columns: np.ndarray

    def pixels(self) -> Image.Image:
        """White where the original picture will be replaced, at its own size."""
        redrawn = self.tokens[0].cpu().numpy()[self.rows][:, self.columns]
        return Image.fromarray((redrawn * 255).astype(np.uint8))

    def paste(self, drawn: Image.Image) -> Image.Image:
        """The original picture with the redrawn tokens, and only these, taken from `drawn` (of the model's size)."""
        patch = drawn.crop(self.box)
        if patch.size != self.image.size:
            patch = patch.resize(self.image.size, Image.Resampling.BICUBIC)
        return Image.composite(patch, self.image, self.pixels())


def painted_pixels(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """A mask as bool (H, W): white or True is painted, what is transparent is not.

    Raises:
        ImageError: a file cannot be read. ValueError: nothing is painted, or the mask is not `size` (width, height).
    """
    if not isinstance(mask, np.ndarray):
        opened = to_rgb8(mask, BLACK) if isinstance(mask, Image.Image) else load_image(mask, background=BLACK)
        mask = np.asarray(opened.convert("L"))
    if mask.ndim != 2:
        raise ValueError(f"expected a mask (H, W), got an array of shape {mask.shape}")
    if mask.shape[::-1] != size:
        raise ValueError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} but the image is {size[0]}x{size[1]}: make them equal"
        )
    painted = mask if mask.dtype == bool else mask > 127
    if not painted.any():
        raise ValueError("nothing is painted: paint the part to redraw")
    return painted


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
    if not 0 <= coverage < 1:
        raise ValueError(f"coverage must be in [0, 1), got {coverage}")
    tokens = token_mask(share > coverage, 1, grow=grow)
    if not tokens.any():
        raise ValueError("no token is covered enough to be redrawn: paint more, or lower the coverage")
    return tokens
