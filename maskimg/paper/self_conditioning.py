"""A network that sees its own features of an earlier pass.

Chen et al. 2022, "Analog bits", arXiv 2208.04202.

Shapes: b images, h w tokens, d features.
"""

import torch
from torch import nn


class SelfConditioning(nn.Module):
    """Features (b, h, w, d) of an earlier pass -> what is added to the codes' embeddings; a learned null before it."""

    def __init__(self, dim: int, embed_dim: int):
        super().__init__()
        self.null_embed = nn.Parameter(torch.randn(dim))
        self.to_self_cond = nn.Linear(dim, embed_dim, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.to_self_cond(features)

    def null(self, codes: torch.Tensor) -> torch.Tensor:
        """The null for each token of `codes` (b, h, w)."""
        return self.null_embed.expand(*codes.shape, -1)
