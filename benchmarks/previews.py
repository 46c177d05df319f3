"""What the live view of the page costs, and how soon it shows something.

    python benchmarks/previews.py --rounds 5

The share is of the time a run takes to its finished pictures, as the page draws them and as a bare loop does, in
alternation, in one process and on the bundled model. The times are from the click to the first token panel and to the
first step's picture, in Chromium, on a page of this machine. Both ask for an idle machine. Figures go to
benchmarks/results/previews.md.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from maskimg.drawing import edits
from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import app, drawing

RESULT = Path(__file__).parent / "results" / "previews.md"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
# Notes when the panel first shows anything new, and when it first shows a step.
WATCH = """() => {
  const panel = document.querySelector("#generate-panel"), begun = performance.now();
  window.times = {};
  const note = () => {
    const words = panel.querySelector(".mk-panel")?.ariaLabel ?? "";
    if (words.startsWith("nothing")) window.times.panel ??= performance.now() - begun;
    if (words.startsWith("step")) window.times.step ??= performance.now() - begun;
  };
  new MutationObserver(note).observe(panel, {childList: true, subtree: true, attributes: true});
  document.querySelector("#generate-go").click();
}"""


def share_of_previews(pipeline: Pipeline, images: int, rounds: int) -> tuple[float, float]:
    """Seconds of a run without previews, and the median of how much longer it takes with them."""
    request = Request(seeds=range(images), sampler=pipeline.recipe)

    def bare() -> float:
        begun, edit = time.perf_counter(), edits.generation(pipeline)
        *_, last = pipeline.steps(edit, request)
        edit.finish(pipeline.decode(last.codes))
        return time.perf_counter() - begun

    def shown() -> float:
        begun = time.perf_counter()
        for _ in drawing.draw(pipeline, request):
            pass
        return time.perf_counter() - begun

    bare(), shown()
    pairs = [(bare(), shown()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b / a - 1 for a, b in pairs)


def first_previews(pipeline: Pipeline, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from the click to the first panel and to the first step, of each round."""
    found: dict[str, list[float]] = {"panel": [], "step": []}
    uploads = tempfile.mkdtemp(prefix="maskimg-previews-")
    os.environ["GRADIO_TEMP_DIR"] = uploads
    chromium = os.environ.get("MASKIMG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    served = app.build(pipeline)
    address = app.launch(served, app.Address(port=app.free_port("127.0.0.1", 0)))
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
        for i in range(rounds + 1):  # the first run makes what is made once
            page.goto(address)
            page.locator("#generate-go").wait_for()
            page.wait_for_timeout(1500)
            page.evaluate(WATCH)
            page.wait_for_function("window.times.step !== undefined", timeout=60_000)
            page.wait_for_function("!document.querySelector('.mk-running')", timeout=120_000)
            times = page.evaluate("window.times")
            for name in found if i else ():
                found[name].append(times[name])
    served.close(verbose=False)
    shutil.rmtree(uploads, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-64")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    pipeline = Pipeline.from_pretrained(given.model)
    lines = [
        "# What the live view costs",
        "",
        f"`python benchmarks/previews.py --rounds {given.rounds}`, {date.today()}; {platform.machine()} CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; model `{pipeline.name}`, "
        f"{pipeline.recipe.steps} steps. Medians of {given.rounds} rounds.",
        "",
        "| pictures | seconds without previews | longer with them |",
        "| --- | --- | --- |",
    ]
    for images in (1, 4, 16):
        seconds, more = share_of_previews(pipeline, images, given.rounds)
        lines.append(f"| {images} | {seconds:.2f} | {100 * more:.0f} % |")
    times = first_previews(pipeline, given.rounds)
    lines += ["", "| from the click to | median, ms | least to most |", "| --- | --- | --- |"]
    for name, words in (("panel", "the first token panel"), ("step", "the first step, drawn")):
        each = times[name]
        lines.append(f"| {words} | {statistics.median(each):.0f} | {min(each):.0f} to {max(each):.0f} |")
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
