"""The demo in Chromium, as a person uses it: keys, mouse, tabs. Nothing may leave this machine, nothing may fail."""

import functools
import re
import shutil
import time
from collections.abc import Iterator

import numpy as np
import pytest
from chrome import FLAGS, fetch, is_ours, open_tab, paint, set_slider
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny import tiny_pipeline

from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg.sampler import Sampler
from maskimg_apps.demo import app, drawing
from maskimg_apps.demo.serving.models import Models
from maskimg_apps.demo.trainer import Trainer
from vqgan import load_image

pytestmark = [
    pytest.mark.browser,
    # Gradio's own statistics, every few calls.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

TRAINING = 300_000  # milliseconds for a few seconds of it, on a machine that does much else
PAUSE = 0.25  # seconds a step takes, so that a person, and a test, can see it
# Notes what the token panel says and shows, each time it changes.
WATCH = """() => {
  window.seen = [];
  const note = () => {
    const panel = document.querySelector("#generate-panel .mk-panel");
    if (panel && panel.ariaLabel !== window.seen.at(-1)?.[0]) window.seen.push([panel.ariaLabel, panel.innerHTML]);
  };
  const options = {childList: true, subtree: true, attributes: true, characterData: true};
  new MutationObserver(note).observe(document.querySelector("#generate-panel"), options);
}"""
TABS = ("Generate", "Inpaint", "Outpaint", "Variations", "Reconstruct", "Info")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    pipeline = tiny_pipeline()
    draw = pipeline.steps

    def steps(*arguments, **options):
        for preview in draw(*arguments, **options):
            time.sleep(PAUSE)
            yield preview

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(pipeline, "steps", steps)
        patch.setattr(drawing, "SHARE", 1.0)  # of the time: then every step is shown, however slow the machine
        page = app.build(pipeline)
        yield app.launch(page, app.Address(port=app.free_port("127.0.0.1", 0)))
        page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)  # for a machine that is busy with a training run
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """The open page; at the end it must have asked no other machine and complained about nothing."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    strangers, complaints = [], []
    page.on("request", lambda request: strangers.append(request.url) if not is_ours(request.url, address) else None)
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    expect(page.locator("#generate-go")).to_be_visible()
    yield page
    page.close()
    assert strangers == []
    assert complaints == []


def test_generate_shows_every_step_and_then_the_pictures(page):
    expect(page.locator("h1")).to_have_text("maskimg tiny")
    page.get_by_label("Random seed").uncheck()
    page.get_by_label("Seed", exact=True).fill("17")
    page.evaluate(WATCH)
    page.locator("#generate-go").click()
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in")
    seen = page.evaluate("window.seen")
    assert [int(words.split()[1]) for words, _ in seen if words.startswith("step")] == [1, 2, 3]
    fixed = [int(words.split()[4]) for words, _ in seen if words.startswith("step")]
    assert fixed == sorted(set(fixed)) and fixed[-1] < 16
    assert len({shown for _, shown in seen}) == len(seen)
    expect(page.locator("#generate-gallery img")).to_have_count(4)
    expect(page.locator("#generate-gallery img").first).to_be_visible()
    expect(page.locator("#generate-gallery")).to_contain_text("seed 20")
    expect(page.locator("#generate-panel .mk-frame")).to_have_count(1)  # more are made when somebody comes near
    page.locator("#generate-panel .mk-replay").hover()
    expect(page.locator("#generate-panel .mk-frame")).to_have_count(4)


def test_a_quality_moves_the_sliders_until_somebody_moves_one(page):
    def choose(name: str) -> None:
        page.get_by_label("Quality").first.click()
        page.get_by_role("option", name=name).first.click()

    steps = page.get_by_label("number input for Steps").first
    choose("Fast")
    expect(steps).to_have_value("8")
    choose("Best")
    expect(steps).to_have_value("24")
    steps.fill("5")
    steps.press("Tab")
    expect(page.get_by_label("Quality").first).to_have_value("As set below")


def test_the_keyboard_starts_and_stops(page):
    set_slider(page, "Steps", "16")
    page.get_by_label("Seed", exact=True).click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#generate-status .mk-running")
    page.keyboard.press("Escape")
    expect(page.locator("#generate-status")).to_contain_text("stopped")
    time.sleep(4 * PAUSE)
    expect(page.locator("#generate-status")).to_contain_text("stopped")
    expect(page.locator("#generate-gallery img")).to_have_count(0)
    set_slider(page, "Steps", "1")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#generate-gallery img")).to_have_count(4)


def test_a_painted_part_is_redrawn_and_the_result_is_as_large_as_the_picture(page, tmp_path):
    original = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    original.save(tmp_path / "in.png")
    open_tab(page, "Inpaint")
    expect(page.locator("#inpaint-panel")).to_contain_text("Open a picture and paint the part to redraw.")
    page.locator("#editor input[type=file]").set_input_files(tmp_path / "in.png")
    expect(page.locator("#inpaint-panel")).to_contain_text("Nothing is painted: paint the part to redraw.")

    page.locator("#inpaint-go").click()
    expect(page.get_by_text("Nothing is painted: paint the part to redraw.").last).to_be_visible()
    set_slider(page, "Grow", "0")
    paint(page, page.locator("#editor canvas"), radius=4)
    count = page.locator("#inpaint-panel .mk-count")
    expect(count).to_have_text(re.compile(r"^\d+ of 16 tokens \(\d+ %\) will be redrawn$"))
    redrawn = int(count.inner_text().split()[0])
    assert 0 < redrawn < 12  # the brush fits the picture

    set_slider(page, "Images", "1")
    page.locator("#inpaint-go").click()
    expect(page.locator("#inpaint-gallery img")).to_have_count(1)
    result = fetch(page, page.locator("#inpaint-gallery img"), tmp_path / "out.png")
    after, before = np.asarray(load_image(result)), np.asarray(original)
    assert after.shape == before.shape
    changed = (after != before).any(-1)
    assert changed.any() and not changed[:, :8].any() and not changed[:, -8:].any()
    recipe = read_recipe(result)
    assert recipe is not None and recipe["task"] == "inpaint" and recipe["tokens_redrawn"] == redrawn


def test_a_drawn_picture_can_be_sent_to_inpaint_and_painted(page):
    page.locator("#generate-go").click()
    expect(page.locator("#generate-gallery img")).to_have_count(4)
    page.locator("#generate-to-inpaint").click()
    expect(page.get_by_role("tab", name="Inpaint")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#inpaint-panel")).to_contain_text("Nothing is painted")
    paint(page, page.locator("#editor canvas"), radius=1)
    expect(page.locator("#inpaint-panel .mk-count")).to_contain_text("of 16 tokens")
    open_tab(page, "Generate")
    page.locator("#generate-to-vary").click()
    expect(page.locator("#vary-panel .mk-count")).to_contain_text("8 of 16 tokens will be redrawn")


def test_a_run_is_replayed_step_by_step_with_what_the_network_believed(page):
    page.locator("#generate-go").click()
    expect(page.locator("#generate-animation")).to_be_enabled()
    words, slider = page.locator("#generate-panel output"), page.get_by_label("Step of the replay")
    expect(words).to_have_text("step 4 of 4, 16 of 16 tokens fixed")
    slider.fill("0")
    expect(words).to_contain_text("step 1 of 4")
    shown = page.locator("#generate-panel .mk-frame:visible")
    expect(shown).to_have_count(1)
    for name in ("Confidence", "Critic"):
        expect(shown.locator(f".mk-{name.lower()}")).to_be_hidden()
        page.locator("#generate-view").get_by_text(name).click()
        expect(shown.locator(f".mk-{name.lower()}")).to_be_visible()
        assert shown.locator(f".mk-{name.lower()} path").count() > 0
    with page.expect_download() as download:
        page.locator("#generate-animation").click()
    assert download.value.suggested_filename.endswith(".webp")


def test_a_picture_is_extended_twice(page, tmp_path):
    Image.radial_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "in.png")
    open_tab(page, "Outpaint")
    page.locator("#outpaint-upload input[type=file]").set_input_files(tmp_path / "in.png")
    expect(page.locator("#outpaint-panel .mk-count")).to_have_text("8 of 24 tokens (33 %) will be drawn")
    set_slider(page, "Left", "2")
    expect(page.locator("#outpaint-panel .mk-count")).to_have_text("12 of 28 tokens (43 %) will be drawn")
    set_slider(page, "Images", "1")
    before = "none"
    for width in (56, 80):
        page.locator("#outpaint-go").click()
        expect(page.locator("#outpaint-gallery img")).not_to_have_attribute("src", before)
        before = page.locator("#outpaint-gallery img").get_attribute("src") or ""
        picture = fetch(page, page.locator("#outpaint-gallery img").first, tmp_path / "out.png")
        assert load_image(picture).size == (width, 32)
        page.locator("#outpaint-to-outpaint").click()
        expect(page.locator("#outpaint-panel .mk-count")).to_contain_text("will be drawn")


def test_a_brushed_part_is_rolled_again(page, tmp_path):
    original = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    original.save(tmp_path / "in.png")
    open_tab(page, "Variations")
    page.locator("#vary-editor input[type=file]").set_input_files(tmp_path / "in.png")
    expect(page.locator("#vary-panel .mk-count")).to_have_text("8 of 16 tokens will be redrawn, others for each seed")
    set_slider(page, "Strength", "1")
    paint(page, page.locator("#vary-editor canvas"), radius=4, name="vary-editor")
    expect(page.locator("#vary-panel .mk-count")).to_have_text(re.compile(r"^[1-8] of [1-8] tokens will be redrawn"))
    set_slider(page, "Images", "1")
    page.locator("#vary-go").click()
    expect(page.locator("#vary-gallery img")).to_have_count(1)
    picture = fetch(page, page.locator("#vary-gallery img"), tmp_path / "out.png")
    changed = (np.asarray(load_image(picture)) != np.asarray(original)).any(-1)
    assert changed.any() and not changed[:16].any() and not changed[48:].any()


def test_a_recent_recipe_outlives_the_page_and_draws_the_same_bytes_again(page, tmp_path):
    set_slider(page, "Images", "1")
    page.locator("#generate-go").click()
    expect(page.locator("#generate-animation")).to_be_enabled()
    seed = page.get_by_label("Seed", exact=True).first.input_value()
    first = fetch(page, page.locator("#generate-gallery img"), tmp_path / "a.png").read_bytes()
    page.wait_for_timeout(500)  # for the browser to keep it
    page.reload()
    expect(page.locator("#generate-go")).to_be_visible()
    open_tab(page, "Info")
    page.locator("#info-recent input").click()
    page.get_by_role("option", name=f"seed {seed}").click()
    expect(page.locator("#info-recipe")).to_contain_text(seed)
    page.locator("#info-again").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#generate-gallery img")).to_have_count(1)
    assert fetch(page, page.locator("#generate-gallery img"), tmp_path / "b.png").read_bytes() == first


def test_a_png_dropped_on_info_sets_the_controls(page, tmp_path):
    result = tiny_pipeline().generate({"class": "bug"}, seeds=123456, sampler=Sampler(steps=7, order="random"))
    result.save(tmp_path)
    open_tab(page, "Info")
    page.locator("#info-use").click()
    expect(page.get_by_text("There is no recipe yet: open a PNG, or choose a recent recipe.").last).to_be_visible()
    page.locator("#info-upload input[type=file]").set_input_files(tmp_path / "123456.png")
    expect(page.locator("#info-recipe")).to_contain_text("123456")
    page.locator("#info-use").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Seed", exact=True).first).to_have_value("123456")
    expect(page.get_by_label("Class").first).to_have_value("bug")
    expect(page.get_by_label("number input for Steps").first).to_have_value("7")
    expect(page.get_by_label("Random seed").first).not_to_be_checked()
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    open_tab(page, "Info")
    page.locator("#info-upload").get_by_label("Clear").or_(
        page.locator("#info-upload").get_by_label("Remove Image")
    ).first.click()
    page.locator("#info-upload input[type=file]").set_input_files(tmp_path / "plain.png")
    expect(page.get_by_text("This picture holds no recipe of maskimg").last).to_be_visible()


def test_a_picture_makes_the_round_trip(page, tmp_path):
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "in.png")
    expected = tiny_pipeline().reconstruct(tmp_path / "in.png")
    open_tab(page, "Reconstruct")
    expect(page.locator("#reconstruct-status")).to_contain_text("open a picture to begin")
    expect(page.locator("#reconstruct-download")).to_be_disabled()
    page.locator("#reconstruct-upload input[type=file]").set_input_files(tmp_path / "in.png")

    # Four pictures, of one size, and the figures of the pipeline.
    expect(page.locator("#reconstruct-status")).to_contain_text(f"PSNR {expected.psnr_db:.1f} dB")
    shown = {"before": expected.original, "after": expected.image}
    shown |= {"error": expected.error, "codes": expected.code_picture}
    for name, image in shown.items():
        expect(page.locator(f"#reconstruct-{name} img")).to_be_visible()
        file = fetch(page, page.locator(f"#reconstruct-{name} img"), tmp_path / f"{name}.png")
        assert np.array_equal(np.asarray(load_image(file)), np.asarray(image)), name
    for name, words in expected.facts().items():
        row = page.locator("#reconstruct-figures tr").filter(has=page.get_by_role("rowheader", name=name, exact=True))
        expect(row.locator("td")).to_have_text(words)

    # The download is the reconstruction.
    with page.expect_download() as download:
        page.locator("#reconstruct-download").click()
    assert download.value.suggested_filename == "tiny-reconstruction.png"
    download.value.save_as(tmp_path / "saved.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "saved.png")), np.asarray(expected.image))


def test_a_round_trip_runs_again_at_another_size_by_key_and_is_forgotten_with_its_picture(page, tmp_path):
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(tmp_path / "in.png")
    open_tab(page, "Reconstruct")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("There is no picture: choose a file first.").last).to_be_visible()
    page.locator("#reconstruct-upload input[type=file]").set_input_files(tmp_path / "in.png")
    tokens = page.locator("#reconstruct-figures tr").nth(3).locator("td")
    expect(tokens).to_have_text("16 (4x4)")
    page.get_by_label("up to 256").check()
    expect(tokens).to_have_text("192 (12x16)")

    page.locator("#reconstruct-upload").get_by_label("Clear").or_(
        page.locator("#reconstruct-upload").get_by_label("Remove Image")
    ).first.click()
    expect(tokens).to_have_text("–")
    expect(page.locator("#reconstruct-after img")).to_have_count(0)
    page.locator("#reconstruct-upload input[type=file]").set_input_files(tmp_path / "in.png")
    expect(tokens).to_have_text("192 (12x16)")


def test_a_file_that_is_no_picture_is_refused_in_a_sentence(page, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    open_tab(page, "Reconstruct")
    page.locator("#reconstruct-upload input[type=file]").set_input_files(tmp_path / "text.png")
    expect(page.get_by_text("The picture is not a readable PNG, JPEG, WebP").last).to_be_visible()
    expect(page.locator("#reconstruct-status")).to_contain_text("this picture cannot be used")
    expect(page.locator("#reconstruct-download")).to_be_disabled()


def test_nothing_sticks_out_on_a_phone_and_every_button_has_a_name(page):
    page.set_viewport_size(PHONE)
    for name in TABS:
        open_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for button in page.get_by_role("button").all():
            if button.is_visible():
                words = button.evaluate("b => b.innerText || b.ariaLabel || b.title || b.textContent")
                assert words.strip(), button.evaluate("b => b.outerHTML")


def test_a_model_is_trained_on_the_page_chosen_from_the_list_and_draws(browser, tmp_path, draw_pictures, monkeypatch):
    """A few seconds of `maskimg train`, in a process of its own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    draw_pictures(tmp_path / "pictures", count=24, size=16, classes=())
    tiny_pipeline().save_pretrained(tmp_path / "models" / "tiny")
    load = functools.partial(Pipeline.from_pretrained, device="cpu", dtype="fp32")
    models = Models(load, chosen=str(tmp_path / "models" / "tiny"), folder=tmp_path / "models")
    trainer = Trainer(tmp_path / "models", device="cpu", dtype="fp32")

    def make(name: str):
        return app.build(models.held(name), models=models, name=name, trainer=trainer)

    served = make("tiny")
    address = app.launch(served, app.Address(port=app.free_port("127.0.0.1", 0)), models=models, make=make)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(address)
        expect(page.locator("#generate-go")).to_be_visible()
        open_tab(page, "Train")
        page.locator("#train-go").click()
        expect(page.get_by_text("There are no pictures: type the path of a folder").last).to_be_visible()
        page.get_by_label("Folder of pictures").fill(str(tmp_path / "pictures"))
        page.get_by_label("Name of the model").fill("shapes")
        expect(page.locator("#train-where")).to_contain_text(str(tmp_path / "models" / "shapes"))
        page.get_by_label("Minutes").fill("0.1")
        page.locator("#train-go").click()
        expect(page.locator("#train-view .mk-status")).to_contain_text("shapes:")
        expect(page.locator("#train-stop")).to_be_enabled()
        expect(page.locator("#train-tokenizer img")).to_be_visible(timeout=TRAINING)

        # A reload changes nothing.
        page.reload()
        expect(page.locator("#generate-go")).to_be_visible()
        open_tab(page, "Train")
        expect(page.locator("#train-tokenizer img")).to_be_visible()
        expect(page.locator("#train-view .mk-status")).to_contain_text("Trained: shapes", timeout=TRAINING)
        expect(page.locator("#train-generator img")).to_be_visible()
        expect(page.locator("#train-go")).to_be_enabled()

        page.locator("#model input").click()
        page.get_by_role("option", name="shapes").click()
        page.wait_for_url("**/model/shapes/")
        expect(page.locator("h1")).to_have_text("maskimg shapes")
        set_slider(page, "Images", "2")
        page.locator("#generate-go").click()
        expect(page.locator("#generate-gallery img")).to_have_count(2)
        picture = fetch(page, page.locator("#generate-gallery img").first, tmp_path / "drawn.png")
        recipe = read_recipe(picture)
        assert recipe is not None and recipe["model"] == "shapes"
        # The last words of the run, and of its replay, which the mouse may be over: a reload would cut them off.
        expect(page.locator("#generate-animation")).to_be_enabled()
        page.locator("#generate-panel .mk-replay").hover()
        expect(page.locator("#generate-panel .mk-frame").nth(1)).to_be_attached()

        # One that cannot be opened says so, and the former stays.
        shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "broken")
        (tmp_path / "models" / "broken" / "generator" / "model.safetensors").unlink()
        page.reload()
        expect(page.locator("#model")).to_be_visible()
        page.wait_for_timeout(1000)
        page.locator("#model input").click()
        page.get_by_role("option", name="broken").click()
        expect(page.get_by_text("`broken/generator/model.safetensors` is missing").last).to_be_visible()
        expect(page.locator("#model input")).to_have_value("shapes")
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(1000)  # for the tabs to find their places
        open_tab(page, "Train")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    finally:
        page.close()
        trainer.close()
        served.close(verbose=False)
    assert complaints == []


# ----------------------------------------------------------------------------- helpers
