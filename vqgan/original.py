"""A picture that is edited: its own pixels, which stay, and what a model sees of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vqgan.colour import WHITE, from_srgb, seen, storable
from vqgan.images import MAX_PIXELS, ImageError, read_image

Edges = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Original:
    """An opened picture that knows what it was in its file.

    Attributes:
        image: its own pixels, upright, in L, LA, I;16, RGB or RGBA; `info` holds its colour profile, if it has one.
        rgb: the same as a model sees them: 8-bit sRGB, transparency laid on white.
        text: what was written into its file, such as the recipe of a PNG.
    """

    image: Image.Image
    rgb: Image.Image
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.size

    def extended(self, margins: Edges) -> "Original":
        """With opaque white around it: left, top, right and bottom, in pixels."""
        left, top, right, bottom = margins
        size = self.size[0] + left + right, self.size[1] + top + bottom
        whites = {"L": 255, "LA": (255, 255), "I;16": 65535, "RGB": WHITE, "RGBA": (*WHITE, 255)}
        image = Image.new(self.image.mode, size, whites[self.image.mode])
        image.paste(self.image, (left, top))
        image.info |= self.image.info
        rgb = image
        if self.rgb is not self.image:
            rgb = Image.new("RGB", size, WHITE)
            rgb.paste(self.rgb, (left, top))
        return Original(image, rgb, self.text)

    def with_drawn(self, drawn: Image.Image, opacity: Image.Image, at: tuple[int, int]) -> Image.Image:
        """The picture with a patch of sRGB laid on it at (left, top), in its own mode, transparency and profile.

        Where `opacity` (L, as large as the patch) is 0 no bit changes, not even of a colour that is wholly
        transparent; where it is 255 the patch is opaque. Grey pictures stay grey.
        """
        result = self.image.copy()
        mode = result.mode
        colour = "L" if mode in ("L", "LA", "I;16") else "RGB"
        patch = from_srgb(drawn, colour, result.info.get("icc_profile"))
        if mode == colour:
            result.paste(patch, at, opacity)
            return result
        here = result.crop((*at, at[0] + drawn.width, at[1] + drawn.height))
        if mode == "I;16":
            mixed = _mixed_wide(here, patch, opacity, result.info.get("transparency"))
            result.paste(mixed, at)
            return result
        # Weighted by how opaque each is, so that no hidden colour shines through where one fades into the other.
        weighted = {"LA": "La", "RGBA": "RGBa"}[mode]
        mixed = Image.composite(patch.convert(mode).convert(weighted), here.convert(weighted), opacity).convert(mode)
        result.paste(mixed, at, opacity.point([0] + [255] * 255))
        return result


def load_original(path: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Original:
    """The picture at `path` with all that an edit gives back; arguments and errors are those of `load_image`."""
    image = read_image(path, max_pixels=max_pixels)
    text = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    return dataclasses.replace(original_of(image), text=text)


def original_of(image: Image.Image | Original) -> Original:
    """A Pillow picture as one that can be edited; it is taken as it lies, whatever its EXIF orientation says."""
    if isinstance(image, Original):
        return image
    if not isinstance(image, Image.Image):
        raise ImageError(f"expected a picture or the path of one, got `{str(image)[:60]}`")
    kept = storable(image)
    return Original(kept, seen(kept))


def _mixed_wide(kept: Image.Image, drawn: Image.Image, opacity: Image.Image, transparent: int | None) -> Image.Image:
    """I;16 and what is drawn on it in 8 bits (L)."""
    before, share = np.asarray(kept).astype(np.uint32), np.asarray(opacity).astype(np.uint32)
    after = (before * (255 - share) + np.asarray(drawn).astype(np.uint32) * 257 * share + 127) // 255
    if transparent is not None:
        covered = (share > 0) & (before == transparent)
        after[covered] = np.asarray(drawn)[covered].astype(np.uint32) * 257  # one value is transparent or is not
        after[(share > 0) & (after == transparent)] += 1 if transparent < 65535 else -1
    return Image.fromarray(after.astype(np.uint16))
