"""Outpaint: what lies around a picture is drawn. Asleep without a pipeline."""

from collections.abc import Generator
from typing import Any

import gradio as gr

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.drawing.hole import make_margins
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.answers import wire_preview
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, files, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import guard_image, open_upload
from maskimg_apps.demo.stage import Stage, count_line, make_buttons, make_stage, or_why_not, result_column


def outpaint_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage, gr.Image]:
    half = pipeline.grid[0] // 2 if pipeline else 4
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            upload = guard_image(
                gr.Image(
                    label="Picture to extend",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="outpaint-upload",
                    elem_classes="mk-fill",
                    interactive=pipeline is not None,
                )
            )
            sides = _make_sides(half)
            controls = make_controls(pipeline, compact=True)
        with result_column("outpaint"):
            go, stop = make_buttons("Outpaint", pipeline, "outpaint")
            stage = make_stage(pipeline, "outpaint", count_line("Open a picture to extend."), pixels=False)
    if pipeline is None:
        return controls | sides, stage, upload

    def preview(image: str | None, **values: Any) -> dict[str, Any]:
        def show() -> str:
            if not image:
                raise gr.Error("Open a picture to extend.")
            picture, margins = open_upload(image), runs.read_margins(values, pipeline)
            window = edits.window_for(picture)
            hole = make_margins(picture, margins, pipeline.grid, pipeline.stride, window)
            return runs.show_hole(pipeline, hole, "drawn")

        return or_why_not(show)

    def edit_of(image: str | None, values: dict[str, Any]) -> Edit:
        picture, margins = open_upload(image), runs.read_margins(values, pipeline)
        return edits.outpainting(pipeline, picture, margins)

    def stream(view: str, image: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            edit = edit_of(image, values)
            yield from run_on(stage, pipeline, runs.read_request(pipeline, values), edit, view, "outpaint")

    def outpaint(image: str | None, **values: Any) -> tuple:
        with kindly():
            edit = edit_of(image, values)
            return run_once(pipeline, runs.read_request(pipeline, values), edit, stage.gallery)

    events = [upload.change, *(side.change for side in sides.values())]
    wire_preview(events, preview, {"image": upload, **sides}, [stage.panel], "outpaint", "outpaint-upload")
    wire_run(go, stop, stream, {"image": upload} | sides | controls, stage, "outpaint")
    words = "Draw so many tokens on each side of `image`; its own pixels stay -> the PNGs, and the seed used."
    add_endpoint("outpaint", outpaint, files("image") | sides | controls, pictures_and_seed(), words)
    return controls | sides, stage, upload


def _make_sides(half: int) -> dict[str, Any]:
    """How many tokens are drawn on each side; `half` the grid at most."""
    sides: dict[str, Any] = {}
    for pair in (("left", "right"), ("top", "bottom")):
        with gr.Row():
            for side in pair:
                sides[side] = gr.Slider(
                    0, half, value=half // 2 if side in ("left", "right") else 0, step=1,
                    label=side.capitalize(), info="tokens", min_width=130,
                )  # fmt: skip
    return sides
