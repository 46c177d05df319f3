"""Model directories: they exist whole or not at all, and a damaged one is refused with a sentence."""

import contextlib
import dataclasses
import json
import os
import pickle
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vqgan import files, writing
from vqgan.files import ModelError


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    width: int
    names: tuple[tuple[str, ...], ...] = ()


def _layer(seed: int = 0, width: int = 3) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(width, 2)


def _write(path: Path, seed: int = 0) -> Path:
    with writing.atomic_directory(path) as directory:
        files.write_module(directory, {"width": 3, "names": [["a", "b"]]}, _layer(seed))
    return path


def _read(path: Path) -> nn.Linear:
    """What every loader does: verify, then the config, then the weights."""
    files.verify(path)
    config = files.read_config(path, LayerConfig)
    return files.read_weights(path, nn.Linear(config.width, 2))


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    """Whatever a model directory holds, opening a pickle fails the test."""

    def forbidden(*_, **__):
        pytest.fail("a pickle was opened")

    for name in ("Unpickler", "load", "loads"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)


# ----------------------------------------------------------------------------- writing


def test_a_directory_comes_back_as_it_was_written(tmp_path):
    path = _write(tmp_path / "deep" / "model")
    assert torch.equal(_read(path).weight, _layer().weight)
    assert files.read_config(path, LayerConfig) == LayerConfig(3, (("a", "b"),))
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    assert _leftovers(path.parent) == []


def test_a_new_directory_replaces_an_old_one_of_maskimgs_own(tmp_path):
    path = _write(tmp_path / "model", seed=0)
    _write(path, seed=1)
    assert torch.equal(_read(path).weight, _layer(1).weight)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("old", [False, True])
def test_a_failed_write_leaves_the_old_directory_or_none(tmp_path, old):
    path = tmp_path / "model"
    if old:
        _write(path)
    with pytest.raises(ZeroDivisionError), writing.atomic_directory(path) as directory:
        (directory / "half.txt").write_text("only half of it")
        _ = 1 / 0
    assert path.exists() == old
    if old:
        assert torch.equal(_read(path).weight, _layer().weight)
    assert _leftovers(tmp_path) == []


def test_what_does_not_read_back_as_written_does_not_replace_the_old_one(tmp_path, monkeypatch):
    path = _write(tmp_path / "model")

    def sync_of_a_bad_disk(directory: Path) -> None:
        with (directory / files.WEIGHTS).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")

    monkeypatch.setattr(writing, "_sync", sync_of_a_bad_disk)
    with pytest.raises(ModelError, match="is damaged"):
        _write(path, seed=1)
    assert torch.equal(_read(path).weight, _layer().weight)
    assert _leftovers(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_directory_or_the_new_one(tmp_path, monkeypatch, failing):
    path = _write(tmp_path / "model")

    def fail(count: int) -> None:
        if count == failing:
            raise OSError(5, "Input/output error")

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, _counted(getattr(os, name), before=fail))
    with contextlib.suppress(OSError):
        _write(path, seed=1)
    monkeypatch.undo()
    assert _is_one_of_two(path)


def _counted(rename, *, before=None, after=None):
    """`rename`, which tells `before` and `after` how often it has been called."""
    count = 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        if before:
            before(count)
        rename(*args, **kwargs)
        if after:
            after(count)

    return counted


def _is_one_of_two(path: Path) -> bool:
    weight = _read(path).weight
    return any(torch.equal(weight, _layer(seed).weight) for seed in (0, 1))


def _killed_while_writing(path: Path, seconds: float) -> None:
    """A process that writes version after version to `path`, killed after `seconds`."""
    child = os.fork()
    if not child:
        try:
            for version in range(10**9):
                _write_version(path, version)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def _write_version(path: Path, version: int) -> None:
    with writing.atomic_directory(path) as directory:
        for name in ("a.txt", "b.txt", "c.txt"):
            (directory / name).write_text(f"{version}" * 500)


