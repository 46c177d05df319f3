"""Answers that come late and in any order: nothing late replaces a finished run, nor one that was stopped.

Each case is a fresh page whose server takes its time with every kind of event: uploads, presses, previews, steps, the
end of a run. By default a few cases with delays of up to a second; with SLOW=1 a hundred with up to five.
"""

import asyncio
import itertools
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chrome import FLAGS, fetch, is_ours, open_tab, paint
from gradio.blocks import Blocks
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from starlette.middleware import Middleware
from tiny import tiny_pipeline

from maskimg.recipe import read_recipe
from maskimg_apps.demo import answers, app, drawing

pytestmark = [
    pytest.mark.browser,
    # Gradio's own statistics, every few calls.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

SLOW = bool(os.environ.get("SLOW"))
LONGEST = 5.0 if SLOW else 1.0  # seconds of a delay
PRESSES, STOPS = (100, 20) if SLOW else (10, 4)
WAIT = 180_000  # milliseconds: the machine may do much else
# Presses Stop, and says whether the run was done before.
STOP = """(name) => {
  const done = document.getElementById(name + "-status").innerText.includes("pictures in");
  document.getElementById(name + "-stop").click();
  return done;
}"""
# A stroke (1), a press (2), a stroke (3), then the letters as they arrive, and Stop after so many of them.
PLAY = """([letters, stopped]) => {
  maskimg.now = 0; maskimg.places = {}; maskimg.strokes = {};
  const shown = {status: "ready", panel: "nothing", pictures: null};
  const set = (names, values) => names.forEach((name, i) => { if (values[i] !== undefined) shown[name] = values[i]; });
  const stop = () => set(["number", "status", "panel"], maskimg.stop("tab", shown.status));
  maskimg.look("tab", "");
  maskimg.send("tab", maskimg.press("tab", shown.panel));
  maskimg.look("tab", "");
  letters.forEach(([kind, number, what], i) => {
    if (i === stopped) stop();
    if (kind === "preview") {
      const letter = {answers: number === "new" ? maskimg.look("tab", "") : number, panel: what};
      if (what === "words") letter.beside = "words, ";
      set(["panel"], maskimg.preview("tab", letter));
    } else {
      const done = what === 2, panel = done ? `replay ${number}` : `step ${number}.${what}`;
      const letter = {answers: number, part: what, status: `run ${number}.${what}`, panel};
      if (done) letter.pictures = `pictures ${number}`;
      set(["status", "panel", "pictures"], maskimg.take("tab", letter));
    }
  });
  if (letters.length === stopped) stop();
  return shown;
}"""
DELAYED = ("/upload", "/queue/join", "/run/", "/cancel", "/reset")


class Delays:
    """How long each event takes, drawn anew for every case; and how many are under way."""

    def __init__(self):
        self.lock = threading.Lock()
        self.pending, self.quiet_since = 0, time.monotonic()
        self.begin(0)
        self.on = False

    def begin(self, case: int) -> None:
        self.random, self.on = random.Random(case), True

    def draw(self) -> float:
        with self.lock:
            if not self.on:
                return 0.0
            return LONGEST * self.random.choice((0.0, 0.1 * self.random.random(), self.random.random()))

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self.lock:
            self.pending += 1
        try:
            yield
        finally:
            with self.lock:
                self.pending -= 1
                self.quiet_since = time.monotonic()

    def settle(self, page: Page, seconds: float = 1.5) -> None:
        """Wait until nothing has been under way for so long."""
        end = time.monotonic() + WAIT / 1000
        while self.pending or time.monotonic() - self.quiet_since < seconds:
            assert time.monotonic() < end, f"{self.pending} events do not end"
            page.wait_for_timeout(100)


DELAYS = Delays()


class Late:
    """Requests are held up on their way in."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not any(part in scope["path"] for part in DELAYED):
            await self.app(scope, receive, send)
            return
        with DELAYS.counted():
            await asyncio.sleep(DELAYS.draw())
            await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    call, closed = Blocks.call_function, app._closed

    async def late(self, *arguments, **options):
        with DELAYS.counted():
            await asyncio.sleep(DELAYS.draw())
            answer = await call(self, *arguments, **options)
            await asyncio.sleep(DELAYS.draw())
            return answer

    def options():
        found = closed()
        found["app_kwargs"]["middleware"].append(Middleware(Late))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(Blocks, "call_function", late)
        patch.setattr(app, "_closed", options)
        patch.setattr(drawing, "SHARE", 1.0)  # of the time: then every step is shown
        served = app.build(tiny_pipeline())
        for event in served.fns.values():  # a delay of one event is not one of all others
            if event.concurrency_id != "draw":
                event.concurrency_limit = 8
        yield app.launch(served, app.Address(port=app.free_port("127.0.0.1", 0)))
        served.close(verbose=False)


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=WAIT)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    strangers, complaints = [], []
    page.on("request", lambda request: strangers.append(request.url) if not is_ours(request.url, address) else None)
    page.on("console", lambda line: complaints.append(f"{line.text} {line.location}") if is_complaint(line) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    DELAYS.on = False
    page.goto(address)
    expect(page.locator("#generate-go")).to_be_visible()
    yield page
    DELAYS.on = False
    DELAYS.settle(page, 0.2)
    page.close()
    assert strangers == []
    assert complaints == []


@pytest.mark.parametrize("case", range(PRESSES))
def test_pictures_stay_however_late_the_previews_come(page, case, tmp_path):
    name = ("inpaint", "vary")[case % 2]
    open_picture(page, name, tmp_path, case, painted=case % 10 == 0)
    page.locator(f"#{name}-go").click()
    expect(page.locator(f"#{name}-status")).to_contain_text("4 pictures in")
    DELAYS.settle(page)
    check_finished(page, name)


@pytest.mark.parametrize("case", range(STOPS))
def test_a_run_that_is_stopped_stays_stopped_however_late_its_steps_come(page, case, tmp_path):
    """Also where the press is still on its way to the server when Stop follows."""
    name = ("inpaint", "vary")[case % 2]
    open_picture(page, name, tmp_path, 1000 + case)
    page.locator(f"#{name}-go").click()
    page.wait_for_timeout(1000 * LONGEST * random.Random(case).random())
    status = page.locator(f"#{name}-status")
    done = page.evaluate(STOP, name)  # in one go, so that it is known whether the run was done just before
    if not done:
        expect(status).to_contain_text("stopped")
    DELAYS.settle(page)
    if done:
        check_finished(page, name)
    else:
        assert "stopped" in status.inner_text() and "pictures in" not in status.inner_text()
        assert page.locator(f"#{name}-gallery img").count() == 0


def test_of_a_run_a_stroke_and_another_run_the_last_one_is_shown(page, tmp_path):
    open_picture(page, "inpaint", tmp_path, 2000)
    page.locator("#inpaint-go").click()
    page.locator("#inpaint-stop").click()
    page.get_by_label("number input for Grow").locator("visible=true").fill("0")
    images = page.get_by_label("number input for Images").locator("visible=true")
    images.fill("2")
    images.press("Tab")
    page.locator("#inpaint-go").click()
    expect(page.locator("#inpaint-status")).to_contain_text("2 pictures in")
    DELAYS.settle(page)
    assert page.locator("#inpaint-gallery img").locator("visible=true").count() == 2
    assert page.locator("#inpaint-panel .mk-replay").is_visible()


def test_a_run_that_is_refused_leaves_the_pictures_of_the_one_before(page):
    DELAYS.begin(3000)
    page.locator("#generate-go").click()
    expect(page.locator("#generate-status")).to_contain_text("4 pictures in")
    expect(page.locator("#generate-gallery img")).to_have_count(4)
    page.get_by_label("Random seed").first.uncheck()
    seed = page.get_by_label("Seed", exact=True).first
    seed.fill("")
    page.locator("#generate-go").click()
    expect(page.locator(".toast-message-text").last).to_be_visible()
    DELAYS.settle(page)
    assert page.locator("#generate-gallery img").locator("visible=true").count() == 4
    assert page.locator("#generate-panel .mk-replay").is_visible()


def test_the_picture_that_is_chosen_is_the_one_that_is_sent(page, tmp_path):
    """The choice used to be set back by a late answer, and the first picture was sent instead."""
    page.locator("#generate-go").click()
    expect(page.locator("#generate-gallery img")).to_have_count(4)
    DELAYS.begin(4000)
    page.locator("#generate-gallery button:has(img)").nth(2).click()
    third = fetch(page, page.locator("#generate-gallery img").first, tmp_path / "shown.png")
    page.locator("#generate-to-outpaint").click()
    expect(page.locator("#outpaint-upload img")).to_be_visible()
    sent = fetch(page, page.locator("#outpaint-upload img"), tmp_path / "sent.png")
    assert read_recipe(sent) == read_recipe(third)


# ----------------------------------------------------------------------------- the rules, in every order


@pytest.fixture(scope="module")
def rules(browser) -> Iterator[Page]:
    """The page's script alone."""
    page = browser.new_page()
    page.add_script_tag(content=re.sub("</?script>", "", answers.SCRIPT))
    yield page
    page.close()


def test_in_every_order_of_arrival_the_end_of_a_run_is_what_is_shown(rules):
    """A preview asked for before the press, one while it ran, three letters of the run: all 120 orders."""
    letters = [["preview", 1, "hole"], ["preview", 3, "hole"], *(["run", 2, part] for part in range(3))]
    for order in itertools.permutations(letters):
        shown = rules.evaluate(PLAY, [list(order), None])
        assert (shown["status"], shown["panel"], shown["pictures"]) == ("run 2.2", "replay 2", "pictures 2"), order


def test_in_every_order_of_arrival_a_stopped_run_stays_stopped(rules):
    letters = [["preview", 1, "hole"], ["preview", 3, "hole"], *(["run", 2, part] for part in range(3))]
    for order in itertools.permutations(letters):
        for stopped_after in range(len(order) + 1):
            before = [kind for kind in order[:stopped_after] if kind[0] == "run"]
            shown = rules.evaluate(PLAY, [list(order), stopped_after])
            if ["run", 2, 2] in before:
                assert (shown["status"], shown["panel"]) == ("run 2.2", "replay 2"), (order, stopped_after)
            else:
                assert "stopped" in shown["status"] and shown["pictures"] is None, (order, stopped_after)
                if before:
                    assert shown["panel"].startswith("step 2."), (order, stopped_after)


def test_a_preview_of_a_newer_stroke_replaces_a_finished_run(rules):
    run = [["run", 2, part] for part in range(3)]
    shown = rules.evaluate(PLAY, [[*run, ["preview", "new", "hole"], ["preview", 1, "late"]], None])
    assert shown["panel"] == "hole" and shown["pictures"] == "pictures 2"


def test_a_preview_that_is_only_words_stands_beside_the_pictures(rules):
    run = [["run", 2, part] for part in range(3)]
    shown = rules.evaluate(PLAY, [[*run, ["preview", "new", "words"]], None])
    assert shown["panel"] == "words, replay 2"


# ----------------------------------------------------------------------------- helpers


def is_complaint(line: ConsoleMessage) -> bool:
    """Gradio asks how far an upload is before this server, which takes its time, knows of it."""
    asks = "upload_progress" in line.location.get("url", "") or line.text == "Response"
    return line.type == "error" and not asks


def open_picture(page: Page, name: str, folder: Path, case: int, *, painted: bool = False) -> None:
    """Open the tab, and in it a picture; a part of it is painted, or given by a mask file, where it must be."""
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(folder / "in.png")
    editor = {"inpaint": "editor", "vary": "vary-editor"}[name]
    open_tab(page, {"inpaint": "Inpaint", "vary": "Variations"}[name])
    DELAYS.begin(case)
    upload(page, editor, folder / "in.png")
    if painted:
        paint(page, page.locator(f"#{editor} canvas"), radius=4, name=editor)
        page.wait_for_timeout(200)
    elif name == "inpaint":
        mask = Image.new("L", (64, 64))
        mask.paste(255, (16, 16, 40, 40))
        mask.save(folder / "mask.png")
        page.get_by_text("Use a mask file").locator("visible=true").click()
        upload(page, f"{editor}-mask-file", folder / "mask.png")
        expect(page.locator(f"#{editor}-mask-file img")).to_be_visible()


def upload(page: Page, where: str, path: Path) -> None:
    with page.expect_response(lambda answer: "/upload" in answer.url, timeout=WAIT) as answer:
        page.locator(f"#{where} input[type=file]").set_input_files(path)
    answer.value.finished()
    page.wait_for_timeout(400)  # for the component to take it


def check_finished(page: Page, name: str) -> None:
    """The pictures are seen, with how they were drawn, and the status speaks of them."""
    assert "4 pictures in" in page.locator(f"#{name}-status").inner_text()
    seen = page.locator(f"#{name}-gallery img").locator("visible=true").count()
    assert seen == 4, page.locator(f"#{name}-panel").inner_text()
    assert page.locator(f"#{name}-panel .mk-replay").is_visible()
    assert page.locator(f"#{name}-result .mk-live").locator("visible=true").count() == 0
