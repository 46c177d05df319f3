"""TensorBoard, trackio and wandb: told the same through one face, and never in the way of a training."""

import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from maskimg.cli.main import main
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.tracking.trackers import TrackerError, check_tracker, open_tracker


class Told(list):
    """Every call of a fake module, as (name, arguments, options)."""

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.append((name, arguments, options))
            return self

        return call

    def of(self, name: str) -> list[tuple]:
        return [(arguments, options) for called, arguments, options in self if called == name]


@pytest.fixture
def fakes(monkeypatch) -> dict[str, Told]:
    """The three modules, none of which has to be installed."""
    told = {name: Told() for name in ("tensorboard", "trackio", "wandb")}
    for name in ("trackio", "wandb"):
        module = SimpleNamespace(init=told[name].init, Image=lambda path: f"image of {path}")
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    writer = SimpleNamespace(SummaryWriter=told["tensorboard"].SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    return told


def _train(directory, track: str | None, steps: int = 100) -> Run:
    run = Run(directory, Budget(steps=steps), stage="toy", identity={"rate": 0.1}, session=Session(track=track))
    run.restore()
    for step, _ in run.steps():
        run.log(loss=float(step))
        if step == 60:
            run.warn("mind the gap")
            Image.new("RGB", (4, 6), (255, 0, 0)).save(run.directory / "samples.png")
            run.picture("samples.png")
            run.picture("none.png")  # was not drawn
    run.write_log(held_out_loss=float("nan"))
    run.close()
    return run


def test_tensorboard_is_told_figures_and_pictures(tmp_path, fakes):
    _train(tmp_path / "m.training" / "toy", "tensorboard")
    told = fakes["tensorboard"]
    assert told.of("SummaryWriter") == [((), {"log_dir": str(tmp_path / "m.training" / "toy" / "tensorboard")})]
    losses = [arguments for arguments, _ in told.of("add_scalar") if arguments[0] == "loss"]
    assert losses == [("loss", 24.5, 49), ("loss", 55.0, 60), ("loss", 80.0, 99)]
    (((name, pixels, step), options),) = told.of("add_image")
    assert (name, pixels.shape, step, options) == ("samples", (6, 4, 3), 60, {"dataformats": "HWC"})
    assert len(told.of("close")) == 1
    # What is no number, or not finite, is not told.
    assert {arguments[0] for arguments, _ in told.of("add_scalar")} == {"loss", "seconds"}


def test_trackio_is_told_figures_and_pictures(tmp_path, fakes):
    _train(tmp_path / "m.training" / "toy", "trackio")
    told = fakes["trackio"]
    ((_, start),) = told.of("init")
    assert (start["project"], start["resume"], start["config"]) == ("m", "allow", {"rate": 0.1})
    assert start["name"].startswith("toy-")
    logged = [(values, options["step"]) for (values,), options in told.of("log")]
    assert [step for values, step in logged if "loss" in values] == [49, 60, 99]
    path = tmp_path / "m.training" / "toy" / "samples.png"
    assert ({"samples": f"image of {path}"}, 60) in logged
    assert len(told.of("finish")) == 1


def test_wandb_is_told_figures_and_pictures(tmp_path, fakes):
    _train(tmp_path / "m.training" / "toy", "wandb")
    told = fakes["wandb"]
    ((_, start),) = told.of("init")
    assert (start["project"], start["resume"], start["dir"]) == ("m", "allow", str(tmp_path / "m.training" / "toy"))
    assert start["id"] == start["name"]
    logged = [values for (values,), _ in told.of("log")]
    assert [values["training_step"] for values in logged if "loss" in values] == [49, 60, 99]
    assert [values["training_step"] for values in logged if "samples" in values] == [60]
    assert len(told.of("finish")) == 1


@pytest.mark.parametrize("track", ["trackio", "wandb"])
def test_a_run_that_is_continued_goes_on_under_its_name(tmp_path, fakes, track):
    _train(tmp_path / "run", track, steps=50)
    _train(tmp_path / "run", track, steps=100)
    _train(tmp_path / "other", track, steps=50)
    names = [options["name"] for _, options in fakes[track].of("init")]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("track", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_fails_is_dropped_with_one_warning(tmp_path, fakes, monkeypatch, capsys, track):
    method = {"tensorboard": "add_scalar"}.get(track, "log")

    def fail(*_, **__):
        raise RuntimeError("the network is gone")

    monkeypatch.setattr(Told, method, fail, raising=False)
    run = _train(tmp_path / "run", track)
    assert run.finished
    error = capsys.readouterr().err
    assert error.count(f"warning: {track} has failed and is told no more (the network is gone)") == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [49, 60, 99, 100]  # our own log has all


@pytest.mark.parametrize(("track", "extra"), [("tensorboard", "tb"), ("trackio", "track"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(tmp_path, monkeypatch, capsys, track, extra):
    monkeypatch.setitem(sys.modules, track, None)  # how Python marks a module that cannot be imported
    with pytest.raises(SystemExit) as exit:
        main(["train", str(tmp_path), "--out", str(tmp_path / "model"), "--track", track])
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"maskimg: {track} is not installed: `pip install 'maskimg[{extra}]'`\n"
    assert list(tmp_path.iterdir()) == []


def test_other_trackers_are_refused_and_none_is_fine():
    with pytest.raises(TrackerError, match="--track must be tensorboard, trackio, wandb, got `mlflow`"):
        check_tracker("mlflow")
    check_tracker(None)


def test_a_tracker_that_cannot_be_started_is_refused_before_training(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(TrackerError, match=r"wandb cannot be started \(no key\): set it up, or leave --track out"):
        open_tracker("wandb", tmp_path / "run", "toy", {})


def test_the_real_tensorboard_reads_back_what_it_was_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(49, 24.5), (60, 55.0), (99, 80.0)]
    (picture,) = events.Images("samples")
    assert (picture.width, picture.height, picture.step) == (4, 6, 60)


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path, capsys):
    (tmp_path / "run" / "log.jsonl").mkdir(parents=True)  # opening it for writing fails, as on a full disk
    run = _train(tmp_path / "run", None)
    assert run.finished
    assert capsys.readouterr().err.count("a log or sheet could not be written") == 1
