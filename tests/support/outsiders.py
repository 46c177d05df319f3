"""Pictures as they come from outside, of every kind that is read and every kind that is refused, made in memory."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (16, 12)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG whose header promises width x height grey pixels, and which holds a single byte of them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    chunks = (header, *extra, png_chunk(b"IDAT", zlib.compress(b"\0")), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# File name -> what is in it, and how the sentence goes on after the picture's name.
REFUSED = {
    "empty.png": (b"", "is not a readable PNG, JPEG, WebP"),
    "text.png": (b"just some text, not a picture at all", "is not a readable PNG, JPEG, WebP"),
    "page.jpg": (b"<html><body>404 not found</body></html>", "is not a readable PNG, JPEG, WebP"),
    "script.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "is not a readable"),
    "moving.png": (encoded(noise("L"), "ICO"), "is not a readable PNG, JPEG, WebP"),
    "scan.png": (encoded(noise(), "EPS"), "is not a readable PNG, JPEG, WebP"),
    "bitmap.jpg": (encoded(noise(), "TGA"), "is not a readable PNG, JPEG, WebP"),
    "cut.png": (encoded(noise(), "PNG")[:-200], "is damaged or cut off"),
    "cut.jpg": (encoded(noise(), "JPEG")[:-100], "is damaged or cut off"),
    "cut.webp": (encoded(noise(), "WEBP", lossless=True)[:-100], "is "),
    "101 MP.png": (png_of(10_100, 10_000), "has 101 megapixels; the limit is 100"),
    "400 MP.png": (png_of(20_000, 20_000), "has 400 megapixels; the limit is 100"),
    "2500 MP.png": (png_of(50_000, 50_000), "has 2500 megapixels; the limit is 100"),
    "zTXt.png": (png_of(8, 8, png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(5_000_000)))), "is damaged or cut off"),
}


def readable() -> dict[str, bytes]:
    """A small picture of each kind that is read."""
    picture, other = noise(), noise().rotate(180)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 50, zip=True)
    return {
        "png": encoded(picture, "PNG", pnginfo=text),
        "palette": encoded(picture.quantize(8), "PNG", transparency=0),
        "rgba": encoded(noise("RGBA"), "PNG", exif=exif),
        "grey and alpha": encoded(noise("LA"), "PNG"),
        "16 bits": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG"),
        "jpeg": encoded(picture, "JPEG", exif=exif),
        "printed": encoded(noise("CMYK"), "JPEG"),
        "progressive": encoded(picture, "JPEG", progressive=True),
        "webp": encoded(picture, "WEBP", lossless=True, exif=exif),
        "moving png": encoded(picture, "PNG", save_all=True, append_images=[other]),
        "animated": encoded(picture, "WEBP", save_all=True, append_images=[other]),
        "mpo": encoded(picture, "MPO", save_all=True, append_images=[other]),
        "gif": encoded(picture.quantize(8), "GIF", save_all=True, append_images=[other.quantize(8)]),
        "bmp": encoded(picture, "BMP"),
        "dib": encoded(picture, "DIB"),
        "tiff": encoded(picture.copy(), "TIFF", save_all=True, append_images=[other.copy()]),
        "packed": encoded(picture.copy(), "TIFF", compression="tiff_lzw"),
        "fax": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "avif": encoded(picture, "AVIF", exif=exif),
        "ppm": encoded(picture, "PPM"),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bits flipped, bytes replaced, or its end cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(changed) or 1)
        kind = chance.randrange(3)
        if kind == 0 and changed:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + 2] = bytes(chance.randrange(256) for _ in range(chance.randrange(5)))
        elif at:
            del changed[at:]
    return bytes(changed)
