"""Training from the page: what is refused, what is seen of it, and who may start it. The programs here only pretend;
tests/browser trains."""

import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from maskimg.training.tracking.view import Line
from maskimg_apps.demo import app
from maskimg_apps.demo.tabs.train import curve, require_here, show_look
from maskimg_apps.demo.trainer import STEP, Look, Order, Trainer

# Says how far it is, and stops when it is asked to.
LEARNS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("maskimg: stopped at step 7 of the generator"), sys.exit(0)))
print("100 pictures\\rreading pictures: 100%|###| 100/100", flush=True)
print("tokenizer step 90, 5.0/s, 0.0 min left: ###\\rgenerator step 1207, 5.0/s, 2.0 min left: ### loss=1", flush=True)
time.sleep(60)
"""
DONE = "print('generator step 9, 1.0/s, 0.0 min left'); print('done: open it')"


@pytest.fixture
def trainer(tmp_path, draw_pictures) -> Iterator[Trainer]:
    draw_pictures(tmp_path / "pictures", count=4, classes=())
    trainer = Trainer(tmp_path / "models")
    yield trainer
    trainer.close()


@pytest.fixture
def pretend(trainer, monkeypatch) -> Callable[[str], list]:
    """`pretend(script)`: what is started is `script`; the answer fills with the commands that it stands for."""

    def set_program(script: str) -> list:
        command, asked = Trainer._command, []

        def other(self: Trainer, *arguments) -> list[str]:
            asked.append(command(self, *arguments))
            return [sys.executable, "-c", script]

        monkeypatch.setattr(Trainer, "_command", other)
        return asked

    return set_program


def order(trainer: Trainer, **values: Any) -> Order:
    return Order(**{"name": "mine", "pictures": str(trainer.folder.parent / "pictures")} | values)


def seen(trainer: Trainer, state: str, words: str = "") -> Look:
    """What is seen once it is in that state; ten seconds are given to it."""
    for _ in range(200):
        look = trainer.look()
        if look.state == state and words in look.words:
            return look
        time.sleep(0.05)
    raise AssertionError(f"expected {state} `{words}`, got {look}")


# ----------------------------------------------------------------------------- what is seen


def test_stage_step_loss_time_left_warnings_and_sheets_are_seen_while_it_learns(trainer, pretend):
    (asked,) = [pretend(LEARNS)]
    assert trainer.look() == Look() and not trainer.look().active
    trainer.start(order(trainer, minutes=10.5, preset="cpu"))
    work = trainer.folder / "mine.training"
    (work / "generator").mkdir(parents=True)
    lines = [f'{{"step": {50 * i}, "loss": {4 - i / 10}}}' for i in range(1, 4)]
    lines += ['{"step": 200, "warning": "the rate 0.1 may be too high: try 0.03"}']
    lines += ['{"step": 250, "warning": "the rate 0.2 may be too high: try 0.07"}']
    (work / "generator" / "log.jsonl").write_text("\n".join(lines))
    Image.new("RGB", (9, 9)).save(work / "generator" / "samples.png")

    look = seen(trainer, "running", "generator")
    assert look.words == "generator, step 1,207 · loss 3.700 · about 3 min left"  # two, and the critic's one
    assert look.stage == "generator" and look.share == pytest.approx(1 - 3 / 10.5)
    assert look.losses == (3.9, 3.8, 3.7)
    assert look.warnings == ("the rate 0.2 may be too high: try 0.07",)
    assert look.sheets == (("generator", work / "generator" / "samples.png"),)
    assert asked[0][3:] == [
        "train", str(trainer.folder.parent / "pictures"), "--out", str(trainer.folder / "mine"), "--preset", "cpu",
        "--minutes", "10.5", "--device", "auto", "--dtype", "auto",
    ]  # fmt: skip


def test_the_words_are_those_that_a_training_prints(capsys):
    """The trainer reads what `maskimg.training.tracking.view` writes."""
    with Line("tokenizer", None, 0, 0.0) as line:
        line.show(12, 6.0, 0.1)
        found = STEP.search(str(line.bar.desc))
    assert found and found.groups() == ("tokenizer", "12", "2.0", "0.9")


def test_it_is_stopped_and_goes_on_by_its_name_alone(trainer, pretend):
    asked = pretend(LEARNS)
    trainer.start(order(trainer))
    seen(trainer, "running", "generator")
    trainer.stop()
    assert seen(trainer, "stopped").words == "stopped: Start goes on from there"
    with pytest.raises(ValueError, match="nothing is being trained"):
        trainer.stop()
    trainer.start(Order("mine", minutes=3))
    assert asked[1][4] == asked[0][4] and seen(trainer, "running").active


def test_closing_the_page_stops_it(trainer, pretend):
    pretend(LEARNS)
    trainer.start(order(trainer))
    seen(trainer, "running", "generator")
    trainer.close()
    assert trainer.look().state == "stopped"
    assert "stopped at step 7" in (trainer.folder / "mine.training" / "printed.txt").read_text()
    trainer.close()


@pytest.mark.parametrize(
    "script, state, words",
    [
        (DONE, "done", "trained: mine"),
        ("print('maskimg: stopped at step 3')", "stopped", "Start goes on"),
        (
            "import sys; sys.exit('maskimg: the disk is full (no room): make room')",
            "failed",
            "the disk is full (no roo",
        ),
        ("1 / 0", "failed", "the training ended unexpectedly (exit code 1): what it said last is in"),
        (f"import os; os.kill(os.getpid(), {signal.SIGKILL})", "failed", "the training was killed"),
    ],
)
def test_how_it_ended_is_said_in_a_sentence(trainer, pretend, script, state, words):
    pretend(script)
    trainer.start(order(trainer))
    look = seen(trainer, state, words)
    assert not look.active and (look.share == 1.0) == (state == "done")


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "values, words",
    [
        ({"name": "../x"}, "the model's name must be of letters, digits"),
        ({"name": ""}, "the model's name must be"),
        ({"name": "x.training"}, "the model's name must be"),
        ({"pictures": ""}, "there are no pictures: type the path of a folder"),
        ({"pictures": "/nowhere/at/all"}, "there is no folder `/nowhere/at/all`"),
        ({"pictures": "--config=x"}, "there is no folder"),
        ({"pictures": "hf://owner/name"}, "there is no folder"),
        ({"upload": "x.zip"}, "give a folder or an upload, not both"),
        ({"minutes": 0.0}, "minutes must be more than 0"),
        ({"minutes": float("nan")}, "minutes must be more than 0"),
        ({"preset": "vast"}, "preset must be auto, cpu or gpu, got `vast`"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(trainer, pretend, values, words):
    asked = pretend(LEARNS)
    with pytest.raises(ValueError, match=words):
        trainer.start(order(trainer, **values))
    assert asked == [] and not trainer.folder.exists()


def test_a_folder_without_pictures_is_refused(trainer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="picture"):
        trainer.start(order(trainer, pictures=str(tmp_path / "empty")))


def test_a_second_training_waits_for_the_first(trainer, pretend):
    asked = pretend(LEARNS)
    trainer.start(order(trainer))
    with pytest.raises(ValueError, match="`mine` is being trained: stop it first, or wait"):
        trainer.start(order(trainer, name="other"))
    assert len(asked) == 1


def test_a_name_stays_with_its_pictures_once_something_was_learnt(trainer, pretend, tmp_path, draw_pictures):
    draw_pictures(tmp_path / "others", count=4, classes=())
    pretend(DONE)
    trainer.start(order(trainer, pictures=str(tmp_path / "others")))
    seen(trainer, "done")
    trainer.start(order(trainer))  # nothing was learnt of the others yet
    seen(trainer, "done")
    (trainer.folder / "mine.training" / "tokenizer").mkdir()
    trainer.start(order(trainer))
    seen(trainer, "done")
    with pytest.raises(ValueError, match="the name `mine` is taken by another model, or by other pictures"):
        trainer.start(order(trainer, pictures=str(tmp_path / "others")))
    (trainer.folder / "from-elsewhere").mkdir()
    with pytest.raises(ValueError, match="the name `from-elsewhere` is taken"):
        trainer.start(order(trainer, name="from-elsewhere"))


def test_a_folder_that_cannot_be_written_to_is_named(trainer, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ValueError, match=r"models` cannot be written to \("):
        trainer.start(order(trainer))


def test_an_upload_is_kept_beside_the_model_and_unpacked_nowhere(trainer, pretend, tmp_path):
    asked = pretend(DONE)
    upload = tmp_path / "uploaded" / "my pictures.zip"
    upload.parent.mkdir()
    with zipfile.ZipFile(upload, "w") as archive:
        for name in ("../../outside.png", "a/1.png", "a/2.png"):
            archive.write(next((tmp_path / "pictures").iterdir()), name)
    trainer.start(order(trainer, pictures="", upload=str(upload)))
    seen(trainer, "done")
    kept = trainer.folder / "mine.training" / "upload" / "my pictures.zip"
    assert asked[0][4] == str(kept) and kept.read_bytes() == upload.read_bytes()
    assert not list(tmp_path.rglob("outside.png"))

    (trainer.folder / "mine.training" / "tokenizer").mkdir()
    upload.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is taken"):
        trainer.start(order(trainer, pictures="", upload=str(upload)))
    with pytest.raises(ValueError, match="`my pictures.zip` is damaged or cut off"):
        trainer.start(order(trainer, name="other", pictures="", upload=str(upload)))


# ----------------------------------------------------------------------------- who may, and what the page shows


@pytest.mark.parametrize(
    "headers, is_here",
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, True),
        ({"host": "[::1]:7860"}, True),
        ({"host": "evil.example:7860"}, False),  # a name that was made to mean this machine
        ({"host": "127.0.0.1:7860", "origin": "https://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_a_page_of_this_machine_may_train(headers, is_here):
    request: Any = SimpleNamespace(headers=headers)
    if is_here:
        return require_here(request)
    with pytest.raises(ValueError, match="only from the machine itself"):
        require_here(request)


@pytest.mark.parametrize("host, there", [("127.0.0.1", True), ("0.0.0.0", False)])
def test_the_tab_is_there_only_where_nobody_else_reaches_the_page(host, there, tmp_path, monkeypatch):
    monkeypatch.setattr("maskimg_apps.demo.serving.models.bundled_models", lambda: [])
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    names = []

    def stay(page: gr.Blocks) -> None:
        names.extend(block.elem_id for block in page.blocks.values())
        page.close(verbose=False)

    monkeypatch.setattr(app, "stay", stay)
    at = app.Address(host, app.free_port("127.0.0.1", 0), login=None if there else ("ann", "secret"))
    app.serve(None, at, folder=tmp_path / "models")
    assert "generate-go" in names and ("train-go" in names) == there


@pytest.mark.parametrize("early", [False, True])
def test_the_page_stops_its_training_when_it_is_asked_to_end(early, tmp_path, monkeypatch):
    monkeypatch.setattr("maskimg_apps.demo.serving.models.bundled_models", lambda: [])
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        monkeypatch.delenv(name)
    closed = []
    monkeypatch.setattr(Trainer, "close", lambda self: closed.append(self.folder))

    def asked_to_end(page: gr.Blocks, *at: object, **options: object) -> None:
        page.close(verbose=False)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    if early:
        monkeypatch.setattr(app, "launch", asked_to_end)
    monkeypatch.setattr(app, "stay", asked_to_end)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        app.serve(None, app.Address(port=app.free_port("127.0.0.1", 0)), folder=tmp_path / "models")
    assert closed == [tmp_path / "models"] and signal.getsignal(signal.SIGTERM) == before


def test_what_is_seen_is_text_and_the_stages_are_told_apart():
    look = Look("running", "x", "<b>", "codes", 0.3, (2.0, 1.5), ("<i>careful",))
    shown = show_look(look)
    assert "<b>&" not in shown and "<b>:" not in shown and "&lt;b&gt;" in shown and "<i>" not in shown.split("width")[1]
    assert [shown.count(f'class="mk-{kind}">') for kind in ("done", "now")] == [2, 1]
    assert "Open x" in show_look(Look("done", "x", "trained: x"), "../x/")


def test_a_curve_keeps_its_ends_however_long_it_is():
    for count in (2, 119, 5000):
        drawn = curve([float(count - i) for i in range(count)], "loss")
        points = drawn.split('<polyline points="')[1].split('"')[0].split()
        assert len(points) <= 300 and points[0] == "0.00,4.00" and points[-1] == "100.00,36.00"
    assert "nan" not in curve([1.0, 1.0], "loss")
