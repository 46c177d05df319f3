"""Guidance: a model's predictions are moved away from what it would say without the condition, or a part of it.

Ho and Salimans 2022, "Classifier-free diffusion guidance", arXiv 2207.12598; by single fields, Brooks et al. 2023,
arXiv 2211.09800.

Shapes: b images, h w tokens, d features.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from maskimg.conditions import Condition, as_condition
from maskimg.network import Modulation

Guidance = float | Mapping[str, float]


class Prepared(NamedTuple):
    """A condition as the networks take it; computed once for all steps of a generation.

    `away` are what guidance has moved away from so far: the null or negative condition, by the name "", and the
    condition without a field, by the field's name.
    """

    condition: Condition | Mapping[str, Any]
    generator: Any
    critic: Any
    away: dict[str, Modulation]


def strengths_of(guidance: Guidance, prepared: Prepared) -> dict[str, float]:
    """By field, where guidance is on; that of the whole condition by the name "". Without a condition it is off."""
    condition = prepared.condition
    if not isinstance(condition, Condition) or not condition.tensors:
        return {}
    strengths = guidance if isinstance(guidance, Mapping) else {"": guidance}
    return {name: strength for name, strength in strengths.items() if strength != 1}


def away_from(net: Any, prepared: Prepared, name: str, b: int) -> Modulation:
    """What guidance moves away from: the condition without the field `name`, or, by the name "", no condition."""
    if name not in prepared.away:
        condition = prepared.condition
        if not isinstance(condition, Condition):
            condition = as_condition(None)
        if name:
            other = condition.without(name, net.label_sizes)
        else:
            other = condition.negative or condition.null(net.label_sizes)
        prepared.away[name] = net.trunk.modulation(other, b)
    return prepared.away[name]


def guided(features: torch.Tensor, strengths: Mapping[str, float]) -> torch.Tensor:
    """Features of the condition and then of each that is moved away from, along the batch -> (b, h, w, d).

    u + guidance (c - u) for the whole condition; what single fields do is added to that. Since the head is linear,
    moving the features moves the logits by the same rule.
    """
    conditional, *others = features.float().chunk(1 + len(strengths))
    moved = conditional
    for (name, strength), other in zip(strengths.items(), others, strict=True):
        if not name:
            moved = other + strength * (conditional - other)
        else:
            moved = moved + (strength - 1) * (conditional - other)
    return moved.to(features.dtype)
