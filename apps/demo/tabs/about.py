"""Info: how a picture was made, recent recipes, and facts about the model."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from maskimg.evaluation.card import plainly
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg_apps.demo import answers, runs, style, tokens
from maskimg_apps.demo.answers import QUIET
from maskimg_apps.demo.running import add_endpoint
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.uploads import guard_image, open_upload
from maskimg_apps.demo.stage import Stage

MOST = 50  # recipes that the browser keeps
MAX_SHOWN = 400  # characters of a value


def keep_recipes() -> gr.BrowserState:
    """The last recipes, in the browser; outside the tabs, because a tab's contents exist only once it is opened.

    The server trusts them no more than any other input, so the secret protects nothing.
    """
    return gr.BrowserState([], storage_key="maskimg-recipes", secret="maskimg")


def info_tab(
    page: gr.Blocks,
    kept: gr.BrowserState,
    pipeline: Pipeline | None,
    controls: Mapping[str, Mapping[str, Any]],
    stages: list[Stage],
    switch: gr.Tabs,
) -> None:
    """The tab; `controls` are those of each task's tab, which a recipe sets, and `kept` is from `keep_recipes`."""
    parts = _parts(awake=pipeline is not None)
    if pipeline is None:
        return
    with gr.Accordion("About this model", open=False):
        gr.HTML(tokens.facts(runs.facts(pipeline)))
    chosen = answers.letter_box()
    # The list is the browser's own; the server keeps nothing of it.
    parts.recent.preprocess = lambda payload: payload

    def listed(number: Any, recipes: Any) -> dict[str, Any]:
        return {"answers": number, "values": [answers.update(choices=_choices(_list(recipes)))]}

    # On load, and again when the browser has found what it kept, which may be later, or keeps one more.
    answers.wire([page.load, kept.change], listed, [kept], [parts.recent], "recent", queue=False)
    for stage in stages:
        stage.box.change(None, [stage.box, kept], kept, js=style.REMEMBER.replace("MOST", str(MOST)), **QUIET)

    def read(number: Any, image: str | None) -> Iterator[dict[str, Any]]:
        def values() -> list[Any]:
            recipe = _read(image) if image else None
            return [recipe, show_recipe(pipeline, recipe) if recipe else _hint()]

        yield from answers.reply(number, values, [None, _hint()])

    def pick(number: Any, recipe: Any) -> Iterator[dict[str, Any]]:
        def values() -> list[Any]:
            found = _list([json.loads(recipe)]) if recipe else []
            return [found[0], show_recipe(pipeline, found[0])] if found else [None, _hint()]

        yield from answers.reply(number, values, [None, _hint()])

    answers.wire([parts.upload.change], read, [parts.upload], [chosen, parts.table], "recipe")
    answers.wire([parts.recent.input], pick, [parts.recent], [chosen, parts.table], "recipe")
    _wire_settings(pipeline, parts, chosen, controls, switch)
    _add_calls(pipeline)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is on the tab."""

    upload: gr.Image
    recent: gr.Dropdown
    use: gr.Button
    again: gr.Button
    table: gr.HTML


def _parts(*, awake: bool) -> Parts:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload = guard_image(
                gr.Image(
                    label="A PNG that maskimg made",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=240,
                    elem_id="info-upload",
                    interactive=awake,
                )
            )
            recent = gr.Dropdown(
                [], value=None, label="Recent recipes", info="kept in this browser", elem_id="info-recent",
                interactive=awake,
            )  # fmt: skip
            with gr.Row():
                use = gr.Button(
                    "Use these settings", variant="primary", min_width=150, elem_id="info-use", interactive=awake
                )
                again = gr.Button("Run again", min_width=110, elem_id="info-again", interactive=awake)
        with gr.Column(scale=3, min_width=320):
            table = gr.HTML(_hint(), elem_id="info-recipe")
    return Parts(upload, recent, use, again, table)


def _wire_settings(
    pipeline: Pipeline, parts: Parts, chosen: Any, controls: Mapping[str, Mapping[str, Any]], switch: gr.Tabs
) -> None:
    """The two buttons that set the controls of a task's tab from the `chosen` recipe."""

    def restore(number: Any, recipe: Any) -> dict[str, Any]:
        with kindly():
            if recipe is None:
                raise ValueError("there is no recipe yet: open a PNG, or choose a recent recipe")
            task, values, notes = runs.read_settings(pipeline, recipe)
            if task not in controls:
                raise ValueError(f"this recipe cannot be used here (its task is `{task}`)")
            for note in notes:
                gr.Warning(note[:1].upper() + note[1:] + ".")
            updates: list[Any] = [answers.update(selected=task)]
            for each in controls:
                updates += [
                    values[name] if each == task and name in values else answers.update() for name in controls[each]
                ]
            return {"answers": number, "values": updates, "place": task}

    def run_again(number: Any, recipe: Any) -> dict[str, Any]:
        """Also presses Generate for its recipes; other tasks need their picture first."""
        letter = restore(number, recipe)
        return letter | {"press": letter["place"] if letter["place"] == "generate" else ""}

    restored = [switch, *(control for task in controls for control in controls[task].values())]
    answers.wire([parts.use.click], restore, [chosen], restored, "settings")
    answers.wire([parts.again.click], run_again, [chosen], restored, "settings")


