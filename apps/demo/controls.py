"""What every tab has: controls, buttons, a gallery, and how they are wired."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from maskimg.drawing.edits import Edit
from maskimg.masking import SCHEDULES
from maskimg.networks.words import LONGEST
from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline
from maskimg.sampler import GUIDANCE_SCHEDULES, ORDERS, Sampler
from maskimg_apps.demo import answers, drawing, look, runs, tokens
from maskimg_apps.demo.answers import QUIET
from maskimg_apps.demo.canvas import Canvas
from maskimg_apps.demo.runs import shown_number
from maskimg_apps.demo.serving.errors import in_a_sentence, kindly
from maskimg_apps.demo.serving.uploads import Drawing, open_upload

ANYTHING = ("anything", "")
# All that draws waits in one line: the model is there once.
DRAWING: dict[str, Any] = {"concurrency_id": "draw", "concurrency_limit": 1}
# The pages of several models have a line each; of these, too, only one draws at a time.
TURN = threading.Lock()
TARGETS = {"inpaint": "To Inpaint", "outpaint": "To Outpaint", "vary": "To Variations"}  # where a picture can be sent


def make_controls(
    pipeline: Pipeline | None, label: Mapping[str, str] | None = None, *, compact: bool = False
) -> dict[str, Any]:
    """One control for each value that `runs.read_order` reads, by its name.

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
    first = {field: name for field, name in (label or {}).items() if name in fields.get(field, ())}
    with gr.Row(visible=bool(fields)):
        for field, names in fields.items():
            choices = [(name, name) for name in names]
            choices = choices if pipeline and pipeline.labels.required else [ANYTHING, *choices]
            chosen = first.get(field, choices[0][1])
            controls[runs.label_key(field)] = gr.Dropdown(
                choices, value=chosen, label=field.replace("_", " ").capitalize(), min_width=130
            )
    if pipeline and pipeline.words:
        controls["prompt"] = gr.Textbox(
            value=(label or {}).get("prompt", ""),
            label="In words",
            placeholder="red apple",
            max_length=LONGEST,
            info=f"it knows {pipeline.words.told}",
        )
        controls["negative"] = gr.Textbox(
            value="", label="But not", max_length=LONGEST, info="in words, what guidance moves away from"
        )
    controls["images"] = gr.Slider(1, runs.MAX_IMAGES, value=4, step=1, label="Images")
    with gr.Row():
        controls["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=130)
        controls["random_seed"] = gr.Checkbox(True, label="Random seed", min_width=130, elem_classes="mk-check")
    if pipeline:
        presets = [(name.capitalize(), name) for name in pipeline.presets]
        with gr.Row():
            controls["preset"] = gr.Dropdown(
                [*presets, ("As set below", "")], value="", label="Quality", info="sets the rest", min_width=130
            )
            controls["best_of"] = gr.Slider(
                1,
                runs.MAX_BEST_OF,
                value=1,
                step=1,
                label="Best of",
                info="the critic chooses",
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


def _make_loop_controls(controls: dict[str, Any], recipe: Sampler, orders: Sequence[str], guided: bool) -> None:
    """What is changed most often."""
    controls["steps"] = gr.Slider(1, max(64, recipe.steps), value=recipe.steps, step=1, label="Steps")
    with gr.Row():
        controls["order"] = gr.Dropdown(
            orders,
            value=recipe.order if recipe.order in orders else orders[0],
            label="Order",
            info="what is kept first",
            min_width=130,
        )
        controls["guidance"] = gr.Slider(
            0,
            20,
            value=shown_number(recipe.guidance),
            step=0.1,
            label="Guidance",
            info="1 is off",
            min_width=130,
            visible=guided,
        )


def _make_fine_controls(controls: dict[str, Any], recipe: Sampler, guided: bool) -> None:
    """What is seldom changed."""
    controls["schedule"] = gr.Dropdown(
        [*SCHEDULES] + [recipe.schedule] * (recipe.schedule not in SCHEDULES),
        value=recipe.schedule,
        label="Schedule",
        info="how fast masked tokens become fewer",
    )
    controls["token_temperature"] = gr.Slider(
        0.001,
        10,
        value=shown_number(recipe.token_temperature),
        step=0.01,
        label="Token temperature",
        info="lower is plainer",
    )
    controls["choice_temperature"] = gr.Slider(
        0,
        100,
        value=shown_number(recipe.choice_temperature),
        step=0.1,
        label="Choice temperature",
        info="how freely unsure tokens stay",
    )
    for end, words in (("start", "none before this share is drawn"), ("end", "none after this share is drawn")):
        controls[f"guidance_{end}"] = gr.Slider(
            0, 1, value=getattr(recipe, f"guidance_{end}"), step=0.05, label=f"Guidance {end}", info=words,
            visible=guided,
        )  # fmt: skip
    controls["guidance_schedule"] = gr.Dropdown(
        list(GUIDANCE_SCHEDULES),
        value=recipe.guidance_schedule,
        label="Guidance schedule",
        info="how it grows over the steps",
        visible=guided,
    )
    controls["revise"] = gr.Slider(
        0, 0.9, value=recipe.revise, step=0.05, label="Revise", info="share of drawn tokens drawn again each step"
    )
    controls["top_p"] = gr.Slider(
        0.05, 1, value=recipe.top_p, step=0.05, label="Top p", info="leave the least likely codes out; 1 is off"
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


class Brake:
    """What the server knows of presses on Stop: no run up to number `last` goes on.

    Gradio's own way to cancel an event knows nothing of a run whose press is still on its way to the server.
    """

    last = 0


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
    views = drawing.VIEWS if pipeline and pipeline.generator.has_critic else drawing.VIEWS[:-1]
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
    view.change(None, view, None, js=look.SET_VIEW.replace("NAME", name), **QUIET)
    stage = Stage(status, view, panel, gallery, animation, sends, answers.letter_box(), gr.State({}))
    if pipeline is not None:
        wire_replay(pipeline, stage, name)
    return stage


def wire_replay(pipeline: Pipeline, stage: Stage, name: str) -> None:
    """Frames and animation are made when somebody asks for them: the page's script presses `wanted` near the slider."""
    wanted = gr.Button(visible="hidden", elem_id=f"{name}-frames")
    box, shown = answers.letter_box(), answers.letter_box()
    file = gr.DownloadButton(visible="hidden", elem_id=f"{name}-animation-file")
    of_shown = look.SHOWN.replace("NAME", name)

    def show(shown: dict[str, int], reels: dict[int, drawing.Reel]) -> dict[str, Any]:
        with kindly(), TURN:
            reel = reels.get(shown["number"])
            frames = drawing.frames(pipeline, reel) if reel else []
            return shown | {"frames": drawing.show_frames(frames, hatch=f"mk-hatch-{name}")}

    def save(shown: dict[str, int], reels: dict[int, drawing.Reel]) -> str:
        with kindly(), TURN:
            reel = reels.get(shown["number"])
            if reel is None:
                raise ValueError("there is no picture yet: draw one first")
            return drawing.save_animation(pipeline, reel, stage.gallery.GRADIO_CACHE)

    wanted.click(show, [shown, stage.reels], box, js=of_shown, **QUIET, **DRAWING)
    box.change(None, box, None, js=look.SHOW_FRAMES.replace("NAME", name), **QUIET)
    stage.animation.click(save, [shown, stage.reels], file, js=of_shown, **QUIET, **DRAWING).success(
        None, None, None, js=look.DOWNLOAD.replace("NAME", name), **QUIET
    )


def run_on(
    stage: Stage, pipeline: Pipeline, order: runs.Order, edit: Edit | None, view: str, name: str
) -> Iterator[tuple[dict[str, Any], drawing.Reel | None]]:
    """Draw -> letters of what the page shows while that lasts; the last one comes with the reel."""
    for remark in pipeline.reader.remarks([order.asked]):
        gr.Warning(in_a_sentence(remark))
    _say_note(edit)
    first = {"seed": order.seeds[0]}
    if TURN.locked():
        yield first | {"status": tokens.status("waiting: another model draws", running=True)}, None
    with TURN:
        for moment in drawing.draw(pipeline, order, edit, hatch=f"mk-hatch-{name}", view=view):
            letter = first | {"status": moment.status, "panel": moment.panel}
            if moment.pictures is not None:
                pictures = drawing.save(pipeline, order, moment.pictures, stage.gallery.GRADIO_CACHE, edit)
                letter["pictures"] = answers.as_sent(stage.gallery, pictures)
                made = drawing.recipe_of(pipeline, order, order.seeds[0], edit)
                letter["recipe"] = made | {"images": len(order.seeds)}
            yield letter, moment.reel


def run_once(pipeline: Pipeline, order: runs.Order, edit: Edit | None, gallery: gr.Gallery) -> tuple:
    """Draw -> the pictures' files, with a caption each, and the seed.

    The captions say what a person would be warned of: a program sees nothing else.
    """
    _say_note(edit)
    with TURN:
        pictures = last(drawing.draw(pipeline, order, edit, share=0)).pictures or []
        saved = drawing.save(pipeline, order, pictures, gallery.GRADIO_CACHE, edit)
    remarks = "".join(f". {in_a_sentence(remark)}" for remark in pipeline.reader.remarks([order.asked]))
    return [(path, caption + remarks) for path, caption in saved], order.seeds[0]


def _say_note(edit: Edit | None) -> None:
    """What a person should know about the mask, over the page."""
    if edit and edit.hole and edit.hole.note:
        gr.Warning(edit.hole.note[:1].upper() + edit.hole.note[1:] + ".")


def wire_run(
    go: gr.Button,
    stop: gr.Button,
    run: Callable[..., Generator[tuple]],
    inputs: Mapping[str, Any],
    stage: Stage,
    name: str,
) -> None:
    """`run` yields what `run_on` yields; the rules by which the page takes it are those of `answers`."""
    ticket, stopped, brake = answers.letter_box(), answers.letter_box(), gr.State(Brake())

    def write(ticket: Any, brake: Brake, reels: dict[int, drawing.Reel], **values: Any) -> Iterator[tuple]:
        number, shown = _numbers(ticket)
        if not number:  # stopped, or pressed twice, before it was sent
            yield gr.skip(), gr.skip()
            return
        try:
            with contextlib.closing(run(**values)) as letters:
                for part, (letter, reel) in enumerate(letters):
                    if number <= brake.last:
                        return
                    kept = {shown: reels[shown]} if shown in reels else {}
                    yield letter | {"answers": number, "part": part}, kept | {number: reel} if reel else gr.skip()
        except gr.Error:
            yield {"answers": number, "failed": True, "part": 2**53}, gr.skip()
            raise

    def halt(number: Any, brake: Brake) -> None:
        with kindly():
            brake.last = max(brake.last, runs.whole("number", number, 0, 2**53))

    shown = [stage.status, stage.panel, stage.gallery, inputs["seed"], stage.animation]
    event = go.click(None, stage.panel, ticket, js=answers.pressing(name), **QUIET).then(
        write,
        inputs_kwargs={"ticket": ticket, "brake": brake, "reels": stage.reels, **inputs, "view": stage.view},
        outputs=[stage.box, stage.reels],
        js=answers.sending(name),
        trigger_mode="multiple",  # the page's script knows better than Gradio which press is one too many
        show_progress="minimal",  # the place in the queue
        show_progress_on=stage.status,
        api_visibility="private",
        **DRAWING,
    )
    event.failure(None, None, shown[:2], js=answers.failing(name), **QUIET)
    stage.box.change(None, stage.box, shown, js=answers.taking(name), **QUIET)
    stop.click(None, stage.status, [stopped, *shown[:2]], js=answers.stopping(name), **QUIET).then(
        halt, [stopped, brake], None, queue=False, trigger_mode="multiple", **QUIET
    )
    inputs["seed"].input(None, None, None, js=answers.typing(name), **QUIET)


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
            opened.then(None, canvas.radius, canvas.editor, js=look.set_brush(canvas.name), **QUIET).then(
                None, None, None, js=look.PREVIEW.replace("NAME", canvas.name), **QUIET
            )


def _numbers(ticket: Any) -> tuple[int, int]:
    """Of a run that was asked for, and of the one that is shown."""
    with kindly():
        found = ticket if isinstance(ticket, dict) else {}
        number, shown = (runs.whole("number", found.get(key), 0, 2**53) for key in ("number", "kept"))
        return number, shown


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


def add_endpoint(
    name: str, run: Callable[..., Any], inputs: Mapping[str, Any], outputs: Sequence[Any], words: str
) -> None:
    """A call for programs: answers once, with files and plain values rather than with what the page shows.

    A seed that is given is used, and one that is left out is random: the page's checkbox would decide otherwise.
    """
    inputs = {key: component for key, component in inputs.items() if key != "base"}  # of the page's recipes
    if "seed" in inputs:
        inputs["seed"] = gr.Number(
            None, label="Seed, random if left out", precision=0, minimum=0, maximum=SEEDS - 1, visible=False
        )
        inputs["random_seed"] = gr.Checkbox(False, label="Random seed, as if the seed were left out", visible=False)
        run = _seeded(run)
    gr.Button(visible=False).click(
        run, inputs_kwargs=inputs, outputs=list(outputs), api_name=name, api_description=words, **DRAWING
    )


def _seeded(run: Callable[..., Any]) -> Callable[..., Any]:
    """What a program says of the seed -> what the page's controls would say."""

    def call(*, seed: int | None = None, random_seed: bool = False, **values: Any) -> Any:
        with kindly():
            if seed is not None and random_seed:
                raise ValueError("seed is given, and random_seed asks for another one: leave one of them out")
            return run(seed=seed, random_seed=seed is None, **values)

    return call


def pictures_and_seed() -> list[Any]:
    """What the calls that draw answer with."""
    return [gr.Gallery(visible=False, format="png", label="pictures"), gr.Number(visible=False, label="seed")]


def last(items: Iterator[Any]) -> Any:
    return functools.reduce(lambda _, item: item, items)
