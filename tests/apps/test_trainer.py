"""Training from the page: what is refused, what is seen of it, and who may start it. The programs here only pretend;
tests/browser trains."""

import dataclasses
import json
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

from maskimg.training.tracking.status import FORMAT, Status
from maskimg_apps.demo import app
from maskimg_apps.demo.tabs.train import curve, require_here, show_snapshot
from maskimg_apps.demo.trainer import Snapshot, Trainer, TrainingRequest

# Notes how far it is, as trainings do, but without their imports; the models' folder is put where FOLDER stands.
NOTES = f"""
import json, os, signal, sys, time
status = {json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(Status())}))} | dict(started=time.time())
def note(**changes):
    status.update(changes)
    with open("FOLDER/mine.training/half", "w") as file:
        json.dump(status, file)
    os.replace("FOLDER/mine.training/half", "FOLDER/mine.training/status.json")
"""
# Says how far it is, and stops when it is asked to.
STOPS = """
def stop(*_):
    note(state="stopped")
    print("maskimg: stopped at step 7 of the generator")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note(stage="generator", activity="generator", step=1207, share=0.7, seconds_left=120.0, warnings=["beware"])
time.sleep(60)
"""
LEARNS = NOTES + STOPS
DONE = NOTES + "note(state='done')"


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
            return [sys.executable, "-c", script.replace("FOLDER", str(self.folder))]

        monkeypatch.setattr(Trainer, "_command", other)
        return asked

    return set_program


def request(trainer: Trainer, **values: Any) -> TrainingRequest:
    return TrainingRequest(**{"name": "mine", "pictures": str(trainer.folder.parent / "pictures")} | values)


def seen(trainer: Trainer, state: str, words: str = "") -> Snapshot:
    """What is seen once it is in that state; ten seconds are given to it."""
    for _ in range(200):
        snapshot = trainer.snapshot()
        if snapshot.state == state and words in snapshot.words:
            return snapshot
        time.sleep(0.05)
    raise AssertionError(f"expected {state} `{words}`, got {snapshot}")


# ----------------------------------------------------------------------------- what is seen


def test_stage_step_loss_time_left_warnings_and_sheets_are_seen_while_it_learns(trainer, pretend):
    (asked,) = [pretend(LEARNS)]
    assert trainer.snapshot() == Snapshot() and not trainer.snapshot().active
    trainer.start(request(trainer, minutes=10.5, preset="cpu"))
    work = trainer.folder / "mine.training"
    (work / "generator").mkdir(parents=True)
    lines = [f'{{"step": {50 * i}, "loss": {4 - i / 10}}}' for i in range(1, 4)]
    (work / "generator" / "log.jsonl").write_text("\n".join(lines))
    Image.new("RGB", (9, 9)).save(work / "generator" / "samples.png")

    snapshot = seen(trainer, "running", "generator")
    assert snapshot.words == "generator, step 1,207 · loss 3.700 · about 3 min left"  # two, and the critic's one
    assert snapshot.stage == "generator" and snapshot.share == pytest.approx(1 - 3 / 10.5)
    assert snapshot.losses == (3.9, 3.8, 3.7)
    assert snapshot.warnings == ("beware",)
    assert snapshot.sheets == (("generator", work / "generator" / "samples.png"),)
    assert asked[0][3:] == [
        "train", str(trainer.folder.parent / "pictures"), "--out", str(trainer.folder / "mine"), "--preset", "cpu",
        "--minutes", "10.5", "--device", "auto", "--dtype", "auto",
    ]  # fmt: skip


def test_what_is_counted_besides_training_is_told_in_per_cent(trainer, pretend):
    pretend(NOTES + "note(stage='codes', activity='encoding', share=0.25); time.sleep(60)")
    trainer.start(request(trainer, minutes=10.5, preset="cpu"))
    snapshot = seen(trainer, "running", "encoding")
    assert (snapshot.words, snapshot.stage, snapshot.share) == ("encoding, 25 %", "codes", pytest.approx(3 / 10.5))


def test_a_training_of_before_there_was_a_status_is_shown_from_its_logs(trainer, pretend):
    pretend("import time; time.sleep(60)")
    trainer.start(request(trainer))
    work = trainer.folder / "mine.training"
    for stage in ("tokenizer", "generator"):
        (work / stage).mkdir()
        (work / stage / "log.jsonl").write_text('{"step": 50, "loss": 4}\n{"step": 99, "loss": 3, "warning": "oh"}\n')
    snapshot = seen(trainer, "running", "starting")
    assert (snapshot.stage, snapshot.losses, snapshot.warnings) == ("generator", (4.0, 3.0), ("oh",))


def test_the_status_of_an_earlier_training_is_not_taken_for_this_ones(trainer, pretend):
    pretend(DONE)
    trainer.start(request(trainer))
    seen(trainer, "done")
    pretend("import time; time.sleep(60)")
    trainer.start(request(trainer))
    assert seen(trainer, "running").words == "starting"


