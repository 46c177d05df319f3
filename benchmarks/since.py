"""Did a change cost speed? Training steps and samplings of this tree beside those of an older commit.

    python benchmarks/since.py COMMIT                 # 20 interleaved pairs of each; prints the ratios
    python benchmarks/since.py COMMIT --pairs 5       # quicker, and noisier

Each tree runs in a process that stays, with `benchmarks/players.py` of its own; they take turns, in changing
order, so that what else the machine does falls on both. The numbers are those of `benchmarks/generator.py` in
bf16, ours alone and eager; on a CPU whose bf16 is slow, `--dtype fp32 --batch 2` takes minutes. A ratio above 1
means that this tree is slower.
"""

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("training", "sampling", "one image")
STEPS = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="fp32 on a CPU whose bf16 is slow")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # of the child process
    given = parser.parse_args()
    if given.kind:
        serve(given)
        return
    if not given.commit:
        parser.error("name the commit to compare with")
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", old, given.commit], check=True)
        try:
            for kind in KINDS:
                print(f"{kind:10} {summary(compare(old, kind, given))}", flush=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", old], check=True)


def compare(old: Path, kind: str, given: argparse.Namespace) -> list[float]:
    """Seconds of this tree over those of the old one, a pair each."""
    trees = {"new": start(ROOT, kind, given), "old": start(old, kind, given)}
    try:
        ratios = []
        for _ in range(given.pairs):
            seconds = {name: ask(trees[name]) for name in random.sample(sorted(trees), 2)}
            ratios.append(seconds["new"] / seconds["old"])
        return ratios
    finally:
        for process in trees.values():
            process.kill()


def start(tree: Path, kind: str, given: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that measures `kind` with the code of `tree` each time that it is asked, warmed up."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tree), str(tree / "benchmarks")))}
    command = [sys.executable, "-W", "ignore", __file__, "--kind", kind, "--threads", str(given.threads)]
    command += ["--dtype", given.dtype, "--batch", str(given.batch)]
    process = subprocess.Popen(command, cwd=tree, env=environment, stdin=-1, stdout=-1, text=True)
    ask(process)
    return process


def ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin and process.stdout
    process.stdin.write("again\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def serve(given: argparse.Namespace) -> None:
    """In the child: a line on standard input is a measurement, whose seconds are printed."""
    # Of an editable install's own finder and of this file's folder, nothing: only what PYTHONPATH names.
    sys.meta_path = [finder for finder in sys.meta_path if str(getattr(finder, "__module__", "")).startswith("_frozen")]
    sys.path[:0] = tree = os.environ["PYTHONPATH"].split(os.pathsep)
    import torch
    from players import Size, maskimg

    import maskimg as package

    assert Path(package.__file__ or "").is_relative_to(tree[0]), f"{package.__file__} is not of {tree[0]}"
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    size, training = Size(batch=given.batch), given.kind == "training"
    player = maskimg(size, torch.device("cpu"))
    if training:
        optimizer = torch.optim.AdamW(player.model.parameters(), lr=1e-4)
        codes = torch.randint(0, size.codes, (size.batch, size.side, size.side))
    elif given.dtype == "bf16":
        player.model.to(torch.bfloat16)

    def measure() -> None:
        if not training:
            player.draw(size.batch if given.kind == "sampling" else 1, STEPS)
            return
        with torch.autocast("cpu", torch.bfloat16, enabled=given.dtype == "bf16"):
            loss = player.loss(codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in sys.stdin:
        begun = time.perf_counter()
        measure()
        print(time.perf_counter() - begun, flush=True)


def summary(ratios: list[float]) -> str:
    mean, spread = statistics.mean(ratios), statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    error = 1.96 * spread / math.sqrt(len(ratios))
    return f"{mean:.3f} ± {error:.3f} (mean of {len(ratios)} ratios, 95 %), median {statistics.median(ratios):.3f}"


if __name__ == "__main__":
    main()
