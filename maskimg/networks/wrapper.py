"""Networks of other libraries inside MaskGit: anything that maps flat codes (b, n) to logits (b, n, v or v + 1).

And the Sampler that x-transformers' own names for the numbers of the loop mean.

x-transformers' `TransformerWrapper` is one, and the only kind that can be self-conditioned or be its own critic: that
takes features, not only logits.

Shapes: b sequences, h w = n codes, v codes, d features.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition
from maskimg.masking import Schedule, masked_counts
from maskimg.sampler import Sampler

# What x-transformers' NonAutoregressiveWrapper has where MaskGit has a condition or takes nothing.
POSITIONAL = {
    "MaskGit": ("mask_id", "steps", "self_cond", "self_cond_train_prob", "no_replace_prob", "random_token_prob"),
    "MaskGit.forward": ("only_train_generator", "only_train_critic", "generator_sample_temperature"),
    "MaskGit.generate": ("start_temperature", "filter_thres", "noise_level_scale"),
}

Extras = Mapping[str, Any] | None  # further arguments of the network, such as x-transformers' `context`


class ForeignNet(nn.Module):
    """Gives a foreign network the face that MaskGit asks for; its codes are a grid of one row if no grid is given.

    Raises:
        ValueError: the sizes do not fit together.
    """

    label_sizes: tuple[int, ...] = ()

    def __init__(self, net: nn.Module, mask_id: int | None, grid: tuple[int, int] | None = None):
        super().__init__()
        tokens: int | None = getattr(net, "num_tokens", None)
        length: int | None = getattr(net, "max_seq_len", None)
        if mask_id is None:
            if tokens is None:
                raise ValueError("give mask_id: this network does not tell its num_tokens")
            mask_id = tokens - 1
        if tokens is not None and mask_id != tokens - 1:
            raise ValueError(
                f"mask_id must be the network's last token, {tokens - 1}, after all codes, got {mask_id}: "
                "renumber the codes"
            )
        if grid is None and length is None:
            raise ValueError("give grid: this network does not tell its max_seq_len")
        if grid is not None and length is not None and grid[0] * grid[1] != length:
            raise ValueError(
                f"a grid of {grid} has {grid[0] * grid[1]} codes, but the network's max_seq_len is {length}"
            )
        self.vocab_size, self.grid = mask_id, grid or (1, int(length or 0))
        # Features are only there where the network can end before its head.
        self.has_features = callable(getattr(net, "to_logits", None)) and not getattr(net, "output_is_log_prob", False)
        self.trunk = ForeignTrunk(net, self.has_features)

    @property
    def dim(self) -> int:
        if not self.has_features:
            raise ValueError("self_cond and self_token_critic need a network that has features and to_logits")
        head: Any = self.trunk.net.to_logits
        return int(head.in_features if isinstance(head, nn.Linear) else self.trunk.net.emb_dim)

    @property
    def embed_dim(self) -> int:
        return int(getattr(self.trunk.net, "emb_dim", self.dim))

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v): a logit of MASK is cut off, so it can never be drawn."""
        head: Any = self.trunk.net.to_logits if self.has_features else nn.Identity()
        logits = head(features)
        if logits.shape[-1] - self.vocab_size not in (0, 1):
            raise ValueError(f"expected {self.vocab_size} logits a token, or one more for MASK, got {logits.shape[-1]}")
        return logits[..., : self.vocab_size]

    def cross_entropy(self, features: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Features (m, d) and the right codes (m,) -> (m,) nats in fp32."""
        return nn.functional.cross_entropy(
            self.to_logits(features).float(), codes, reduction="none", label_smoothing=label_smoothing
        )


class ForeignTrunk(nn.Module):
    """Codes (b, h, w) -> features (b, h, w, d), or logits where the network has no features to give."""

    def __init__(self, net: nn.Module, has_features: bool):
        super().__init__()
        self.net: Any = net
        self.has_features = has_features

    def forward(
        self, codes: torch.Tensor, condition: Extras = None, sum_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        extras = dict(condition or {})
        if sum_embeds is not None:
            extras["sum_embeds"] = rearrange(sum_embeds, "b h w d -> b (h w) d")
        if self.has_features:
            extras["return_embeddings"] = True
        features = self.net(rearrange(codes, "b h w -> b (h w)"), **extras)
        return rearrange(features, "b (h w) d -> b h w d", h=codes.shape[1])


class ForeignCritic(nn.Module):
    """A foreign critic, (b, n) -> (b, n, 1): complete codes (b, h, w) -> logits (b, h, w), high where one is wrong."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, codes: torch.Tensor, condition: Extras = None) -> torch.Tensor:
        logits = self.net(rearrange(codes, "b h w -> b (h w)"), **dict(condition or {}))
        return rearrange(logits, "b (h w) 1 -> b h w", h=codes.shape[1])


def refuse_positional(call: str, others: tuple[Any, ...], condition: Any = None) -> None:
    """Refuse options given by their place, as x-transformers takes them: `others`, or a number for the condition.

    Raises:
        TypeError: with the options' names; or the condition is none.
    """
    if isinstance(condition, int | float):
        others = (condition, *others)
    elif not (condition is None or isinstance(condition, Condition | torch.Tensor | Mapping)):
        raise TypeError(
            f"the condition of `{call}` must be a tensor of labels (b, f), a Condition or None, "
            f"got a {type(condition).__name__}"
        )
    if not others:
        return
    meant = zip(POSITIONAL[call], others, strict=False)
    spelled = ", ".join(f"{name}={value if isinstance(value, int | float) else '...'}" for name, value in meant)
    raise TypeError(f"`{call}` takes its options by name: write `{spelled}`")


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

    Raises:
        ValueError: a number is out of range.
    """
    if start_temperature is not None:
        falling = [start_temperature * (steps - 1 - i) / steps for i in range(steps)]
        rest["token_temperature"] = tuple(max(temperature, 0.001) for temperature in falling)
    if filter_thres is not None:
        if not 0 <= filter_thres <= 1:
            raise ValueError(f"filter_thres must be in [0, 1], got {filter_thres}")
        rest["top_k"] = max(1, math.ceil((1 - filter_thres) * vocab_size))
    if noise_level_scale is not None:
        rest["choice_temperature"] = noise_level_scale
    if callable(schedule) and steps >= 1:  # a Sampler knows schedules by name: give it the counts instead
        left = [tokens, *masked_counts(torch.tensor([tokens]), steps, schedule)[0].tolist()]
        rest["counts"] = tuple(before - after for before, after in pairwise(left) if before > after)
    return Sampler(steps=steps, schedule=schedule if isinstance(schedule, str) else "cosine", **rest)
