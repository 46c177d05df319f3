"""Generate and Reconstruct. Without a pipeline the tabs are drawn but asleep: nothing is wired."""

from collections.abc import Generator, Iterator
from typing import Any

import gradio as gr
import numpy as np

from maskimg.drawing.reconstruction import GAIN
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import answers, look, runs, tokens
from maskimg_apps.demo.controls import make_controls
from maskimg_apps.demo.running import add_endpoint, pictures_and_seed, run_on, run_once, wire_run
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.turn import DRAWING, TURN
from maskimg_apps.demo.serving.uploads import guard_image
from maskimg_apps.demo.stage import Stage, make_buttons, make_stage, result_column


def generate_tab(pipeline: Pipeline | None) -> tuple[dict[str, Any], Stage]:
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            controls = make_controls(pipeline, pipeline.example if pipeline else None)
            gr.HTML(look.KEYS)
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
    words = "Draw pictures -> the PNGs, each with its recipe, and the seed used."
    add_endpoint("generate", generate, controls, pictures_and_seed(), words)
    return controls, stage


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
            gr.HTML(look.KEYS_AGAIN)
            figures = gr.HTML(_no_figures(), elem_id="reconstruct-figures")
            download = gr.DownloadButton(
                "Download the reconstruction", size="sm", elem_id="reconstruct-download", interactive=False
            )
        with gr.Column(scale=3, min_width=320):
            go = gr.Button(
                "Reconstruct", variant="primary", elem_id="reconstruct-go", elem_classes="mk-go", interactive=awake
            )
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
        with kindly(), TURN:
            result = runs.reconstruct(pipeline, image, size)
            return result.original, result.image, runs.in_a_line(result)

    def nothing(words: str) -> list[Any]:
        shown = [*[None] * 4, tokens.status(words), _no_figures()]
        return [*shown, answers.update(value=None, interactive=False)]

    def show(number: Any, image: str | None, size: str, *, again: bool = False) -> Iterator[dict[str, Any]]:
        def values() -> list[Any]:
            if again and not image:
                return nothing("open a picture to begin")
            with TURN:
                result = runs.reconstruct(pipeline, image, size)
            path = runs.save_reconstruction(pipeline, result, download.GRADIO_CACHE)
            pictures = result.original, result.image, result.error, result.code_picture
            shown = [answers.as_sent(*pair) for pair in zip(outputs[:4], pictures, strict=True)]
            shown += [tokens.status(runs.in_a_line(result), 1), tokens.figures(result.facts())]
            return [*shown, answers.update(value=answers.as_sent(download, path), interactive=True)]

        yield from answers.reply(number, values, nothing("this picture cannot be used"))

    def show_again(number: Any, image: str | None, size: str) -> Iterator[dict[str, Any]]:
        yield from show(number, image, size, again=True)

    outputs = [before, after, error, codes, status, figures, download]
    for events, run in (([upload.upload, go.click], show), ([size.change, upload.clear], show_again)):
        answers.wire(
            events, run, [upload, size], outputs, "reconstruct", show_progress="minimal", show_progress_on=status,
            **DRAWING,
        )  # fmt: skip
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
