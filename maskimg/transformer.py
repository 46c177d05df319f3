"""The bidirectional trunk and its two heads. Knows no file, picture or tokenizer.

Pre-norm blocks with 2-D rotary positions (Su et al. 2021, arXiv 2104.09864, one half of each head for rows and one
for columns), normalised queries and keys (Henry et al. 2020, arXiv 2010.04245), squared-ReLU feed-forward (So et
al. 2021, arXiv 2109.08668), and conditioning by adaptive normalisation with one projection shared by all blocks
(AdaLN-single, Chen et al. 2023, arXiv 2310.00426). There is no time input: masked models do not need one (Zheng et
al. 2024, arXiv 2409.02908).

Shapes: b images, h w tokens, n = h * w, v codes, d features, f label fields.
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


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

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d = config.dim
        self.config = config
        self.embed = nn.Embedding(config.vocab_size + 1, d)
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, d))
        self.labels = nn.ModuleList(nn.Embedding(size + 1, d) for size in config.label_sizes)
        self.modulate = nn.Linear(d, 6 * d)
        self.blocks = nn.ModuleList(Block(d, config.heads, config.dropout) for _ in range(config.depth))
        self.final = nn.Parameter(torch.zeros(2, d))
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        b, h, w = codes.shape
        x = rearrange(self.embed(codes), "b h w d -> b (h w) d")
        x = torch.cat((self.registers.to(x.dtype).expand(b, -1, -1), x), dim=1)  # (b, registers + n, d)
        shared = self.modulations(condition, b, codes.device)
        rotation = rotary(h, w, self.config.dim // self.config.heads, self.config.registers, codes.device)

        for block in self.blocks:
            x = block(x, shared, rotation)

        scale, shift = self.final
        x = rms_norm(x[:, self.config.registers :]) * (1 + scale) + shift
        return rearrange(x, "b (h w) d -> b h w d", h=h)

    def modulations(self, condition: torch.Tensor | None, b: int, device: torch.device) -> torch.Tensor:
        """Condition (b, f), None for all null -> what all blocks are modulated with (b, 6, 1, d)."""
        if not self.labels:
            c = torch.zeros(b, self.config.dim, device=device)
        else:
            if condition is None:
                condition = torch.tensor(self.config.label_sizes, device=device).expand(b, -1)
            c = torch.stack([embed(i) for embed, i in zip(self.labels, condition.unbind(1), strict=True)]).sum(0)
        return rearrange(self.modulate(F.silu(c)), "b (six d) -> six b 1 d", six=6)


class MaskedTransformer(nn.Module):
    """The generator's network: codes (b, h, w), some MASK, and condition (b, f) -> logits (b, h, w, v)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return self.config.label_sizes

    def forward(
        self, codes: torch.Tensor, condition: torch.Tensor | None = None, *, at: torch.Tensor | None = None
    ) -> torch.Tensor:
        """With `at` (b, h, w) bool, only the logits of the m True positions, (m, v): the head is not run elsewhere."""
        x = self.trunk(codes, condition)
        return self.to_logits(x if at is None else x[at])

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v), with the embedding's own weights; MASK has no logit."""
        return F.linear(features, self.trunk.embed.weight[: self.vocab_size], self.bias)


class TokenCritic(nn.Module):
    """Complete codes (b, h, w) and condition (b, f) -> logits (b, h, w): high where a code is wrong.

    Lezama et al. 2022, "Improved masked image generation with Token-Critic", arXiv 2209.04439.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.dim, 1)

    def forward(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
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
        scale1, shift1, gate1, scale2, shift2, gate2 = shared + self.modulation  # (b, 1, d) each

        update = self.attend(rms_norm(x) * (1 + scale1) + shift1, rotation)
        x = x + (1 + gate1) * F.dropout(update, self.dropout, self.training)

        update = self.down(F.relu(self.up(rms_norm(x) * (1 + scale2) + shift2)).square())
        return x + (1 + gate2) * F.dropout(update, self.dropout, self.training)

    def attend(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv head d) -> qkv b head n d", qkv=3, head=self.heads)
        q, k = rotate(rms_norm(q), rotation), rotate(rms_norm(k), rotation)
        return self.to_out(rearrange(attention(q, k, v), "b head n d -> b n (head d)"))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values (b, head, n, d) -> (b, head, n, d)."""
    if q.device.type == "cpu" and q.shape[2] <= 256:
        # The fused kernel's backward pass on a CPU takes four times as long as these two products (torch 2.15, bf16).
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Root-mean-square normalisation over the last axis, without a gain."""
    return F.rms_norm(x, x.shape[-1:])


def rotary(h: int, w: int, dim: int, registers: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (registers + h * w, dim / 2) of a grid's rotary positions; registers are not rotated."""
    frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4, device=device)
    rows = torch.arange(h, device=device)[:, None] * frequencies
    columns = torch.arange(w, device=device)[:, None] * frequencies
    angles = torch.cat((rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)), dim=-1)
    angles = rearrange(angles, "h w d -> (h w) d")
    angles = torch.cat((angles.new_zeros(registers, dim // 2), angles))
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate (b, head, n, d) by the angles of `rotary`; the two halves of d are the two coordinates of each plane."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, left * sin + right * cos), dim=-1)
