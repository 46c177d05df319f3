"""What everything around a training step costs: the bare forward, backward and optimizer beside the whole loop.

    python benchmarks/step_overhead.py                  # a small generator, both by turns, a line per round
    python benchmarks/step_overhead.py --dim 512 --depth 8 --grid 16 --batch-size 64 --device cuda

The bare step masks, predicts and updates with the same optimizer, and nothing else. The whole one is `train_generator`:
order and chance keyed by sample, clipping, guards, averaged weights, log, progress bar, signals. Held-out loss, sample
sheets and checkpoints come by the clock, not by the step, and are left out.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from maskimg.codes import CodeCache
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.maskgit import MaskGit
from maskimg.training.generator import GeneratorTraining, _optimizers, train_generator
from maskimg.training.run import Budget, Run
from maskimg.transformer import MaskedTransformer, TransformerConfig


class Enough(Exception):
    """The steps to be timed are done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("dim", 192), ("depth", 4), ("grid", 8), ("codes", 1024), ("batch-size", 32), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()

    grid = (given.grid, given.grid)
    config = TransformerConfig(given.codes, grid, dim=given.dim, depth=given.depth, heads=given.dim // 64)
    training = GeneratorTraining(batch_size=given.batch_size, muon=False)
    cache = random_cache(given.codes, given.grid)
    bare = bare_steps(cache, config, training, given.device, given.dtype)
    shares = []
    for number in range(given.rounds):
        alone = given.steps / timed(lambda: bare(given.steps))
        whole = given.steps / whole_seconds(cache, config, training, given.steps, given.device, given.dtype)
        shares.append(whole / alone)
        print(f"round {number + 1}: bare {alone:.2f} steps/s, whole {whole:.2f} steps/s, {shares[-1]:.1%}")
    print(f"the whole step keeps {statistics.median(shares):.1%} of the bare rate (median of {given.rounds} rounds)")


def random_cache(codes: int, grid: int, count: int = 2048) -> CodeCache:
    grids = torch.randint(0, codes, (1, count, grid, grid), generator=torch.Generator().manual_seed(0))
    names, held_out = [str(i) for i in range(count)], torch.arange(count) >= count
    return CodeCache(grids, torch.zeros(count, 0, dtype=torch.int64), {}, held_out, names, codes, "random")


def bare_steps(
    cache: CodeCache, config: TransformerConfig, training: GeneratorTraining, device: str, dtype: str
) -> Callable[[int], None]:
    """So many steps of nothing but the mathematics."""
    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    model = MaskGit(MaskedTransformer(config)).to(where).train()
    optimizers = _optimizers(model, config, training, muon=training.muon)

    def run(steps: int) -> None:
        for step in range(steps):
            first = step * training.batch_size % cache.codes.shape[1]
            codes = cache.codes[0, first : first + training.batch_size].to(where)
            with autocast(where, number_format):
                loss = model(codes).loss
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
        if where.type == "cuda":
            torch.cuda.synchronize()

    run(2)
    return run


def timed(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def whole_seconds(
    cache: CodeCache, config: TransformerConfig, training: GeneratorTraining, steps: int, device: str, dtype: str
) -> float:
    """Of `steps` steps of the real loop, after two to warm up, on the clock of its first and last step."""
    marks: list[float] = []
    seed = Run.seed_torch

    def mark(self: Run) -> None:
        if self.step in (2, steps + 2):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        if len(marks) == 2:
            raise Enough
        seed(self)

    Run.seed_torch = mark
    try:
        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
            # Many more steps than are timed: tenths of the training, with their evaluation, stay outside.
            budget = Budget(steps=20 * steps)
            with contextlib.suppress(Enough):
                train_generator(cache, config, training, budget, directory, device=device, dtype=dtype)
    finally:
        Run.seed_torch = seed
    return marks[1] - marks[0]


if __name__ == "__main__":
    main()
