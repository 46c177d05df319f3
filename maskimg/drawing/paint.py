"""What is painted on a mask: the one reader for command line, page, API and Python.

White is paint. What is transparent is not, whatever colour lies hidden there. In between, what is brighter than LEVEL
of 255 is paint, after transparency has been laid on black. Arrays are read like the picture that they would make.

Shapes: H W pixels.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from vqgan.colour import BLACK, alpha_of, seen, storable
from vqgan.images import read_image
from vqgan.original import Original

LEVEL = 127
NOTHING = "nothing is painted: paint the part to redraw"
MANY = 16  # different greys, more than a smooth edge or a pale paint has
RULE = f"above {LEVEL} is paint"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of an array, by its channels


@dataclasses.dataclass(frozen=True)
class Paint:
    """A mask that was read.

    Attributes:
        pixels: (H, W) bool, True where painted.
        note: what a person should know about it; mostly empty.
    """

    pixels: np.ndarray
    note: str = ""


Mask = Image.Image | np.ndarray | str | Path | Paint


def read_paint(mask: Mask, original: Original) -> Paint:
    """What is painted on a mask of the picture `original`.

    Args:
        mask: a picture or the path of one, turned upright like all of them; or an array (H, W), (H, W, 1), or with 2,
            3 or 4 channels for grey and alpha, RGB and RGBA: bool, integers up to 255 (or 65535, if of 16 bits), or
            floating-point numbers from 0 to 1 (or 255). What was read already is returned.

    Raises:
        ImageError: a file cannot be read. ValueError: nothing is painted, the sizes differ, or an array is none of
            these.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == bool and mask.ndim == 2:
        mask = Paint(mask)
    if isinstance(mask, Paint):
        _require_size(mask.pixels.shape[::-1], original.size)
        if not mask.pixels.any():
            raise ValueError(NOTHING)
        return mask
    if isinstance(mask, np.ndarray):
        mask = _picture(mask)
    image = storable(mask if isinstance(mask, Image.Image) else read_image(mask))
    image.info.pop("icc_profile", None)  # a mask has no colours
    _require_size(image.size, original.size)
    levels = np.asarray(seen(image, BLACK).convert("L"))
    pixels = levels > LEVEL
    if not pixels.any():
        raise ValueError(_why_nothing(image, int(levels.max())))
    return Paint(pixels, _note(image, levels, pixels, original))


def _picture(array: np.ndarray) -> Image.Image:
    """An array of any type and number of channels as a picture of 8 bits."""
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in MODES or not array.size:
        raise ValueError(
            f"expected a mask of shape (H, W), or (H, W, channels) with 1 to 4 of them, got an array of shape "
            f"{array.shape}"
        )
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype.kind == "f":
        array = array * 255 if array.max() <= 1 else array
    elif array.dtype.kind not in "ui":
        raise ValueError(f"expected a mask of bool, integers or floating-point numbers, got {array.dtype}")
    elif array.dtype.itemsize > 1 and array.max() > 255:
        array = array / 257
    if not 0 <= array.min() <= array.max() <= 255:  # NaN is not, either
        raise ValueError(
            f"expected a mask from 0 to 1, to 255 or to 65535, got values from {array.min():g} to {array.max():g}"
        )
    array = array.round().astype(np.uint8) if array.dtype.kind == "f" else array.astype(np.uint8)
    return Image.fromarray(array.reshape(*array.shape[:2], channels).squeeze(2) if channels == 1 else array)


def _require_size(size: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if size == wanted:
        return
    sentence = f"the mask is {size[0]}x{size[1]} but the image is {wanted[0]}x{wanted[1]}: make them equal"
    if size == wanted[::-1]:
        sentence += (
            "; turned by a quarter the mask would fit: a photo that lies on its side in its file is turned upright "
            "when it is read"
        )
    raise ValueError(sentence)


def _why_nothing(image: Image.Image, brightest: int) -> str:
    alpha = alpha_of(image)
    if brightest == 0 and alpha is not None and len(alpha.getcolors() or ()) > 1:
        return "nothing is painted: the mask is transparent where it is not black, and white is paint: paint in white"
    if brightest == 0:
        return NOTHING
    hint = "multiply a mask of 0 and 1 by 255" if brightest == 1 else "paint in white"
    return f"nothing is painted: the brightest of the mask is {brightest} of 255, and {RULE}: {hint}"


def _note(image: Image.Image, levels: np.ndarray, pixels: np.ndarray, original: Original) -> str:
    """What makes it doubtful that a mask is meant as it is read."""
    share = f"{pixels.mean():.0%}"
    alpha = alpha_of(image)
    holed = alpha is not None and alpha.getextrema()[0] == 0
    picture = np.asarray(original.rgb.convert("L"))
    apart = np.abs(levels.astype(np.int16) - picture)
    if max(apart.mean(), apart[pixels].mean()) < 2 and picture.min() < picture.max():
        return f"the mask looks the same as the picture, and the bright part of it, {share}, is redrawn: paint a mask"
    lit = levels[levels > LEVEL // 8]
    greys = lit[lit < 255 - LEVEL // 8]
    if len(greys) > len(lit) / 2 and np.count_nonzero(np.bincount(greys)) >= MANY:  # not one pale paint
        return (
            f"most of the mask is neither black nor white, like a photo: what is brighter than {LEVEL} of 255 is "
            f"redrawn, {share} of it" + ("; what is transparent stays" if holed else "")
        )
    if holed and pixels.mean() > 0.5:
        return (
            f"the white of the mask, {share} of it, is redrawn and what is transparent stays: if that is the wrong way "
            "round, paint white where to redraw and black elsewhere"
        )
    return ""
