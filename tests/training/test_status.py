"""status.json: what a training tells of itself while it runs, and how it ended."""

import json

import pytest
import torch
from torch import nn

from maskimg.training.loop.errors import Stopped, TrainingError
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.tracking import status as telling
from maskimg.training.tracking.status import Status, StatusFile, read_status, without_repetitions


def _read(path) -> Status:
    status = read_status(path)
    assert status is not None
    return status


@pytest.fixture
def at_once(monkeypatch):
    """Every change is written."""
    monkeypatch.setattr(telling, "SECONDS", 0.0)


def test_a_run_tells_stage_step_share_rate_time_left_and_figures(tmp_path, at_once):
    run = Run(tmp_path, Budget(steps=100), stage="toy", identity={})
    run.restore(model=nn.Linear(1, 1))
    for step, _ in run.steps():
        run.log(loss=torch.tensor(2.0))
        if step == 60:
            run.warn("mind the gap")
        if step == 61:
            seen = _read(tmp_path / "status.json")
    assert (seen.state, seen.stage, seen.activity) == ("running", "toy", "toy")
    assert (seen.step, seen.steps, seen.of_minutes, seen.share) == (61, 100, None, 0.61)
    assert seen.rate is not None and seen.rate > 0 and seen.seconds_left is not None and seen.seconds_left > 0
    assert seen.rate * seen.seconds_left == pytest.approx(39)
    assert (seen.figures, seen.warnings) == ({"loss": 2.0}, ("mind the gap",))
    assert (_read(tmp_path / "status.json").step, _read(tmp_path / "status.json").share) == (100, 1.0)


def test_a_run_of_minutes_tells_of_how_many(tmp_path, at_once):
    run = Run(tmp_path, Budget(minutes=0.1 / 60), stage="toy", identity={})
    run.restore(model=nn.Linear(1, 1))
    for _ in run.steps():
        seen = _read(tmp_path / "status.json")
    assert seen.steps is None and seen.of_minutes == 0.1 / 60
    assert seen.minutes == pytest.approx(seen.share * 0.1 / 60, abs=2e-3)


def test_it_is_written_once_a_second_and_at_each_change_of_stage_or_state(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: clock[0])
    file = StatusFile(tmp_path / "status.json")
    for seconds, changes, share in (
        (0.0, {"stage": "codes", "share": 0.1}, 0.1),
        (0.5, {"share": 0.2}, 0.1),
        (0.9, {"share": 0.3}, 0.1),
        (1.0, {"share": 0.4}, 0.4),
        (1.1, {"share": 0.5, "activity": "encoding"}, 0.5),
        (1.2, {"share": 0.6, "state": "failed"}, 0.6),
    ):
        clock[0] = 100.0 + seconds
        file.note(**changes)
        assert _read(tmp_path / "status.json").share == share


@pytest.mark.parametrize(
    "content", ["mine", "[1]", '{"status": "ok"}', '{"format": 1, "state": "mine"}', '{"format": 1, "state": "done"}']
)
def test_another_programs_status_is_left_alone(tmp_path, content, at_once):
    with Session().working_in(tmp_path / "work"):  # which shows that it is a directory of working files
        pass
    path = tmp_path / "work" / "status.json"
    path.write_text(content)
    with Session().working_in(tmp_path / "work") as session:
        run = Run(tmp_path / "work" / "toy", Budget(steps=1), stage="toy", identity={}, session=session)
        run.restore(model=nn.Linear(1, 1))
        assert [step for step, _ in run.steps()] == [0]
    assert path.read_text() == content and read_status(path) is None


def test_a_full_disk_stops_no_training(tmp_path, monkeypatch, at_once):
    def full(path):
        raise OSError(28, "no space left")

    monkeypatch.setattr(telling, "atomic_file", full)
    run = Run(tmp_path, Budget(steps=3), stage="toy", identity={})
    run.restore(model=nn.Linear(1, 1))
    assert [step for step, _ in run.steps()] == [0, 1, 2]
    assert run.finished and not (tmp_path / "status.json").exists()


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "done", ""),
        (Stopped("stopped at step 7"), "stopped", "stopped at step 7"),
        (KeyboardInterrupt(), "stopped", ""),
        (TrainingError("the rate is too high"), "failed", "the rate is too high"),
        (ValueError("there are no pictures"), "failed", "there are no pictures"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "failed",
            "there is not enough memory: ask for fewer or smaller",
        ),
        (KeyError("a fault of our own"), "failed", ""),
    ],
)
def test_how_a_training_ended_is_told(tmp_path, error, state, message):
    try:
        with Session().working_in(tmp_path / "work") as session:
            assert _read(tmp_path / "work" / "status.json").state == "running"
            assert session.status is not None
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    status = _read(tmp_path / "work" / "status.json")
    assert status.state == state and status.message.startswith(message) and bool(status.message) == bool(message)


def test_stages_of_a_session_share_one_status_and_warnings_outlive_a_stop(tmp_path, at_once):
    for name in ("tokenizer", "generator"):
        with Session().working_in(tmp_path) as session:
            run = Run(tmp_path / name, Budget(steps=2), stage=name, identity={}, session=session)
            run.restore(model=nn.Linear(1, 1))
            for _ in run.steps():
                run.warn(f"{name} at 0.1: beware")
    status = _read(tmp_path / "status.json")
    assert (status.state, status.stage) == ("done", "generator")
    assert status.warnings == ("tokenizer at 0.1: beware", "generator at 0.1: beware")
    assert [path.name for path in tmp_path.rglob("status.json")] == ["status.json"]


def test_what_is_counted_is_told_too_and_still_shown(tmp_path, at_once):
    shown = []

    def progress(items, *, total, desc, **options):
        shown.append((total, desc, options))
        return items

    with Session(progress=progress).working_in(tmp_path / "work") as session:
        count = session.counted("pictures")
        assert count is not None
        told = []
        for item in count((i for i in range(4)), total=4, desc="reading pictures", unit="p"):
            told.append((item, _read(tmp_path / "work" / "status.json").share))
        assert list(count(range(3), desc="reading pictures")) == [0, 1, 2]
        status = _read(tmp_path / "work" / "status.json")
    assert told == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert (status.stage, status.activity, status.share) == ("pictures", "reading pictures", 1.0)
    assert shown == [(4, "reading pictures", {"unit": "p"}), (3, "reading pictures", {})]
    assert Session(progress=progress).counted("pictures") is progress and Session().counted("codes") is None


def test_only_the_first_process_writes(tmp_path, at_once):
    file = StatusFile(tmp_path / "status.json", active=False)
    file.note(stage="codes")
    file.write()
    assert not file.due and list(tmp_path.iterdir()) == []


def test_it_is_small_json_that_names_its_format(tmp_path, at_once):
    file = StatusFile(tmp_path / "status.json")
    for number in range(100):
        file.warn(f"warning {chr(97 + number % 26)}{'x' * (number // 26)}: {number}")
    found = json.loads((tmp_path / "status.json").read_text())
    assert found["format"] == 1 and len(found["warnings"]) == telling.MOST_WARNINGS
    assert (tmp_path / "status.json").stat().st_size < 4000


def test_of_warnings_that_differ_in_their_numbers_the_last_is_kept():
    warnings = ["rate 0.1 is high: try 0.03", "flat", "rate 0.2 is high: try 0.07"]
    assert without_repetitions(warnings) == ["rate 0.2 is high: try 0.07", "flat"]
