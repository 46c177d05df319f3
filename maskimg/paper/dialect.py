"""Other names for the same numbers: those of x-transformers' NonAutoregressiveWrapper, and those that MaskGit had
before there was an Objective. It takes these for one more version, and says what to write instead."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from maskimg.masking import Schedule, masked_counts
from maskimg.paper.objective import Objective
from maskimg.sampler import Sampler

# Earlier name -> what to write instead.
CONSTRUCTED = {
    **{field.name: f"objective=Objective({field.name}=...)" for field in dataclasses.fields(Objective)},
    "use_simple_mdlm_loss_weight": 'objective=Objective(loss_weight="elbo")',
    "steps": "sampler=Sampler(steps=...)",
    "can_mask_prev_unmasked": "sampler=Sampler(critic_revises=...)",
    "mask_id": "nothing, for the network says it",
    "grid": "nothing, for the network says it",
}
GENERATED = {
    "steps": "sampler=Sampler(steps=...)",
    "start_temperature": "sampler=Sampler(token_temperature=...)",
    "filter_thres": "sampler=Sampler(top_k=...)",
    "noise_level_scale": "sampler=Sampler(choice_temperature=...)",
}


def warn_of_earlier(call: str, given: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Say what to write instead of each earlier name; `NonAutoregressiveWrapper` keeps them all.

    Raises:
        TypeError: there never was an argument of that name.
    """
    for name in given:
        if name not in known:
            raise TypeError(f"`{call}` takes no `{name}`")
        warnings.warn(
            f"`{call}` takes `{name}` in this version only: write `{known[name]}`, or use `NonAutoregressiveWrapper`",
            DeprecationWarning,
            stacklevel=3,
        )


def earlier_objective(objective: Objective, given: Mapping[str, Any]) -> Objective:
    """`objective` with what is given by the earlier names.

    Raises:
        ValueError: a number is out of range, or two of them contradict each other.
    """
    changes = {field.name: given[field.name] for field in dataclasses.fields(Objective) if field.name in given}
    if given.get("use_simple_mdlm_loss_weight"):
        if changes.get("loss_weight", "none") not in ("none", "elbo"):
            raise ValueError("give either loss_weight or use_simple_mdlm_loss_weight, not both")
        changes["loss_weight"] = "elbo"
    return dataclasses.replace(objective, **changes)


def make_sampler(
    steps: int,
    schedule: str | Schedule,
    *,
    tokens: int,
    vocab_size: int,
    start_temperature: float | None = None,
    filter_thres: float | None = None,
    noise_level_scale: float | None = None,
    **rest: Any,
) -> Sampler:
    """What x-transformers' NonAutoregressiveWrapper calls its numbers, as a Sampler; `rest` are fields of it.

    Args:
        schedule: a function becomes `counts` for this many `tokens`: a Sampler knows schedules by name.
        start_temperature: of tokens, from where it falls step by step, in the last step to (almost) 0.
        filter_thres: share of the `vocab_size` codes that is never drawn, in [0, 1].
        noise_level_scale: the choice temperature, which fades to 0.

    Raises:
        ValueError: a number is out of range.
    """
    if start_temperature is not None:
        falling = [start_temperature * (steps - 1 - i) / steps for i in range(steps)]
        rest["token_temperature"] = tuple(max(temperature, 0.001) for temperature in falling) or start_temperature
    if filter_thres is not None:
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres must be in [0, 1], got {filter_thres}")
        rest["top_k"] = max(1, math.ceil((1 - filter_thres) * vocab_size))
    if noise_level_scale is not None:
        rest["choice_temperature"] = noise_level_scale
    if callable(schedule) and steps >= 1:
        left = [tokens, *masked_counts(torch.tensor([tokens]), steps, schedule)[0].tolist()]
        rest["counts"] = tuple(before - after for before, after in pairwise(left) if before > after)
    return Sampler(steps=steps, schedule=schedule if isinstance(schedule, str) else "cosine", **rest)
