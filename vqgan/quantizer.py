"""Quantizers behind one face; the only file that imports vector_quantize_pytorch.

    fsq    finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each channel is rounded. Nothing to tune,
           no state, no collapse.
    efsq   the same with levels of even use, and a loss that spreads latents over them from the first steps on: the
           default.
    vq     a learned codebook (van den Oord et al. 2017, arXiv 1711.00937), low-dimensional and cosine as in ViT-VQGAN
           (Yu et al. 2021, arXiv 2110.04627), moved by exponential averages, unused codes restarted.
    lfq    lookup-free (Yu et al. 2023, arXiv 2310.05737): the signs of the channels are the bits of the code.
    bsq    the same on the unit sphere (Zhao et al. 2024, arXiv 2406.07548).
    simvq  a frozen random codebook seen through one learned linear layer (Zhu et al. 2024, arXiv 2411.02038).

The library says `indices` for the integers and `codes` for the vectors; here, as everywhere in this project,
`codes` are the integers. It is always given sequences (b, n, d), never images: with a projection inside, its image
option decodes along the width (1.32). And it is always run in fp32: under bf16, 1 % of the codes would change.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize


class Quantizer(nn.Module):
    """The face that all quantizers share.

    Attributes:
        dim: latent channels d.
        vocab_size: number of codes.
    """

    dim: int
    vocab_size: int

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (b, d, h, w) -> quantized latents (b, d, h, w), codes (b, h, w) int64, loss ()."""
        h, w = latents.shape[-2:]
        with torch.autocast(latents.device.type, enabled=False):
            quantized, codes, loss = self.quantize(rearrange(latents.float(), "b d h w -> b (h w) d"))
        quantized = rearrange(quantized, "b (h w) d -> b d h w", h=h, w=w)
        return quantized, rearrange(codes, "b (h w) -> b h w", h=h, w=w).long(), loss

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) -> quantized latents (b, d, h, w)."""
        with torch.autocast(codes.device.type, enabled=False):
            vectors = self.vectors(rearrange(codes, "b h w -> b (h w)"))
        return rearrange(vectors, "b (h w) d -> b d h w", h=codes.shape[1], w=codes.shape[2])

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """fp32 latents (b, n, d) -> quantized latents (b, n, d), codes (b, n), loss ()."""
        raise NotImplementedError

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, n) -> quantized latents (b, n, d)."""
        raise NotImplementedError

    def _apply(self, fn, recurse=True):
        """Numbers move to another device but stay fp32: in bf16 the averages of a codebook stand still."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            there = fn(tensor)
            return tensor.to(there.device) if tensor.is_floating_point() and not tensor.is_meta else there

        return super()._apply(moved, recurse)


class FiniteScalar(Quantizer):
    """FSQ: each latent channel is rounded to one of `levels[i]` values; the vocabulary is their product."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        if len(levels) < 1 or min(levels) < 3:
            raise ValueError(f"FSQ levels must each be 3 or more, got {list(levels)}")
        self.fsq = FSQ(list(levels))
        self.dim = len(levels)
        self.vocab_size = int(torch.tensor(levels).prod())

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        quantized, codes = self.fsq(latents)
        return quantized, codes, quantized.new_zeros(())

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return self.fsq.indices_to_codes(codes)


