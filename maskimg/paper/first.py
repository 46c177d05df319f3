"""The first prediction from grids that are all MASK: it depends on the condition only, so images share it.

Shapes: b images, h w tokens, d features.
"""

from typing import Any, NamedTuple

import torch

from maskimg.conditions import Condition, as_condition
from maskimg.paper.draws import Model, guidance_at
from maskimg.sampler import Sampler


class First(NamedTuple):
    """What the first step predicts: features (b, h, w, d), and what the second step is to remember."""

    features: torch.Tensor
    memory: torch.Tensor | None


@torch.no_grad()
def first_features(model: Model, condition: Any, sampler: Sampler, codes: torch.Tensor) -> First:
    """For all-MASK `codes` (b, h, w): one forward pass for each distinct condition, not for each image."""
    b = len(codes)
    rows = torch.arange(b)
    if condition is None or isinstance(condition, torch.Tensor | Condition):
        different, rows = distinct(as_condition(condition), b)
        condition = different if isinstance(condition, Condition) else different.labels  # a model gets what it knows
    some = int(rows.max()) + 1
    features, memory = model.features(codes[:some], model.prepare(condition, some), guidance_at(sampler, 0), None)
    rows = rows.to(codes.device)
    if memory is not None:  # of a guided model: conditional rows, then unconditional ones
        memory = torch.cat([half[rows] for half in memory.split(some)])
    return First(features[rows], memory)


def distinct(condition: Condition, b: int) -> tuple[Condition, torch.Tensor]:
    """The different ones among b images' conditions, and which of them each image has, (b,)."""
    if not condition.tensors:
        return condition, torch.zeros(b, dtype=torch.int64)
    numbers = [tensor.expand(b, *tensor.shape[1:]).flatten(1).double() for tensor in condition.tensors]
    different, rows = torch.cat(numbers, dim=1).unique(dim=0, return_inverse=True)
    first = torch.arange(b, device=rows.device).flip(0)  # of several equal ones the first is written last
    chosen = torch.zeros(len(different), dtype=torch.int64, device=rows.device).scatter(0, rows.flip(0), first)
    return condition.expand(b).rows(chosen), rows
