"""Masks: one reader for command line, page, API and Python, and a sentence for what it cannot mean."""

import numpy as np
import pytest
from outsiders import noise
from PIL import Image, ImageFilter
from tiny import tiny_pipeline

from maskimg.cli.main import main
from maskimg.drawing.paint import Paint, read_paint
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.serving.uploads import Drawing
from vqgan.colour import PictureWarning
from vqgan.original import Original, original_of

SIZE = (30, 20)
SPOT = np.zeros((20, 30), bool)
SPOT[4:9, 10:22] = True


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def photo() -> Original:
    return original_of(noise(size=SIZE))


def layered(inside: tuple, outside: tuple, mode: str = "RGBA") -> Image.Image:
    return Image.fromarray(np.where(SPOT[..., None], np.uint8(inside), np.uint8(outside)), mode)


def palette(spot: tuple, rest: tuple, **options) -> Image.Image:
    image = Image.fromarray(SPOT.astype(np.uint8), "P")
    image.putpalette([*rest, *spot])
    image.info |= options
    return image


GREY = np.where(SPOT, np.uint8(255), np.uint8(0))
MASKS = {
    "white on black": Image.fromarray(GREY),
    "white strokes on a transparent layer": layered((255,) * 4, (0, 0, 0, 0)),
    "the same, where transparency hides white": layered((255,) * 4, (255, 255, 255, 0)),
    "grey and alpha": layered((255, 255), (255, 0), "LA"),
    "pale paint": layered((200, 210, 90, 255), (10, 20, 60, 255)),
    "palette": palette((255, 255, 255), (0, 0, 0)),
    "palette, transparent": palette((255, 255, 255), (255, 255, 255), transparency=0),
    "1 bit": Image.fromarray(SPOT),
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 257),
    "floats": Image.fromarray(SPOT.astype(np.float32)),
    "a bool array": SPOT,
    "a bool array with an axis": SPOT[..., None],
    "a bool array of colours": np.stack([SPOT] * 3, -1),
    "bytes": GREY,
    "bytes of colours": np.stack([GREY] * 3, -1),
    "bytes of colours and alpha": np.asarray(layered((255,) * 4, (255, 255, 255, 0))),
    "bytes of grey and alpha": np.stack([GREY | 255, GREY], -1),
    "floats to 1": SPOT.astype(np.float32),
    "floats to 255": GREY.astype(np.float64),
    "whole numbers": GREY.astype(np.int64),
    "16-bit numbers": GREY.astype(np.uint16) * 257,
    "floats of colours": np.stack([SPOT] * 3, -1).astype(np.float16),
}


@pytest.mark.parametrize("kind", MASKS)
def test_paint_is_found_in_whatever_form_a_mask_has(photo, kind):
    paint = read_paint(MASKS[kind], photo)
    assert np.array_equal(paint.pixels, SPOT) and paint.note == ""
    assert read_paint(paint, photo) is paint


@pytest.mark.parametrize(
    "kind", [kind for kind, mask in MASKS.items() if isinstance(mask, Image.Image) and mask.mode != "F"]
)
def test_the_page_and_a_file_mean_the_same_by_a_mask(pipeline, photo, tmp_path, kind):
    """The page laid transparency on white, so that white strokes on a transparent layer redrew everything."""
    MASKS[kind].save(tmp_path / "mask.png")
    photo.image.save(tmp_path / "photo.png")
    picture, paint = runs.read_canvas(Drawing(photo, None), str(tmp_path / "mask.png"))
    assert picture is photo and np.array_equal(paint.pixels, SPOT)
    hole = pipeline.hole(tmp_path / "photo.png", tmp_path / "mask.png")
    assert np.array_equal(hole.tokens, pipeline.hole(photo, SPOT).tokens)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (SPOT.astype(np.uint8), "the brightest of the mask is 1 of 255, and above 127 is paint: multiply a mask of 0"),
        (Image.fromarray(SPOT.astype(np.uint8)), "is 1 of 255, .*: multiply a mask of 0 and 1 by 255"),
        (SPOT.astype(np.int64), "multiply a mask of 0 and 1 by 255"),
        (Image.fromarray(SPOT * np.uint8(90)), "the brightest of the mask is 90 of 255"),
        (
            palette((128, 0, 0), (0, 0, 0)),
            "the brightest of the mask is 38 of 255, and above 127 is paint: paint in wh",
        ),
        (layered((255, 255, 255, 100), (0, 0, 0, 0)), "the brightest of the mask is 100 of 255"),
        (layered((0, 0, 0, 255), (0, 0, 0, 0)), "transparent where it is not black, and white is paint"),
        (SPOT * 0.3, "the brightest of the mask is 76 of 255"),
        (np.zeros((20, 30)), "^nothing is painted: paint the part to redraw$"),
        (np.full((20, 30), np.nan), "expected a mask from 0 to 1"),
        (np.full((20, 30), -1), "expected a mask from 0 to 1, to 255 or to 65535, got values from -1 to -1"),
        (np.zeros((2, 20, 30)), r"or \(H, W, channels\) with 1 to 4 of them, got an array of shape \(2, 20, 30\)"),
        (np.zeros((0, 0)), r"expected a mask of shape \(H, W\)"),
        (SPOT.astype(str), "expected a mask of bool, integers or floating-point numbers"),
        (SPOT.T, "the mask is 20x30 but the image is 30x20: make them equal; turned by a quarter the mask would fit"),
        (SPOT[:-1], "the mask is 30x19 but the image is 30x20: make them equal$"),
    ],
)
def test_a_mask_that_paints_nothing_says_what_it_holds_and_what_paint_is(photo, mask, words):
    with pytest.raises(ValueError, match=words):
        read_paint(mask, photo)


