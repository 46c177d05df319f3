"""`maskimg sample`, killed and started again by another number of processes, leaves the folder of one quiet run."""

import contextlib
import json
import multiprocessing
import os
import random
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tiny import tiny_pipeline

from maskimg.cli.main import main

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
    folder = tmp_path / "out"
    killed(model, folder, 1, first, chance)
    killed(model, folder, 2, chance.randrange(first, COUNT - 5), chance)
    there = len(list(folder.glob("*.png")))
    assert main(command(model, folder)) == 0

    assert noted(folder) == unharmed, f"{there} were there before the last run"
    assert unharmed["complete"]["pictures"] == COUNT
    assert len(list(folder.iterdir())) == COUNT + 2  # the lock and the note: no duplicate, nothing half-written


def test_two_processes_share_the_work_and_one_of_them_speaks(model, unharmed, tmp_path):
    folder = tmp_path / "out"
    codes, words = finished(start(model, folder, 2), folder)
    assert codes == [0, 0], words
    assert words.count(f"done: {COUNT} new, {COUNT} in all") == 1
    assert noted(folder) == unharmed

    codes, words = finished(start(model, folder, 2, "--label", "cat"), folder)
    assert codes == [2, 2]
    assert words.count("another recipe") == 1
    assert "Traceback" not in words


def killed(model: Path, folder: Path, count: int, pictures: int, chance: random.Random) -> None:
    """Start `count` processes, and kill them a little after so many pictures are there."""
    processes = start(model, folder, count)
    begun = time.monotonic()
    while len(list(folder.glob("*.png"))) < pictures:
        assert all(process.is_alive() for process in processes) and time.monotonic() - begun < 300
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    for process in chance.sample(processes, count):
        chance.choice([process.kill, process.terminate])()
    for process in processes:
        process.join()


def start(model: Path, folder: Path, count: int, *options: str) -> list[BaseProcess]:
    """As torchrun does, but so that each process can be killed; forked from one that has imported everything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["maskimg.cli.drawing", "maskimg.pipeline", "maskimg.drawing.folders"])
    arguments = [*command(model, folder), *options]
    processes = [
        context.Process(target=run_rank, args=(rank, count, port, arguments, said(folder, rank)))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def run_rank(rank: int, count: int, port: int, arguments: list[str], log: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        raise SystemExit(main(arguments))


def finished(processes: list[BaseProcess], folder: Path) -> tuple[list[int | None], str]:
    """Their exit codes, and what they said."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes], "".join(
        said(folder, rank).read_text() for rank in range(len(processes))
    )


def said(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}-{rank}.log")


def command(model: Path, folder: Path) -> list[str]:
    arguments = ["sample", "--model", str(model), "--out", str(folder), "--count", str(COUNT), "--steps", "1"]
    return [*arguments, "--batch-size", "4", "--dtype", "fp32", "--device", "cpu"]


def noted(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())