def _add_calls(pipeline: Pipeline) -> None:
    """The calls for programs, `/read_recipe` and `/model_info`."""

    def read_png(image: str | None) -> dict[str, Any]:
        with kindly():
            return _read(image)

    def model_info() -> dict[str, Any]:
        with kindly():
            return runs.facts(pipeline)

    file = guard_image(gr.Image(type="filepath", image_mode=None, visible=False))
    answer: list[Any] = [gr.JSON(visible=False, label="recipe")]
    add_endpoint("read_recipe", read_png, {"image": file}, answer, "The recipe inside a PNG that maskimg made.")
    add_endpoint("model_info", model_info, {}, [gr.JSON(visible=False, label="facts")], "What the model can do.")


def show_recipe(pipeline: Pipeline, recipe: Mapping[str, Any]) -> str:
    """A recipe as a table, with a note for all that cannot be reproduced here."""
    try:
        notes = runs.read_settings(pipeline, recipe)[2]
    except ValueError as error:
        notes = [str(error)]
    values = {key: value for key, value in recipe.items() if key not in ("sampler", "label") and value is not None}
    label = recipe.get("label")
    values |= label if isinstance(label, dict) else {}
    sampler = recipe.get("sampler")
    values |= sampler if isinstance(sampler, dict) else {}
    rows = {str(key).replace("_", " "): words for key, value in values.items() if (words := _short(value))}
    return "".join(tokens.note(note) for note in notes) + tokens.facts(rows)


def _read(image: str | None) -> dict[str, Any]:
    open_upload(image)
    recipe = read_recipe(image) if image else None
    if recipe is None:
        raise ValueError("this picture holds no recipe of maskimg: it was made or saved by another program")
    return recipe


def _list(recipes: Any) -> list[dict[str, Any]]:
    return [each for each in recipes if isinstance(each, dict)][:MOST] if isinstance(recipes, list) else []


def _choices(recipes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The newest first; numbered, since two may read the same. What is chosen is the recipe itself, as JSON."""
    return [(f"{i + 1}. {_name(recipe)}", json.dumps(recipe)) for i, recipe in enumerate(recipes)]


def _name(recipe: dict[str, Any]) -> str:
    label = recipe.get("label")
    words = " ".join(map(str, label.values())) if isinstance(label, dict) else ""
    words = " ".join(filter(None, (words, str(recipe.get("prompt") or ""))))
    return _short(f"{recipe.get('task')} · {words or 'no label'} · seed {recipe.get('seed')}", 60)


def _short(value: Any, most: int = MAX_SHOWN) -> str:
    words = plainly(value)
    return words if len(words) <= most else words[:most] + " …"


def _hint() -> str:
    return '<p class="mk-hint">Open a PNG or choose a recent recipe to see how the picture was made.</p>'
