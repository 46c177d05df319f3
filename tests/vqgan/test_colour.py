"""Colour: profiles become sRGB, every mode is read rightly, and an edit gives back each bit that it did not draw."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from outsiders import encoded, noise, png_chunk, png_of
from PIL import Image, ImageCms, PngImagePlugin
from tiny import tiny_pipeline

from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from vqgan.colour import PictureWarning, to_rgb8
from vqgan.images import ImageError, fit_square, load_image, read_image
from vqgan.original import load_original, original_of

GREY, RGB = b"GRAY", b"RGB "
# Of a space far wider than sRGB: red, green and blue as (x, y), and white's.
WIDE = ((0.735, 0.265), (0.115, 0.826), (0.157, 0.018))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def profile(space: bytes, gamma: float, primaries: tuple = WIDE) -> bytes:
    """A small ICC profile, version 2: a gamma, and for colours the matrix of three primaries with white D50."""
    white = np.array([0.9642, 1, 0.8249])

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78 + 3)
    tags = {b"desc": name, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(white)}
    if space == RGB:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
        columns = columns * np.linalg.solve(columns, white)
        tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, columns.T), strict=True))
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    start, table, content = 132 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    length = start + len(content)
    header = struct.pack(">I4sI4s4s4s", length, b"\0\0\0\0", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">iii", *(round(65536 * value) for value in white))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def opened(picture: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    return load_image(io.BytesIO(encoded(picture, kind, **options)))


# ----------------------------------------------------------------------------- colours come in as sRGB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_wide_profile_is_converted_to_srgb(kind):
    """A pale green of a wide space was read as a dull one of sRGB."""
    picture, found = Image.new("RGB", (16, 16), (120, 150, 120)), profile(RGB, 1.8)
    image = opened(picture, kind, icc_profile=found, **({"lossless": True} if kind == "WEBP" else {}))
    own = ImageCms.ImageCmsProfile(io.BytesIO(found))
    right = ImageCms.profileToProfile(picture, own, ImageCms.createProfile("sRGB"), renderingIntent=1)
    assert right is not None
    red, green, _ = image.getpixel((8, 8))
    assert np.abs(np.subtract(image.getpixel((8, 8)), right.getpixel((8, 8)))).max() <= 3
    assert green - red > 40 and not image.info


def test_a_grey_profile_is_converted_too():
    """A grey of gamma 1 (linear light) was read nearly black."""
    image = opened(Image.new("L", (8, 8), 55), icc_profile=profile(GREY, 1.0))
    assert all(abs(value - 128) <= 3 for value in image.getpixel((4, 4)))


def test_transparency_and_profile_go_together():
    picture = Image.new("LA", (8, 8), (55, 255))
    picture.paste((200, 0), (0, 0, 4, 8))
    image = opened(picture, icc_profile=profile(GREY, 1.0))
    assert image.getpixel((0, 0)) == (255, 255, 255) and abs(image.getpixel((6, 6))[0] - 128) <= 3


def test_srgb_itself_changes_no_bit():
    picture = noise(size=(64, 64))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert opened(picture, icc_profile=own).tobytes() == picture.tobytes()


def test_greys_with_a_profile_for_colours_are_colours_of_it():
    grey, colour = (Image.new(mode, (8, 8), value) for mode, value in (("L", 90), ("RGB", (90, 90, 90))))
    found = profile(RGB, 1.0)
    assert opened(grey, icc_profile=found).tobytes() == opened(colour, icc_profile=found).tobytes()


@pytest.mark.parametrize("found", [b"no profile at all", b"", profile(GREY, 1.0), profile(RGB, 1.8)[:150]])
def test_a_profile_that_cannot_be_used_is_said_and_left_out(found):
    picture = noise(size=(6, 6))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert opened(picture, icc_profile=found + b"\0" * (len(found) > 0)).tobytes() == picture.tobytes()
    assert [each.category for each in said] == ([PictureWarning] if found else [])
    assert all("so its colours are taken for sRGB" in str(each.message) for each in said)


# ----------------------------------------------------------------------------- modes


@pytest.mark.parametrize(("mode", "dark", "bright"), [("1", 0, 1), ("L", 0, 200), ("I;16", 0, 51400)])
@pytest.mark.parametrize("hidden", [0, 1])
def test_one_transparent_grey_is_transparent_whatever_the_depth(mode, dark, bright, hidden):
    """16-bit grey with a transparent value came in black."""
    values = np.full((4, 4), dark, np.uint16)
    values[:2] = bright
    picture = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    if mode == "1":
        picture = Image.fromarray(values.astype(bool))
    image = opened(picture, transparency=(dark, bright)[hidden])
    seen = {"1": 255, "L": 200, "I;16": 200}[mode]
    assert image.getpixel((0, 0)) == ((255,) * 3 if hidden else (seen,) * 3)
    assert image.getpixel((0, 3)) == ((0,) * 3 if hidden else (255,) * 3)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_transparent_grey_of_few_bits_is_meant_on_their_scale(depth):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0))
    row = bytes([0b00011011]) if depth == 2 else bytes([0x01, 0x23])  # values 0 to 3
    parts = [header, png_chunk(b"tRNS", struct.pack(">H", 2)), png_chunk(b"IDAT", zlib.compress(b"\0" + row))]
    data = b"\x89PNG\r\n\x1a\n" + b"".join([*parts, png_chunk(b"IEND", b"")])
    step = 85 if depth == 2 else 17
    assert [load_image(io.BytesIO(data)).getpixel((x, 0))[0] for x in range(4)] == [0, step, 255, 3 * step]


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257 * 128, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
    ],
)
def test_wide_numbers_are_read_on_the_scale_that_they_are_on(values, right):
    assert [to_rgb8(Image.fromarray(values)).getpixel((x, 0))[0] for x in range(3)] == right


@pytest.mark.parametrize("value", [-1, 70_000, np.nan])
def test_numbers_on_no_known_scale_are_refused(value):
    with pytest.raises(ValueError, match=r"its values run from .*: scale them to 0\.\.1"):
        to_rgb8(Image.fromarray(np.array([[0, value]], np.float32)))


# ----------------------------------------------------------------------------- text beside a picture


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_long_text_beside_a_picture_is_no_damage(kind, place, tmp_path):
    """Pillow refuses the whole picture, and it was called damaged."""
    picture, long = noise(), zlib.compress(bytes(5_000_000))
    text = {"zTXt": b"x\0\0" + long, "iTXt": b"x\0\1\0\0\0" + long}[kind]
    own = PngImagePlugin.PngInfo()
    own.add_itxt("maskimg", '{"task": "generate"}')
    data = encoded(picture, "PNG", pnginfo=own, icc_profile=profile(RGB, 1.8))
    at = data.index(b"IDAT") - 4 if place == "before" else data.index(b"IEND") - 4
    path = tmp_path / "a.png"
    path.write_bytes(data[:at] + png_chunk(kind.encode(), text) + data[at:])
    assert read_image(path).tobytes() == picture.tobytes()
    assert read_image(path).info["icc_profile"] == profile(RGB, 1.8)
    assert read_recipe(path) == {"task": "generate"}  # a short text is still read


def test_what_is_damaged_stays_damaged_beside_a_long_text(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(8, 8, png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(5_000_000)))))
    with pytest.raises(ImageError, match="is damaged or cut off"):
        load_image(tmp_path / "a.png")


# ----------------------------------------------------------------------------- size


def test_just_above_the_limit_is_told_apart_from_the_limit():
    """24.16 megapixels were refused as "24, and the limit is 24"."""
    picture = encoded(Image.new("1", (6016, 4016)), "PNG")
    with pytest.raises(ImageError, match=r"has 24\.2 megapixels; the limit is 24: make it smaller, or raise"):
        load_image(io.BytesIO(picture), max_pixels=24_000_000)
    assert load_image(io.BytesIO(picture)).size == (6016, 4016)


def test_pillows_own_limit_of_pixels_neither_matters_nor_changes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert opened(noise()).size == (16, 12)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_large_jpeg_is_decoded_no_larger_than_it_is_needed():
    rows = np.linspace(0, 255, 512)[:, None] * np.ones((1, 700))
    picture = encoded(Image.fromarray(rows.astype(np.uint8)).convert("RGB"), "JPEG", quality=95)
    small = load_image(io.BytesIO(picture), side=32)
    assert min(small.size) == 64
    exact = np.asarray(fit_square(load_image(io.BytesIO(picture)), 32)).astype(int)
    assert np.abs(np.asarray(fit_square(small, 32)) - exact).max() <= 3
    assert load_image(io.BytesIO(picture), side=300).size == (700, 512)


# ----------------------------------------------------------------------------- what an edit gives back

SIZE = (24, 20)
PAINTED = np.zeros((20, 24), bool)
PAINTED[2:8, 3:9] = True


def _pictures() -> dict[str, tuple[Image.Image, str, dict]]:
    """Every mode that PNG, WebP and TIFF have, as the file format and the options that keep it."""
    wide = np.random.default_rng(1).integers(0, 65536, SIZE[::-1], np.uint16)
    palette = noise(size=SIZE).quantize(200)
    wide_profile = {"icc_profile": profile(RGB, 1.8)}
    return {
        "1": (noise("L", SIZE).convert("1"), "PNG", {}),
        "1, one transparent": (noise("L", SIZE).convert("1"), "PNG", {"transparency": 0}),
        "L": (noise("L", SIZE), "PNG", {}),
        "L, one transparent": (noise("L", SIZE), "PNG", {"transparency": int(noise("L", SIZE).getpixel((20, 15)))}),
        "L, profile": (noise("L", SIZE), "PNG", {"icc_profile": profile(GREY, 1.8)}),
        "LA": (noise("LA", SIZE), "PNG", {}),
        "I;16": (Image.fromarray(wide), "PNG", {}),
        "I;16, one transparent": (Image.fromarray(wide), "PNG", {"transparency": int(wide[15, 20])}),
        "P": (palette, "PNG", {}),
        "P, one transparent": (palette, "PNG", {"transparency": 3}),
        "P, all sorts of transparent": (palette, "PNG", {"transparency": bytes(range(200))}),
        "RGB": (noise("RGB", SIZE), "PNG", {}),
        "RGB, one transparent": (noise("RGB", SIZE), "PNG", {"transparency": noise("RGB", SIZE).getpixel((20, 15))}),
        "RGB, profile": (noise("RGB", SIZE), "PNG", wide_profile),
        "RGBA": (noise("RGBA", SIZE), "PNG", {}),
        "RGBA, profile": (noise("RGBA", SIZE), "PNG", wide_profile),
        "WebP": (noise("RGB", SIZE), "WEBP", {"lossless": True} | wide_profile),
        "WebP, transparent": (noise("RGBA", SIZE), "WEBP", {"lossless": True, "exact": True}),
    }


MODES = {"1": "L", "P": "RGB"}  # mode of a file -> of the result, where it is another


@pytest.mark.parametrize("kind", _pictures())
@pytest.mark.parametrize("task", ["inpaint", "outpaint", "vary"])
def test_an_edit_gives_back_every_bit_that_it_did_not_draw(pipeline, tmp_path, kind, task):
    """A picture with transparency came back on white, and one with a profile without it, in other colours."""
    picture, suffix, options = _pictures()[kind]
    path = tmp_path / f"in.{suffix.lower()}"
    picture.save(path, format=suffix, **options)
    before = Image.open(path)
    if task == "outpaint":
        result = pipeline.outpaint(path, (1, 0, 0, 1), "cat")
        inside = np.zeros((result.images[0].height, result.images[0].width), bool)
        inside[: SIZE[1], -SIZE[0] :] = True
        drawn = ~inside
    else:
        run = pipeline.inpaint if task == "inpaint" else pipeline.vary
        result = run(path, mask=PAINTED, label="cat", **({"strength": 1.0} if task == "vary" else {}))
        drawn = np.asarray(pipeline.hole(path, PAINTED, grow=int(task == "inpaint")).pixels()) == 255
        inside = ~drawn
    after = Image.open(result.save(tmp_path / "out")[0])

    mode = MODES.get(before.mode, before.mode)
    see_through = before.has_transparency_data
    assert after.mode == (mode if mode == "I;16" or mode[-1] == "A" else mode + "A" * see_through)
    assert after.info.get("icc_profile") == before.info.get("icc_profile")
    kept = np.asarray(before.convert(after.mode))
    kept = kept.reshape(-1, *kept.shape[2:]) if task == "outpaint" else kept[inside]
    assert np.array_equal(np.asarray(after)[inside], kept)
    if after.mode[-1] == "A" and task != "inpaint":  # there a ring of the hole fades
        assert (np.asarray(after.getchannel("A"))[drawn] == 255).all()
    if after.mode == "I;16" and see_through:
        assert after.info["transparency"] == before.info["transparency"]
        assert not (np.asarray(after)[drawn] == after.info["transparency"]).any()


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr", "HSV", "F"])
def test_what_no_png_holds_comes_back_as_it_looks(pipeline, mode):
    picture = noise("L" if mode == "F" else "RGB", SIZE)
    if mode == "LAB":
        picture = ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        picture = picture.convert(mode)
    result = pipeline.inpaint(picture, PAINTED, "cat").images[0]
    kept = np.asarray(pipeline.hole(picture, PAINTED).pixels()) == 0
    assert np.array_equal(np.asarray(result.convert("RGB"))[kept], np.asarray(to_rgb8(picture))[kept])


def test_what_is_drawn_has_the_colours_of_the_profile():
    """Laid into a wide space without conversion, what is drawn would glow."""
    picture, found = Image.new("RGB", (8, 8), (120, 150, 120)), profile(RGB, 1.8)
    picture.info["icc_profile"] = found
    drawn = Image.new("RGB", (4, 8), (200, 80, 40))
    result = original_of(picture).with_drawn(drawn, Image.new("L", (4, 8), 255), (0, 0))
    assert result.info["icc_profile"] == found and result.getpixel((6, 6)) == (120, 150, 120)
    assert result.getpixel((1, 1)) != (200, 80, 40)
    assert np.abs(np.subtract(to_rgb8(result).getpixel((1, 1)), (200, 80, 40))).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_no_hidden_colour_shines_through_where_transparency_fades_into_what_is_drawn(mode):
    hidden = (255, 0, 0, 0) if mode == "RGBA" else (255, 0)
    picture = Image.new(mode, (8, 1), hidden)
    shares = Image.fromarray(np.array([[0, 1, 64, 128, 192, 255, 255, 0]], np.uint8))
    result = original_of(picture).with_drawn(Image.new("RGB", (8, 1), (0, 0, 0)), shares, (0, 0))
    values = np.asarray(result)[0]
    assert values[:, -1].tolist() == [0, 1, 64, 128, 192, 255, 255, 0]
    assert (values[1:7, :-1] == 0).all() and tuple(values[0]) == tuple(values[7]) == hidden


def test_a_photo_on_its_side_comes_back_upright_and_unchanged(pipeline, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(size=SIZE).save(tmp_path / "side.png", exif=exif)
    upright = noise(size=SIZE).transpose(Image.Transpose.ROTATE_270)
    mask = PAINTED.T
    result = pipeline.inpaint(tmp_path / "side.png", mask, "cat").images[0]
    kept = np.asarray(pipeline.hole(tmp_path / "side.png", mask).pixels()) == 0
    assert result.size == upright.size == SIZE[::-1]
    assert np.array_equal(np.asarray(result)[kept], np.asarray(upright)[kept])


def test_an_opened_file_knows_its_text_and_a_picture_in_memory_has_none(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("maskimg", "{}")
    noise().save(tmp_path / "a.png", pnginfo=text)
    assert load_original(tmp_path / "a.png").text["maskimg"] == "{}"
    assert original_of(Image.open(tmp_path / "a.png")).text == {}