def test_a_writer_killed_at_any_moment_leaves_one_whole_directory(tmp_path):
    chance = random.Random(0)
    path = tmp_path / "model"
    _write_version(path, 0)
    for _ in range(15):
        _killed_while_writing(path, chance.uniform(0.002, 0.03))
        # Either where it belongs, or, after a kill between two renames, beside it.
        kept = path if path.exists() else path.with_name("model.old")
        files.verify(kept, everything=True)
        assert len({(kept / name).read_text() for name in ("a.txt", "b.txt", "c.txt")}) == 1
        if kept != path:
            kept.rename(path)


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_writer_killed_after_any_rename_leaves_the_old_directory_or_the_new_one(tmp_path, fatal):
    path = _write(tmp_path / "model")
    child = os.fork()
    if not child:
        try:
            for name in ("rename", "replace"):
                setattr(os, name, _counted(getattr(os, name), after=lambda count: _die(count == fatal)))
            _write(path, seed=1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert _is_one_of_two(path)


def _die(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def test_weights_can_be_stored_in_half_the_size(tmp_path):
    layer = _layer()
    files.write_module(tmp_path / "half", {"width": 3}, layer, torch.bfloat16)
    assert load_file(tmp_path / "half" / files.WEIGHTS)["weight"].dtype == torch.bfloat16
    again = files.read_weights(tmp_path / "half", nn.Linear(3, 2))
    assert again.weight.dtype == torch.float32
    assert torch.equal(again.weight, layer.weight.bfloat16().float())


# ----------------------------------------------------------------------------- what is refused


def _tensors(path: Path, change) -> None:
    """Rewrite the weights and a manifest that fits them: damage that no checksum can see."""
    tensors = load_file(path / files.WEIGHTS)
    change(tensors)
    save_file(tensors, path / files.WEIGHTS)
    files.write_manifest(path)


def _bytes(path: Path, data: bytes, *, listed: bool) -> None:
    (path / files.WEIGHTS).write_bytes(data)
    if listed:
        files.write_manifest(path)


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _config(path: Path, **changes) -> None:
    values = json.loads((path / "config.json").read_text()) | changes
    values = {key: value for key, value in values.items() if value is not None}
    (path / "config.json").write_text(json.dumps(values))
    files.write_manifest(path)


def _manifest(path: Path, text: str) -> None:
    (path / files.MANIFEST).write_text(text)


def _pickled(path: Path) -> bytes:
    return pickle.dumps({"weight": os.getcwd})


DAMAGE = {
    "no manifest": (lambda p: (p / files.MANIFEST).unlink(), "is not a finished maskimg model: it has no manifest"),
    "a manifest of nonsense": (lambda p: _manifest(p, "{nonsense"), "is not readable JSON"),
    "a binary manifest": (lambda p: (p / files.MANIFEST).write_bytes(b"\xff\xfe\x00"), "is not readable JSON"),
    "a manifest that is a list": (lambda p: _manifest(p, "[1]"), "is not a JSON object"),
    "a manifest without files": (lambda p: _manifest(p, "{}"), "is damaged"),
    "a manifest of numbers": (lambda p: _manifest(p, '{"files": {"config.json": 3}}'), "is damaged"),
    "a manifest that leaves": (lambda p: _manifest(p, '{"files": {"../x": {"size": 1}}}'), "is missing"),
    "no config": (lambda p: (p / "config.json").unlink(), "`.*config.json` is missing"),
    "no weights": (lambda p: (p / files.WEIGHTS).unlink(), "`.*model.safetensors` is missing"),
    "no weights, unlisted": (
        lambda p: ((p / files.WEIGHTS).unlink(), files.write_manifest(p)),
        "`.*model.safetensors` is missing",
    ),
    "empty weights": (lambda p: _bytes(p, b"", listed=False), "is incomplete"),
    "empty weights, listed": (lambda p: _bytes(p, b"", listed=True), "is not a readable safetensors file"),
    "a pickle": (lambda p: _bytes(p, _pickled(p), listed=False), "is incomplete"),
    "a pickle, listed": (lambda p: _bytes(p, _pickled(p), listed=True), "is not a readable safetensors file"),
    "a header of 2**64 - 1 bytes": (lambda p: _bytes(p, b"\xff" * 8 + b"{}", listed=True), "is not a readable"),
    "a longer file": (
        lambda p: (p / "config.json").write_bytes((p / "config.json").read_bytes() + b" "),
        "is incomplete",
    ),
    "one bit of the weights": (lambda p: _flip(p / files.WEIGHTS, -3), "is damaged"),
    "one bit of the config": (lambda p: _flip(p / "config.json", 5), "is damaged"),
    "one bit of a checksum": (
        lambda p: _manifest(p, re.sub(r'sha256": "(.)', r'sha256": "x', (p / files.MANIFEST).read_text())),
        "is damaged",
    ),
    "an extra tensor": (lambda p: _tensors(p, lambda t: t.update(more=torch.ones(1))), "`more` is not expected"),
    "a tensor too few": (lambda p: _tensors(p, lambda t: t.pop("bias")), "`bias` is missing"),
    "a tensor of another shape": (
        lambda p: _tensors(p, lambda t: t.update(weight=torch.ones(2, 4))),
        r"`weight` is \(2, 4\), expected \(2, 3\)",
    ),
    "NaN": (lambda p: _tensors(p, lambda t: t["bias"].fill_(torch.nan)), "not finite in `bias`"),
    "infinity": (lambda p: _tensors(p, lambda t: t["weight"].fill_(-torch.inf)), "not finite in `weight`"),
    "an unknown key": (lambda p: _config(p, colour=3), "holds the unknown key `colour`: upgrade maskimg"),
    "a key too few": (lambda p: _config(p, width=None), "width"),
    "a config of another kind": (lambda p: ((p / "config.json").write_text("3"), files.write_manifest(p)), "JSON obj"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused_with_a_sentence(tmp_path, name):
    damage, reason = DAMAGE[name]
    path = _write(tmp_path / "model")
    damage(path)
    with pytest.raises(ModelError, match=reason) as caught:
        _read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listed", [False, True])
def test_weights_cut_off_anywhere_are_refused(tmp_path, listed):
    path = _write(tmp_path / "model")
    whole = (path / files.WEIGHTS).read_bytes()
    for length in (1, 7, 8, 9, 60, len(whole) // 2, len(whole) - 1):
        _bytes(path, whole[:length], listed=listed)
        with pytest.raises(ModelError, match="is not a readable safetensors file" if listed else "is incomplete"):
            _read(path)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        with pytest.raises(ModelError, match="there is no model directory"):
            files.verify(tmp_path / name)


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./nowhere", "a/b/c", "../x"])
def test_a_name_that_is_no_repository_is_not_looked_for_on_the_network(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=f"there is no model directory `{name}`"):
        files.locate(name)


def test_a_directory_on_disk_is_found(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert files.locate("owner/name") == Path("owner/name")


def test_a_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.checksum(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
