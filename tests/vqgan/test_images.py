"""Pictures from outside: every readable one comes in as upright 8-bit RGB, every other one as one sentence."""

import io
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outsiders import REFUSED, encoded, mutated, noise, readable
from PIL import Image, ImageFile, PngImagePlugin

from vqgan.images import (
    ImageError,
    code_map,
    error_map,
    fit_square,
    fit_stride,
    load_image,
    normalize,
    pad_square,
    sheet,
    to_pil,
    to_tensor,
    to_uint8,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_usable_picture_is_refused_with_a_sentence(tmp_path, name, monkeypatch):
    data, reason = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    if " MP" in name:  # the header is enough to know
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("a huge picture was decoded"))

    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / name)

    assert f"`{tmp_path / name}`" in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png` cannot be read: there is no such file"):
        load_image(tmp_path / "nowhere.png")


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    for name in ("a\0b.png", "x" * 5000 + ".png"):
        with pytest.raises(ImageError, match="cannot be (read|the path of a file)"):
            load_image(tmp_path / name)


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match="is a folder, not a picture"):
        load_image(tmp_path / "folder.png")


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a regular file"):
        load_image(tmp_path / "pipe.png")


def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(), "PNG"))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: answer as the system answers anyone else
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ImageError, match="cannot be read: permission denied"):
        load_image(path)


def test_the_limit_of_pixels_can_be_set_and_is_inclusive():
    picture = encoded(noise(size=(10, 10)), "PNG")
    assert load_image(io.BytesIO(picture), max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="the picture has 0.0001 megapixels; the limit is 0.000099"):
        load_image(io.BytesIO(picture), max_pixels=99)


@pytest.mark.parametrize("name", readable())
def test_a_damaged_picture_is_either_read_or_refused_whatever_the_damage(name):
    chance = random.Random(name)
    original = readable()[name]
    refused = 0
    for _ in range(int(os.environ.get("MASKIMG_DAMAGED", "60"))):
        try:
            image = load_image(io.BytesIO(mutated(original, chance)))
        except ImageError:
            refused += 1
        else:
            assert image.mode == "RGB"
    assert refused  # else the damage was none


@pytest.mark.parametrize("tag", ["width", "resolution"])
def test_a_picture_with_nonsense_in_its_exif_block_is_read_and_turned_all_the_same(tag):
    """Pillow fails to write such a block anew when it turns the picture: struct.error or TypeError came out."""
    entries = [({"width": 256, "resolution": 282}[tag], 2, 2, b"a\0"), (0x0112, 3, 1, struct.pack("<H", 6))]
    block = b"II*\0" + struct.pack("<IH", 8, len(entries))
    block += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    picture = encoded(noise(size=(16, 8)), "JPEG", exif=b"Exif\0\0" + block + struct.pack("<I", 0))
    assert load_image(io.BytesIO(picture)).size == (8, 16)


# ----------------------------------------------------------------------------- what comes in


def _close(pixel: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 40  # JPEG's and WebP's loss


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_lying_on_its_side_is_turned_upright(kind):
    picture = Image.new("RGB", (40, 20), BLUE)
    picture.paste(RED, (0, 0, 20, 20))  # its left half, which orientation 6 says is the top
    exif = Image.Exif()
    exif[0x0112] = 6

    image = load_image(io.BytesIO(encoded(picture, kind, exif=exif)))

    assert image.size == (20, 40)
    assert _close(image.getpixel((10, 5)), RED)
    assert _close(image.getpixel((10, 35)), BLUE)


def test_a_picture_for_printing_keeps_its_colours():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert _close(load_image(io.BytesIO(encoded(picture, "JPEG"))).getpixel((8, 8)), RED)


def test_sixteen_bits_become_eight_by_their_upper_half():
    """`convert("RGB")` clips instead: 99.5 % of such a picture turned white."""
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = load_image(io.BytesIO(encoded(Image.fromarray(values), "PNG")))
    assert np.array_equal(np.array(image)[..., 0], np.arange(256).reshape(16, 16))
    assert image.mode == "RGB"


def _see_through(mode: str) -> tuple[Image.Image, dict]:
    """Left half: a hidden dark colour; right half: black."""
    if mode == "P":
        picture = Image.new("P", (16, 16), 1)
        picture.putpalette([255, 0, 0, 0, 0, 0])
        picture.paste(0, (0, 0, 8, 16))
        return picture, {"transparency": 0}
    hidden, black = {"RGBA": ((99, 9, 9, 0), (0, 0, 0, 255)), "LA": ((50, 0), (0, 255))}[mode]
    picture = Image.new(mode, (16, 16), black)
    picture.paste(hidden, (0, 0, 8, 16))
    return picture, {}


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")])
def test_what_is_transparent_turns_white_and_no_hidden_colour_appears(mode, kind):
    picture, options = _see_through(mode)
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = load_image(io.BytesIO(encoded(picture, kind, **options)))
    assert image.getpixel((2, 8)) == WHITE
    assert image.getpixel((13, 8)) == (0, 0, 0)


def test_what_is_half_transparent_is_mixed_with_white():
    picture = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert all(abs(value - 127) <= 1 for value in load_image(io.BytesIO(picture)).getpixel((0, 0)))


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "MPO"])
def test_of_an_animation_or_a_pair_the_first_picture_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    image = load_image(io.BytesIO(encoded(frames[0], kind, save_all=True, append_images=frames[1:])))
    assert _close(image.getpixel((8, 8)), RED)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_picture_comes_in_as_plain_rgb_without_metadata(mode):
    text = PngImagePlugin.PngInfo()
    text.add_text("gps", "here")
    picture = noise("RGB").convert(mode)
    image = load_image(io.BytesIO(encoded(picture, "PNG", pnginfo=text, dpi=(72, 72))))
    assert image.mode == "RGB"
    assert image.info == {}
    assert not image.getexif()


@pytest.mark.parametrize("size", [(1, 1), (400, 1), (1, 400)])
def test_tiny_and_thin_pictures_are_pictures(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "thin.png")
    image = load_image(str(tmp_path / "thin.png"))
    assert image.size == size
    assert fit_square(image, 16).getpixel((8, 8)) == RED
    assert pad_square(image, 16)[0].size == (16, 16)


# ----------------------------------------------------------------------------- squares, tensors, sheets


def test_a_training_picture_is_the_largest_square_in_the_middle():
    picture = Image.new("RGB", (60, 20), BLUE)
    picture.paste(RED, (20, 0, 40, 20))
    assert np.array(fit_square(picture, 20)).tolist() == np.full((20, 20, 3), RED).tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([16, 24]))
def test_a_padded_picture_is_whole_in_the_middle_of_white(width, height, size):
    square, box = pad_square(Image.new("RGB", (width, height), RED), size)
    left, top, right, bottom = box

    assert square.size == (size, size)
    assert max(right - left, bottom - top) == size
    assert abs(left - (size - right)) <= 1
    assert abs(top - (size - bottom)) <= 1
    inside = np.zeros((size, size), bool)
    inside[top:bottom, left:right] = True
    assert (np.array(square)[inside] == RED).all()
    assert (np.array(square)[~inside] == WHITE).all()


def test_pixels_survive_the_way_to_tensors_and_back():
    picture = noise(size=(32, 24))
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 24, 32)
    assert tensor.dtype == torch.float32
    assert -1 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(np.array(to_pil(tensor)), np.array(picture))
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(normalize(values)), values)


def test_what_is_brighter_than_white_is_white():
    assert to_uint8(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]


def test_a_sheet_shows_its_pictures_row_by_row():
    page = sheet([Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE, RED)], 2, gap=1, scale=2)
    assert page.size == (2 * 9 + 1, 2 * 7 + 1)
    assert [page.getpixel(at) for at in ((1, 1), (10, 1), (1, 8), (10, 8))] == [RED, BLUE, RED, WHITE]
    assert page.getpixel((0, 0)) == WHITE


def test_a_sheet_is_as_wide_as_its_pictures_need():
    assert sheet([Image.new("RGB", (4, 4))], 8, gap=2).size == (8, 8)
    with pytest.raises(ValueError, match="at least one picture"):
        sheet([], 8)


def test_a_difference_is_brighter_the_larger_it_is():
    left = Image.new("RGB", (4, 1))
    right = Image.fromarray(np.array([[[0] * 3, [10] * 3, [30, 30, 0], [200] * 3]], np.uint8))
    glow = np.asarray(error_map(left, right, gain=5)).astype(int).sum(-1)[0]
    assert glow[0] == 0 and glow[3] == 252 + 255 + 180
    assert glow[0] < glow[1] < glow[2] < glow[3]
    assert np.array_equal(np.asarray(error_map(left, right)), np.asarray(error_map(right, left)))
    # A mean error of a twentieth of the range, five times as bright, is the second of four steps.
    quarter = error_map(left, Image.new("RGB", (4, 1), (12, 13, 13)), gain=5.0 * 255 / 253.333)
    assert np.abs(np.asarray(quarter)[0, 0].astype(int) - (84, 15, 109)).max() <= 1


def test_a_code_has_one_colour_and_others_have_others():
    codes = torch.arange(1024).reshape(32, 32)
    colours = np.asarray(code_map(codes)).reshape(-1, 3)
    assert len({tuple(colour) for colour in colours.tolist()}) > 1000
    assert np.abs(np.diff(colours.astype(int), axis=0)).sum(-1).min() > 60  # neighbours are easily told apart
    assert np.array_equal(np.asarray(code_map(codes.flip(0))), np.asarray(code_map(codes))[::-1])
    assert code_map(codes[:2]).size == (32, 2)
    assert code_map(torch.tensor([[0, 262143]])).size == (2, 1)


@pytest.mark.parametrize(
    ("size", "side", "stride", "fitted"),
    [
        ((100, 50), 64, 8, (64, 32)),
        ((50, 100), 64, 16, (32, 64)),
        ((500, 3), 64, 8, (64, 8)),
        ((9, 9), 20, 8, (16, 16)),
    ],
)
def test_a_whole_picture_is_fitted_to_the_stride(size, side, stride, fitted):
    assert fit_stride(Image.new("RGB", size), side, stride).size == fitted


def test_a_picture_can_come_from_an_open_file(tmp_path: Path):
    noise().save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert load_image(file).size == (16, 12)