class EvenScalar(Quantizer):
    """FSQ whose levels are used evenly, once latents are spread like independent standard Gaussians.

    The sigmoid of iFSQ (Lin et al. 2026, arXiv 2601.17124), 2σ(1.6 z) - 1, takes such a latent to a nearly uniform one
    in (-1, 1), which is cut into `levels[i]` parts of one width; a code stands for their middles. That latents have
    this mean and covariance is what the loss asks for: averages to keep, as in a batch norm, are not needed.
    """

    levels: torch.Tensor
    places: torch.Tensor

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        if len(levels) < 1 or min(levels) < 2:
            raise ValueError(f"EFSQ levels must each be 2 or more, got {list(levels)}")
        self.dim = len(levels)
        self.vocab_size = math.prod(levels)
        places = [math.prod(levels[:i]) for i in range(self.dim)]  # the first channel is the last digit, as in fsq
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        bounded = torch.tanh(0.8 * latents)  # = 2σ(1.6 z) - 1
        # What is not a number gets some code: whoever trains leaves such a step out, by its loss.
        parts = ((bounded + 1) / 2 * self.levels).nan_to_num().long().minimum(self.levels - 1)  # tanh(9) is 1
        quantized = self._middles(parts) + (bounded - bounded.detach())  # straight through, and exact
        loss = SPREAD * far_from_gaussian(latents) if self.training else latents.new_zeros(())
        return quantized, (parts * self.places).sum(-1), loss

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return self._middles(codes[..., None] // self.places % self.levels)

    def _middles(self, parts: torch.Tensor) -> torch.Tensor:
        return (2 * parts + 1) / self.levels - 1


SPREAD = 0.1  # weight of that loss: enough to spread them; at 1 pictures wait for it (Fashion-MNIST: 0.3 dB less)


def far_from_gaussian(latents: torch.Tensor) -> torch.Tensor:
    """Latents (b, n, d) -> how far their mean is from 0 and their covariance from that of d independent ones: ()."""
    latents = rearrange(latents, "b n d -> (b n) d")
    mean = latents.mean(0)
    covariance = (latents - mean).T @ (latents - mean) / len(latents)
    return mean.square().mean() + (covariance - torch.eye(len(mean), device=latents.device)).square().mean()


class Codebook(Quantizer):
    """VQ: a codebook of `size` vectors of `dim`, the mean of the latents it stands for, restarted where out of use.

    Args:
        cosine: compare directions, not distances.
        rotation: pass gradients through a rotation (Fifty et al. 2024, arXiv 2410.06424) instead of straight through;
            reported to leave codes dead, so it is off.
    """

    def __init__(self, size: int, dim: int, *, cosine: bool = True, rotation: bool = False):
        super().__init__()
        self.dim, self.vocab_size = dim, size
        self.vq = VectorQuantize(
            dim=dim,
            codebook_size=size,
            use_cosine_sim=cosine,
            decay=0.98,
            commitment_weight=0.25,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=RESTART,  # pyright: ignore[reportArgumentType] (any number will do)
            rotation_trick=rotation,
        )

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        book = self.vq._codebook
        if not self.training and not bool(book.get_buffer("initted")):
            raise ValueError("this tokenizer's codebook is empty: train it first")  # looking at it would fill it
        if self.training and not bool(latents.isfinite().all()):
            # Whoever trains leaves such a step out; in the averages of the codebook it would stay for ever.
            return latents, torch.zeros(latents.shape[:2], dtype=torch.int64, device=latents.device), latents.sum()
        # The library counts in tokens a batch, averaged: set in those, a batch of few tokens restarts live codes too.
        tokens = latents.shape[0] * latents.shape[1]
        book.threshold_ema_dead_code = RESTART * tokens / self.vocab_size  # pyright: ignore
        with warnings.catch_warnings():
            # A first batch with fewer latents than codes gives equal codes, which the restarts then part.
            warnings.filterwarnings("ignore", message=".*kmeans.*")
            quantized, codes, loss = self.vq(latents)
        return quantized, codes, loss.sum()

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return self.vq.get_output_from_indices(codes)


RESTART = 0.1  # share of a code's fair use, tokens / codes, below which it is restarted


class Signs(Quantizer):
    """LFQ and BSQ: bit i of a code is the sign of latent channel i; the vocabulary is 2 ** dim.

    The loss makes codes certain for each token and evenly used by all (entropy, weight 0.1 as in MAGVIT-v2), and keeps
    latents near their codes.

    Args:
        spherical: BSQ, latents and codes of length 1.
    """

    def __init__(self, size: int, *, spherical: bool):
        super().__init__()
        self.dim, self.vocab_size = size.bit_length() - 1, size
        if size < 2 or size != 2**self.dim:
            raise ValueError(f"the codebook_size of lfq and bsq is a power of two, got {size}")
        self.lfq = LFQ(
            dim=self.dim, codebook_size=size, entropy_loss_weight=0.1, commitment_loss_weight=0.25, spherical=spherical
        )

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # The library compares every token with every code, whatever the entropy's weight: let it look at a sample.
        tokens = latents.shape[0] * latents.shape[1]
        self.lfq.frac_per_sample_entropy = min(1.0, ENTROPY_TOKENS / tokens)
        quantized, codes, loss = self.lfq(latents)
        return quantized, codes, loss.sum()

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return self.lfq.indices_to_codes(codes)


ENTROPY_TOKENS = 2048


class LinearCodebook(Quantizer):
    """SimVQ: all codes move together, through one linear layer, so none is left behind.

    Straight through rather than by the library's default, the rotation trick, whose loss is reported to explode here.
    """

    def __init__(self, size: int, dim: int, *, rotation: bool = False):
        super().__init__()
        self.dim, self.vocab_size = dim, size
        self.simvq = SimVQ(dim=dim, codebook_size=size, rotation_trick=rotation)

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        quantized, codes, loss = self.simvq(latents)
        if not self.training:  # straight through, x + (code - x), is rounded
            return self.vectors(codes), codes, loss.new_zeros(())
        return quantized, codes, loss

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes, self.simvq.codebook)


class NearestCode(Quantizer):
    """The codebook of VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937): each latent becomes the nearest row.

    With `unit_length` both are brought to length 1 first, rows at every use: the stored ones need not be.
    """

    def __init__(self, size: int, dim: int, *, unit_length: bool = False):
        super().__init__()
        self.dim, self.vocab_size, self.unit_length = dim, size, unit_length
        self.codebook = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents, rows = self._scaled(latents), self._scaled(self.codebook)
        codes = rearrange(nearest(latents.detach().flatten(0, 1), rows.detach()), "(b n) -> b n", b=len(latents))
        chosen = F.embedding(codes, rows)
        # The codebook follows the encoder at full weight, the encoder commits to it at a quarter.
        loss = F.mse_loss(chosen, latents.detach()) + 0.25 * F.mse_loss(latents, chosen.detach())
        return latents + (chosen - latents).detach(), codes, loss  # straight through

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes, self._scaled(self.codebook))

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

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.to_logits(latents)  # (b, n, v)
        codes = logits.argmax(-1)
        probs = logits.softmax(-1)
        expected = probs @ self.codebook
        # KL divergence from uniform, weighted as in taming-transformers.
        loss = 5e-4 * (probs * (probs * self.vocab_size + 1e-10).log()).sum(-1).mean()
        return expected + (self.vectors(codes) - expected).detach(), codes, loss

    def vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(codes, self.codebook)


def nearest(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Vectors (m, d), rows (v, d) -> codes (m,) int64 of the rows at the least distance.

    A part of the vectors at a time, so that 16,384 rows and a batch of large pictures do not need gigabytes.
    """
    offsets = rows.square().sum(-1) / 2
    parts = vectors.split(max(1, 2**24 // len(rows)))
    # |z - e|² is least where z·e - |e|²/2 is most: |z|² is the same for all rows and would only cost digits.
    return torch.cat([(part @ rows.T - offsets).argmax(-1) for part in parts])
