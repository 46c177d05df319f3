"""The three tabs. Without a pipeline they are drawn but asleep: nothing is wired."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from maskimg.pipeline import Pipeline
from maskimg.reconstruction import GAIN
from maskimg_apps import look, runs, tokens
from maskimg_apps.controls import (
    DRAWING,
    QUIET,
    add_endpoint,
    last,
    make_buttons,
    make_controls,
    make_gallery,
    pictures_and_seed,
    saved,
    wire_run,
)
from maskimg_apps.errors import kindly
from maskimg_apps.uploads import Drawing, guard_editor, guard_image, open_upload


def generate_tab(pipeline: Pipeline | None) -> tuple[gr.Gallery, gr.Button]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            controls = make_controls(pipeline, pipeline.example if pipeline else None)
            go, stop = make_buttons("Generate", pipeline, "generate")
            gr.HTML(look.KEYS)
        with gr.Column(scale=3, min_width=320, elem_classes="mk-result"):
            status = gr.HTML(tokens.status("ready" if pipeline else "no model"), elem_id="generate-status")
            panel = gr.HTML(_waiting(pipeline), elem_id="generate-panel", elem_classes="mk-slot")
            gallery, send = make_gallery("Send to Inpaint", pipeline, "generate", pixels=True)
    if pipeline is None:
        return gallery, send

    def stream(**values: Any) -> Iterator[tuple]:
        with kindly():
            order = runs.read_order(pipeline, values)
            for moment in runs.draw(pipeline, order, hatch="mk-hatch-generate"):
                yield moment.status, moment.panel, saved(pipeline, order, moment, gallery), order.seeds[0]

    def generate(**values: Any) -> tuple:
        return last(stream(**values))[2:]

    wire_run(go, stop, stream, controls, status, panel, gallery)
    words = "Draw pictures -> the PNGs, each with its recipe, and the seed used."
    add_endpoint("generate", generate, controls, pictures_and_seed(), words)
    return gallery, send


def inpaint_tab(pipeline: Pipeline | None) -> tuple[gr.ImageEditor, gr.Number, gr.Gallery, gr.Button]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=1, min_width=320):
            editor = guard_editor(
                gr.ImageEditor(
                    label="Paint here",
                    type="pil",
                    format="png",
                    sources=("upload", "clipboard"),
                    layers=False,
                    transforms=(),
                    fixed_canvas=False,
                    brush=gr.Brush(default_size=24, colors=[look.PAINT], color_mode="fixed"),
                    eraser=gr.Eraser(default_size=24),
                    buttons=[],
                    height=440,
                    elem_id="editor",
                    interactive=pipeline is not None,
                )
            )
            radius = gr.Number(visible="hidden")
            with gr.Row():
                coverage = gr.Dropdown(
                    list(runs.COVERAGE), value="any pixel", label="Redraw a token when", info="so much of it is painted"
                )
                grow = gr.Slider(0, 4, value=1, step=1, label="Grow", info="rings of tokens around the paint")
            with gr.Accordion("Use a mask file", open=False):
                mask_file = guard_image(
                    gr.Image(
                        label="Mask: white is redrawn; as large as the picture",
                        type="filepath",
                        image_mode=None,
                        sources=["upload"],
                        height=180,
                        elem_id="mask-file",
                    )
                )
            controls = make_controls(pipeline)
        with gr.Column(scale=1, min_width=320, elem_classes="mk-result"):
            go, stop = make_buttons("Inpaint", pipeline, "inpaint")
            status = gr.HTML(tokens.status("ready" if pipeline else "no model"), elem_id="inpaint-status")
            panel = gr.HTML(
                _count("Open a picture and paint the part to redraw."), elem_id="inpaint-panel", elem_classes="mk-slot"
            )
            gallery, again = make_gallery("Edit this one further", pipeline, "inpaint", pixels=False)
    if pipeline is None:
        return editor, radius, gallery, again

    reach = {"drawing": editor, "mask_file": mask_file, "grow": grow, "coverage": coverage}

    def preview(drawing: Drawing, mask_file: str | None, grow: float, coverage: str) -> str:
        try:
            with kindly():
                return runs.show_hole(pipeline, runs.read_hole(pipeline, drawing, mask_file, grow, coverage))
        except gr.Error as error:
            return _count(error.message)

    def opened(drawing: Drawing, *others: Any) -> tuple[str, int]:
        return preview(drawing, *others), runs.brush_radius(drawing)

    def stream(drawing: Drawing, mask_file: str | None, grow: float, coverage: str, **values: Any) -> Iterator[tuple]:
        with kindly():
            hole = runs.read_hole(pipeline, drawing, mask_file, grow, coverage)
            order = runs.read_order(pipeline, values)
            for moment in runs.draw(pipeline, order, hole=hole, hatch="mk-hatch-inpaint"):
                yield moment.status, moment.panel, saved(pipeline, order, moment, gallery, hole), order.seeds[0]

    def inpaint(image: str | None, mask: str | None, grow: float, coverage: str, **values: Any) -> tuple:
        with kindly():
            opened = open_upload(image), open_upload(mask, "mask")
            hole = runs.make_hole(pipeline, *opened, grow, coverage)
            order = runs.read_order(pipeline, values)
            done = last(runs.draw(pipeline, order, hole=hole))
            return saved(pipeline, order, done, gallery, hole), order.seeds[0]

    # The page presses `painted` after every stroke: the editor's own change event misses the first stroke on a picture
    # that was sent to it.
    painted = gr.Button(visible="hidden", elem_id="painted")
    for event in (painted.click, mask_file.change, grow.change, coverage.change):
        event(preview, list(reach.values()), panel, trigger_mode="always_last", **QUIET)
    editor.upload(opened, list(reach.values()), [panel, radius], trigger_mode="always_last", **QUIET).then(
        None, radius, editor, js=look.SET_BRUSH, **QUIET
    )
    wire_run(go, stop, stream, reach | controls, status, panel, gallery)
    # Programs send two files, not a canvas.
    files = {name: guard_image(gr.Image(type="filepath", image_mode=None, visible=False)) for name in ("image", "mask")}
    inputs = files | {"grow": grow, "coverage": coverage} | controls
    words = "Redraw the white part of the mask -> the PNGs, each as large as the image, and the seed used."
    add_endpoint("inpaint", inpaint, inputs, pictures_and_seed(), words)
    return editor, radius, gallery, again


def reconstruct_tab(pipeline: Pipeline | None) -> None:
    awake = pipeline is not None
    small = pipeline is not None and pipeline.image_size <= tokens.PIXELS
    look_at: dict[str, Any] = {
        "format": "png",
        "buttons": ["download", "fullscreen"],
        "interactive": False,
        "height": 330,
        "elem_classes": ["mk-fill", "mk-shown"] + ["mk-pixels"] * small,
    }
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            upload = guard_image(
                gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=220,
                    elem_id="reconstruct-upload",
                    interactive=awake,
                )
            )
            size = gr.Radio(
                list(runs.SIZES),
                value=next(iter(runs.SIZES)),
                label="Size",
                info="the model's pads to a square, the others encode the whole picture at so many pixels",
                elem_id="reconstruct-size",
                interactive=awake,
            )
            go = gr.Button(
                "Reconstruct", variant="primary", elem_id="reconstruct-go", elem_classes="mk-go", interactive=awake
            )
            gr.HTML(look.KEYS_AGAIN)
            figures = gr.HTML(_no_figures(), elem_id="reconstruct-figures")
            download = gr.DownloadButton(
                "Download the reconstruction", size="sm", elem_id="reconstruct-download", interactive=False
            )
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(
                tokens.status("open a picture to begin" if awake else "no model"), elem_id="reconstruct-status"
            )
            with gr.Row():
                before = gr.Image(label="Before", elem_id="reconstruct-before", **look_at)
                after = gr.Image(label="After the round trip", elem_id="reconstruct-after", **look_at)
            with gr.Row():
                error = gr.Image(
                    label=f"Difference, {GAIN} times as bright",
                    elem_id="reconstruct-error",
                    **look_at,
                )
                codes = gr.Image(
                    label="Tokens, a colour for each code",
                    elem_id="reconstruct-codes",
                    **look_at,
                )
    if pipeline is None:
        return

    def reconstruct(image: str | None, size: str) -> tuple:
        with kindly():
            result = runs.reconstruct(pipeline, image, size)
            return result.original, result.image, runs.in_a_line(result)

    def show(image: str | None, size: str) -> tuple:
        with kindly():
            result = runs.reconstruct(pipeline, image, size)
            path = runs.save_reconstruction(pipeline, result, download.GRADIO_CACHE)
            pictures = result.original, result.image, result.error, result.code_picture
            line = tokens.status(runs.in_a_line(result), 1)
            return *pictures, line, tokens.figures(result.facts()), gr.DownloadButton(value=path, interactive=True)

    def forget(words: str = "open a picture to begin") -> tuple:
        return *[None] * 4, tokens.status(words), _no_figures(), gr.DownloadButton(value=None, interactive=False)

    def show_again(image: str | None, size: str) -> tuple:
        return show(image, size) if image else forget()

    outputs = [before, after, error, codes, status, figures, download]
    for event, run in ((upload.upload, show), (go.click, show), (size.change, show_again)):
        started = event(
            run,
            [upload, size],
            outputs,
            show_progress="minimal",
            show_progress_on=status,
            api_visibility="private",
            **DRAWING,
        )
        started.failure(lambda: forget("this picture cannot be used"), None, outputs, **QUIET)
    upload.clear(forget, None, outputs, **QUIET)
    answer: list[Any] = [gr.Image(visible=False, format="png", label=name) for name in ("original", "reconstruction")]
    answer.append(gr.Textbox(visible=False, label="words"))
    words = "Picture -> tokens -> picture: both at the size that was encoded, and how close they are."
    file = guard_image(gr.Image(type="filepath", image_mode=None, visible=False))
    add_endpoint("reconstruct", reconstruct, {"image": file, "size": size}, answer, words)


def _no_figures() -> str:
    names = ("PSNR", "SSIM", "size", "tokens", "different codes", "as codes", "as PNG")
    return tokens.figures(dict.fromkeys(names, "–"))


def _waiting(pipeline: Pipeline | None) -> str:
    grid = pipeline.grid if pipeline else (8, 8)
    hatch = "mk-hatch-generate"
    tile = tokens.tile(None, (0, 0, grid[1], grid[0]), veiled=np.ones(grid, bool), hatch=hatch)
    return tokens.panel([tile], "nothing is drawn yet", live=True, hatch=hatch)


def _count(words: str) -> str:
    return f'<p class="mk-count" role="status">{words}</p><span class="mk-live"></span>'
