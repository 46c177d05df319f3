"""The tokenizer of MaskGIT (Chang et al. 2022, arXiv 2202.04200), as Google published it and others repacked it.

A VQGAN without attention and, inside its residual blocks, without biases. `vqgan.interop.convert` reads its files.

Shapes: b images, H W pixels, h w latent cells (H = h * stride), d the codebook's dimension.
"""

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vqgan.interop.taming import EPSILON, Upsample, check_network, from_own_range, to_own_range
from vqgan.quantizer import NearestCode, Quantizer


@dataclasses.dataclass(frozen=True)
class MaskGitVqConfig:
    """What such a tokenizer is made of; the defaults are Google's for ImageNet.

    Attributes:
        codebook_size, codebook_dim: number of codes and their dimension.
        pixels: range of the network's own pixels, `unit` for [0, 1] or `symmetric` for [-1, 1].
        stem: width before the first level.
        channels: width of each level, full resolution first; the stride is 2 ** (len(channels) - 1).
        blocks: residual blocks in each level, and at the lowest resolution once more.
        groups: of every group normalisation.
    """

    architecture: ClassVar[str] = "maskgit-vq"

    codebook_size: int = 1024
    codebook_dim: int = 256
    pixels: str = "unit"
    stem: int = 128
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)
    blocks: int = 2
    groups: int = 32

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def build(self) -> tuple[nn.Module, Quantizer, nn.Module]:
        check_network(self.pixels, (self.stem, *self.channels), self.groups)
        return Encoder(self), NearestCode(self.codebook_size, self.codebook_dim), Decoder(self)


class Encoder(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> latents (b, d, h, w)."""

    def __init__(self, config: MaskGitVqConfig):
        super().__init__()
        self.pixels = config.pixels
        last = len(config.channels) - 1
        width = config.stem
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.levels = nn.ModuleList()
        for level, channels in enumerate(config.channels):
            resample = nn.AvgPool2d(2) if level < last else nn.Identity()
            self.levels.append(Level(width, channels, config.blocks, resample, config.groups))
            width = channels
        self.middle = Level(width, width, config.blocks, nn.Identity(), config.groups)
        self.norm_out = nn.GroupNorm(config.groups, width, EPSILON)
        self.conv_out = nn.Conv2d(width, config.codebook_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(to_own_range(images, self.pixels).contiguous(memory_format=torch.channels_last))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Quantized latents (b, d, h, w) -> images (b, 3, H, W), roughly in [-1, 1]; `levels` stand as they are run."""

    def __init__(self, config: MaskGitVqConfig):
        super().__init__()
        self.pixels = config.pixels
        width = config.channels[-1]
        self.conv_in = nn.Conv2d(config.codebook_dim, width, 3, padding=1)
        self.middle = Level(width, width, config.blocks, nn.Identity(), config.groups)
        self.levels = nn.ModuleList()
        for level, channels in reversed(list(enumerate(config.channels))):
            resample = Upsample(channels) if level > 0 else nn.Identity()
            self.levels.append(Level(width, channels, config.blocks, resample, config.groups))
            width = channels
        self.norm_out = nn.GroupNorm(config.groups, width, EPSILON)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(latents.contiguous(memory_format=torch.channels_last))
        x = self.middle(x)
        for level in self.levels:
            x = level(x)
        return from_own_range(self.conv_out(F.silu(self.norm_out(x))), self.pixels)


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next."""

    def __init__(self, before: int, channels: int, blocks: int, resample: nn.Module, groups: int):
        super().__init__()
        widths = [before, *[channels] * blocks]
        self.blocks = nn.ModuleList(ResBlock(widths[j], widths[j + 1], groups) for j in range(blocks))
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.resample(x)


class ResBlock(nn.Module):
    """(b, before, y, x) -> (b, after, y, x).

    Where the width changes, the input does not reach the output but through the two convolutions: the published
    network was trained with a 1x1 `shortcut` that starts from the block's own output, so it has to stay that way.
    """

    def __init__(self, before: int, after: int, groups: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, before, EPSILON), nn.GroupNorm(groups, after, EPSILON)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(after, after, 1, bias=False) if before != after else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = self.conv1(F.silu(self.norm1(x)))
        update = self.conv2(F.silu(self.norm2(update)))
        return update + (x if self.shortcut is None else self.shortcut(update))
