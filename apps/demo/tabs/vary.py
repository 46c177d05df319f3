"""Variations: a share of a picture's tokens is drawn again. Asleep without a pipeline."""

from collections.abc import Generator
from typing import Any

import gradio as gr

from maskimg.drawing import edits
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.canvas import Canvas, make_canvas, wire_canvas
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, files, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import Drawing, open_mask, open_upload
from maskimg_apps.demo.stage import Stage, count_line, make_buttons, make_stage, or_why_not, result_column


def vary_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage, Canvas]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            label = "Open a picture; paint a part to vary only that part"
            canvas = make_canvas("vary-editor", label, awake=pipeline is not None)
            strength = gr.Slider(
                0.05, 1, value=0.5, step=0.05, label="Strength", info="Share of the tokens that are drawn again."
            )
            controls = make_controls(pipeline, compact=True)
        with result_column("vary"):
            go, stop = make_buttons("Vary", pipeline, "vary")
            stage = make_stage(pipeline, "vary", count_line("Open a picture to vary."), pixels=True)
    if pipeline is None:
        return controls | {"strength": strength}, stage, canvas

    def read(drawing: Drawing, mask_file: str | None) -> tuple[Any, Any]:
        """Nothing painted means the whole picture."""
        if drawing.picture is None:
            raise ValueError(runs.NOT_OPEN)
        painted = drawing.painted is not None and drawing.painted.any()
        return runs.read_canvas(drawing, mask_file) if painted or mask_file else (drawing.picture, None)

    def preview(drawing: Drawing, mask_file: str | None, strength: float) -> dict[str, Any]:
        def show() -> str:
            picture, mask = read(drawing, mask_file)
            edit = edits.variation(pipeline, picture, runs.number("strength", strength), [0], mask)
            return runs.show_variation(pipeline, edit)

        return or_why_not(show)

    def stream(view: str, drawing: Drawing, mask_file: str | None, strength: float, **values: Any) -> Generator[tuple]:
        with kindly():
            picture, mask = read(drawing, mask_file)
            request = runs.read_request(pipeline, values)
            edit = edits.variation(pipeline, picture, runs.number("strength", strength), request.seeds, mask)
            yield from run_on(stage, pipeline, request, edit, view, "vary")

    def vary(image: str | None, mask: str | None, strength: float, **values: Any) -> tuple:
        with kindly():
            request = runs.read_request(pipeline, values)
            reach = open_mask(mask) if mask else None
            edit = edits.variation(
                pipeline, open_upload(image), runs.number("strength", strength), request.seeds, reach
            )
            return run_once(pipeline, request, edit, stage.gallery)

    wire_canvas(canvas, {"strength": strength}, preview, stage.panel, "vary")
    drawn = {"drawing": canvas.editor, "mask_file": canvas.mask_file, "strength": strength}
    wire_run(go, stop, stream, drawn | controls, stage, "vary")
    words = "Draw a share of the tokens of `image` again, or of those under the white of `mask` -> the PNGs, the seed."
    add_endpoint("vary", vary, files("image", "mask") | {"strength": strength} | controls, pictures_and_seed(), words)
    return controls | {"strength": strength}, stage, canvas
