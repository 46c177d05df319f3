"""`maskimg sample`, killed and started again by another number of processes, leaves the folder of one quiet run."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_pipeline

from maskimg.cli import main

KILLED = int(os.environ.get("MASKIMG_KILLED_SAMPLES", "1"))  # 30 for a thorough look
COUNT = 40 if KILLED == 1 else 500


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def unharmed(model, tmp_path_factory) -> dict:
    """What run.json says of a folder that was drawn in one go."""
    folder = tmp_path_factory.mktemp("unharmed")
    assert main(command(model, folder)) == 0
    return noted(folder)


@pytest.mark.parametrize("number", range(KILLED))
def test_a_run_that_was_killed_twice_leaves_the_folder_of_one_that_was_not(number, model, unharmed, tmp_path):
    """At a random moment by one process, again by two, and then to the end by one."""
    chance = random.Random(number)
    first = chance.randrange(COUNT // 2)
    killed(model, tmp_path, 1, first, chance)
    killed(model, tmp_path, 2, chance.randrange(first, COUNT - 5), chance)
    there = len(list(tmp_path.glob("*.png")))
    assert main(command(model, tmp_path)) == 0

    assert noted(tmp_path) == unharmed, f"{there} were there before the last run"
    assert unharmed["complete"]["pictures"] == COUNT
    assert len(list(tmp_path.iterdir())) == COUNT + 2  # the lock and the note: no duplicate, nothing half-written


def test_two_processes_share_the_work_and_one_of_them_speaks(model, unharmed, tmp_path):
    said = [process.communicate(timeout=300) for process in start(model, tmp_path, 2)]
    assert "".join(out for out, _ in said).count(f"done: {COUNT} new, {COUNT} in all") == 1, said
    assert noted(tmp_path) == unharmed

    processes = start(model, tmp_path, 2, "--label", "cat")
    errors = "".join(process.communicate(timeout=300)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert errors.count("another recipe") == 1
    assert "Traceback" not in errors


def killed(model: Path, folder: Path, count: int, pictures: int, chance: random.Random) -> None:
    """Start `count` processes, and kill them a little after so many pictures are there."""
    processes = start(model, folder, count)
    begun = time.monotonic()
    while len(list(folder.glob("*.png"))) < pictures and time.monotonic() - begun < 120:
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    for process in chance.sample(processes, count):
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    for process in processes:
        process.communicate(timeout=60)


def start(model: Path, folder: Path, count: int, *options: str) -> list[subprocess.Popen]:
    """As torchrun does, but so that each process can be killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    arguments = [sys.executable, "-m", "maskimg", *command(model, folder), *options]
    processes = []
    for rank in range(count):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **together, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(arguments, env=environment, text=True, **pipes))
    return processes


def command(model: Path, folder: Path) -> list[str]:
    arguments = ["sample", "--model", str(model), "--out", str(folder), "--count", str(COUNT)]
    return [*arguments, "--batch-size", "4", "--dtype", "fp32", "--device", "cpu"]


def noted(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())
