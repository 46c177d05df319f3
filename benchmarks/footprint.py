"""What starting costs, and the peak memory of a training step and of sampling: ours and the peers', in fresh processes.

    PYTHONPATH=PEERS python benchmarks/footprint.py          # writes results/footprint.json
    python benchmarks/footprint.py peak maskimg training     # one process's own peak, in MB

Start-up is the median of rounds in which every command runs once; processor seconds beside those of the clock, since
other work on the machine lengthens only the latter. Memory is `ru_maxrss`, everything that the process ever held, in
fp32 with AdamW at the sizes of `generator.py`; `built` is the imports and the model alone. This module imports nothing
large itself: a process that is started begins with the peak of the one that started it.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
STARTS = {
    "python alone": ("-c", "pass"),
    "maskimg --help": ("-m", "maskimg", "--help"),
    "import maskimg": ("-c", "import maskimg"),
    "import torch": ("-c", "import torch"),
    "maskimg: Pipeline": ("-c", "from maskimg import Pipeline"),
    "x-transformers: NonAutoregressiveWrapper": ("-c", "from x_transformers import NonAutoregressiveWrapper"),
    "muse-maskgit-pytorch: MaskGit": ("-c", "from muse_maskgit_pytorch import MaskGit"),
    "diffusers: AmusedPipeline": ("-c", "from diffusers import AmusedPipeline"),
}
LIBRARIES = {
    "maskimg": "maskimg",
    "x-transformers": "x_transformers",
    "muse-maskgit-pytorch": "muse",
    "diffusers": "uvit",
}
KINDS = ("built", "training", "sampling")


def start(command: tuple[str, ...]) -> dict[str, float] | str:
    """Seconds of one fresh process by the clock and of the processor, or why there are none."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-W", "ignore", *command], capture_output=True, text=True)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        return last_line(done.stderr)
    return {"clock": clock, "processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def starts(rounds: int) -> list[dict]:
    """A row for each command."""
    found: dict[str, list[dict[str, float] | str]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, command in STARTS.items():
            found[name].append(start(command))
    return [start_row(name, taken) for name, taken in found.items()]


def start_row(name: str, taken: list[dict[str, float] | str]) -> dict:
    """The medians of a command's rounds; or why it did not run, if it failed once."""
    failed = [each for each in taken if isinstance(each, str)]
    if failed:
        return {"name": name, "missing": failed[0]}
    seconds = [each for each in taken if not isinstance(each, str)]
    medians = {f"{kind}_s": statistics.median(each[kind] for each in seconds) for kind in ("clock", "processor")}
    return {"name": name, **medians}


def memory() -> list[dict]:
    """A row for each library: MB of each kind, each in a process of its own."""
    rows = []
    for library in LIBRARIES:
        row: dict = {"name": library}
        for kind in KINDS:
            command = [sys.executable, "-W", "ignore", __file__, "peak", library, kind]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                row = {"name": library, "missing": last_line(done.stderr)}
                break
            row[kind] = float(done.stdout)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def peak(library: str, kind: str) -> float:
    """MB that this process has held at most, after it has built a library's model and used it once."""
    import players
    import torch
    from generator import quietly

    size, device = players.Size(), torch.device("cpu")
    player = quietly(getattr(players, LIBRARIES[library]), size, device)
    if kind == "training":
        player.model.train()
        codes = torch.randint(size.codes, (size.batch, size.side, size.side))
        step = players.adamw(player.model)
        for _ in range(2):  # the optimizer's own tensors come with its first step
            step(player.loss(codes))
    elif kind == "sampling":
        player.model.eval()
        quietly(player.draw, size.batch, 3)  # steps follow one another: more take no more memory
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")


def machine() -> dict:
    """Kind of machine and versions, told by a process that may import torch."""
    code = (
        "import json, generator, torch; print(json.dumps({'machine': generator.machine(torch.device('cpu')), "
        "'threads': torch.get_num_threads(), 'versions': generator.versions()}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return json.loads(done.stdout) if done.returncode == 0 else {"machine": platform.machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    verb = parser.add_subparsers(dest="verb").add_parser("peak")
    verb.add_argument("library", choices=LIBRARIES)
    verb.add_argument("kind", choices=KINDS)
    given = parser.parse_args()
    if given.verb:
        print(peak(given.library, given.kind))
        return
    about = {"command": "python benchmarks/footprint.py", "date": date.today().isoformat(), **machine()}
    found = about | {"rounds": given.rounds, "starts": starts(given.rounds), "memory": memory()}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "footprint.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