def test_it_is_stopped_and_goes_on_by_its_name_alone(trainer, pretend):
    asked = pretend(LEARNS)
    trainer.start(request(trainer))
    seen(trainer, "running", "generator")
    trainer.stop()
    assert seen(trainer, "stopped").words == "stopped: Start goes on from there"
    with pytest.raises(ValueError, match="nothing is being trained"):
        trainer.stop()
    trainer.start(TrainingRequest("mine", minutes=3))
    assert asked[1][4] == asked[0][4] and seen(trainer, "running").active


def test_closing_the_page_stops_it(trainer, pretend):
    pretend(LEARNS)
    trainer.start(request(trainer))
    seen(trainer, "running", "generator")
    trainer.close()
    assert trainer.snapshot().state == "stopped"
    assert "stopped at step 7" in (trainer.folder / "mine.training" / "printed.txt").read_text()
    trainer.close()


@pytest.mark.parametrize(
    "script, state, words",
    [
        (DONE, "done", "trained: mine"),
        (NOTES + "note(state='stopped')", "stopped", "Start goes on"),
        ("pass", "stopped", "Start goes on"),  # before there was a status
        (NOTES + "note(state='failed', message='no room'); sys.exit(4)", "failed", "no room"),
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
    trainer.start(request(trainer))
    snapshot = seen(trainer, state, words)
    assert not snapshot.active and (snapshot.share == 1.0) == (state == "done")


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
        trainer.start(request(trainer, **values))
    assert asked == [] and not trainer.folder.exists()


def test_a_folder_without_pictures_is_refused(trainer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="picture"):
        trainer.start(request(trainer, pictures=str(tmp_path / "empty")))


def test_a_second_training_waits_for_the_first(trainer, pretend):
    asked = pretend(LEARNS)
    trainer.start(request(trainer))
    with pytest.raises(ValueError, match="`mine` is being trained: stop it first, or wait"):
        trainer.start(request(trainer, name="other"))
    assert len(asked) == 1


def test_a_name_stays_with_its_pictures_once_something_was_learnt(trainer, pretend, tmp_path, draw_pictures):
    draw_pictures(tmp_path / "others", count=4, classes=())
    pretend(DONE)
    trainer.start(request(trainer, pictures=str(tmp_path / "others")))
    seen(trainer, "done")
    trainer.start(request(trainer))  # nothing was learnt of the others yet
    seen(trainer, "done")
    (trainer.folder / "mine.training" / "tokenizer").mkdir()
    trainer.start(request(trainer))
    seen(trainer, "done")
    with pytest.raises(ValueError, match="the name `mine` is taken by another model, or by other pictures"):
        trainer.start(request(trainer, pictures=str(tmp_path / "others")))
    (trainer.folder / "from-elsewhere").mkdir()
    with pytest.raises(ValueError, match="the name `from-elsewhere` is taken"):
        trainer.start(request(trainer, name="from-elsewhere"))


def test_a_folder_that_cannot_be_written_to_is_named(trainer, tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ValueError, match=r"models` cannot be written to \("):
        trainer.start(request(trainer))


def test_an_upload_is_kept_beside_the_model_and_unpacked_nowhere(trainer, pretend, tmp_path):
    asked = pretend(DONE)
    upload = tmp_path / "uploaded" / "my pictures.zip"
    upload.parent.mkdir()
    with zipfile.ZipFile(upload, "w") as archive:
        for name in ("../../outside.png", "a/1.png", "a/2.png"):
            archive.write(next((tmp_path / "pictures").iterdir()), name)
    trainer.start(request(trainer, pictures="", upload=str(upload)))
    seen(trainer, "done")
    kept = trainer.folder / "mine.training" / "upload" / "my pictures.zip"
    assert asked[0][4] == str(kept) and kept.read_bytes() == upload.read_bytes()
    assert not list(tmp_path.rglob("outside.png"))

    (trainer.folder / "mine.training" / "tokenizer").mkdir()
    upload.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is taken"):
        trainer.start(request(trainer, pictures="", upload=str(upload)))
    with pytest.raises(ValueError, match="`my pictures.zip` is damaged or cut off"):
        trainer.start(request(trainer, name="other", pictures="", upload=str(upload)))


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
    snapshot = Snapshot("running", "x", "<b>", "codes", 0.3, (2.0, 1.5), ("<i>careful",))
    shown = show_snapshot(snapshot)
    assert "<b>&" not in shown and "<b>:" not in shown and "&lt;b&gt;" in shown and "<i>" not in shown.split("width")[1]
    assert [shown.count(f'class="mk-{kind}">') for kind in ("done", "now")] == [2, 1]
    assert "Open x" in show_snapshot(Snapshot("done", "x", "trained: x"), "../x/")


def test_a_curve_keeps_its_ends_however_long_it_is():
    for count in (2, 119, 5000):
        drawn = curve([float(count - i) for i in range(count)], "loss")
        points = drawn.split('<polyline points="')[1].split('"')[0].split()
        assert len(points) <= 300 and points[0] == "0.00,4.00" and points[-1] == "100.00,36.00"
    assert "nan" not in curve([1.0, 1.0], "loss")
