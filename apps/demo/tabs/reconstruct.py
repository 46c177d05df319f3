"""Reconstruct: a picture through the tokenizer and back. Without a pipeline the tab is drawn but disabled."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import gradio as gr

from maskimg.drawing.reconstruction import GAIN
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import answers, runs, style, tokens
from maskimg_apps.demo.running import add_endpoint
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.turn import DRAWING, TURN
from maskimg_apps.demo.serving.uploads import guard_image

EMPTY = "open a picture to begin"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is on the tab: two inputs, a button, and what a reconstruction is shown in."""

    upload: gr.Image
    size: gr.Radio
    go: gr.Button
    status: gr.HTML
    pictures: list[gr.Image]  # before, after, difference, codes
    figures: gr.HTML
    download: gr.DownloadButton

    @property
    def outputs(self) -> list[Any]:
        return [*self.pictures, self.status, self.figures, self.download]


def reconstruct_tab(pipeline: Pipeline | None) -> None:
    parts = _parts(pipeline)
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
                return nothing(EMPTY)
            with TURN:
                result = runs.reconstruct(pipeline, image, size)
            path = runs.save_reconstruction(pipeline, result, parts.download.GRADIO_CACHE)
            pictures = result.original, result.image, result.error, result.code_picture
            shown = [answers.as_sent(*pair) for pair in zip(parts.pictures, pictures, strict=True)]
            shown += [tokens.status(runs.in_a_line(result), 1), tokens.figures(result.facts())]
            return [*shown, answers.update(value=answers.as_sent(parts.download, path), interactive=True)]

        yield from answers.reply(number, values, nothing("this picture cannot be used"))

    def show_again(number: Any, image: str | None, size: str) -> Iterator[dict[str, Any]]:
        yield from show(number, image, size, again=True)

    upload, size = parts.upload, parts.size
    for events, run in (([upload.upload, parts.go.click], show), ([size.change, upload.clear], show_again)):
        answers.wire(
            events, run, [upload, size], parts.outputs, "reconstruct", show_progress="minimal",
            show_progress_on=parts.status, **DRAWING,
        )  # fmt: skip
    answer: list[Any] = [gr.Image(visible=False, format="png", label=name) for name in ("original", "reconstruction")]
    answer.append(gr.Textbox(visible=False, label="words"))
    words = "Picture -> tokens -> picture: both at the size that was encoded, and how close they are."
    file = guard_image(gr.Image(type="filepath", image_mode=None, visible=False))
    add_endpoint("reconstruct", reconstruct, {"image": file, "size": size}, answer, words)


def _parts(pipeline: Pipeline | None) -> Parts:
    awake = pipeline is not None
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
                info="the model's own size pads to a square; the others encode the whole picture",
                elem_id="reconstruct-size",
                interactive=awake,
            )
            gr.HTML(style.KEYS_AGAIN)
            figures = gr.HTML(_no_figures(), elem_id="reconstruct-figures")
            download = gr.DownloadButton(
                "Download the reconstruction", size="sm", elem_id="reconstruct-download", interactive=False
            )
        with gr.Column(scale=3, min_width=320):
            go = gr.Button(
                "Reconstruct", variant="primary", elem_id="reconstruct-go", elem_classes="mk-go", interactive=awake
            )
            status = gr.HTML(tokens.status(EMPTY if awake else "no model"), elem_id="reconstruct-status")
            pictures = _pictures(small=awake and pipeline.image_size <= tokens.PIXELS)
    return Parts(upload, size, go, status, pictures, figures, download)


def _pictures(*, small: bool) -> list[gr.Image]:
    """Two rows of two; `small` ones are shown with sharp pixels."""
    shape: dict[str, Any] = {
        "format": "png",
        "buttons": ["download", "fullscreen"],
        "interactive": False,
        "height": 330,
        "elem_classes": ["mk-fill", "mk-shown"] + ["mk-pixels"] * small,
    }
    with gr.Row():
        before = gr.Image(label="Before", elem_id="reconstruct-before", **shape)
        after = gr.Image(label="After the round trip", elem_id="reconstruct-after", **shape)
    with gr.Row():
        error = gr.Image(label=f"Difference, {GAIN} times as bright", elem_id="reconstruct-error", **shape)
        codes = gr.Image(label="Tokens, a colour for each code", elem_id="reconstruct-codes", **shape)
    return [before, after, error, codes]


def _no_figures() -> str:
    names = ("PSNR", "SSIM", "size", "tokens", "different codes", "as codes", "as PNG")
    return tokens.figures(dict.fromkeys(names, "–"))
