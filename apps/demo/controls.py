"""The controls of every tab that draws: what `runs.read_request` reads, by its names."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from maskimg.masking import SCHEDULES
from maskimg.networks.words import LONGEST
from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline
from maskimg.sampler import GUIDANCE_SCHEDULES, ORDERS, Sampler
from maskimg_apps.demo import answers, runs
from maskimg_apps.demo.answers import QUIET
from maskimg_apps.demo.runs import shown_number

ANYTHING = ("anything", "")


def make_controls(
    pipeline: Pipeline | None, label: Mapping[str, str] | None = None, *, compact: bool = False
) -> dict[str, Any]:
    """One control for each value that `runs.read_request` reads, by its name.

    `label`, and what it says of a `prompt`, is chosen at first.

    Args:
        compact: fold away all but label, images, seed and quality.
    """
    recipe = pipeline.recipe if pipeline else Sampler()
    fields = pipeline.labels.names if pipeline else {}
    has_critic = pipeline is not None and pipeline.generator.has_critic
    orders = [order for order in ORDERS if order != "critic" or has_critic]
    # What a recipe says that the sliders cannot show; None where the model's own recipe is the start.
    controls: dict[str, Any] = {"base": answers.letter_box()}
    _make_request_controls(controls, pipeline, label or {})
    controls["images"] = gr.Slider(1, runs.MAX_IMAGES, value=4, step=1, label="Images")
    with gr.Row():
        controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=130)
        controls["random_seed"] = gr.Checkbox(True, label="Random seed", min_width=130, elem_classes="mk-check")
    if pipeline:
        presets = [(name.capitalize(), name) for name in pipeline.presets]
        with gr.Row():
            controls["preset"] = gr.Dropdown(
                [*presets, ("As set below", "")],
                value="",
                label="Quality",
                info="Sets the controls below.",
                min_width=130,
            )
            controls["best_of"] = gr.Slider(
                1,
                runs.MAX_BEST_OF,
                value=1,
                step=1,
                label="Best of",
                info="The critic keeps the best.",
                min_width=130,
                visible=has_critic,
            )
    guided = bool(fields) or bool(pipeline and pipeline.reader.sources)
    if compact:
        with gr.Accordion("Advanced", open=False):
            _make_loop_controls(controls, recipe, orders, guided)
            _make_fine_controls(controls, recipe, guided)
    else:
        _make_loop_controls(controls, recipe, orders, guided)
        with gr.Accordion("Advanced", open=False):
            _make_fine_controls(controls, recipe, guided)
    if pipeline:
        wire_preset(pipeline, controls)
    return controls


def _make_request_controls(controls: dict[str, Any], pipeline: Pipeline | None, first: Mapping[str, str]) -> None:
    """What is asked for: labels, and words where the model knows some; `first` is chosen at first."""
    fields = pipeline.labels.names if pipeline else {}
    with gr.Row(visible=bool(fields)):
        for field, names in fields.items():
            choices = [(name, name) for name in names]
            choices = choices if pipeline and pipeline.labels.required else [ANYTHING, *choices]
            chosen = first[field] if first.get(field) in names else choices[0][1]
            controls[runs.label_key(field)] = gr.Dropdown(
                choices, value=chosen, label=field.replace("_", " ").capitalize(), min_width=130
            )
    if pipeline and pipeline.words:
        controls["prompt"] = gr.Textbox(
            value=first.get("prompt", ""),
            label="Prompt",
            placeholder="red apple",
            max_length=LONGEST,
            info=f"The model was trained on {pipeline.words.summary}.",
        )
        controls["negative"] = gr.Textbox(
            value="", label="Negative prompt", max_length=LONGEST, info="What guidance steers away from."
        )


def _make_loop_controls(controls: dict[str, Any], recipe: Sampler, orders: Sequence[str], guided: bool) -> None:
    """What is changed most often."""
    controls["steps"] = gr.Slider(1, max(64, recipe.steps), value=recipe.steps, step=1, label="Steps")
    with gr.Row():
        controls["order"] = gr.Dropdown(
            orders,
            value=recipe.order if recipe.order in orders else orders[0],
            label="Order",
            info="Which tokens are kept first.",
            min_width=130,
        )
        controls["guidance"] = gr.Slider(
            0,
            20,
            value=shown_number(recipe.guidance),
            step=0.1,
            label="Guidance",
            info="Higher follows the request more; 1 is off.",
            min_width=130,
            visible=guided,
        )


def _make_fine_controls(controls: dict[str, Any], recipe: Sampler, guided: bool) -> None:
    """What is seldom changed."""
    controls["schedule"] = gr.Dropdown(
        [*SCHEDULES] + [recipe.schedule] * (recipe.schedule not in SCHEDULES),
        value=recipe.schedule,
        label="Schedule",
        info="How many tokens stay masked after each step.",
    )
    controls["token_temperature"] = gr.Slider(
        0.001,
        10,
        value=shown_number(recipe.token_temperature),
        step=0.01,
        label="Token temperature",
        info="Lower is safer and plainer.",
    )
    controls["choice_temperature"] = gr.Slider(
        0,
        100,
        value=shown_number(recipe.choice_temperature),
        step=0.1,
        label="Choice temperature",
        info="Randomness in which tokens are kept.",
    )
    for end, words in (("start", "Off until this share of tokens is drawn."), ("end", "Off once this share is drawn.")):
        controls[f"guidance_{end}"] = gr.Slider(
            0, 1, value=getattr(recipe, f"guidance_{end}"), step=0.05, label=f"Guidance {end}", info=words,
            visible=guided,
        )  # fmt: skip
    controls["guidance_schedule"] = gr.Dropdown(
        list(GUIDANCE_SCHEDULES),
        value=recipe.guidance_schedule,
        label="Guidance schedule",
        info="How guidance grows over the steps.",
        visible=guided,
    )
    controls["revise"] = gr.Slider(
        0,
        0.9,
        value=recipe.revise,
        step=0.05,
        label="Revise",
        info="Share of the drawn tokens that each step draws again.",
    )
    controls["top_p"] = gr.Slider(
        0.05, 1, value=recipe.top_p, step=0.05, label="Top p", info="Leaves out the least likely codes; 1 is off."
    )


def wire_preset(pipeline: Pipeline, controls: Mapping[str, Any]) -> None:
    """Choosing a quality moves the other controls to its numbers; moving one of them by hand unchooses it."""
    names = [name for name in controls if name in vars(pipeline.recipe)]

    def move(preset: str) -> list[Any]:
        sampler = pipeline.sampler(preset or None)
        return [shown_number(getattr(sampler, name)) for name in names]

    controls["preset"].input(move, controls["preset"], [controls[name] for name in names], **QUIET)
    for name in names:
        controls[name].input(None, None, controls["preset"], js="() => ''", **QUIET)
