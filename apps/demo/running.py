"""A run of a tab, from a press to its pictures; and the same as a call for programs."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from maskimg.drawing.edits import Edit
from maskimg.drawing.request import Request
from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import answers, drawing, runs, tokens
from maskimg_apps.demo.answers import QUIET
from maskimg_apps.demo.replay import Reel
from maskimg_apps.demo.serving.errors import in_a_sentence, kindly
from maskimg_apps.demo.serving.turn import DRAWING, TURN
from maskimg_apps.demo.serving.uploads import guard_image
from maskimg_apps.demo.stage import Stage


class Brake:
    """What the server knows of presses on Stop: no run up to number `last` goes on.

    Gradio's own way to cancel an event knows nothing of a run whose press is still on its way to the server.
    """

    last = 0


def run_on(
    stage: Stage, pipeline: Pipeline, request: Request, edit: Edit | None, view: str, name: str
) -> Iterator[tuple[dict[str, Any], Reel | None]]:
    """Draw -> letters of what the page shows while that lasts; the last one comes with the reel."""
    for remark in pipeline.reader.remarks([request]):
        gr.Warning(in_a_sentence(remark))
    _say_note(edit)
    first = {"seed": request.seeds[0]}
    if TURN.locked():
        yield first | {"status": tokens.status("waiting: another model draws", running=True)}, None
    with TURN:
        for moment in drawing.draw(pipeline, request, edit, hatch=f"mk-hatch-{name}", view=view):
            letter = first | {"status": moment.status, "panel": moment.panel}
            if moment.pictures is not None:
                pictures = drawing.save(pipeline, request, moment.pictures, stage.gallery.GRADIO_CACHE, edit)
                letter["pictures"] = answers.as_sent(stage.gallery, pictures)
                made = pipeline.recipe_for(request, request.seeds[0], edit)
                letter["recipe"] = made | {"images": len(request.seeds)}
            yield letter, moment.reel


def run_once(pipeline: Pipeline, request: Request, edit: Edit | None, gallery: gr.Gallery) -> tuple:
    """Draw -> the pictures' files, with a caption each, and the seed.

    The captions say what a person would be warned of: a program sees nothing else.
    """
    _say_note(edit)
    with TURN:
        pictures = last(drawing.draw(pipeline, request, edit, share=0)).pictures or []
        saved = drawing.save(pipeline, request, pictures, gallery.GRADIO_CACHE, edit)
    remarks = "".join(f". {in_a_sentence(remark)}" for remark in pipeline.reader.remarks([request]))
    return [(path, caption + remarks) for path, caption in saved], request.seeds[0]


def _say_note(edit: Edit | None) -> None:
    """What a person should know about the mask, over the page."""
    if edit and edit.note:
        gr.Warning(edit.note[:1].upper() + edit.note[1:] + ".")


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

    def write(ticket: Any, brake: Brake, reels: dict[int, Reel], **values: Any) -> Iterator[tuple]:
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


def _numbers(ticket: Any) -> tuple[int, int]:
    """Of a run that was asked for, and of the one that is shown."""
    with kindly():
        found = ticket if isinstance(ticket, dict) else {}
        number, shown = (runs.whole("number", found.get(key), 0, 2**53) for key in ("number", "kept"))
        return number, shown


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


def files(*names: str) -> dict[str, Any]:
    """Programs send files, not canvases."""
    return {name: guard_image(gr.Image(type="filepath", image_mode=None, visible=False)) for name in names}
