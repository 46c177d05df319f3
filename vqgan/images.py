"""File <-> PIL <-> tensor in [-1, 1].

`load_image` is the one door through which pictures from outside enter: command line, browser and training data
all come through it. It reads the size from the header before it decodes, turns the picture upright, converts its
colours to sRGB, lays transparency on white and scales 16 bits to 8, so models only ever see 8-bit RGB.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from einops import rearrange
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from vqgan.colour import WHITE, to_rgb8
from vqgan.png import SIGNATURE, without_text

# What is read -> what such files are called; a phone's MPO comes in through JPEG. All of these Pillow decodes itself.
# Not among them: what starts another program (EPS, PDF, WMF), and what hardly any picture comes in but outsiders could
# still reach a decoder by (JPEG 2000, PSD, DDS, ICNS, FITS ...).
SUFFIXES_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
} | ({"AVIF": (".avif", ".avifs")} if "avif" in features.modules else {})  # from Pillow 11.3 on
FORMATS = tuple(SUFFIXES_OF)
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # read where the plug-in `pillow_heif` is installed
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
IN_WORDS = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF"
MAX_PIXELS = 100_000_000  # four bytes each in memory, twice while a picture is read; phones have 50 million
# Black, purple, red, orange, pale yellow: brighter at each step, so it reads the same without colour.
GLOW = ((0, 0, 0), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 180))
TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


OR_RAISE = ", or raise the limit with `--max-megapixels`"
# Pillow leaves the transparent value on the scale of a PNG of 2 or 4 bits, and scales its pixels by this.
GREY_STEPS = {"L;2": 85, "L;4": 17}


class ImageError(ValueError):
    """A picture that cannot be used; the message says why and what to do."""


def load_image(
    path: str | Path | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    side: int | None = None,
    background: tuple[int, int, int] = WHITE,
) -> Image.Image:
    """The picture at `path` as 8-bit sRGB, upright; transparency is laid on `background`.

    Args:
        path: a picture in one of FORMATS (or an open binary file of one). Of an animation, the first frame.
        max_pixels: larger pictures are refused before they are decoded.
        side: a shorter side that is enough. A JPEG at least four times as large is then decoded at a half, a quarter
            or an eighth of its size, but never at less than twice `side`, which saves time and memory.

    Raises:
        ImageError: the file is missing, unreadable, of another format, damaged or too large.
    """
    return _read(path, max_pixels, side, lambda image: to_rgb8(image, background))


def read_image(path: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture at `path` as its file has it, upright: mode, transparency, colour profile and text are kept.

    Arguments and errors are those of `load_image`.
    """
    return _read(path, max_pixels, None, lambda image: image)