def test_a_mask_turned_by_its_own_exif_block_fits(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.rot90(GREY, -1)).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_paint(tmp_path / "mask.png", photo).pixels, SPOT)


def gradient() -> Image.Image:
    return Image.fromarray((np.linspace(0, 255, 30) * np.ones((20, 1))).astype(np.uint8))


def holed() -> Image.Image:
    """A photo in which a hole of transparency was cut, as some other programs have their masks."""
    image = Image.fromarray(np.asarray(gradient())[:, ::-1]).convert("RGBA")
    image.putalpha(Image.fromarray(255 - GREY))
    return image


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (noise(size=SIZE), "looks the same as the picture"),
        (gradient(), "most of the mask is neither black nor white, like a photo: what is brighter than 127 of 255"),
        (holed(), "like a photo: .*; what is transparent stays"),
        (
            layered((255, 255, 255, 0), (255,) * 4),
            "the white of the mask, 90%.*, is redrawn and what is transparent st",
        ),
    ],
)
def test_a_mask_that_may_be_meant_otherwise_is_read_with_a_warning(pipeline, photo, mask, words):
    with pytest.warns(PictureWarning, match=words):
        pipeline.inpaint(photo, mask, "cat")
    assert pipeline.hole(photo, mask).note


def test_soft_edges_and_everything_painted_are_no_reason_for_a_warning(photo):
    soft = Image.fromarray(GREY).filter(ImageFilter.BoxBlur(1))
    for mask in (soft, np.ones((20, 30), bool), np.full((20, 30), 255, np.uint8)):
        assert read_paint(mask, photo).note == ""
    dark = original_of(Image.new("RGB", SIZE))
    assert read_paint(Image.fromarray(GREY), dark).note == ""


def test_strokes_and_a_file_that_paints_nothing_are_not_taken_together_in_silence(photo, tmp_path):
    Image.fromarray(SPOT.astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="the brightest of the mask is 1 of 255"):
        runs.read_canvas(Drawing(photo, SPOT), str(tmp_path / "mask.png"))
    picture, paint = runs.read_canvas(Drawing(photo, SPOT), None)
    assert picture is photo and isinstance(paint, Paint) and np.array_equal(paint.pixels, SPOT)


def test_the_page_says_the_note_beside_the_hole(pipeline, photo, tmp_path):
    gradient().save(tmp_path / "mask.png")
    hole = pipeline.hole(*runs.read_canvas(Drawing(photo, None), str(tmp_path / "mask.png")))
    assert "Most of the mask is neither black nor white" in runs.show_hole(pipeline, hole)


def test_the_command_says_notes_and_keeps_transparency(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    noise("RGBA", SIZE).save(tmp_path / "in.png")
    gradient().save(tmp_path / "mask.png")
    paths = [str(tmp_path / name) for name in ("in.png", "mask.png")]
    ending = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.png"), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])  # as in a process of its own
        assert main(["inpaint", *paths, *ending]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("note: most of the mask is neither black")]) == 1
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "RGBA"

    for words, megapixels in (
        ("has 0.0006 megapixels; the limit is 0.0005", "0.0005"),
        ("--max-megapixels must be", "0"),
    ):
        with pytest.raises(SystemExit):
            main(["inpaint", *paths, *ending, "--max-megapixels", megapixels])
        assert words in capsys.readouterr().err
