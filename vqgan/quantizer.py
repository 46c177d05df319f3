"""Quantizers behind one face; the only file that imports vector_quantize_pytorch.

Each has `dim` and `vocab_size`; called with latents (b, d, h, w) it gives quantized latents (b, d, h, w), codes
(b, h, w) int64 and a loss (), and `lookup` turns codes (b, h, w) back into quantized latents (b, d, h, w).

FSQ, finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), is the default: nothing to tune, no state,
no collapse. VQ is the low-dimensional cosine codebook of ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627), moved by
exponential averages, with unused codes restarted.

The library says `indices` for the integers and `codes` for the vectors; here, as everywhere in this project,
`codes` are the integers. It is always given sequences (b, n, d), never images: with a projection inside, its image
option decodes along the width (1.32). And it is always run in fp32: under bf16, 1 % of the codes would change.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from vector_quantize_pytorch import FSQ, VectorQuantize


class Quantizer(nn.Module):
    """The face that all quantizers share."""

    dim: int
    vocab_size: int

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (b, d, h, w) -> quantized latents (b, d, h, w), codes (b, h, w) int64, loss ()."""
        raise NotImplementedError

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) -> quantized latents (b, d, h, w)."""
        raise NotImplementedError


class FiniteScalar(Quantizer):
    """FSQ: each latent channel is rounded to one of `levels[i]` values; the vocabulary is their product."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        if len(levels) < 1 or min(levels) < 3:
            raise ValueError(f"FSQ levels must each be 3 or more, got {list(levels)}")
        self.fsq = FSQ(list(levels))
        self.dim = len(levels)
        self.vocab_size = int(torch.tensor(levels).prod())

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h, w = latents.shape[-2:]
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes = self.fsq(rearrange(latents.float(), "b d h w -> b (h w) d"))
        quantized = rearrange(quantized, "b (h w) d -> b d h w", h=h, w=w)
        return quantized, rearrange(codes, "b (h w) -> b h w", h=h, w=w).long(), quantized.new_zeros(())

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.fsq.indices_to_codes(rearrange(codes, "b h w -> b (h w)"))
        return rearrange(vectors, "b (h w) d -> b d h w", h=codes.shape[1], w=codes.shape[2])


class Codebook(Quantizer):
    """VQ with a cosine codebook of `size` vectors of `dim`, restarted where a code falls out of use."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.dim, self.vocab_size = dim, size
        self.vq = VectorQuantize(
            dim=dim,
            codebook_size=size,
            use_cosine_sim=True,
            decay=0.98,
            commitment_weight=0.25,
            kmeans_init=True,
            kmeans_iters=10,
            # In tokens per batch, averaged: a batch of 64 pictures of 64 tokens gives each of 4,096 codes one, so a
            # threshold of 1 would restart live codes for ever.
            threshold_ema_dead_code=0.1,  # pyright: ignore[reportArgumentType] (any number will do)
            # Straight-through rather than the rotation trick: the latter is reported to leave codes dead.
            rotation_trick=False,
        )

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not self.training and not bool(self.vq._codebook.get_buffer("initted")):
            raise ValueError("this tokenizer's codebook is empty: train it first")  # looking at it would fill it
        h, w = latents.shape[-2:]
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, loss = self.vq(rearrange(latents.float(), "b d h w -> b (h w) d"))
        quantized = rearrange(quantized, "b (h w) d -> b d h w", h=h, w=w)
        return quantized, rearrange(codes, "b (h w) -> b h w", h=h, w=w).long(), loss.sum()

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.vq.get_output_from_indices(rearrange(codes, "b h w -> b (h w)"))
        return rearrange(vectors, "b (h w) d -> b d h w", h=codes.shape[1], w=codes.shape[2])


class NearestCode(Quantizer):
    """The codebook of VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937): each latent becomes the nearest row.

    With `unit_length` both are brought to length 1 first, rows at every use: the stored ones need not be.
    """

    def __init__(self, size: int, dim: int, *, unit_length: bool = False):
        super().__init__()
        self.dim, self.vocab_size, self.unit_length = dim, size, unit_length
        self.codebook = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, _, h, w = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            vectors = self._scaled(rearrange(latents.float(), "b d h w -> (b h w) d"))
            rows = self._rows()
            codes = nearest(vectors.detach(), rows.detach())
            chosen = F.embedding(codes, rows)
            # The codebook follows the encoder at full weight, the encoder commits to it at a quarter.
            loss = F.mse_loss(chosen, vectors.detach()) + 0.25 * F.mse_loss(vectors, chosen.detach())
            quantized = vectors + (chosen - vectors).detach()  # straight through
        quantized = rearrange(quantized, "(b h w) d -> b d h w", b=b, h=h)
        return quantized, rearrange(codes, "(b h w) -> b h w", b=b, h=h), loss

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return rearrange(F.embedding(codes, self._rows()), "b h w d -> b d h w")

    def _rows(self) -> torch.Tensor:
        return self._scaled(self.codebook.float())

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=-1) if self.unit_length else vectors


class ProbableCode(Quantizer):
    """The codebook of a Gumbel VQGAN: a linear layer gives each code a logit, and the most probable one is taken.

    Straight through the softmax and without Gumbel's noise, which encoding must not depend on.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.dim, self.vocab_size = dim, size
        self.to_logits = nn.Linear(dim, size)
        self.codebook = nn.Parameter(torch.randn(size, dim))

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(latents.device.type, enabled=False):
            rows = self.codebook.float()
            vectors = rearrange(latents.float(), "b d h w -> b h w d")
            logits = F.linear(vectors, self.to_logits.weight.float(), self.to_logits.bias.float())  # (b, h, w, v)
            codes = logits.argmax(-1)
            probs = logits.softmax(-1)
            expected = probs @ rows
            quantized = expected + (F.embedding(codes, rows) - expected).detach()
            # KL divergence from uniform, weighted as in taming-transformers.
            loss = 5e-4 * (probs * (probs * self.vocab_size + 1e-10).log()).sum(-1).mean()
        return rearrange(quantized, "b h w d -> b d h w"), codes, loss

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return rearrange(F.embedding(codes, self.codebook.float()), "b h w d -> b d h w")


def nearest(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Vectors (m, d), rows (v, d) -> codes (m,) int64 of the rows at the least distance.

    A part of the vectors at a time, so that 16,384 rows and a batch of large pictures do not need gigabytes.
    """
    offsets = rows.square().sum(-1) / 2
    parts = vectors.split(max(1, 2**24 // len(rows)))
    # |z - e|² is least where z·e - |e|²/2 is most: |z|² is the same for all rows and would only cost digits.
    return torch.cat([(part @ rows.T - offsets).argmax(-1) for part in parts])
