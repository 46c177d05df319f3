"""Inpaint: the painted part of a picture is drawn again. Asleep without a pipeline."""

from collections.abc import Generator
from typing import Any

import gradio as gr

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.canvas import Canvas, make_canvas, wire_canvas
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, files, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import Drawing, open_mask, open_upload
from maskimg_apps.demo.stage import Stage, count_line, make_buttons, make_stage, or_why_not, result_column


def inpaint_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage, Canvas]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            canvas = make_canvas("editor", "Open a picture, paint the part to redraw", awake=pipeline is not None)
            with gr.Row():
                coverage = gr.Dropdown(
                    list(runs.COVERAGE),
                    value="any pixel",
                    label="Redraw a token when",
                    info="How much of it must be painted.",
                    min_width=130,
                )
                grow = gr.Slider(
                    0, 4, value=1, step=1, label="Grow", info="Extra rings of tokens around the paint.", min_width=130
                )
            sight = gr.Dropdown(
                list(runs.SIGHT),
                value="the whole picture",
                label="The model sees",
                info="Smaller parts of a large picture give finer detail: the grid slides over the painted area.",
            )
            controls = make_controls(pipeline, compact=True)
        with result_column("inpaint"):
            go, stop = make_buttons("Inpaint", pipeline, "inpaint")
            stage = make_stage(
                pipeline, "inpaint", count_line("Open a picture and paint the part to redraw."), pixels=False
            )
    reach = {"grow": grow, "coverage": coverage, "sight": sight}
    if pipeline is None:
        return controls | reach, stage, canvas

    def preview(drawing: Drawing, mask_file: str | None, grow: float, coverage: str, sight: str) -> dict[str, Any]:
        def show() -> str:
            picture, mask = runs.read_canvas(drawing, mask_file)
            hole = pipeline.hole(picture, mask, **runs.hole_options(picture, grow, coverage, sight))
            return runs.show_hole(pipeline, hole)

        return or_why_not(show)

    def edit_of(picture: Any, mask: Any, values: dict[str, Any]) -> Edit:
        options = runs.hole_options(picture, values.pop("grow"), values.pop("coverage"), values.pop("sight"))
        return edits.inpainting(pipeline, picture, mask, **options)

    def stream(view: str, drawing: Drawing, mask_file: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            edit = edit_of(*runs.read_canvas(drawing, mask_file), values)
            yield from run_on(stage, pipeline, runs.read_request(pipeline, values), edit, view, "inpaint")

    def inpaint(image: str | None, mask: str | None, **values: Any) -> tuple:
        with kindly():
            edit = edit_of(open_upload(image), open_mask(mask), values)
            return run_once(pipeline, runs.read_request(pipeline, values), edit, stage.gallery)

    wire_canvas(canvas, reach, preview, stage.panel, "inpaint")
    drawn = {"drawing": canvas.editor, "mask_file": canvas.mask_file}
    wire_run(go, stop, stream, drawn | reach | controls, stage, "inpaint")
    words = "Redraw the white part of `mask`, which is as large as `image` -> the PNGs, and the seed used."
    add_endpoint("inpaint", inpaint, files("image", "mask") | reach | controls, pictures_and_seed(), words)
    return controls | reach, stage, canvas
