"""What everything around a training step costs: the bare forward, backward and optimizer beside the whole loop.

    python benchmarks/step_overhead.py                  # a small generator, both by turns
    python benchmarks/step_overhead.py --dim 512 --depth 8 --grid 16 --batch-size 64 --device cuda --steps 20 --rounds 9

The bare step masks, predicts and updates with the same optimizer, and nothing else. The whole one is `train_generator`:
order and chance keyed by sample, clipping, guards, averaged weights, log, progress bar, signals. Held-out loss, sample
sheets and checkpoints come by the clock, not by the step, and are left out.

A round is so many whole steps and then as many bare ones, within one training: neighbours in time, so that a machine
that is busy with other things slows both down alike. On a GPU, which is waited for between rounds, let them be long.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from maskimg.data.codes import CodeCache
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.training.generator import make_optimizers, train_generator
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.settings import GeneratorTraining


class Enough(Exception):
    """The steps to be timed are done."""


class Times(NamedTuple):
    """Whole and bare steps' (rounds, 2), by the wall clock and in CPU time, which other programs do not touch."""

    seconds: torch.Tensor
    cpu_seconds: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("dim", 192), ("depth", 4), ("grid", 8), ("codes", 1024), ("batch-size", 32), ("steps", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()

    grid = (given.grid, given.grid)
    config = TransformerConfig(given.codes, grid, dim=given.dim, depth=given.depth, heads=given.dim // 64)
    training = GeneratorTraining(batch_size=given.batch_size, muon=False)
    cache = random_cache(given.codes, given.grid)
    bare = bare_steps(cache, config, training, given.device, given.dtype)
    times = whole_and_bare(cache, config, training, bare, given.steps, given.rounds, given.device, given.dtype)
    whole, alone = (statistics.median(column) / given.steps for column in times.seconds.T.tolist())
    print(f"bare {1 / alone:.2f} steps/s, whole {1 / whole:.2f} steps/s (medians of {given.rounds} rounds)")
    for clock, (whole, alone) in {"by the wall clock": times.seconds.T, "in CPU time": times.cpu_seconds.T}.items():
        low, share, high = (alone / whole).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        print(
            f"{clock}, the whole step keeps {share:.1%} of the bare rate (half of the rounds: {low:.1%} to {high:.1%})"
        )


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
    optimizers = make_optimizers(model, config, training, muon=training.muon)

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

    run(2)
    return run


def whole_and_bare(
    cache: CodeCache,
    config: TransformerConfig,
    training: GeneratorTraining,
    bare: Callable[[int], None],
    steps: int,
    rounds: int,
    device: str,
    dtype: str,
) -> Times:
    """Of `steps` steps of the real loop, and of as many bare ones right after them, for each round."""
    times: list[torch.Tensor] = []
    begun = now()
    seed = Run.seed_torch

    def take_turns(self: Run) -> None:
        """At the beginning of a step of the loop, the first two of which warm up."""
        nonlocal begun
        if self.step > 2 and (self.step - 2) % steps == 0:
            ended = now()
            bare(steps)
            times.append(torch.stack((ended - begun, now() - ended)))
        if len(times) == rounds:
            raise Enough
        if self.step >= 2 and (self.step - 2) % steps == 0:
            begun = now()
        seed(self)

    Run.seed_torch = take_turns
    try:
        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stderr(io.StringIO()):
            # Not worth compiling for, as the bare step is not; evaluations come with its tenths.
            budget = Budget(steps=1000)
            with contextlib.suppress(Enough):
                train_generator(cache, config, training, budget, directory, session=Session(device, dtype))
    finally:
        Run.seed_torch = seed
    return Times(*torch.stack(times).unbind(-1))


def now() -> torch.Tensor:
    """On the wall clock, and in CPU time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


if __name__ == "__main__":
    main()
