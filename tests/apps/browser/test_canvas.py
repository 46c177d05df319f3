"""What is painted on the canvas is what is redrawn: pictures of every shape, on sharp screens and on phones.

By default each shape once, with every pixel ratio and width among them. With MASKIMG_CANVASES=FILE all combinations,
and a table of where the paint lay.
"""

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chrome import FLAGS, fetch, open_tab, set_slider
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny import tiny_pipeline

from maskimg_apps.demo import app, runs
from vqgan import load_image

pytestmark = [
    pytest.mark.browser,
    # Gradio's own statistics, every few calls.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

SIZES = ((96, 96), (320, 120), (120, 320), (1200, 700), (64, 80))
RATIOS, WIDTHS = (1, 2, 3), (1280, 390)
ALL = list(itertools.product(SIZES, RATIOS, WIDTHS))
SOME = [(size, RATIOS[i % 3], WIDTHS[i % 2]) for i, size in enumerate(SIZES)]
TABLE = os.environ.get("MASKIMG_CANVASES")
BLUE = (40, 60, 200)
Box = tuple[float, float, float, float]  # left, top, right, bottom


@pytest.fixture(scope="module")
def seen() -> list[tuple[Any, Any]]:
    """Pictures and masks as the server has read them."""
    return []


@pytest.fixture(scope="module")
def address(seen, tmp_path_factory) -> Iterator[str]:
    read = runs.read_canvas

    def reading(*arguments):
        seen.append(read(*arguments))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(runs, "read_canvas", reading)
        page = app.build(tiny_pipeline())
        yield app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def rows() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    if TABLE:
        head = "| picture | pixel ratio | width | painted, expected | painted, read | pixels outside that changed |\n"
        Path(TABLE).write_text(head + "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n")


@pytest.mark.parametrize(("size", "ratio", "width"), ALL if TABLE else SOME)
def test_paint_lies_where_it_was_put_and_all_else_stays(browser, address, seen, rows, size, ratio, width, tmp_path):
    Image.new("RGB", size, BLUE).save(tmp_path / "in.png")
    page = browser.new_page(viewport={"width": width, "height": 900}, device_scale_factor=ratio)
    try:
        page.goto(address)
        expect(page.locator("#generate-go")).to_be_visible()
        open_tab(page, "Inpaint")
        page.locator("#editor input[type=file]").set_input_files(tmp_path / "in.png")
        radius = runs.brush_radius(runs.Drawing(Image.new("RGB", size), None))
        page.wait_for_function("radius => window.maskimgRadius?.editor === radius", arg=radius)
        page.wait_for_timeout(2000)  # the editor takes a moment to make the brush

        shown = settled(page)
        tools = page.locator("#editor .toolbar-wrap").bounding_box()
        assert tools is not None
        if width == 390:
            assert tools["x"] + tools["width"] <= shown[0]
        ends = [(0.4, 0.45), (0.6, 0.55)]
        points = [(shown[0] + x * (shown[2] - shown[0]), shown[1] + y * (shown[3] - shown[1])) for x, y in ends]
        stroke(page, points)
        expected = (
            0.4 * size[0] - radius, 0.45 * size[1] - radius, 0.6 * size[0] + radius, 0.55 * size[1] + radius,
        )  # fmt: skip
        expect(page.locator("#inpaint-panel .mk-count")).to_contain_text("will be redrawn")
        picture, mask = seen[-1]
        assert picture.size == size
        painted = box_of(mask.pixels)
        # One pixel of the picture, or one of the screen where that is coarser, at each edge.
        slack = 1 + max(size[0] / (shown[2] - shown[0]), 1)
        assert np.abs(np.subtract(painted, expected)).max() <= slack, (painted, expected)

        set_slider(page, "Images", "1")
        page.locator("#inpaint-go").click()
        expect(page.locator("#inpaint-gallery img")).to_have_count(1)
        result = np.asarray(load_image(fetch(page, page.locator("#inpaint-gallery img"), tmp_path / "out.png")))
        hole = np.asarray(tiny_pipeline().hole(tmp_path / "in.png", mask).pixels()) > 0
        assert result.shape[:2] == size[::-1]
        changed = int((result != BLUE).any(-1)[~hole].sum())
        assert changed == 0
        words = [", ".join(f"{side:.0f}" for side in box) for box in (expected, painted)]
        rows.append(f"| {size[0]}x{size[1]} | {ratio} | {width} | {words[0]} | {words[1]} | {changed} |")
    finally:
        page.close()


def settled(page: Page) -> Box:
    """Where the canvas shows the picture once that no longer changes: on a phone the page moves while it is built."""
    tools = "document.querySelectorAll('#editor [class*=toolbar]').forEach(each => each.style.visibility = '{}')"
    page.evaluate(tools.format("hidden"))  # they lie over an edge of a wide picture
    before, now = None, where_blue(page)
    while before != now:
        page.wait_for_timeout(700)
        before, now = now, where_blue(page)
    page.evaluate(tools.format(""))
    return now


def where_blue(page: Page) -> Box:
    """Where the canvas shows the picture, in the page's pixels."""
    canvas = page.locator("#editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box, scale="css"))).convert("RGB")).astype(int)
    left, top, right, bottom = box_of(np.abs(shot - BLUE).max(-1) < 12)
    return box["x"] + left, box["y"] + top, box["x"] + right, box["y"] + bottom


def stroke(page: Page, points: list[tuple[float, float]]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=6)
    page.mouse.up()


def box_of(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
