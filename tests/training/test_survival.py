"""Killed in the middle of anything, a training goes on to the very same numbers."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from survivor import train

from maskimg.training.loop import run

STAGES = ("tokenizer", "generator", "critic")
STEPS = 40
DEATHS = int(os.environ.get("MASKIMG_DEATHS", "2"))  # 25 for a thorough look


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Stage -> every tensor of model, averages and optimizers after 40 steps in one go."""
    folder = tmp_path_factory.mktemp("unharmed")
    for stage in STAGES:
        train(stage, str(folder / stage), STEPS)
    return {stage: tensors(folder / stage) for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_seventeen_steps_a_kill_and_a_continuation_are_forty_steps(stage, unharmed, tmp_path):
    killed(stage, tmp_path, "step", 17, 0)
    assert newest(tmp_path) == "step-000000017"
    train(stage, str(tmp_path), STEPS)
    assert differing(tensors(tmp_path), unharmed[stage]) == []


@pytest.mark.parametrize("number", range(DEATHS))
def test_it_does_not_matter_where_it_is_killed_and_how_often(number, unharmed, tmp_path):
    """At a random step, part of a batch or file of a checkpoint, twice."""
    chance = random.Random(number)
    stage = chance.choice(STAGES)
    first = chance.randrange(1, 20)
    if number % 2:
        killed(stage, tmp_path, "save", first, chance.randrange(1, 3))
    else:
        killed(stage, tmp_path, "step", first, 1)
    killed(stage, tmp_path, "step", first + chance.randrange(2, 20), chance.randrange(2))
    train(stage, str(tmp_path), STEPS)
    assert differing(tensors(tmp_path), unharmed[stage]) == []


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run, "CHECKPOINT_SECONDS", 1e9)  # here in this process: only at the end


def killed(stage: str, directory: Path, how: str, when: int, detail: int) -> None:
    """Train in a child process until it kills itself there."""
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "survivor.py"),
        stage,
        str(directory),
        str(STEPS),
    ]
    done = subprocess.run([*command, how, str(when), str(detail)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def newest(directory: Path) -> str:
    return max(path.name for path in (directory / "checkpoints").glob("step-*"))


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    found = {}
    for path in (directory / "checkpoints" / newest(directory)).glob("*.safetensors"):
        found |= {f"{path.name}:{name}": tensor for name, tensor in load_file(path).items()}
    return found


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
