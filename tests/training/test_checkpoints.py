"""Checkpoints are whole or not there, whatever happens while they are written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from maskimg.data.codes import CodeCache
from maskimg.networks.transformer import TransformerConfig
from maskimg.training.generator import train_generator
from maskimg.training.loop import checkpoints
from maskimg.training.loop.alone import only_trainer
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.checkpoints import Checkpoints, fill, read_state, tensors_of
from maskimg.training.loop.errors import TrainingError
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.settings import GeneratorTraining
from vqgan import files
from vqgan.files import ModelError

WRITERS = int(os.environ.get("MASKIMG_WRITERS", "20"))  # 200 for a thorough look
NAMES = ("model", "ema", "optimizer")
SUPPORT = Path(__file__).parents[1] / "support"
OLD = SUPPORT / "data" / "run-format-1"


def _write(directory: Path, step: int, **options) -> Checkpoints:
    kept = Checkpoints(directory)
    parts = {name: {"weight": torch.full((8,), float(step))} for name in NAMES}
    kept.write(step, parts, {"seconds": 1.0, "identity": {}}, **options)
    return kept


def _steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ----------------------------------------------------------------------------- killed and failing writers


def test_writers_killed_at_any_moment_leave_the_old_checkpoint_or_the_new_one(tmp_path):
    command = [sys.executable, str(SUPPORT / "writers.py"), str(tmp_path), str(WRITERS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (last,) = done.stdout.splitlines()
    assert int(last.split()[3]) > 1  # they did get to write


def _no_room(monkeypatch, number):
    """The disk is full in the middle of the `number`-th file."""
    count = iter(range(99))

    def full(tensors, path):
        if next(count) != number:
            return save_file(tensors, path)
        Path(path).write_bytes(b"half")
        raise SafetensorError(f"I/O error: No space left on device (os error 28) while writing {path}")

    monkeypatch.setattr(checkpoints, "save_file", full)


def _no_room_for_json(monkeypatch, name):
    write_json = files.write_json

    def full(path, value):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_json(path, value)

    monkeypatch.setattr(files, "write_json", full)


def _bad_sync(monkeypatch, number):
    sync, count = os.fsync, iter(range(99))

    def failing(descriptor):
        if next(count) == number:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def _no_rename(monkeypatch, number):
    def refused(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", refused)


def _flipped_bit(monkeypatch, number):
    """The `number`-th file holds another bit than was written."""
    count = iter(range(99))

    def flipping(tensors, path):
        save_file(tensors, path)
        if next(count) == number:
            data = bytearray(Path(path).read_bytes())
            data[-1] ^= 1
            Path(path).write_bytes(data)

    monkeypatch.setattr(checkpoints, "save_file", flipping)


FAULTS = [
    *((_no_room, number, f"{NAMES[number]}.safetensors") for number in range(3)),
    (_no_room_for_json, "state.json", "state.json"),
    (_no_room_for_json, "manifest.json", "manifest.json"),
    *((_bad_sync, number, "step-000000002") for number in range(6)),
    (_no_rename, 0, "step-000000002"),
    *((_flipped_bit, number, f"{NAMES[number]}.safetensors") for number in range(3)),
]


@pytest.mark.parametrize(("fault", "number", "named"), FAULTS)
def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_names_the_file(
    fault, number, named, tmp_path, monkeypatch
):
    kept = _write(tmp_path, 1)
    with monkeypatch.context() as patched:
        fault(patched, number)
        with pytest.raises(TrainingError, match=f"could not be written .*{named}.*; the one before it is kept") as info:
            _write(tmp_path, 2, keep=1)
    assert "\n" not in str(info.value)
    assert kept.newest() == tmp_path / "step-000000001"
    assert _steps(tmp_path) == ["step-000000001"]  # and nothing half done beside it
    _write(tmp_path, 2, keep=1)
    assert _steps(tmp_path) == ["step-000000002"]


@pytest.mark.parametrize("name", [*(f"{name}.safetensors" for name in NAMES), "state.json", "manifest.json"])
def test_a_bit_that_flips_later_makes_the_one_before_the_newest(name, tmp_path, capsys):
    _write(tmp_path, 1)
    kept = _write(tmp_path, 2)
    path = tmp_path / "step-000000002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(data)
    assert kept.newest() == tmp_path / "step-000000001"
    assert f"step-000000002/{name}`" in capsys.readouterr().err


def test_the_newest_are_kept_and_older_ones_dropped(tmp_path):
    for step in (5, 50, 500, 5000):
        _write(tmp_path, step, keep=3)
    assert _steps(tmp_path) == ["step-000000050", "step-000000500", "step-000005000"]


def test_a_failing_disk_on_the_way_is_a_warning_and_at_the_end_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("maskimg.training.loop.run.CHECKPOINT_SECONDS", 0.0)
    run = Run(tmp_path / "run", Budget(steps=3), stage="toy", identity={})
    run.restore(model=nn.Linear(2, 2))
    seen = []
    with monkeypatch.context() as patched, pytest.raises(TrainingError, match="step-000000003` could not be written"):
        _no_rename(patched, 0)
        seen.extend(run.steps())
    assert len(seen) == 3
    assert capsys.readouterr().err.count("training continues, and it is tried again in a minute") == 2


# ----------------------------------------------------------------------------- two at a time


def test_a_second_trainer_in_a_folder_is_refused_and_told_who_is_there(tmp_path):
    run = Run(tmp_path, Budget(steps=1), stage="toy", identity={})
    with only_trainer(tmp_path), pytest.raises(TrainingError, match=f"being trained in by process {os.getpid()} on"):
        next(run.steps())
    assert len(list(run.steps())) == 1  # the lock is free again


def test_the_lock_of_a_killed_trainer_does_not_outlive_it(tmp_path):
    script = (
        "import os, sys, pathlib; from maskimg.training.loop.alone import only_trainer\n"
        "with only_trainer(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == -9
    assert (tmp_path / "lock").read_text().startswith("process ")
    with only_trainer(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


# ----------------------------------------------------------------------------- what does not fit


def _trained() -> tuple[nn.Module, torch.optim.Optimizer, Ema]:
    model = nn.Linear(3, 2)
    optimizer, ema = torch.optim.AdamW(model.parameters()), Ema(model, 0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer, ema


def test_everything_comes_back_as_it_was(tmp_path):
    parts, others = _trained(), _trained()
    for part, other in zip(parts, others, strict=True):
        save_file(tensors_of(part), tmp_path / "part.safetensors")
        fill(other, tmp_path / "part.safetensors")
        ours, theirs = tensors_of(part), tensors_of(other)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("number", range(3))
def test_a_part_with_a_tensor_missing_is_an_error_that_names_it(number, tmp_path):
    part = _trained()[number]
    tensors = tensors_of(part)
    name = sorted(tensors)[0]
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=f"does not fit this run: `{name}` is missing"):
        fill(part, tmp_path / "part.safetensors")


def test_a_part_that_is_missing_or_of_another_shape_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="part.safetensors` is missing, so the run cannot be continued exactly"):
        fill(nn.Linear(1, 1), tmp_path / "part.safetensors")
    save_file(tensors_of(nn.Linear(2, 1)), tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"holds `weight` of \(1, 2\), expected \(1, 3\)"):
        fill(nn.Linear(3, 1), tmp_path / "part.safetensors")


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    files.write_json(tmp_path / "state.json", {"format": 99})
    with pytest.raises(ModelError, match="has the format 99, a newer maskimg's: upgrade maskimg"):
        read_state(tmp_path)
    files.write_json(tmp_path / "state.json", {"format": 2, "step": 1, "seconds": 1.0})
    with pytest.raises(ModelError, match="holds no `identity`"):
        read_state(tmp_path)


# ----------------------------------------------------------------------------- earlier versions


def _eight_grids(seed: int = 0) -> CodeCache:
    codes = torch.randint(0, 8, (1, 8, 2, 2), generator=torch.Generator().manual_seed(seed))
    names, held_out = [str(i) for i in range(8)], torch.arange(8) >= 7
    return CodeCache(codes, torch.zeros(8, 0, dtype=torch.int64), {}, held_out, names, 8, "eight grids")


def _continue_old(directory: Path, cache: CodeCache, **changes) -> Run:
    shutil.copytree(OLD, directory)
    training = GeneratorTraining(**{"batch_size": 4, **changes})
    config = TransformerConfig(8, (2, 2), dim=8, depth=1, heads=2)
    return train_generator(cache, config, training, Budget(steps=6), directory, session=Session("cpu", "fp32"))[1]


def test_a_run_that_an_earlier_version_began_is_continued(tmp_path):
    """Its identity names no option that came later, and its data only by fingerprint."""
    run = _continue_old(tmp_path / "run", _eight_grids())
    assert (run.step, run.samples, run.finished) == (6, 24, True)
    state = read_state(run.directory / "checkpoints" / "step-000000006")
    assert (state["format"], state["samples"]) == (2, 24)


def test_of_a_run_of_an_earlier_version_other_settings_and_data_are_refused_too(tmp_path):
    with pytest.raises(ModelError, match=r"training\.learning_rate 0\.002, now 0\.1"):
        _continue_old(tmp_path / "rate", _eight_grids(), learning_rate=0.1)
    other = _eight_grids()
    object.__setattr__(other, "fingerprint", "nine grids")
    with pytest.raises(ModelError, match=r"data\.fingerprint eight grids, now nine grids"):
        _continue_old(tmp_path / "data", other)
