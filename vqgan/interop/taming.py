"""The VQGAN of Esser et al. 2021 (arXiv 2012.09841), in which most published tokenizers can be written down.

taming-transformers' own, diffusers' `VQModel` (aMUSEd's too) and LlamaGen's differ only in widths, in where attention
stands, in the codebook and in the range of their pixels. `vqgan.interop.convert` reads their files into this network.

Shapes: b images, H W pixels, h w latent cells (H = h * stride), c channels, d the codebook's dimension.
"""

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqgan.quantizer import NearestCode, ProbableCode, Quantizer

EPSILON = 1e-6  # of every group normalisation in these networks


@dataclasses.dataclass(frozen=True)
class TamingConfig:
    """What such a tokenizer is made of; the defaults are the 1,024 codes for ImageNet of 2021.

    Attributes:
        codebook_size, codebook_dim: number of codes and their dimension.
        quantizer: `nearest`, `cosine` (vectors of unit length, as in LlamaGen) or `gumbel` (a logit for each code).
        pixels: range of the network's own pixels, `symmetric` for [-1, 1] or `unit` for [0, 1].
        stem: width before the first level.
        channels: width of each level, full resolution first; the stride is 2 ** (len(channels) - 1).
        blocks: residual blocks in a level of the encoder; the decoder has one more.
        encoder_attention, decoder_attention: the levels with attention after each block; 0 is full resolution.
        middle_attention: whether there is attention between the two blocks at the lowest resolution.
        latent_channels: width between encoder and codebook, which a 1x1 convolution brings to `codebook_dim`.
        groups: of every group normalisation.
    """

    architecture: ClassVar[str] = "taming"

    codebook_size: int = 1024
    codebook_dim: int = 256
    quantizer: str = "nearest"
    pixels: str = "symmetric"
    stem: int = 128
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = (4,)
    middle_attention: bool = True
    latent_channels: int = 256
    groups: int = 32

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def build(self) -> tuple[nn.Module, Quantizer, nn.Module]:
        check_network(self.pixels, (self.stem, *self.channels), self.groups)
        return Encoder(self), self._quantizer(), Decoder(self)

    def _quantizer(self) -> Quantizer:
        if self.quantizer == "gumbel":
            return ProbableCode(self.codebook_size, self.codebook_dim)
        if self.quantizer not in ("nearest", "cosine"):
            raise ValueError(f"quantizer must be `nearest`, `cosine` or `gumbel`, got `{self.quantizer}`")
        return NearestCode(self.codebook_size, self.codebook_dim, unit_length=self.quantizer == "cosine")


class Encoder(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> latents (b, d, h, w)."""

    def __init__(self, config: TamingConfig):
        super().__init__()
        self.pixels = config.pixels
        last = len(config.channels) - 1
        width = config.stem
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.levels = nn.ModuleList()
        for level, channels in enumerate(config.channels):
            resample = Downsample if level < last else None
            attends = level in config.encoder_attention
            self.levels.append(Level(width, channels, config.blocks, attends, resample, config.groups))
            width = channels
        self.middle = Middle(width, config.middle_attention, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, width, EPSILON)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)
        self.to_codebook = nn.Conv2d(config.latent_channels, config.codebook_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(to_own_range(images, self.pixels).contiguous(memory_format=torch.channels_last))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(self.middle(x))))
        return self.to_codebook(x)  # (b, d, h, w)


class Decoder(nn.Module):
    """Quantized latents (b, d, h, w) -> images (b, 3, H, W), roughly in [-1, 1]; `levels` stand as they are run."""

    def __init__(self, config: TamingConfig):
        super().__init__()
        self.pixels = config.pixels
        width = config.channels[-1]
        self.from_codebook = nn.Conv2d(config.codebook_dim, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.middle = Middle(width, config.middle_attention, config.groups)
        self.levels = nn.ModuleList()
        for level, channels in reversed(list(enumerate(config.channels))):
            resample = Upsample if level > 0 else None
            attends = level in config.decoder_attention
            self.levels.append(Level(width, channels, config.blocks + 1, attends, resample, config.groups))
            width = channels
        self.norm_out = nn.GroupNorm(config.groups, width, EPSILON)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.from_codebook(latents.contiguous(memory_format=torch.channels_last))
        x = self.middle(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return from_own_range(self.conv_out(F.silu(self.norm_out(x))), self.pixels)


class Level(nn.Module):
    """Residual blocks at one resolution, attention after each if it `attends`, then the way to the next resolution."""

    def __init__(self, before: int, channels: int, blocks: int, attends: bool, resample: type | None, groups: int):
        super().__init__()
        widths = [before, *[channels] * blocks]
        self.blocks = nn.ModuleList(ResBlock(widths[j], widths[j + 1], groups) for j in range(blocks))
        self.attentions = nn.ModuleList(Attention(channels, groups) for _ in range(blocks if attends else 0))
        self.resample = resample(channels) if resample else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for j, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[j](x)
        return self.resample(x)


class Middle(nn.Module):
    """Two blocks at the lowest resolution, with attention between them or without."""

    def __init__(self, channels: int, attends: bool, groups: int):
        super().__init__()
        self.first = ResBlock(channels, channels, groups)
        self.attention = Attention(channels, groups) if attends else nn.Identity()
        self.second = ResBlock(channels, channels, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.attention(self.first(x)))


class ResBlock(nn.Module):
    """(b, before, y, x) -> (b, after, y, x); a 1x1 convolution on the shortcut where the width changes."""

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, before, EPSILON), nn.GroupNorm(groups, after, EPSILON)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = self.conv1(F.silu(self.norm1(x)))
        update = self.conv2(F.silu(self.norm2(update)))
        return self.shortcut(x) + update


class Attention(nn.Module):
    """Every cell attends to every other, with one head. (b, c, y, x) -> the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPSILON)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = rearrange(self.norm(x), "b c y x -> b 1 (y x) c")
        mixed = F.scaled_dot_product_attention(self.query(cells), self.key(cells), self.value(cells))
        return x + rearrange(self.out(mixed), "b 1 (y x) c -> b c y x", y=x.shape[2])


class Downsample(nn.Conv2d):
    """(b, c, 2y, 2x) -> (b, c, y, x), padded below and on the right only."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """(b, c, y, x) -> (b, c, 2y, 2x)."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))


def check_network(pixels: str, widths: tuple[int, ...], groups: int) -> None:
    """Raises: ValueError where the range of the pixels is unknown, or groups of normalisation do not fit a width."""
    odd = [width for width in widths if width % groups]
    if odd:
        raise ValueError(f"channels must be divisible by the {groups} groups of normalisation, got {odd[0]}")
    if pixels not in ("symmetric", "unit"):
        raise ValueError(f"pixels must be `symmetric` for [-1, 1] or `unit` for [0, 1], got `{pixels}`")


def to_own_range(images: torch.Tensor, pixels: str) -> torch.Tensor:
    """Images in [-1, 1] -> in the range that the network was trained with."""
    return (images + 1) / 2 if pixels == "unit" else images


def from_own_range(images: torch.Tensor, pixels: str) -> torch.Tensor:
    """Images in the network's range -> in [-1, 1]."""
    return images * 2 - 1 if pixels == "unit" else images
