"""Several processes train the model that one trains: the same losses, step by step, and one clean stop for all."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from together import encode, train

from maskimg import distributed
from maskimg.cli.main import main
from maskimg.training.loop import run

STEPS = {"generator": 50, "sharded": 50, "scarce": 12, "tokenizer": 12, "critic": 12}
SIGNALS = int(os.environ.get("MASKIMG_SIGNALS", "2"))  # 100 for a thorough look
HERE = Path(__file__).parents[1] / "support"


def started(arguments: list[str], **options) -> subprocess.Popen:
    """Two processes and their launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True, **options,
    )  # fmt: skip


def by_two(directory: Path, **steps: int | str) -> str:
    jobs = [f"{stage}:{count}" for stage, count in steps.items()]
    process = started([str(HERE / "together.py"), str(directory), *jobs])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def losses(directory: Path) -> dict[int, float]:
    """Step -> loss; the last line of each step, for a run that was continued."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    newest = max((directory / "checkpoints").glob("step-*"))
    return {f"{p.stem}.{name}": t for p in newest.glob("*.safetensors") for name, t in load_file(p).items()}


@pytest.fixture(scope="module", autouse=True)
def log_every_step():
    yield
    run.LOG_EVERY = 50


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """All stages by two processes, and ten steps of another run."""
    directory = tmp_path_factory.mktemp("pair")
    out = by_two(directory, **STEPS)
    assert out.splitlines() == [f"{stage}: {count} steps" for stage, count in STEPS.items()]  # said once
    by_two(directory / "changing", generator="30:10", encode=0)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("stage", STEPS)
def test_two_processes_have_the_losses_of_one(stage, pair, tmp_path):
    """In fp32, at the same batch, which has an odd number of grids; less than 1e-5 apart."""
    train(stage, tmp_path / stage, STEPS[stage])
    one, two = losses(tmp_path / stage), losses(pair / stage)
    assert one.keys() == two.keys() == set(range(STEPS[stage]))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    assert one[0] != one[STEPS[stage] - 1]
    ours, theirs = tensors(tmp_path / stage), tensors(pair / stage)
    assert ours.keys() == theirs.keys()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


def test_when_one_process_runs_out_of_memory_all_split_the_batch_and_learn_the_same(pair):
    """That its losses are those of one process with enough memory, the test above says."""
    lines = [json.loads(line) for line in (pair / "scarce" / "log.jsonl").read_text().splitlines()]
    warnings = [line for line in lines if "warning" in line]
    (warning,) = [line for line in warnings if "hardly learnt" not in line["warning"]]
    assert warning["step"] == 3
    assert warning["warning"] == (
        "4 samples at a time do not fit into a process's memory: going on with 2 at a time in 2 parts a step, which "
        "leaves the batch at 7; a batch_size of 4, or accumulation 2, would have fitted"
    )
    assert len({(pair / "scarce" / f"stopped-{rank}").read_text() for rank in range(2)}) == 1


def test_a_run_goes_on_with_another_number_of_processes(pair, tmp_path):
    """Two, one and two again see the samples that one sees: their losses are its own."""
    changing = pair / "changing"
    assert train("generator", changing / "generator", 30, stop=20).step == 20
    by_two(changing, generator=30)
    train("generator", tmp_path, 30)
    one, several = losses(tmp_path), losses(changing / "generator")
    assert one.keys() == several.keys() == set(range(30))
    assert max(abs(one[step] - several[step]) for step in one) < 1e-5


def test_a_sharded_run_goes_on_in_one_piece(pair, tmp_path):
    """Its checkpoints are whole: nothing in them tells how many processes there were."""
    newest = train("sharded", pair / "sharded", STEPS["sharded"] + 2)
    assert newest.step == STEPS["sharded"] + 2


def test_two_processes_share_the_encoding_and_write_what_one_writes(pair, tmp_path):
    encode(tmp_path)
    shared = pair / "changing" / "encode"
    assert contents(shared / "codes") == contents(tmp_path / "codes")
    sizes = [json.loads((shared / f"encoded-{rank}").read_text()) for rank in range(2)]
    assert sizes == [[5, 5, 2, 2], [5, 5]]  # two versions of each batch


@pytest.mark.parametrize("number", range(SIGNALS))
def test_a_signal_to_anyone_stops_all_at_the_same_step(number, tmp_path):
    chance = random.Random(number)
    receiver = ("process 1", "launcher", "process 0")[number % 3]
    # torchrun itself knows nothing of SIGUSR1.
    sent = chance.choice([signal.SIGTERM, signal.SIGINT] + [signal.SIGUSR1] * (receiver != "launcher"))
    process = started([str(HERE / "together.py"), str(tmp_path), "generator:1000000"])
    folder = tmp_path / "generator"
    wait_for(lambda: (folder / "log.jsonl").exists() and len(losses(folder)) > 2, process)
    time.sleep(chance.uniform(0, 1))
    children = [int((folder / f"process-{rank}").read_text()) for rank in range(2)]
    begun = time.monotonic()
    os.kill(process.pid if receiver == "launcher" else children[int(receiver[-1])], sent)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30

    stops = {int((folder / f"stopped-{rank}").read_text()) for rank in range(2)}
    assert len(stops) == 1, err
    assert max((folder / "checkpoints").glob("step-*")).name == f"step-{stops.pop():09d}"
    assert not any(alive(child) for child in children)
    if receiver != "launcher":  # which itself says that it was ended
        assert process.returncode == 0


def test_the_command_trains_with_torchrun_and_is_stopped_with_a_sentence(tmp_path, draw_pictures):
    draw_pictures(tmp_path / "pictures", count=30, size=16)
    options = ["--preset", "cpu", "--size", "16", "--tokenizer.channels", "[16,16]",
               "--tokenizer_training.batch_size", "8",
               "--tokenizer_training.perceptual", "random", "--tokenizer_budget.minutes", "null"]  # fmt: skip
    command = ["-m", "maskimg", "train-tokenizer", str(tmp_path / "pictures"), "--out", str(tmp_path / "tokenizer")]
    process = started([*command, *options, "--tokenizer_budget.steps", "1000000"])
    work = tmp_path / "tokenizer.training" / "tokenizer"
    wait_for(lambda: (work / "log.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert out.count("run the same command again to continue") == 1
    assert "stopped at step" in out

    step = int(max((work / "checkpoints").glob("step-*")).name.removeprefix("step-"))
    process = started([*command, *options, "--tokenizer_budget.steps", str(step + 2)])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("done: reconstructions in") == 1
    assert (tmp_path / "tokenizer" / "manifest.json").is_file()

    command = ["encode", str(tmp_path / "pictures"), str(tmp_path / "tokenizer"), "--size", "16", "--crops", "3"]
    process = started(["-m", "maskimg", *command, "--out", str(tmp_path / "codes")])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("done: 30 pictures, 3 versions each") == 1
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    assert contents(tmp_path / "codes") == contents(tmp_path / "alone")


def test_a_stop_is_no_failure_and_says_how_to_go_on(tmp_path, capsys, monkeypatch, draw_pictures):
    draw_pictures(tmp_path / "pictures", count=30, size=16)
    seed = run.Run.seed_torch

    def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        seed(self)

    monkeypatch.setattr(run.Run, "seed_torch", stop)
    options = ["--preset", "cpu", "--size", "16", "--tokenizer_training.perceptual", "random"]
    assert main(["train-tokenizer", str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), *options]) == 0
    assert "stopped at step 1 of the tokenizer; run the same command again to continue" in capsys.readouterr().out


def test_one_process_is_the_first_of_one():
    assert (distributed.rank(), distributed.world(), distributed.is_first(), distributed.several()) == (
        0,
        1,
        True,
        False,
    )
    assert distributed.highest(True, 2.5) == [True, 2.5]
    assert distributed.of_first("a") == "a"
    with distributed.joined(), distributed.first_goes_ahead():
        assert torch.equal(distributed.total(torch.ones(2)), torch.ones(2))
    module = torch.nn.Linear(1, 1)
    assert distributed.replicated(module) is module
    with pytest.raises(ValueError, match="--shard needs several processes: start them with `torchrun"):
        distributed.sharded(module, [])


def wait_for(ready, process: subprocess.Popen) -> None:
    begun = time.monotonic()
    while not ready():
        if process.poll() is not None or time.monotonic() - begun > 120:
            process.terminate()
            raise AssertionError(f"it has not begun to train: {process.communicate()[1]}")
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
