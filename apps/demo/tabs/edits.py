"""Inpaint, Outpaint and Variations: pictures that begin with a picture. Asleep without a pipeline."""

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import gradio as gr

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.drawing.hole import make_margins
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.answers import wire_preview
from maskimg_apps.demo.canvas import Canvas, make_canvas, wire_canvas
from maskimg_apps.demo.controls import (
    Stage,
    add_endpoint,
    make_buttons,
    make_controls,
    make_stage,
    pictures_and_seed,
    result_column,
    run_on,
    run_once,
    wire_run,
)
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import Drawing, guard_image, open_mask, open_upload

SOURCES = {"grey": "seen in grey", "edges": "seen as edges", "lowres": "seen blurred", "folder": "as it was trained"}


def inpaint_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage, Canvas]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            canvas = make_canvas("editor", "Open a picture, paint the part to redraw", awake=pipeline is not None)
            with gr.Row():
                coverage = gr.Dropdown(
                    list(runs.COVERAGE),
                    value="any pixel",
                    label="Redraw a token when",
                    info="so much of it is painted",
                    min_width=130,
                )
                grow = gr.Slider(
                    0, 4, value=1, step=1, label="Grow", info="rings of tokens around the paint", min_width=130
                )
            sight = gr.Dropdown(
                list(runs.SIGHT),
                value="the whole picture",
                label="The model sees",
                info="less of a large picture is finer: its grid then slides over the hole",
            )
            controls = make_controls(pipeline, compact=True)
        with result_column("inpaint"):
            go, stop = make_buttons("Inpaint", pipeline, "inpaint")
            stage = make_stage(
                pipeline, "inpaint", _count("Open a picture and paint the part to redraw."), pixels=False
            )
    reach = {"grow": grow, "coverage": coverage, "sight": sight}
    if pipeline is None:
        return controls | reach, stage, canvas

    def preview(drawing: Drawing, mask_file: str | None, grow: float, coverage: str, sight: str) -> dict[str, Any]:
        def show() -> str:
            picture, mask = runs.read_canvas(drawing, mask_file)
            hole = pipeline.hole(picture, mask, **runs.hole_options(picture, grow, coverage, sight))
            return runs.show_hole(pipeline, hole)

        return _or_why_not(show)

    def edit_of(picture: Any, mask: Any, values: dict[str, Any]) -> Edit:
        options = runs.hole_options(picture, values.pop("grow"), values.pop("coverage"), values.pop("sight"))
        return edits.inpainting(pipeline, picture, mask, **options)

    def stream(view: str, drawing: Drawing, mask_file: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            edit = edit_of(*runs.read_canvas(drawing, mask_file), values)
            yield from run_on(stage, pipeline, runs.read_order(pipeline, values), edit, view, "inpaint")

    def inpaint(image: str | None, mask: str | None, **values: Any) -> tuple:
        with kindly():
            edit = edit_of(open_upload(image), open_mask(mask), values)
            return run_once(pipeline, runs.read_order(pipeline, values), edit, stage.gallery)

    wire_canvas(canvas, reach, preview, stage.panel, "inpaint")
    drawn = {"drawing": canvas.editor, "mask_file": canvas.mask_file}
    wire_run(go, stop, stream, drawn | reach | controls, stage, "inpaint")
    words = "Redraw the white part of `mask`, which is as large as `image` -> the PNGs, and the seed used."
    add_endpoint("inpaint", inpaint, _files("image", "mask") | reach | controls, pictures_and_seed(), words)
    return controls | reach, stage, canvas


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
            sides: dict[str, Any] = {}
            for pair in (("left", "right"), ("top", "bottom")):
                with gr.Row():
                    for side in pair:
                        sides[side] = gr.Slider(
                            0, half, value=half // 2 if side in ("left", "right") else 0, step=1,
                            label=side.capitalize(), info="tokens", min_width=130,
                        )  # fmt: skip
            controls = make_controls(pipeline, compact=True)
        with result_column("outpaint"):
            go, stop = make_buttons("Outpaint", pipeline, "outpaint")
            stage = make_stage(pipeline, "outpaint", _count("Open a picture to extend."), pixels=False)
    if pipeline is None:
        return controls | sides, stage, upload

    def preview(image: str | None, **values: Any) -> dict[str, Any]:
        def show() -> str:
            if not image:
                raise gr.Error("Open a picture to extend.")
            picture, margins = open_upload(image), runs.read_margins(values, pipeline)
            window = edits.window_for(picture)
            hole = make_margins(picture, margins, pipeline.grid, pipeline.tokenizer.stride, window)
            return runs.show_hole(pipeline, hole, "drawn")

        return _or_why_not(show)

    def edit_of(image: str | None, values: dict[str, Any]) -> Edit:
        picture, margins = open_upload(image), runs.read_margins(values, pipeline)
        return edits.outpainting(pipeline, picture, margins)

    def stream(view: str, image: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            edit = edit_of(image, values)
            yield from run_on(stage, pipeline, runs.read_order(pipeline, values), edit, view, "outpaint")

    def outpaint(image: str | None, **values: Any) -> tuple:
        with kindly():
            edit = edit_of(image, values)
            return run_once(pipeline, runs.read_order(pipeline, values), edit, stage.gallery)

    events = [upload.change, *(side.change for side in sides.values())]
    wire_preview(events, preview, {"image": upload, **sides}, [stage.panel], "outpaint", "outpaint-upload")
    wire_run(go, stop, stream, {"image": upload} | sides | controls, stage, "outpaint")
    words = "Draw so many tokens on each side of `image`; its own pixels stay -> the PNGs, and the seed used."
    add_endpoint("outpaint", outpaint, _files("image") | sides | controls, pictures_and_seed(), words)
    return controls | sides, stage, upload


def vary_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage, Canvas]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            label = "Open a picture; paint a part to roll only that again"
            canvas = make_canvas("vary-editor", label, awake=pipeline is not None)
            strength = gr.Slider(
                0.05, 1, value=0.5, step=0.05, label="Strength", info="share of the tokens that are drawn again"
            )
            controls = make_controls(pipeline, compact=True)
        with result_column("vary"):
            go, stop = make_buttons("Vary", pipeline, "vary")
            stage = make_stage(pipeline, "vary", _count("Open a picture to vary."), pixels=True)
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

        return _or_why_not(show)

    def stream(view: str, drawing: Drawing, mask_file: str | None, strength: float, **values: Any) -> Generator[tuple]:
        with kindly():
            picture, mask = read(drawing, mask_file)
            order = runs.read_order(pipeline, values)
            edit = edits.variation(pipeline, picture, runs.number("strength", strength), order.seeds, mask)
            yield from run_on(stage, pipeline, order, edit, view, "vary")

    def vary(image: str | None, mask: str | None, strength: float, **values: Any) -> tuple:
        with kindly():
            order = runs.read_order(pipeline, values)
            reach = open_mask(mask) if mask else None
            edit = edits.variation(pipeline, open_upload(image), runs.number("strength", strength), order.seeds, reach)
            return run_once(pipeline, order, edit, stage.gallery)

    wire_canvas(canvas, {"strength": strength}, preview, stage.panel, "vary")
    drawn = {"drawing": canvas.editor, "mask_file": canvas.mask_file, "strength": strength}
    wire_run(go, stop, stream, drawn | controls, stage, "vary")
    words = "Draw a share of the tokens of `image` again, or of those under the white of `mask` -> the PNGs, the seed."
    add_endpoint("vary", vary, _files("image", "mask") | {"strength": strength} | controls, pictures_and_seed(), words)
    return controls | {"strength": strength}, stage, canvas


def translate_tab(pipeline: Pipeline) -> tuple[dict[str, Any], Stage]:
    """Only of a model that translates."""
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            upload = guard_image(
                gr.Image(
                    label=f"Picture to translate ({SOURCES[pipeline.source_kind]})",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="translate-upload",
                    elem_classes="mk-fill",
                )
            )
            controls = make_controls(pipeline, compact=True)
        with result_column("translate"):
            go, stop = make_buttons("Translate", pipeline, "translate")
            stage = make_stage(pipeline, "translate", _count("Open a picture to translate."), pixels=True)

    def read(image: str | None, values: dict[str, Any]) -> tuple[runs.Order, Edit]:
        edit, source = edits.translation(pipeline, open_upload(image))
        return dataclasses.replace(runs.read_order(pipeline, values), source=source), edit

    def stream(view: str, image: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            order, edit = read(image, values)
            yield from run_on(stage, pipeline, order, edit, view, "translate")

    def translate(image: str | None, **values: Any) -> tuple:
        with kindly():
            order, edit = read(image, values)
            return run_once(pipeline, order, edit, stage.gallery)

    wire_run(go, stop, stream, {"image": upload} | controls, stage, "translate")
    words = "What the model makes of `image` -> the PNGs, and the seed used."
    add_endpoint("translate", translate, _files("image") | controls, pictures_and_seed(), words)
    return controls, stage


def _or_why_not(show: Callable[[], str]) -> dict[str, Any]:
    """What `show` makes, or the sentence that says why it cannot: that hides no pictures."""
    try:
        with kindly():
            return {"panel": show()}
    except gr.Error as error:
        return {"panel": _count(error.message), "beside": _told(error.message)}


def _files(*names: str) -> dict[str, Any]:
    """Programs send files, not canvases."""
    return {name: guard_image(gr.Image(type="filepath", image_mode=None, visible=False)) for name in names}


def _told(words: str) -> str:
    return f'<p class="mk-count" role="status">{words}</p>'


def _count(words: str) -> str:
    return f'{_told(words)}<span class="mk-live"></span>'
