"""What comes in from a browser or a program, held against the component that it is for, before Gradio looks at it.

Gradio itself answers a value of another type with a traceback in the log, and rounds 1.5 to 2 where whole numbers are
asked for.
"""

from typing import Any

import gradio as gr

from maskimg import values
from maskimg_apps.demo.serving.errors import as_error, kindly

NOT_UPLOADED = "a file of this call cannot be used: upload it first, and send what that answers"


def guard_inputs(page: gr.Blocks) -> None:
    """Let every call of a page refuse in a sentence what its components do not hold."""
    preprocess = page.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        names = block_fn.input_parameter_names or []
        with kindly():
            for i, (component, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
                if state is not None and component._id in state:  # with the choices that it has now
                    component = state[component._id]
                name = names[i] if i < len(names) and names[i] else getattr(component, "label", "") or "a value"
                check_input(str(name).replace("_", " "), component, value)
        try:
            return await preprocess(block_fn, inputs, state, explicit_call)
        except (ValueError, OSError) as error:  # of a path that leads elsewhere, or of a description that is none
            raise as_error(NOT_UPLOADED) from error

    page.preprocess_data = checked


def check_input(name: str, component: Any, value: Any) -> None:
    """Whether a component can hold a value; of components that only a page has, Gradio knows that itself.

    Raises:
        WrongType: it is of another type. ValueError: it is out of range.
    """
    match component:
        case gr.Slider() | gr.Number():
            if value is None and isinstance(component, gr.Number):
                return
            check: Any = values.written_whole if component.precision == 0 else values.real_number
            check(name, value, component.minimum, component.maximum)
        case gr.Checkbox():
            values.truth(name, value)
        case gr.Textbox():
            if value is not None:
                values.text(name, value)
        case gr.Dropdown() | gr.Radio():
            if value is None or (isinstance(component, gr.Dropdown) and component.allow_custom_value):
                return
            if "preprocess" in vars(component):  # its list is the browser's: whoever reads the value looks it up
                values.text(name, value)
            else:
                values.one_of(name, value, [choice for _, choice in component.choices])
        case gr.Image() | gr.File():
            if value is not None and not _is_file(value):
                raise values.WrongType(f"{name} must be a file: upload it first, and send what that answers")


def _is_file(value: Any) -> bool:
    """Whether Gradio takes it for a file. Without its mark it would not ask whether the path was uploaded."""
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return False
    return isinstance(value.get("meta"), dict) and value["meta"].get("_type") == "gradio.FileData"
