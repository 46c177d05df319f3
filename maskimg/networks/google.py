"""The transformer of Google's MaskGIT, so that its published weights can be run (ImageNet at 256 and 512 pixels).

Chang et al. 2022, "MaskGIT: masked generative image transformer", arXiv 2202.04200; a BERT (Devlin et al. 2018, arXiv
1810.04805): normalisation after each sum, learned positions, and a head that shares the embeddings. One vocabulary
holds codes, classes and MASK, in this order; the class is one more token, at the first position.

Shapes: b images, h w tokens, n = h * w, v codes, c classes, d features.
"""

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition, as_condition
from maskimg.network import Modulation, Network
from maskimg.networks.blocks import attention

EPSILON = 1e-12  # of every normalisation: as in BERT, not torch's 1e-5


@dataclasses.dataclass(frozen=True)
class GoogleConfig:
    """What the network is made of; the defaults are the published model for 256 pixels.

    Attributes:
        vocab_size, grid: codes v, and tokens (h, w).
        label_sizes: (c,), the one label field.
        dim, depth, heads: width, blocks and attention heads.
        hidden: width of the feed-forward layers.
        null_trained: its class was now and then MASK in training, so that it can be guided. Not so when published.
    """

    vocab_size: int = 1024
    grid: tuple[int, int] = (16, 16)
    label_sizes: tuple[int, ...] = (1000,)
    dim: int = 768
    depth: int = 24
    heads: int = 16
    hidden: int = 3072
    null_trained: bool = False

    def __post_init__(self):
        if len(self.label_sizes) != 1:
            raise ValueError(f"this network has one label field, got {len(self.label_sizes)}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim, got {self.dim} / {self.heads}")


class GoogleMaskGit(Network):
    """Codes (b, h, w), some MASK, and classes (b, 1) -> logits (b, h, w, v)."""

    architecture: ClassVar[str] = "google-maskgit"
    config_type: ClassVar[type] = GoogleConfig
    trunk: "GoogleTrunk"

    def __init__(self, config: GoogleConfig):
        super().__init__(config, GoogleTrunk(config))
        self.bias = nn.Parameter(torch.zeros(len(self.trunk.words.weight)))
        self.has_null = config.null_trained

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v): those of classes and MASK are cut off, as in the original."""
        return F.linear(features, self.trunk.words.weight[: self.vocab_size], self.bias[: self.vocab_size])


class GoogleTrunk(nn.Module):
    """Codes (b, h, w), some of them MASK, and a condition (b, 1) -> features (b, h, w, d)."""

    def __init__(self, config: GoogleConfig):
        super().__init__()
        (c,), d = config.label_sizes, config.dim
        h, w = config.grid
        self.config = config
        self.words = nn.Embedding(config.vocab_size + c + 1, d)  # codes, classes, MASK
        self.positions = nn.Parameter(0.02 * torch.randn(1 + h * w, d))
        self.norm = nn.LayerNorm(d, eps=EPSILON)
        self.blocks = nn.ModuleList(GoogleBlock(config) for _ in range(config.depth))
        self.last = nn.Linear(d, d)
        self.last_norm = nn.LayerNorm(d, eps=EPSILON)
        nn.init.normal_(self.words.weight, std=0.02)

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
        b, h, _ = codes.shape
        if not isinstance(condition, Modulation):
            condition = self.modulation(condition, b)
        x = self.words(torch.where(codes == self.config.vocab_size, self._mask, codes))
        if sum_embeds is not None:
            x = x + sum_embeds
        x = torch.cat((condition.shared, rearrange(x, "b h w d -> b (h w) d")), dim=1)  # (b, 1 + n, d)
        x = self.norm(x + self.positions)

        for block in self.blocks:
            x = block(x)

        x = self.last_norm(F.gelu(self.last(x[:, 1:]), approximate="tanh"))
        return rearrange(x, "b (h w) d -> b h w d", h=h)

    def modulation(self, condition: Condition | torch.Tensor | None, b: int) -> Modulation:
        """Classes (b, 1) -> the embedding of the first token (b, 1, d). No class is MASK, which is the next word."""
        labels = as_condition(condition).labels
        if labels is None:
            labels = torch.full((b, 1), self.config.label_sizes[0], device=self.positions.device)
        return Modulation(self.words(self.config.vocab_size + labels))

    @property
    def _mask(self) -> int:
        """The word that stands for MASK."""
        return self.config.vocab_size + self.config.label_sizes[0]


class GoogleBlock(nn.Module):
    """Attention and feed-forward, normalised after each is added. (b, n, d) -> (b, n, d)."""

    def __init__(self, config: GoogleConfig):
        super().__init__()
        d = config.dim
        self.heads = config.heads
        self.to_qkv = nn.Linear(d, 3 * d)
        self.to_out = nn.Linear(d, d)
        self.norm1 = nn.LayerNorm(d, eps=EPSILON)
        self.up = nn.Linear(d, config.hidden)
        self.down = nn.Linear(config.hidden, d)
        self.norm2 = nn.LayerNorm(d, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (qkv head d) -> qkv b head n d", qkv=3, head=self.heads)
        x = self.norm1(x + self.to_out(rearrange(attention(q, k, v), "b head n d -> b n (head d)")))
        return self.norm2(x + self.down(F.gelu(self.up(x), approximate="tanh")))
