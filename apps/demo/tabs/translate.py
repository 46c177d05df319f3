"""Translate: what a model makes of an input picture."""

from collections.abc import Generator
from typing import Any

import gradio as gr

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, files, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import guard_image, open_upload
from maskimg_apps.demo.stage import Stage, count_line, make_buttons, make_stage, result_column

SOURCES = {"grey": "seen in grey", "edges": "seen as edges", "lowres": "seen blurred", "folder": "as it was trained"}


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
            stage = make_stage(pipeline, "translate", count_line("Open a picture to translate."), pixels=True)

    def read(image: str | None, values: dict[str, Any]) -> tuple[Request, Edit]:
        edit = edits.translation(pipeline, open_upload(image))
        return runs.read_request(pipeline, values), edit

    def stream(view: str, image: str | None, **values: Any) -> Generator[tuple]:
        with kindly():
            request, edit = read(image, values)
            yield from run_on(stage, pipeline, request, edit, view, "translate")

    def translate(image: str | None, **values: Any) -> tuple:
        with kindly():
            request, edit = read(image, values)
            return run_once(pipeline, request, edit, stage.gallery)

    wire_run(go, stop, stream, {"image": upload} | controls, stage, "translate")
    words = "What the model makes of `image` -> the PNGs, and the seed used."
    add_endpoint("translate", translate, files("image") | controls, pictures_and_seed(), words)
    return controls, stage
