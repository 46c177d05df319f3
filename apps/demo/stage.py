"""Where a run is seen: status, token panel and gallery of a tab, its buttons, and where its pictures can be sent."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from maskimg.pipeline import Pipeline
from maskimg_apps.demo import answers, replay, runs, style, tokens
from maskimg_apps.demo.answers import QUIET
from maskimg_apps.demo.board import VIEWS
from maskimg_apps.demo.canvas import Canvas
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.turn import DRAWING, TURN
from maskimg_apps.demo.serving.uploads import Drawing, open_upload

TARGETS = {"inpaint": "To Inpaint", "outpaint": "To Outpaint", "vary": "To Variations"}  # where a picture can be sent


def make_buttons(word: str, pipeline: Pipeline | None, name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        go = gr.Button(
            word, variant="primary", scale=3, min_width=150, elem_id=f"{name}-go", elem_classes="mk-go",
            interactive=pipeline is not None,
        )  # fmt: skip
        stop = gr.Button(
            "Stop", scale=1, min_width=90, elem_id=f"{name}-stop", elem_classes="mk-stop",
            interactive=pipeline is not None,
        )  # fmt: skip
    return go, stop


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a run is seen: the components of a tab's right-hand side.

    `box` takes the letters of its runs, and `reels` holds how two of them were drawn by their numbers: that of the run
    that is shown, and that of the last one, which may have been stopped when it was just done.
    """

    status: gr.HTML
    view: gr.Radio
    panel: gr.HTML
    gallery: gr.Gallery
    animation: gr.Button
    sends: dict[str, gr.Button]
    box: gr.HTML
    reels: gr.State


def result_column(name: str) -> gr.Column:
    """The right-hand side of tab `name`."""
    return gr.Column(scale=3, min_width=320, elem_classes="mk-result", elem_id=f"{name}-result")


def make_stage(pipeline: Pipeline | None, name: str, waiting: str, *, pixels: bool) -> Stage:
    """Status, token panel and gallery of tab `name`, in its column."""
    awake = pipeline is not None
    small = pixels and pipeline is not None and pipeline.image_size <= tokens.PIXELS
    status = gr.HTML(tokens.status("ready" if awake else "no model"), elem_id=f"{name}-status")
    views = VIEWS if pipeline and pipeline.generator.has_critic else VIEWS[:-1]
    with gr.Row(elem_classes="mk-viewing"):
        view = gr.Radio(
            list(views), value=views[0], label="View", show_label=False, container=False, elem_id=f"{name}-view",
            elem_classes="mk-view", interactive=awake,
        )  # fmt: skip
        gr.HTML(tokens.legend())
    panel = gr.HTML(waiting, elem_id=f"{name}-panel", elem_classes="mk-slot")
    with gr.Column(elem_classes="mk-gallery"):
        gallery = gr.Gallery(
            format="png",
            type="filepath",
            columns=2,
            height="auto",
            object_fit="contain",
            show_label=False,
            buttons=["download", "download_all", "fullscreen"],
            interactive=False,
            elem_id=f"{name}-gallery",
            elem_classes="mk-pixels" if small else None,
        )
        with gr.Row(elem_classes="mk-sends"):
            sends = {
                target: gr.Button(word, size="sm", min_width=100, elem_id=f"{name}-to-{target}", interactive=awake)
                for target, word in TARGETS.items()
            }
            animation = gr.Button(
                "Save animation", size="sm", min_width=100, elem_id=f"{name}-animation", interactive=False
            )
    view.change(None, view, None, js=style.SET_VIEW.replace("NAME", name), **QUIET)
    stage = Stage(status, view, panel, gallery, animation, sends, answers.letter_box(), gr.State({}))
    if pipeline is not None:
        wire_replay(pipeline, stage, name)
    return stage


