"""One sampling loop for each part of a batch, all of them side by side.

Shapes: b images, h w tokens.
"""

from collections.abc import Iterator

import torch

from maskimg.conditions import Condition
from maskimg.maskgit import MaskGit
from maskimg.sampler import Sampler
from maskimg.sampling import Step, first_features, sample_steps


def in_batches(
    model: MaskGit,
    codes: torch.Tensor,
    condition: Condition,
    sampler: Sampler,
    seeds: torch.Tensor,
    *,
    size: int,
    complete: bool,
) -> Iterator[Step]:
    """`sample_steps` of codes (b, h, w) and seeds (b,), in loops of exactly `size` images, the last one filled up.

    Loops of one size make rounding independent of how many images there are.
    """
    count = len(seeds)
    if count % size:  # fill the last loop up
        filled = torch.arange(count + -count % size).clamp(max=count - 1)
        codes, seeds, condition = codes[filled], seeds[filled], condition.rows(filled)
    parts = codes.split(size)
    rows = [condition.rows(slice(start, start + size)) for start in range(0, len(seeds), size)]
    first = None
    if bool((codes == model.mask_id).all()):  # then all images begin alike
        first = first_features(model, rows[0], sampler, codes[:size])
    loops = [
        sample_steps(model, part, row, sampler, seed, complete=complete, first=first)
        for part, row, seed in zip(parts, rows, seeds.split(size), strict=True)
    ]
    # An image with few tokens to draw may be finished before the others, and one with none at once.
    states = [Step(part, torch.zeros(part.shape, device=part.device), part == model.mask_id) for part in parts]
    for _ in range(sampler.steps):
        now = [next(loop, None) for loop in loops]
        if not any(now):
            return
        states = [new or old for new, old in zip(now, states, strict=True)]
        yield Step(*(torch.cat(each)[:count] for each in zip(*states, strict=True)))
