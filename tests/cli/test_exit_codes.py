"""What a training tells a script: 0 done or stopped as asked, 2 bad input, 3 it cannot go on, 4 the disk is full."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import stirred, stopped_at, tiny_pictures
from safetensors import SafetensorError
from tiny import TOKENIZER

from maskimg.cli.main import main
from maskimg.data.codes import encode_pictures
from maskimg.training.loop import checkpoints
from vqgan import Tokenizer, writing

TINY = [
    "--device=cpu", "--dtype=fp32", "--preset=cpu", "--generator.dim=32", "--generator.depth=1", "--generator.heads=2",
    "--generator.critic_depth=0", "--generator_budget.minutes=null", "--recipe.steps=2",
]  # fmt: skip


@pytest.fixture
def data(tmp_path) -> Path:
    """A tokenizer, the codes of twelve pictures, and those of twenty others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = stirred(Tokenizer(TOKENIZER), size=0.05).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encode_pictures(tokenizer, tiny_pictures(12), tmp_path / "codes")
    others = dataclasses.replace(tiny_pictures(15, held_out=3), fingerprint="others")
    encode_pictures(tokenizer, others, tmp_path / "others")
    return tmp_path


def trained(data: Path, steps: int, *options: str, codes: str = "codes") -> int:
    """The exit code of `maskimg train-generator`."""
    command = ["train-generator", str(data / codes), str(data / "tokenizer"), "--out", str(data / "model")]
    names = {option.partition("=")[0] for option in options}
    command += [option for option in TINY if option.partition("=")[0] not in names]
    try:
        return main([*command, f"--generator_budget.steps={steps}", *options])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_training_that_is_done_leaves_with_0(data):
    assert trained(data, 2) == 0
    assert (data / "model" / "manifest.json").is_file()


def test_a_training_that_is_stopped_leaves_with_0_and_no_model(data, capsys):
    with stopped_at(1):
        assert trained(data, 9) == 0
    assert "stopped at step 2 of the generator; run the same command again" in capsys.readouterr().out
    assert not (data / "model").exists()


def test_bad_input_leaves_with_2(data, capsys):
    assert trained(data, 2, codes="nowhere") == 2
    assert "there is no model directory" in last_line(capsys)


def test_numbers_that_stay_infinite_leave_with_3(data, capsys):
    assert trained(data, 40, "--generator_training.learning_rate=1e30") == 3
    assert "was not finite in 11 of the last 100 steps" in last_line(capsys)


@pytest.mark.parametrize("told", ["by the system", "by safetensors"])
def test_a_full_disk_leaves_with_4_and_with_room_the_training_goes_on(told, data, capsys, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    if told == "by safetensors":
        full = SafetensorError("I/O error: No space left on device (os error 28)")

    def save(tensors, path):
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save_file", save)
        assert trained(data, 2) == 4
    assert "could not be written" in (said := last_line(capsys))
    assert "make room or repair the disk, then run the same command again" in said
    assert trained(data, 2) == 0


def test_a_disk_that_is_full_while_pictures_are_read_or_encoded_leaves_with_4(data, capsys, monkeypatch, draw_pictures):
    draw_pictures(data / "pictures", count=6)
    command = ["encode", str(data / "pictures"), str(data / "tokenizer"), "--size=16", f"--out={data / 'new'}"]

    for name in ("pixels.u8", "codes.uint8"):
        take_room = writing.take_room

        def full(path, size, name=name, take_room=take_room):
            if path.name == name:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            take_room(path, size)

        with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
            patched.setattr(writing, "take_room", full)
            main(command)
        assert end.value.code == 4
        said = last_line(capsys)
        assert said.startswith("maskimg: the disk is full (") and f"{name}'" in said
        assert said.endswith("make room, then run the same command again")
        assert not (data / "new").exists()
    assert main(command) == 0


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system does not take room beforehand")
def test_room_for_what_is_mapped_is_taken_before_it_is_written(tmp_path):
    """Written to a map without it, a full disk ends the process with SIGBUS."""
    writing.take_room(tmp_path / "file", 10_000)
    about = (tmp_path / "file").stat()
    assert about.st_size == 10_000 <= 512 * about.st_blocks


def test_other_pictures_are_refused_with_2_and_which_count_has_changed(data, capsys):
    trained(data, 2)
    assert trained(data, 4, codes="others") == 2
    said = last_line(capsys)
    assert "run of other pictures, with data.held_out 2, now 3, data.pictures 12, now 15, data.fingerprint" in said
    assert "--allow-data-change to go on with these" in said


def test_other_pictures_are_gone_on_with_where_that_is_allowed_and_that_is_said(data, capsys):
    trained(data, 2)
    assert trained(data, 4, "--allow-data-change", codes="others") == 0
    said = "going on with other pictures, as was asked: data.held_out 2, now 3, data.pictures 12, now 15"
    assert f"warning at step 2: {said}" in capsys.readouterr().err
    log = (data / "model.training" / "generator" / "log.jsonl").read_text().splitlines()
    warnings = [line for line in map(json.loads, log) if "warning" in line]
    (warning,) = [line for line in warnings if "hardly learnt" not in line["warning"]]
    assert warning["step"] == 2 and warning["warning"].startswith(said)

    # From here on, these are its pictures; also where there was nothing left to train.
    assert trained(data, 6, codes="others") == 0
    assert trained(data, 6) == 2
    assert trained(data, 6, "--allow-data-change") == 0
    assert trained(data, 6) == 0


def test_other_settings_are_refused_even_so(data, capsys):
    trained(data, 2)
    assert trained(data, 4, "--allow-data-change", "--generator.depth=2", codes="others") == 2
    assert "run with generator.depth 1, now 2: use the same settings" in last_line(capsys)


def test_a_disk_that_safetensors_finds_full_is_said_to_be_full_wherever_weights_are_written(data, capsys, monkeypatch):
    """Its error is no OSError: at the end of a training, for one, it was a traceback."""

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vqgan.files.save_file", full)
    monkeypatch.setattr("vqgan.interop.convert.is_foreign", lambda _: False)
    with pytest.raises(SystemExit) as end:
        main(["convert", str(data / "tokenizer"), "--out", str(data / "again")])
    assert end.value.code == 4
    assert last_line(capsys).startswith("maskimg: the disk is full (")
    assert not (data / "again").exists()
