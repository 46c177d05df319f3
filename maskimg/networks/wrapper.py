"""Networks of other libraries with a Network's face: anything that maps flat codes (b, n) to logits (b, n, v or v + 1).

x-transformers' `TransformerWrapper` is one, and the only kind that can be self-conditioned or be its own critic: that
takes features, not only logits.

Shapes: b sequences, h w = n codes, v codes, d features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition

# Further arguments of the network, such as x-transformers' `context`; a Condition only if it holds nothing.
Extras = Mapping[str, Any] | Condition | None


class ForeignNet(nn.Module):
    """Gives a network of another library the face that MaskGit asks for; without a grid its codes are one row.

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
                raise ValueError("give mask_id: this network has no num_tokens")
            mask_id = tokens - 1
        if tokens is not None and mask_id != tokens - 1:
            raise ValueError(
                f"mask_id must be the network's last token, {tokens - 1}, after all codes, got {mask_id}: "
                "renumber the codes"
            )
        if grid is None and length is None:
            raise ValueError("give grid: this network has no max_seq_len")
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

    def check_guidance(self, *guidance: float) -> None:
        """Nothing to refuse: there are no labels, so guidance is never on."""

    def check_condition(self, given: Extras | torch.Tensor, b: int) -> None:
        """Refuse labels, for b sequences or any number.

        Raises:
            ValueError: there are labels, which this network does not know.
        """
        _by_name(given)

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
        extras = _by_name(condition)
        if sum_embeds is not None:
            extras["sum_embeds"] = rearrange(sum_embeds, "b h w d -> b (h w) d")
        if self.has_features:
            extras["return_embeddings"] = True
        features = self.net(rearrange(codes, "b h w -> b (h w)"), **extras)
        return rearrange(features, "b (h w) d -> b h w d", h=codes.shape[1])

    def modulation(self, condition: Extras, b: int) -> dict[str, Any]:
        """What `forward` takes in every step."""
        return _by_name(condition)


class ForeignCritic(nn.Module):
    """A foreign critic, (b, n) -> (b, n, 1): complete codes (b, h, w) -> logits (b, h, w), high where one is wrong."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, codes: torch.Tensor, condition: Extras = None) -> torch.Tensor:
        logits = self.net(rearrange(codes, "b h w -> b (h w)"), **_by_name(condition))
        return rearrange(logits, "b (h w) 1 -> b h w", h=codes.shape[1])


def _by_name(extras: Extras | torch.Tensor) -> dict[str, Any]:
    """Further arguments by name.

    Raises:
        ValueError: they are labels or a Condition that holds something.
    """
    if isinstance(extras, torch.Tensor) or (isinstance(extras, Condition) and extras.tensors):
        raise ValueError("this network knows no labels: give what else it takes by name")
    return dict(extras) if isinstance(extras, Mapping) else {}
