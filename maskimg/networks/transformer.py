"""The bidirectional trunk and its two heads. Knows no file, picture or tokenizer.

Labels come in by adaptive normalisation, sequences (words, another picture) by cross-attention. There is no time
input: masked models do not need one (Zheng et al. 2024, arXiv 2409.02908).

Shapes: b images, h w tokens, n = h * w, v codes, d features, f label fields.
"""

import dataclasses
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition, as_condition
from maskimg.network import Modulation, Network, cross_entropy
from maskimg.networks.blocks import Block, rms_norm, rotary
from maskimg.networks.context_encoder import Reader, SourceConfig


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a generator or critic is made of.

    Attributes:
        vocab_size: number of codes v; MASK is v itself.
        grid: tokens (h, w).
        label_sizes: names per label field; empty for an unconditional model.
        dim, depth, heads: width, blocks and attention heads.
        registers: learned extra tokens that carry what belongs to no position.
        dropout: in attention output and feed-forward, while training.
        sources: sequences that it draws from.
    """

    vocab_size: int
    grid: tuple[int, int]
    label_sizes: tuple[int, ...] = ()
    dim: int = 256
    depth: int = 6
    heads: int = 4
    registers: int = 1
    dropout: float = 0.0
    sources: tuple[SourceConfig, ...] = ()

    def __post_init__(self):
        sources = tuple(SourceConfig(**each) if isinstance(each, dict) else each for each in self.sources)
        object.__setattr__(self, "sources", sources)
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise ValueError(f"dim / heads must be a multiple of 4, got {self.dim} / {self.heads}")


class Trunk(nn.Module):
    """Codes (b, h, w), some of them MASK, and a condition (b, f) -> features (b, h, w, d)."""

    null: torch.Tensor

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d = config.dim
        self.config = config
        grouped = config.vocab_size > GROUPED_ABOVE
        self.embed = GroupedCodes(config.vocab_size, d) if grouped else Codes(config.vocab_size, d)
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, d))
        self.labels = nn.ModuleList(nn.Embedding(size + 1, d) for size in config.label_sizes)
        self.register_buffer("null", torch.tensor(config.label_sizes, dtype=torch.int64), persistent=False)
        self.modulate = nn.Linear(d, 6 * d)
        self.readers = nn.ModuleDict(
            {
                source.name: Reader(
                    source, dim=d, heads=config.heads, depth=config.depth, dropout=config.dropout, grid=config.grid
                )
                for source in config.sources
            }
        )
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.dropout, len(config.sources)) for _ in range(config.depth)
        )
        self.final = nn.Parameter(torch.zeros(2, d))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(
        self,
        codes: torch.Tensor,
        condition: Condition | torch.Tensor | Modulation | None = None,
        sum_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            condition: labels (b, f) alone, a Condition, None for all null, or what `modulation` made of it.
            sum_embeds: (b, h, w, d), added to the codes' embeddings (self-conditioning).
        """
        b, h, w = codes.shape
        if not isinstance(condition, Modulation):
            condition = self.modulation(condition, b)
        x = self.embed(codes)
        if sum_embeds is not None:
            x = x + sum_embeds
        x = rearrange(x, "b h w d -> b (h w) d")
        if self.config.registers:
            x = torch.cat((self.registers.to(x.dtype).expand(b, -1, -1), x), dim=1)  # (b, registers + n, d)
        rotation = rotary(h, w, self.config.dim // self.config.heads, self.config.registers, codes.device)

        for i, block in enumerate(self.blocks):
            x = block(x, condition.shared, rotation, tuple(looked[i] for looked in condition.looked))

        scale, shift = self.final
        x = rms_norm(x[:, self.config.registers :]) * (1 + scale) + shift
        return rearrange(x, "b (h w) d -> b h w d", h=h)

    def modulation(self, condition: Condition | torch.Tensor | None, b: int) -> Modulation:
        """What a condition, None for all null, does to every block: scales, shifts and gates, and what to look at."""
        condition = as_condition(condition).expand(b)
        if not self.labels:
            c = torch.zeros(b, self.config.dim, device=self.final.device, dtype=self.final.dtype)
        else:
            c = self._embedded(condition.labels, b)
            if condition.towards is not None and condition.share is not None:
                c = torch.lerp(c, self._embedded(condition.towards, b), condition.share.to(c))
        shared = rearrange(self.modulate(F.silu(c)), "b (six d) -> b six 1 d", six=6)
        registers = self.config.registers
        looked = [reader(condition.contexts.get(name), b, registers) for name, reader in self.readers.items()]
        return Modulation(shared, tuple(looked))

    def _embedded(self, labels: torch.Tensor | None, b: int) -> torch.Tensor:
        """Labels (b, f), None for all null -> (b, d)."""
        labels = self.null.expand(b, -1) if labels is None else labels
        return torch.stack([embed(i) for embed, i in zip(self.labels, labels.unbind(1), strict=True)]).sum(0)


class Codes(nn.Embedding):
    """One vector for each of v codes and MASK, and the head that compares features with them."""

    def __init__(self, vocab_size: int, dim: int):
        super().__init__(vocab_size + 1, dim)
        self.vocab_size = vocab_size
        nn.init.normal_(self.weight, std=0.02)

    def logits(self, features: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Features (..., d) and bias (v,) -> logits (..., v); MASK has none."""
        return F.linear(features, self.weight[: self.vocab_size], bias)

    def cross_entropy(
        self, features: torch.Tensor, bias: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Features (m, d), codes (m,) -> (m,) nats, in fp32."""
        return cross_entropy(self.logits(features, bias), codes, label_smoothing)


class GroupedCodes(nn.Module):
    """A large codebook as two groups: code = high * k + low, and its vector is the sum of two (MaskBit, Weber et al.
    2024, arXiv 2409.16211). Features are compared with about 2 sqrt(v) vectors instead of v, and p(code) =
    p(high) p(low). Where k does not divide v, the last high group is shorter, exactly.
    """

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.vocab_size, self.low_size = vocab_size, group_size(vocab_size)
        self.high_size = -(-vocab_size // self.low_size)
        self.high = nn.Parameter(0.014 * torch.randn(self.high_size, dim))  # the sum has the std of `Codes`
        self.low = nn.Parameter(0.014 * torch.randn(self.low_size, dim))
        self.mask = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        high, low = codes // self.low_size, codes % self.low_size
        x = F.embedding(high.clamp(max=self.high_size - 1), self.high) + F.embedding(low, self.low)
        return torch.where((codes == self.vocab_size)[..., None], self.mask, x)

    def logits(self, features: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Features (..., d) and bias (high + low groups,) -> logits (..., v)."""
        high, low = self._groups(features, bias)
        return (high[..., :, None] + low[..., None, :]).flatten(-2)[..., : self.vocab_size]

    def cross_entropy(
        self, features: torch.Tensor, bias: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Features (m, d), codes (m,) -> (m,) nats in fp32, without ever making m v logits."""
        high, low = (logits.float() for logits in self._groups(features, bias))
        last = self.vocab_size - (self.high_size - 1) * self.low_size  # codes in the last high group
        normaliser = torch.logaddexp(
            high[:, :-1].logsumexp(1) + low.logsumexp(1), high[:, -1] + low[:, :last].logsumexp(1)
        )
        target = high.gather(1, codes[:, None] // self.low_size) + low.gather(1, codes[:, None] % self.low_size)
        total = (
            self.low_size * high[:, :-1].sum(1)
            + (self.high_size - 1) * low.sum(1)
            + last * high[:, -1]
            + low[:, :last].sum(1)
        )
        aim = (1 - label_smoothing) * target[:, 0] + label_smoothing * total / self.vocab_size
        return normaliser - aim

    def _groups(self, features: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high, low = bias.split([self.high_size, self.low_size])
        return F.linear(features, self.high, high), F.linear(features, self.low, low)


GROUPED_ABOVE = 4096


def group_size(vocab_size: int) -> int:
    """Codes per high group: the divisor nearest to the square root, or the root itself if that is out of proportion."""
    root = math.isqrt(vocab_size)
    divisor = next(size for size in range(root, 0, -1) if vocab_size % size == 0)
    return divisor if 4 * divisor >= root else root + 1


class MaskedTransformer(Network):
    """The generator's network: codes (b, h, w), some MASK, and condition (b, f) -> logits (b, h, w, v)."""

    architecture: ClassVar[str] = "maskimg"
    config_type: ClassVar[type] = TransformerConfig
    trunk: Trunk

    def __init__(self, config: TransformerConfig):
        super().__init__(config, Trunk(config))
        codes = self.trunk.embed
        self.bias = nn.Parameter(
            torch.zeros(codes.high_size + codes.low_size if isinstance(codes, GroupedCodes) else config.vocab_size)
        )

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v), with the embedding's own weights; MASK has no logit."""
        return self.trunk.embed.logits(features, self.bias)

    def cross_entropy(self, features: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Features (m, d) and the right codes (m,) -> (m,) nats in fp32."""
        return self.trunk.embed.cross_entropy(features, self.bias, codes, label_smoothing)


class TokenCritic(nn.Module):
    """Complete codes (b, h, w) and condition (b, f) -> logits (b, h, w): high where a code is wrong.

    Lezama et al. 2022, "Improved masked image generation with Token-Critic", arXiv 2209.04439.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.dim, 1)

    def forward(
        self, codes: torch.Tensor, condition: Condition | torch.Tensor | Modulation | None = None
    ) -> torch.Tensor:
        return self.head(self.trunk(codes, condition))[..., 0]
