"""Train: one's own pictures, with what the training prints and draws seen while it runs.

The state is the trainer's, on the server: a reload of the page, or a second one, shows the same training.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from maskimg.training.plan import PRESETS
from maskimg_apps.demo import answers, tokens
from maskimg_apps.demo.runs import number as read_number
from maskimg_apps.demo.serving.errors import kindly
from maskimg_apps.demo.serving.models import Models
from maskimg_apps.demo.serving.pages import models_listed
from maskimg_apps.demo.trainer import Snapshot, Trainer, TrainingRequest
from vqgan import ImageError, load_image

PHASES = ("pictures", "tokenizer", "codes", "generator", "critic")
SHEETS = {"tokenizer": "What the tokenizer keeps: pictures above, theirs below", "generator": "What it draws"}
ABOUT = (
    "A tokenizer learns to turn your pictures into tokens and back, then a generator learns to fill in tokens that are "
    "masked, and a critic to doubt them. What they can do is shown here ten times on the way."
)
LOCAL = ("localhost", "127.0.0.1", "::1")
EVERY = 1.0  # seconds between two snapshots
MOST_POINTS, MOST_WARNINGS = 120, 4  # shown of a curve, and of the warnings


def train_tab(page: gr.Blocks, trainer: Trainer, models: Models, chosen: gr.Dropdown, current: str | None) -> None:
    """The tab; `chosen` is the list of models, which a finished one joins."""
    with gr.Row(elem_classes="mk-run"):
        with gr.Column(scale=2, min_width=300):
            inputs, name, where, start, stop = _request_column(trainer)
        with gr.Column(scale=3, min_width=320):
            view = gr.HTML(show_snapshot(Snapshot()), elem_id="train-view")
            sheets = {
                stage: gr.Image(
                    label=words, format="png", interactive=False, buttons=["download", "fullscreen"], visible=False,
                    elem_id=f"train-{stage}", elem_classes=["mk-pixels", "mk-sheet"],
                )
                for stage, words in SHEETS.items()
            }  # fmt: skip
    timer = gr.Timer(EVERY, active=False)
    seen = answers.letter_box()  # what this page shows of the sheets

    def show(number: Any, seen: Any, request: gr.Request) -> dict[str, Any]:
        with kindly():
            require_here(request)
            snapshot = trainer.snapshot()
            marks, pictures = _newer(snapshot, seen, sheets)
            enabled = not snapshot.active, snapshot.state == "running"
            buttons = [answers.update(interactive=each) for each in enabled]
            listed = models_listed(models, current) if snapshot.state == "done" else answers.update()
            link = models.address(snapshot.name, seen_from=current) if snapshot.state == "done" else ""
            shown, ticking = show_snapshot(snapshot, link), answers.update(active=snapshot.active)
            return {"answers": number, "values": [shown, *pictures, *buttons, ticking, marks, listed]}

    def begin(
        number: Any, seen: Any, name: str, pictures: str, upload: str | None, preset: str, minutes: float,
        request: gr.Request,
    ) -> dict[str, Any]:  # fmt: skip
        with kindly():
            require_here(request)
            lasts = read_number("minutes", minutes)
            trainer.start(
                TrainingRequest((name or "").strip(), (pictures or "").strip(), upload or "", preset or "", lasts)
            )
        return show(number, seen, request)

    def end(number: Any, seen: Any, request: gr.Request) -> dict[str, Any]:
        with kindly():
            require_here(request)
            trainer.stop()
        return show(number, seen, request)

    outputs = [view, *sheets.values(), start, stop, timer, seen, chosen]
    # Snapshots follow each other faster than some answers come: each is taken that is newer than what is shown.
    options: dict[str, Any] = {"newest": False, "trigger_mode": "once"}
    answers.wire([start.click], begin, [seen, *inputs], outputs, "train", **options)
    answers.wire([stop.click], end, [seen], outputs, "train", queue=False, **options)
    answers.wire([timer.tick, page.load], show, [seen], outputs, "train", queue=False, **options)

    def tell_where(number: Any, name: str) -> dict[str, Any]:
        return {"answers": number, "values": [_where(trainer, (name or "").strip())]}

    answers.wire([name.change], tell_where, [name], [where], "train-where", queue=False)


def _request_column(trainer: Trainer) -> tuple[list[Any], gr.Textbox, gr.HTML, gr.Button, gr.Button]:
    """What a person fills in (name, folder, upload, preset, minutes), the name, where it goes, Start and Stop."""
    pictures = gr.Textbox(
        label="Folder of pictures on this machine",
        placeholder="/home/me/pictures",
        info="or a .zip or .tar archive; subfolders become labels",
        elem_id="train-pictures",
    )
    with gr.Accordion("Upload a .zip instead", open=False):
        upload = gr.File(label="A .zip of up to 16 MB", file_types=[".zip"], height=110, elem_id="train-upload")
    name = gr.Textbox("my-model", label="Name of the model", max_length=60, elem_id="train-name")
    with gr.Row():
        preset = gr.Dropdown(
            ["auto", *PRESETS], value="auto", label="Preset", info="auto: what suits it here", min_width=130,
            elem_id="train-preset",
        )  # fmt: skip
        minutes = gr.Number(
            10, label="Minutes", info="of training in all", minimum=0.01, min_width=130, elem_id="train-minutes"
        )
    where = gr.HTML(_where(trainer, "my-model"), elem_id="train-where")
    with gr.Row():
        start = gr.Button("Start", variant="primary", scale=3, min_width=150, elem_id="train-go", elem_classes="mk-go")
        stop = gr.Button("Stop", scale=1, min_width=90, elem_id="train-stop", interactive=False)
    gr.HTML('<p class="mk-hint">Stop keeps what was learnt: Start with the same name goes on.</p>')
    return [name, pictures, upload, preset, minutes], name, where, start, stop


def require_here(request: gr.Request) -> None:
    """Folders of this machine are read for nobody else: also not for a site that gave itself this machine's address.

    Raises:
        ValueError: the page was opened under another name, or another site asks.
    """
    asked = [urlsplit(f"//{request.headers.get('host', '')}").hostname]
    if "origin" in request.headers:
        asked.append(urlsplit(request.headers["origin"]).hostname)
    if not all(host in LOCAL for host in asked):
        raise ValueError("models can be trained only from the machine itself: open the page at 127.0.0.1")


def show_snapshot(snapshot: Snapshot, link: str = "") -> str:
    """How far it is, as HTML; `link` leads to the finished model."""
    here = PHASES.index(snapshot.stage) if snapshot.stage in PHASES else -1
    done = len(PHASES) if snapshot.state == "done" else here
    kinds = ["done" if i < done else "now" if i == here and snapshot.active else "" for i in range(len(PHASES))]
    phases = "".join(f'<li class="mk-{kind}">{phase}</li>' for phase, kind in zip(PHASES, kinds, strict=True))
    words = snapshot.words[:1].upper() + snapshot.words[1:]
    parts = [tokens.status(f"{snapshot.name}: {words}" if snapshot.active else words, snapshot.share)]
    parts.append(f'<ol class="mk-phases" aria-label="Stages">{phases}</ol>')
    if link:
        parts.append(f'<p><a class="mk-open" href="{html.escape(link)}">Open {html.escape(snapshot.name)}</a></p>')
    if snapshot.state == "idle":
        parts.append(f'<p class="mk-hint">{ABOUT}</p>')
    parts += [tokens.note(warning) for warning in snapshot.warnings[-MOST_WARNINGS:]]
    if len(snapshot.losses) > 1:
        parts.append(curve(snapshot.losses, f"loss of the {snapshot.stage}"))
    return f'<div class="mk-training" data-state="{snapshot.state}">{"".join(parts)}</div>'


def curve(values: Sequence[float], words: str) -> str:
    """Figures as a line over a filled ground, the last one in words beside it."""
    step = max(1, len(values) // MOST_POINTS)
    values = [*values[:-1:step], values[-1]]
    low, high = min(values), max(values)
    heights = [36 - 32 * (value - low) / ((high - low) or 1.0) for value in values]
    points = " ".join(f"{100 * i / (len(values) - 1):.2f},{y:.2f}" for i, y in enumerate(heights))
    return (
        f'<figure class="mk-curve"><figcaption><span>{html.escape(words)}</span><b>{values[-1]:.3f}</b></figcaption>'
        f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{html.escape(words)}, from '
        f'{values[0]:.3f} to {values[-1]:.3f}"><polygon points="0,40 {points} 100,40"/><polyline points="{points}"/>'
        "</svg></figure>"
    )


def _newer(snapshot: Snapshot, seen: Any, sheets: Mapping[str, gr.Image]) -> tuple[dict[str, Any], list[Any]]:
    """What is seen from now on, and what becomes of the sheets: new pictures where there are others than those seen."""
    marks, updates = {}, []
    before = seen if isinstance(seen, dict) else {}
    found = dict(snapshot.sheets)
    for stage in SHEETS:
        mark = _mark(found[stage]) if stage in found else None
        try:
            changed = mark != before.get(stage)
            picture = load_image(found[stage]) if changed and stage in found else None
            shown = answers.as_sent(sheets[stage], picture)
            updates.append(answers.update(value=shown, visible=picture is not None) if changed else answers.update())
            marks[stage] = mark
        except ImageError:  # it is being written just now
            updates.append(answers.update())
            marks[stage] = before.get(stage)
    return marks, updates


def _mark(path: Path) -> str:
    try:
        return f"{path}:{path.stat().st_mtime_ns}"
    except OSError:
        return ""


def _where(trainer: Trainer, name: str) -> str:
    try:
        words = f"Will be written to <code>{html.escape(str(trainer.out(name)))}</code>"
    except ValueError as error:
        words = html.escape(str(error)[:1].upper() + str(error)[1:]) + "."
    return f'<p class="mk-hint mk-where">{words}</p>'
