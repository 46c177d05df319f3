"""Every kind of picture from outside through four doors: Python, the command line, the call, and the page.

Whoever sends a picture reads the same: the same figures where it can be used, the same sentence where it cannot. With
MASKIMG_DOORS=FILE the test writes a table of what came back.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from chrome import FLAGS, open_tab
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from outsiders import REFUSED, encoded, noise, readable
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from tiny import tiny_pipeline

from maskimg.cli.main import main
from maskimg.networks.transformer import MaskedTransformer
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app

pytestmark = [
    pytest.mark.browser,
    # Gradio's own statistics, every few calls.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

TAKEN = {f"{name}.png": data for name, data in readable().items()}
TAKEN |= {"1x1.png": encoded(noise(size=(1, 1)), "PNG"), "4000x1.png": encoded(noise(size=(4000, 1)), "PNG")}
NAMED = re.compile(r"^(maskimg: )?(`[^`]*`|[Tt]he picture) ")  # Python and the command name the file, the page does not


class Doors(NamedTuple):
    model: Path
    pipeline: Pipeline
    client: Client
    page: Page
    rows: dict[str, list[str]]


@pytest.fixture(scope="module")
def doors(chromium, tmp_path_factory) -> Iterator[Doors]:
    pipeline, model = tiny_pipeline(), tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(model)
    rows: dict[str, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        served = app.build(pipeline)
        address = app.launch(served, app.Address(port=app.free_port("127.0.0.1", 0)))
        client = Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
        expect.set_options(timeout=30_000)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#generate-go")).to_be_visible()
        open_tab(page, "Reconstruct")
        yield Doors(model, pipeline, client, page, rows)
        browser.close()
        client.close()
        served.close(verbose=False)
    if table := os.environ.get("MASKIMG_DOORS"):
        lines = [f"| {name} | {told[0]} | " + " | ".join(_again(told)) + " |" for name, told in rows.items()]
        head = "| what is sent | Python | command line | call | page |\n| --- | --- | --- | --- | --- |\n"
        Path(table).write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", TAKEN)
def test_a_picture_that_can_be_used_is_the_same_through_every_door(doors, name, tmp_path, capsys):
    (tmp_path / name).write_bytes(TAKEN[name])
    expected = doors.pipeline.reconstruct(tmp_path / name).facts()
    told = [
        by_command(doors, tmp_path / name, capsys),
        by_call(doors, tmp_path / name),
        by_page(doors, tmp_path / name),
    ]
    assert told == [expected["PSNR"]] * 3
    doors.rows[name] = [expected["PSNR"], *told]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_same_words_through_every_door(doors, name, tmp_path, capsys):
    path, (data, reason) = tmp_path / name, REFUSED[name]
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        doors.pipeline.reconstruct(path)
    words = [str(caught.value), by_command(doors, path, capsys), by_call(doors, path), by_page(doors, path)]
    option = ", or raise the limit with `--max-megapixels`"  # which the page has not
    told = [NAMED.sub("", sentence).removesuffix(".").replace(option, "") for sentence in words]
    assert told == [told[0]] * 4
    assert reason.removeprefix("is ") in told[0]
    assert str(tmp_path) not in words[2] + words[3]
    doors.rows[name] = told


STATES = {
    "an empty mask": ((20, 16), 0, "nothing is painted: paint the part to redraw"),
    "a mask of another size": ((10, 16), 255, "the mask is 10x16 but the image is 20x16: make them equal"),
    "memory that is too small": ((20, 16), 255, "there is not enough memory"),
    "predictions that are no numbers": ((20, 16), 255, "the model's predictions are not finite in fp32"),
}


@pytest.mark.parametrize("state", STATES)
def test_what_goes_wrong_in_an_edit_is_said_in_the_same_words(doors, state, tmp_path, capsys, monkeypatch):
    size, grey, reason = STATES[state]
    image, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    Image.new("RGB", (20, 16), (40, 60, 200)).save(image)
    Image.new("L", size, grey).save(mask)
    if "memory" in state:
        error = torch.OutOfMemoryError("CUDA out of memory")
        monkeypatch.setattr(Pipeline, "decode", lambda *_: (_ for _ in ()).throw(error))
    if "numbers" in state:
        whole = MaskedTransformer.to_logits
        monkeypatch.setattr(MaskedTransformer, "to_logits", lambda self, x: whole(self, x) * torch.nan)

    with pytest.raises((ValueError, torch.OutOfMemoryError)) as caught:
        doors.pipeline.inpaint(image, mask)
    words = [str(caught.value)]
    with pytest.raises(SystemExit) as stop:
        main(
            ["inpaint", str(image), str(mask), "--model", str(doors.model), "--dtype", "fp32", "--out", f"{image}.png"]
        )
    assert stop.value.code == (3 if "memory" in state else 2)
    shown = capsys.readouterr().err.strip().splitlines()
    words.append(shown[-1].removeprefix("maskimg: "))
    with pytest.raises(AppError) as refused:
        doors.client.predict(image=handle_file(image), mask=handle_file(mask), api_name="/inpaint")
    words.append(str(refused.value))

    page = doors.page
    page.reload()
    expect(page.locator("#generate-go")).to_be_visible()
    open_tab(page, "Inpaint")
    page.locator("#editor input[type=file]").set_input_files(image)
    expect(page.locator("#inpaint-panel")).to_contain_text("Nothing is painted")
    page.get_by_text("Use a mask file").first.click()
    page.locator("#editor-mask-file input[type=file]").set_input_files(mask)
    expect(page.locator("#editor-mask-file img")).to_be_visible()
    page.locator("#inpaint-go").click()
    expect(page.locator(".toast-message-text").last).to_be_visible()
    words.append(page.locator(".toast-message-text").last.inner_text())

    told = [sentence[:1].lower() + sentence[1:].removesuffix(".") for sentence in words]
    assert told[2:] == [told[2]] * 2 and told[2].startswith(reason)
    if "memory" not in state:  # in Python that is torch's own error
        assert told == [told[0]] * 4
    doors.rows[state] = told


def _again(told: list[str]) -> list[str]:
    return ["the same" if words == told[0] else words for words in told[1:]]


def by_command(doors: Doors, path: Path, capsys: pytest.CaptureFixture) -> str:
    """The figure that the command prints, or the sentence with which it refuses."""
    try:
        main(["reconstruct", str(path), "--model", str(doors.model), "--dtype", "fp32", "--out", f"{path}.out.png"])
    except SystemExit as stop:
        assert stop.code == 2
        assert not Path(f"{path}.out.png").exists()
        shown = capsys.readouterr().err.strip().splitlines()
        assert len(shown) == 1
        return shown[0]
    return psnr(capsys.readouterr().out.replace(": ", " "))


def by_call(doors: Doors, path: Path) -> str:
    try:
        *_, line = doors.client.predict(image=handle_file(path), api_name="/reconstruct")
    except AppError as error:
        return str(error)
    return psnr(line)


def by_page(doors: Doors, path: Path) -> str:
    page = doors.page
    clear = page.locator("#reconstruct-upload").get_by_label("Clear")
    clear = clear.or_(page.locator("#reconstruct-upload").get_by_label("Remove Image"))
    if clear.count():
        clear.first.click()
        expect(page.locator("#reconstruct-status")).to_contain_text("open a picture to begin")
    with contextlib.suppress(Exception):
        page.get_by_label("Close").first.click(timeout=200)
    page.locator("#reconstruct-upload input[type=file]").set_input_files(path)
    status = page.locator("#reconstruct-status")
    expect(status).to_contain_text(re.compile("PSNR|cannot be used"))
    if "PSNR" in status.inner_text():
        return psnr(status.inner_text())
    return page.locator(".toast-message-text").last.inner_text(timeout=5000)


def psnr(words: str) -> str:
    """The first figure in some words, as the pipeline says it."""
    found = re.search(r"PSNR (identical|[\d.]+ dB)", words)
    assert found, words
    return found[1]
