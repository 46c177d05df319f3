"""The transformer of Halton-MaskGIT, so that its published weights can be run (ImageNet at 256 and 384 pixels).

Besnier et al. 2025, "Halton scheduler for masked generative image transformer", arXiv 2503.17076. Blocks as in DiT
(Peebles and Xie 2022, arXiv 2212.09748), each with a modulation of its own, with root-mean-square normalisation and
SwiGLU (Shazeer 2020, arXiv 2002.05202). Queries and keys are normalised over all heads together, and the registers
follow the tokens. The network for text, and the variant that folds tokens two by two (`proj`), are not here.

Shapes: b images, h w tokens, n = h * w, v codes, c classes, d features.
"""

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition, as_condition
from maskimg.network import Modulation, Network
from maskimg.networks.blocks import attention

EPSILON = 1e-5  # of every normalisation
MODULATED = 6  # shifts, scales and gates of a block


@dataclasses.dataclass(frozen=True)
class HaltonConfig:
    """What the network is made of; the defaults are the published `base` for 256 pixels.

    Attributes:
        vocab_size, grid: codes v, and tokens (h, w).
        label_sizes: (c,), the one label field.
        dim, depth, heads: width, blocks and attention heads; heads of dim // heads features need not fill the width.
        hidden: width of the feed-forward layers.
        registers: learned extra tokens after the grid.
    """

    vocab_size: int = 16384
    grid: tuple[int, int] = (16, 16)
    label_sizes: tuple[int, ...] = (1000,)
    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 2048
    registers: int = 1

    def __post_init__(self):
        if len(self.label_sizes) != 1:
            raise ValueError(f"this network has one label field, got {len(self.label_sizes)}")
        if not 1 <= self.heads <= self.dim:
            raise ValueError(f"heads must be between 1 and dim = {self.dim}, got {self.heads}")


class HaltonMaskGit(Network):
    """Codes (b, h, w), some MASK, and classes (b, 1) -> logits (b, h, w, v)."""

    architecture: ClassVar[str] = "halton-maskgit"
    config_type: ClassVar[type] = HaltonConfig
    trunk: "HaltonTrunk"

    def __init__(self, config: HaltonConfig):
        super().__init__(config, HaltonTrunk(config))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size + 1))

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v). MASK has one in the original, which may draw it; it is cut off here."""
        return F.linear(features, self.trunk.embed.weight[: self.vocab_size], self.bias[: self.vocab_size])


class HaltonTrunk(nn.Module):
    """Codes (b, h, w), some of them MASK, and a condition (b, 1) -> features (b, h, w, d)."""

    def __init__(self, config: HaltonConfig):
        super().__init__()
        (c,), d = config.label_sizes, config.dim
        h, w = config.grid
        self.config = config
        self.embed = nn.Embedding(config.vocab_size + 1, d)
        self.positions = nn.Parameter(0.02 * torch.randn(h * w, d))
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, d))
        self.classes = nn.Embedding(c + 1, d)  # the last is the null
        self.blocks = nn.ModuleList(HaltonBlock(config) for _ in range(config.depth))
        self.gain, self.offset = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.modulate = nn.Linear(d, 2 * d)
        for embedding in (self.embed, self.classes):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        codes: torch.Tensor,
        condition: Condition | torch.Tensor | Modulation | None = None,
        sum_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            condition: labels (b, 1) alone or in a Condition, None for all null, or what `modulation` made of it.
            sum_embeds: (b, h, w, d), added to the codes' embeddings (self-conditioning).
        """
        b, h, w = codes.shape
        if not isinstance(condition, Modulation):
            condition = self.modulation(condition, b)
        x = self.embed(codes)
        if sum_embeds is not None:
            x = x + sum_embeds
        x = rearrange(x, "b h w d -> b (h w) d") + self.positions
        x = torch.cat((x, self.registers.to(x.dtype).expand(b, -1, -1)), dim=1)  # (b, n + registers, d)

        *parts, last = condition.shared.split(MODULATED, dim=1)
        for block, part in zip(self.blocks, parts, strict=True):
            x = block(x, part)

        shift, scale = last.unbind(1)
        x = modulated(rms_norm(x[:, : h * w]) * self.gain + self.offset, shift, scale)
        return rearrange(x, "b (h w) d -> b h w d", h=h)

    def modulation(self, condition: Condition | torch.Tensor | None, b: int) -> Modulation:
        """Classes (b, 1) -> (b, 6 * depth + 2, 1, d): all shifts, scales and gates, a third of the large network."""
        labels = as_condition(condition).labels
        if labels is None:
            labels = torch.full((b, 1), self.config.label_sizes[0], device=self.positions.device)
        c = F.silu(self.classes(labels[:, 0]))  # (b, d)
        modules: list[Any] = [*self.blocks, self]
        parts = torch.cat([module.modulate(c) for module in modules], dim=1)
        return Modulation(rearrange(parts, "b (part d) -> b part 1 d", d=self.config.dim))


class HaltonBlock(nn.Module):
    """Attention and feed-forward, each with its own shift, scale and gate. (b, n, d) -> (b, n, d)."""

    def __init__(self, config: HaltonConfig):
        super().__init__()
        d = config.dim
        width = config.heads * (d // config.heads)
        self.heads = config.heads
        self.modulate = nn.Linear(d, MODULATED * d)
        self.gain1, self.gain2 = nn.Parameter(torch.ones(d)), nn.Parameter(torch.ones(d))
        self.to_qkv = nn.Linear(d, 3 * width, bias=False)
        self.to_out = nn.Linear(width, d, bias=False)
        self.gate = nn.Linear(d, config.hidden, bias=False)
        self.up = nn.Linear(d, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, d, bias=False)
        nn.init.zeros_(self.modulate.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Modulation (b, 6, 1, d)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(1)  # (b, 1, d) each

        x = x + gate1 * self.attend(modulated(rms_norm(x) * self.gain1, shift1, scale1))

        update = modulated(rms_norm(x) * self.gain2, shift2, scale2)
        return x + gate2 * self.down(F.silu(self.gate(update)) * self.up(update))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = rms_norm(q), rms_norm(k)  # over all heads together
        q, k, v = (rearrange(part, "b n (head d) -> b head n d", head=self.heads) for part in (q, k, v))
        return self.to_out(rearrange(attention(q, k, v), "b head n d -> b n (head d)"))


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Root-mean-square normalisation over the last axis, summed in fp32; unlike our own, it adds an epsilon."""
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON).to(x.dtype)
