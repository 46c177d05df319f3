"""A canvas to paint on: Gradio's editor, guarded, with a brush that fits the picture and an event after each stroke."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from maskimg_apps.demo import runs, style
from maskimg_apps.demo.answers import QUIET, wire_preview
from maskimg_apps.demo.serving.uploads import Drawing, guard_editor, guard_image


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
            brush=gr.Brush(default_size=24, colors=[style.PAINT], color_mode="fixed"),
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
    canvas: Canvas, others: Mapping[str, Any], preview: Callable[..., dict[str, Any]], panel: gr.HTML, name: str
) -> None:
    """Show what is painted after each stroke and each change of `others`; fit the brush to a picture that is opened.

    Args:
        preview: takes `drawing`, `mask_file` and `others`, answers as `wire_preview` says.
        name: of the tab.
    """

    def look_at(drawing: Drawing, **values: Any) -> dict[str, Any]:
        return preview(drawing, **values) | {"radius": runs.brush_radius(drawing)}

    # The editor's own change event misses the first stroke on a picture that was sent to it.
    events = [canvas.painted.click, canvas.editor.upload, canvas.mask_file.change]
    inputs = {"drawing": canvas.editor, "mask_file": canvas.mask_file, **others}
    wire_preview(
        [*events, *(each.change for each in others.values())],
        look_at, inputs, [panel, canvas.radius], name, canvas.name,
    ).then(None, canvas.radius, canvas.editor, js=style.set_brush(canvas.name), **QUIET)  # fmt: skip
