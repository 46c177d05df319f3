"""Generate. Without a pipeline the tab is drawn but disabled: nothing is wired."""

from collections.abc import Generator
from typing import Any

import gradio as gr
import numpy as np

from maskimg.pipeline import Pipeline
from maskimg_apps.demo import runs, style, tokens
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.stage import Stage, make_buttons, make_stage, result_column


def generate_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage]:
    """The tab -> its controls by name, and its stage."""
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            controls = make_controls(pipeline, pipeline.example if pipeline else None)
            gr.HTML(style.KEYS)
        with result_column("generate"):
            go, stop = make_buttons("Generate", pipeline, "generate")
            stage = make_stage(pipeline, "generate", _waiting(pipeline), pixels=True)
    if pipeline is None:
        return controls, stage

    def stream(view: str, **values: Any) -> Generator[tuple]:
        with kindly():
            yield from run_on(stage, pipeline, runs.read_request(pipeline, values), None, view, "generate")

    def generate(**values: Any) -> tuple:
        with kindly():
            return run_once(pipeline, runs.read_request(pipeline, values), None, stage.gallery)

    wire_run(go, stop, stream, controls, stage, "generate")
    words = "Draw pictures -> PNGs, each with its recipe, and the seed."
    add_endpoint("generate", generate, controls, pictures_and_seed(), words)
    return controls, stage


def _waiting(pipeline: Pipeline | None) -> str:
    grid = pipeline.grid if pipeline else (8, 8)
    hatch = "mk-hatch-generate"
    tile = tokens.tile(None, (0, 0, grid[1], grid[0]), veiled=np.ones(grid, bool), hatch=hatch)
    return tokens.panel([tile], "nothing has been drawn yet", live=True, hatch=hatch)
