"""Whether a generator draws what its source says: the copy task of x-transformers' train_copy.py, and its mirror image.

    python benchmarks/copy_task.py                 # 4x4 and 8x8, copy and mirror; writes results/copy-task.json

The source is a grid of random codes, the target the same grid, or the same seen in a mirror. There is nothing else to
learn, and nothing but the source tells what to draw: with the sources of other targets the share of right codes has
to fall to chance. Training masks as always; drawing takes 8 steps from nothing, at a temperature of 0.2, since there
is one answer.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from maskimg import MaskGit
from maskimg.conditions import from_source
from maskimg.data.datasets import paired_batches
from maskimg.hardware import pick_device
from maskimg.networks.context_encoder import SourceConfig
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.sampler import Sampler
from maskimg.training.loop.run import learning_rate_scale

RESULTS = Path(__file__).parent / "results" / "copy-task.json"
VOCABULARY = 32


def pairs(side: int, mirror: bool, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` sources and targets (n, side, side)."""
    sources = torch.randint(0, VOCABULARY, (count, side, side), generator=torch.Generator().manual_seed(seed))
    return sources, sources.flip(2) if mirror else sources


def train(side: int, mirror: bool, steps: int, *, dim: int = 64, batch_size: int = 64) -> MaskGit:
    """A generator of two blocks that has seen `steps` batches of pairs, none of them twice."""
    torch.manual_seed(0)
    source = SourceConfig("picture", VOCABULARY, grid=(side, side), over=True, depth=1)
    net = MaskedTransformer(TransformerConfig(VOCABULARY, (side, side), dim=dim, depth=2, heads=4, sources=(source,)))
    device = pick_device()
    model = MaskGit(net).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    batches = paired_batches(*pairs(side, mirror, 20_000, seed=1), batch_size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * learning_rate_scale(step / steps)
        sources, targets, present = (tensor.to(device) for tensor in next(batches))
        loss = model(targets, from_source(sources, present)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def measure(model: MaskGit, side: int, mirror: bool, count: int = 256) -> dict[str, float]:
    """On pairs that training never saw: grids that are right in every code, and right codes, by their own and by
    others' sources."""
    sources, targets = pairs(side, mirror, count, seed=2)
    drawn = {}
    for name, given in (("own", sources), ("others'", sources.roll(1, 0))):
        condition = from_source(given.flatten(1)).to(model.device)
        drawn[name] = model.generate(
            count, condition, seeds=torch.arange(count), sampler=Sampler(steps=8, token_temperature=0.2)
        ).cpu()
    return {
        "exact": (drawn["own"] == targets).all((1, 2)).double().mean().item(),
        "codes_right": (drawn["own"] == targets).double().mean().item(),
        "codes_right_with_others_sources": (drawn["others'"] == targets).double().mean().item(),
        "chance": 1 / VOCABULARY,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--sides", type=int, nargs="+", default=[4, 8])
    given = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for side in given.sides:
        for mirror in (False, True):
            started = time.perf_counter()
            model = train(side, mirror, given.steps)
            name = f"{side}x{side}, {'mirror' if mirror else 'copy'}"
            figures = measure(model, side, mirror)
            seconds = round(time.perf_counter() - started)
            rows[name] = {"steps": given.steps, "seconds": seconds} | {key: round(v, 4) for key, v in figures.items()}
            print(name, rows[name], flush=True)
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