def wire_replay(pipeline: Pipeline, stage: Stage, name: str) -> None:
    """Frames and animation are made when somebody asks for them: the page's script presses `wanted` near the slider."""
    wanted = gr.Button(visible="hidden", elem_id=f"{name}-frames")
    box, shown = answers.letter_box(), answers.letter_box()
    file = gr.DownloadButton(visible="hidden", elem_id=f"{name}-animation-file")
    of_shown = style.SHOWN.replace("NAME", name)

    def show(shown: dict[str, int], reels: dict[int, replay.Reel]) -> dict[str, Any]:
        with kindly(), TURN:
            reel = reels.get(shown["number"])
            frames = replay.frames(pipeline, reel) if reel else []
            return shown | {"frames": replay.show_frames(frames, hatch=f"mk-hatch-{name}")}

    def save(shown: dict[str, int], reels: dict[int, replay.Reel]) -> str:
        with kindly(), TURN:
            reel = reels.get(shown["number"])
            if reel is None:
                raise ValueError("there is no picture yet: draw one first")
            return replay.save_animation(pipeline, reel, stage.gallery.GRADIO_CACHE)

    wanted.click(show, [shown, stage.reels], box, js=of_shown, **QUIET, **DRAWING)
    box.change(None, box, None, js=style.SHOW_FRAMES.replace("NAME", name), **QUIET)
    stage.animation.click(save, [shown, stage.reels], file, js=of_shown, **QUIET, **DRAWING).success(
        None, None, None, js=style.DOWNLOAD.replace("NAME", name), **QUIET
    )


def wire_sends(stages: Sequence[Stage], canvases: Mapping[str, Canvas], upload: gr.Image, switch: gr.Tabs) -> None:
    """Each stage's buttons open the chosen picture of its gallery, or its first, in another tab."""
    for target in TARGETS:
        canvas = canvases.get(target)
        asked, box = answers.letter_box(), answers.letter_box()
        send = _picture_sender(canvas) if canvas else _file_sender(upload)
        for stage in stages:
            stage.sends[target].click(None, None, asked, js=answers.asking(target), **QUIET).then(
                send, [asked, stage.gallery], box, trigger_mode="multiple", **QUIET
            )
        js = answers.opening(target, canvas.name if canvas else "")
        outputs = [canvas.editor, canvas.radius, switch] if canvas else [upload, switch]
        opened = box.change(None, box, outputs, js=js, **QUIET)
        if canvas:
            opened.then(None, canvas.radius, canvas.editor, js=style.set_brush(canvas.name), **QUIET).then(
                None, None, None, js=style.PREVIEW.replace("NAME", canvas.name), **QUIET
            )


def _picture_sender(canvas: Canvas) -> Callable[..., dict[str, Any]]:
    # The annotation makes Gradio send which picture is chosen just now, besides the pictures.
    def send(number: Any, gallery: gr.Gallery) -> dict[str, Any]:
        with kindly():
            path = _chosen(gallery)
            picture = open_upload(path)
            drawn = answers.as_sent(canvas.editor, {"background": path, "layers": [], "composite": None})
            return {"answers": number, "values": [drawn, runs.brush_radius(Drawing(picture, None))]}

    return send


def _file_sender(upload: gr.Image) -> Callable[..., dict[str, Any]]:
    def send(number: Any, gallery: gr.Gallery) -> dict[str, Any]:
        with kindly():
            return {"answers": number, "values": [answers.as_sent(upload, _chosen(gallery))]}

    return send


def _chosen(gallery: Any) -> str:
    """The file of the picture that is chosen in a gallery, or of the first."""
    if not gallery.value:
        raise ValueError("there is no picture yet: draw one first")
    return gallery.value[min(gallery.selected_index or 0, len(gallery.value) - 1)][0]


def or_why_not(show: Callable[[], str]) -> dict[str, Any]:
    """What `show` makes, or the sentence that says why it cannot: that hides no pictures."""
    try:
        with kindly():
            return {"panel": show()}
    except gr.Error as error:
        return {"panel": count_line(error.message), "beside": said(error.message)}


def said(words: str) -> str:
    """A sentence under the token panel."""
    return f'<p class="mk-count" role="status">{words}</p>'


def count_line(words: str) -> str:
    """The same where how many tokens are redrawn will stand."""
    return f'{said(words)}<span class="mk-live"></span>'
