"""The bidirectional trunk and its two heads. Knows no file, picture or tokenizer.

Pre-norm blocks with 2-D rotary positions (Su et al. 2021, arXiv 2104.09864, one half of each head for rows and one
for columns), normalised queries and keys (Henry et al. 2020, arXiv 2010.04245), squared-ReLU feed-forward (So et
al. 2021, arXiv 2109.08668), and conditioning by adaptive normalisation with one projection shared by all blocks
(AdaLN-single, Chen et al. 2023, arXiv 2310.00426). There is no time input: masked models do not need one (Zheng et
al. 2024, arXiv 2409.02908).

Shapes: b images, h w tokens, n = h * w, v codes, d features, f label fields.
"""

import dataclasses
import math
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.network import Modulation, Network, cross_entropy


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
    """

    vocab_size: int
    grid: tuple[int, int]
    label_sizes: tuple[int, ...] = ()
    dim: int = 256
    depth: int = 6
    heads: int = 4
    registers: int = 1
    dropout: float = 0.0

    def __post_init__(self):
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
        self.blocks = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.depth))
        self.final = nn.Parameter(torch.zeros(2, d))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(
        self,
        codes: torch.Tensor,
        condition: torch.Tensor | Modulation | None = None,
        sum_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            condition: (b, f) int64, None for all null, or what `modulation` made of it.
            sum_embeds: (b, h, w, d), added to the codes' embeddings (self-conditioning).
        """
        b, h, w = codes.shape
        if not isinstance(condition, Modulation):
            condition = self.modulation(condition, b)
        x = self.embed(codes)
        if sum_embeds is not None:
            x = x + sum_embeds
        x = rearrange(x, "b h w d -> b (h w) d")
        x = torch.cat((self.registers.to(x.dtype).expand(b, -1, -1), x), dim=1)  # (b, registers + n, d)
        rotation = rotary(h, w, self.config.dim // self.config.heads, self.config.registers, codes.device)

        for block in self.blocks:
            x = block(x, condition.shared, rotation)

        scale, shift = self.final
        x = rms_norm(x[:, self.config.registers :]) * (1 + scale) + shift
        return rearrange(x, "b (h w) d -> b h w d", h=h)

    def modulation(self, condition: torch.Tensor | None, b: int) -> Modulation:
        """Condition (b, f), None for all null -> scales, shifts and gates (b, 6, 1, d), the same for all blocks."""
        if not self.labels:
            c = torch.zeros(b, self.config.dim, device=self.final.device, dtype=self.final.dtype)
        else:
            if condition is None:
                condition = self.null.expand(b, -1)
            c = torch.stack([embed(i) for embed, i in zip(self.labels, condition.unbind(1), strict=True)]).sum(0)
        return Modulation(rearrange(self.modulate(F.silu(c)), "b (six d) -> b six 1 d", six=6))


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

    def forward(self, codes: torch.Tensor, condition: torch.Tensor | Modulation | None = None) -> torch.Tensor:
        return self.head(self.trunk(codes, condition))[..., 0]


class Block(nn.Module):
    """Attention and feed-forward, each with its own scale, shift and gate. (b, n, d) -> (b, n, d)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.modulation = nn.Parameter(torch.zeros(6, 1, 1, dim))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)
        nn.init.zeros_(self.to_out.weight)  # every block starts as the identity
        nn.init.zeros_(self.down.weight)

    def forward(
        self, x: torch.Tensor, shared: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = shared.transpose(0, 1) + self.modulation  # (b, 1, d) each

        update = self.attend(torch.addcmul(shift1, rms_norm(x), 1 + scale1), rotation)
        x = torch.addcmul(x, F.dropout(update, self.dropout, self.training), 1 + gate1)

        hidden = F.relu(self.up(torch.addcmul(shift2, rms_norm(x), 1 + scale2)), inplace=True)
        update = self.down(hidden * hidden if torch.is_grad_enabled() else hidden.square_())
        return torch.addcmul(x, F.dropout(update, self.dropout, self.training), 1 + gate2)

    def attend(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        qkv = rearrange(self.to_qkv(x), "b n (qkv head d) -> b n qkv head d", qkv=3, head=self.heads)
        q, k, v = qkv.unbind(2)
        q, k = rotate(rms_norm(q), rotation), rotate(rms_norm(k), rotation)  # while their memory is in order
        q, k, v = (rearrange(part, "b n head d -> b head n d") for part in (q, k, v))
        return self.to_out(rearrange(attention(q, k, v), "b head n d -> b n (head d)"))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values (b, head, n, d) -> (b, head, n, d)."""
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and q.device.type == "cpu" and q.shape[2] <= (128 if q.dtype == torch.float32 else 512):
        # The fused kernel's backward pass on a CPU takes two to six times as long as these products (torch 2.15).
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        with torch.autocast(
            "cpu", enabled=False
        ):  # softmax sums in fp32 anyway; a copy of all scores costs more than it
            return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Root-mean-square normalisation over the last axis, without a gain.

    Written out because torch's own is several times slower on CPUs (2.15). The sum inside is in fp32 whatever the
    dtype; asking for an fp32 norm of bf16 would copy all of x.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)
    return x * (x.shape[-1] ** 0.5 / norm)


@cache
def rotary(h: int, w: int, dim: int, registers: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines (registers + h * w, dim) of a grid's rotary positions; registers are not rotated."""
    with torch.inference_mode(False):  # what is kept must also serve a caller who trains
        frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4, device=device)
        rows = torch.arange(h, device=device)[:, None] * frequencies
        columns = torch.arange(w, device=device)[:, None] * frequencies
        angles = torch.cat((rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)), dim=-1)
        angles = rearrange(angles, "h w d -> (h w) d")
        angles = torch.cat((angles.new_zeros(registers, dim // 2), angles))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate (b, n, head, d) by the angles of `rotary`; the two halves of d are the two coordinates of each plane.

    (left, right) -> (left cos - right sin, right cos + left sin), in three passes over whole rows: on a CPU four times
    as fast as over halves. Queries and keys separately: for both in one tensor, torch 2.15 compiles a backward pass
    that gives NaN.
    """
    cos, sin = (part.to(x.dtype)[:, None] for part in rotation)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