@contextlib.contextmanager
def open_header(path: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """A picture whose header is read and nothing else: size and format are known.

    Raises:
        UnidentifiedImageError: it is in none of FORMATS, nor in HEIF.
        ImageError: it is in HEIF, and the plug-in is missing.
    """
    with (
        Path(path).open("rb") if isinstance(path, str | Path) else contextlib.nullcontext(path) as file,
        _identify(file, _named(path)) as image,
    ):
        yield image


def has_heif() -> bool:
    """Whether pictures in HEIF (HEIC) can be read here."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_picture(name: str) -> bool:
    """Whether a file is named like a picture that can be read here."""
    name = name.lower()
    return name.endswith(SUFFIXES) or (name.endswith(HEIF_SUFFIXES) and has_heif())


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of `image`, scaled to `size` x `size`: how training pictures are prepared."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def fit_stride(image: Image.Image, side: int, stride: int) -> Image.Image:
    """The whole of `image`, its longer side scaled to `side`, both rounded to the next multiple of `stride`."""
    scale = side / max(image.size)
    width, height = (max(1, round(each * scale / stride)) * stride for each in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def pad_square(image: Image.Image, size: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The whole of `image` on a white square of `size`, and the box (left, top, right, bottom) it fills there."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (size - width) // 2, (size - height) // 2
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    return square, (left, top, left + width, top + height)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> float32 (3, H, W) in [-1, 1]."""
    return normalize(torch.from_numpy(rearrange(np.array(image), "h w c -> c h w")))


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [-1, 1] -> uint8 0..255, any shape; the inverse of `normalize`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    """Float (3, H, W) in [-1, 1] -> RGB picture."""
    return Image.fromarray(rearrange(to_uint8(image), "c h w -> h w c").cpu().numpy())


def sheet(images: Iterable[Image.Image], columns: int, *, gap: int = 2, scale: int = 1) -> Image.Image:
    """A contact sheet of equally large pictures, row by row; enlarged by whole pixels."""
    tiles = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    if not tiles:
        raise ValueError("a sheet needs at least one picture")
    width, height = tiles[0].width + gap, tiles[0].height + gap
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (min(columns, len(tiles)) * width + gap, rows * height + gap), (255, 255, 255))
    for i, tile in enumerate(tiles):
        page.paste(tile, (gap + i % columns * width, gap + i // columns * height))
    return page


def heat_map(image: Image.Image, shares: torch.Tensor) -> Image.Image:
    """A picture in grey with shares (h, w) in [0, 1] laid over it in red, one rectangle of pixels each."""
    alpha = Image.fromarray((shares.clamp(0, 1) * 217).byte().numpy()).resize(image.size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", image.size, (214, 40, 57)), grey, alpha)


def error_map(image: Image.Image, other: Image.Image, *, gain: float = 5) -> Image.Image:
    """Where two equally large RGB pictures differ: black for nothing, pale from a mean error of 255 / `gain` on."""
    error = np.abs(np.asarray(image, np.float32) - np.asarray(other, np.float32)).mean(-1) / 255
    places = np.linspace(0, 1, len(GLOW))
    shown = np.stack([np.interp(gain * error, places, channel) for channel in np.transpose(GLOW)], axis=-1)
    return Image.fromarray(shown.round().astype(np.uint8))


def code_map(codes: torch.Tensor) -> Image.Image:
    """Codes (h, w) -> a picture of w x h pixels, in which a code has the same colour wherever it stands.

    Hues and brightnesses run through two irrational steps, so neighbouring numbers are easily told apart.
    """
    hue, lightness = ((codes.cpu().numpy() * step) % 1 for step in (0.7548776662466927, 0.5698402909980532))
    channels = (255 * hue, 150 + 60 * lightness, 255 - 130 * lightness)
    return Image.merge("HSV", [Image.fromarray(each.astype(np.uint8)) for each in channels]).convert("RGB")


def paired_sheet(groups: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """A contact sheet of groups of equally large pictures, the members of each group below one another."""
    blank = Image.new("RGB", groups[0][0].size, (255, 255, 255))
    tiles = []
    for start in range(0, len(groups), columns):
        row = groups[start : start + columns]
        for member in zip(*row, strict=True):
            tiles += [*member, *[blank] * (columns - len(row))]
    return sheet(tiles, columns)


def _read(
    path: str | Path | BinaryIO, max_pixels: int, side: int | None, finish: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    name = _checked_name(path, max_pixels)
    if isinstance(path, str | Path):
        _require_regular_file(Path(path), name)
    try:
        with Path(path).open("rb") if isinstance(path, str | Path) else contextlib.nullcontext(path) as file:
            image = _decode(file, name, max_pixels, side)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(f"{name} has too many pixels for this machine: make it smaller") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a readable {IN_WORDS} picture") from error
    # RuntimeError is what the decoders of AVIF and HEIF raise.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, OverflowError, RuntimeError, struct.error) as error:
        raise ImageError(
            f"{name} is damaged or cut off: open it in an image editor and save it again ({error})"
        ) from error
    try:
        return finish(image)
    except ValueError as error:
        raise ImageError(f"{name} cannot be used: {error}") from error


def _checked_name(path: str | Path | BinaryIO, max_pixels: int) -> str:
    """What messages call a picture; raises ImageError where it can be none."""
    if not isinstance(path, str | Path) and not hasattr(path, "read"):
        raise ImageError(f"expected a picture or the path of one, got `{str(path)[:60]}`")
    if isinstance(path, str | Path) and (not str(path).strip() or "\0" in str(path)):
        raise ImageError(f"`{ascii(str(path)[:60])[1:-1]}` cannot be the path of a file")
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ImageError(f"max_pixels must be a whole number, 1 or more, got `{max_pixels}`")
    return _named(path)


def _named(path: str | Path | BinaryIO) -> str:
    return f"`{path}`" if isinstance(path, str | Path) else "the picture"


def _decode(file: BinaryIO, name: str, max_pixels: int, side: int | None) -> Image.Image:
    """The first picture in a file, upright and otherwise as it is, whatever text stands beside it."""
    try:
        return _decode_strictly(file, name, max_pixels, side)
    except ImageError:
        raise
    except ValueError:
        file.seek(0)
        data = file.read()
        if not data.startswith(SIGNATURE):
            raise
    bare, profile = without_text(data)
    image = _decode_strictly(io.BytesIO(bare), name, max_pixels, side)
    image.info["icc_profile"] = profile
    return image


def _decode_strictly(file: BinaryIO, name: str, max_pixels: int, side: int | None) -> Image.Image:
    with warnings.catch_warnings():
        # Of damaged EXIF blocks, and of sizes above a limit of Pillow's: the pixels are what counts.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with _identify(file, name) as image:
            _require_size(image.size, name, max_pixels)
            image.seek(0)
            if side:
                image.draft(None, (2 * side, 2 * side))  # nothing but JPEG can do it
            raw = image.tile[0].args if image.format == "PNG" and image.tile else None
            image.load()
            key = image.info.get("transparency")
            if raw in GREY_STEPS and isinstance(key, int):
                image.info["transparency"] = key * GREY_STEPS[raw]
            elif raw == "RGB;16B" and isinstance(key, tuple):
                image.info["transparency"] = tuple(value >> 8 for value in key)
            return _upright(image)


def _identify(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """`Image.open` without its limit of pixels, which is one for the whole process.

    Raises:
        UnidentifiedImageError: it is in none of FORMATS, nor in HEIF.
        ImageError: it is in HEIF, and the plug-in is missing.
    """
    Image.init()
    file.seek(0)
    prefix = file.read(16)
    formats = FORMATS
    if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS:
        if not has_heif():
            raise ImageError(f"{name} is in HEIF, as phones write it: that needs `pip install pillow-heif`")
        importlib.import_module("pillow_heif").register_heif_opener()
        formats = ("HEIF",)
    for kind in formats:
        factory, accept = Image.OPEN.get(kind, (None, None))
        try:
            if factory is None or (accept is not None and accept(prefix) is not True):
                continue
            file.seek(0)
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # it begins like one, and is none
    raise UnidentifiedImageError


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation asks; an EXIF block that cannot be read asks for nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _require_regular_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} cannot be read: {_reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a folder, not a picture")
    if not stat.S_ISREG(mode):  # a FIFO or device would block for ever
        raise ImageError(f"{name} is not a regular file")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{name} cannot be read: permission denied")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def _require_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if min(size) < 1:
        raise ImageError(f"{name} is {size[0]}x{size[1]} pixels: it has none")
    if size[0] * size[1] > max_pixels:
        found, limit = _megapixels(size[0] * size[1], max_pixels)
        raise ImageError(f"{name} has {found} megapixels; the limit is {limit}: make it smaller{OR_RAISE}")


def _megapixels(*counts: int) -> list[str]:
    """With as many decimals as tell them apart."""
    for decimals in range(1, 7):
        words = [f"{count / 1e6:.{decimals}f}" for count in counts]
        if len(set(words)) == len(set(counts)):
            break
    return [word.rstrip("0").rstrip(".") for word in words]
