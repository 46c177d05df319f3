"""What the numbers of a picture mean: modes, transparency and colour profiles.

`storable` keeps every number in a mode that a PNG holds, `seen` is the 8-bit sRGB that a model sees of it, and
`to_rgb8` is both in one.
"""

import functools
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
GREY_MODES = ("1", "L", "LA", "La")
MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode that it is for
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


class PictureWarning(UserWarning):
    """Something about a picture or a mask that a person should know, although the work can go on."""


def to_rgb8(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Any Pillow picture as plain 8-bit sRGB without metadata; transparency is laid on `background`.

    Raises:
        ValueError: its numbers have no scale that is known.
    """
    return seen(storable(image), background)


def storable(image: Image.Image) -> Image.Image:
    """The same pixels in L, LA, I;16, RGB or RGBA: the first of these that holds them all.

    `info` keeps nothing but the colour profile, and of 16 bits the transparent value. What no PNG holds (CMYK, LAB,
    YCbCr, HSV, floating point) becomes 8 bits, as it looks on a screen.

    Raises:
        ValueError: integers of 32 bits or floating-point numbers that are on no scale of 1, 255 or 65535.
    """
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    if image.mode in ("I", "F"):
        image = _ranged(image)
    if image.mode.startswith("I;16"):
        plain = Image.fromarray(np.asarray(image).astype(np.uint16))
        if isinstance(key, int):
            plain.info["transparency"] = key
    elif image.mode == "CMYK":
        plain, profile = to_srgb(image, profile), None
    elif image.mode == "LAB":
        lab, srgb = (ImageCms.createProfile(space) for space in ("LAB", "sRGB"))
        plain, profile = _applied(ImageCms.buildTransform(lab, srgb, "LAB", "RGB"), image), None
    else:
        grey = image.mode in GREY_MODES
        plain = image.convert(("L" if grey else "RGB") + "A" * image.has_transparency_data)
        plain.info.clear()
        profile = None if image.mode in ("YCbCr", "HSV") else profile
    if profile:
        plain.info["icc_profile"] = profile
    return plain


def seen(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """What a model sees of a picture from `storable`: RGB, the same object where that is what it is already."""
    profile, alpha = image.info.get("icc_profile"), alpha_of(image)
    if image.mode == "I;16":
        colour = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    else:
        colour = image if alpha is None else image.convert(image.mode[:-1])
    colour = to_srgb(colour, profile)
    if alpha is not None:
        page = Image.new("RGB", image.size, background)
        page.paste(colour, (0, 0), alpha)
        return page
    if colour is image and colour.info:
        colour = image.copy()
        colour.info.clear()
    return colour


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque a picture from `storable` is, in 8 bits; None where it is wholly so."""
    if image.mode.endswith("A"):
        return image.getchannel("A")
    key = image.info.get("transparency")
    return Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)) if key is not None else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB or CMYK in the colours of `profile` (sRGB if None) -> RGB in sRGB; the same object if nothing changes."""
    mode = _mode_for(profile, image.mode) if profile else None
    transform = _transform(profile, mode, False) if profile and mode else None
    if transform is not None:
        return _applied(transform, image if image.mode == mode else image.convert(mode))
    return image if image.mode == "RGB" else image.convert("RGB")


def from_srgb(image: Image.Image, mode: str, profile: bytes | None) -> Image.Image:
    """RGB in sRGB -> L or RGB in the colours of `profile`: the way back from `to_srgb`."""
    within = _mode_for(profile, mode) if profile else None
    transform = _transform(profile, within, True) if profile and within else None
    image = image if transform is None else _applied(transform, image)
    return image if image.mode == mode else image.convert(mode)


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = transform.apply(image)
    result.info.clear()
    return result


@functools.lru_cache(maxsize=32)
def _mode_for(profile: bytes, mode: str) -> str | None:
    """The mode in which `profile` is applied to a picture of `mode`; None, after a warning, where it cannot be."""
    try:
        opened: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))  # its types leave out what it reads
        space = opened.profile.xcolor_space
        found = MODES.get(space)
        if found == mode or (found, mode) == ("RGB", "L"):  # greys are colours too
            _transform(profile, found, False)
            return found
        reason = f"it is for {space.strip()}, and the picture is {mode}"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        reason = str(error).strip() or type(error).__name__
    warnings.warn(
        f"the colour profile of a picture cannot be used, so its colours are taken for sRGB ({reason})",
        PictureWarning,
        stacklevel=3,
    )
    return None


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str, back: bool) -> ImageCms.ImageCmsTransform | None:
    """Between `profile` and sRGB; None where that would change nothing but the last bit, so that sRGB stays exact."""
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    forth = ImageCms.buildTransform(own, srgb, mode, "RGB", INTENT, FLAGS)
    if mode != "CMYK":
        samples = _samples(mode)
        change = np.asarray(forth.apply(samples)).astype(int) - np.asarray(samples.convert("RGB"))
        if np.abs(change).max() <= 1:
            return None
    return ImageCms.buildTransform(srgb, own, "RGB", mode, INTENT, FLAGS) if back else forth


def _samples(mode: str) -> Image.Image:
    """Colours of all kinds."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return Image.fromarray(np.stack(np.meshgrid(*[np.arange(0, 256, 17).astype(np.uint8)] * 3), -1).reshape(1, -1, 3))


def _ranged(image: Image.Image) -> Image.Image:
    """32-bit integers or floating-point numbers on the scale that they are on: L, or I;16 where 8 bits are too few."""
    values = np.asarray(image)
    low, high = (values.min(), values.max()) if np.isfinite(values).all() else (np.nan, np.nan)
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"its values run from {low:g} to {high:g}: scale them to 0..1, 0..255 or 0..65535")
    if image.mode == "F" and high <= 1:
        values = values * 255
    wide = high > 255
    return Image.fromarray(values.round().astype(np.uint16 if wide else np.uint8))
