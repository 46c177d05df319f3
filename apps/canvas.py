"""A canvas to paint on: Gradio's editor, guarded, with a brush that fits the picture and an event after each stroke."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from maskimg_apps import look
from maskimg_apps.uploads import guard_editor, guard_image

# As in `controls`: for the page only.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclasses.dataclass(frozen=True)
class Canvas:
    """`radius` is what the brush is set to; `painted` is pressed by the page after every stroke."""

    name: str
    editor: gr.ImageEditor
    radius: gr.Number
    painted: gr.Button
    mask_file: gr.Image


def make_canvas(name: str, label: str, *, awake: bool) -> Canvas:
    editor = guard_editor(
        gr.ImageEditor(
            label=label,
            type="pil",
            format="png",
            sources=("upload", "clipboard"),
            layers=False,
            transforms=(),
            fixed_canvas=False,
            brush=gr.Brush(default_size=24, colors=[look.PAINT], color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            buttons=[],
            height=420,
            elem_id=name,
            elem_classes="mk-editor",
            interactive=awake,
        )
    )
    radius = gr.Number(visible="hidden")
    painted = gr.Button(visible="hidden", elem_id=f"{name}-painted", interactive=awake)
    with gr.Accordion("Use a mask file", open=False):
        mask_file = guard_image(
            gr.Image(
                label="Mask: white is redrawn; as large as the picture",
                type="filepath",
                image_mode=None,
                sources=["upload"],
                height=180,
                elem_id=f"{name}-mask-file",
            )
        )
    return Canvas(name, editor, radius, painted, mask_file)


def wire_canvas(
    canvas: Canvas, others: Sequence[Any], preview: Callable[..., str], opened: Callable[..., tuple], panel: gr.HTML
) -> None:
    """Show what is painted after each stroke and each change of `others`; fit the brush to a picture that is opened.

    Args:
        preview, opened: take the drawing, the mask file and `others`; `opened` also answers with the brush's radius.
    """
    inputs = [canvas.editor, canvas.mask_file, *others]
    # The editor's own change event misses the first stroke on a picture that was sent to it.
    for event in (canvas.painted.click, canvas.mask_file.change, *(each.change for each in others)):
        event(preview, inputs, panel, trigger_mode="always_last", **QUIET)
    canvas.editor.upload(opened, inputs, [panel, canvas.radius], trigger_mode="always_last", **QUIET).then(
        None, canvas.radius, canvas.editor, js=look.set_brush(canvas.name), **QUIET
    )
