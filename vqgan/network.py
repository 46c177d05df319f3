"""Encoder and Decoder, convolutions whose cost sits at low resolution; and what any architecture says of itself.

Both leave full resolution in one step: the first layer folds 2x2 pixels into channels and the last one unfolds
them again, so a 64-pixel picture is never convolved wider than 32x32. On a CPU, where the decoder rather than
the transformer sets the time, that is most of the speed.

Shapes: b images, H W pixels, h w latent cells (H = h * stride), d latent channels.
"""

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqgan.quantizer import Quantizer


class Architecture(Protocol):
    """The configuration of an encoder, a quantizer and a decoder that fit each other; a frozen dataclass.

    config.json holds its fields, and its `architecture` by name where that is not our own.
    """

    architecture: ClassVar[str]
    __dataclass_fields__: ClassVar[dict]

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        ...

    def build(self) -> tuple[nn.Module, Quantizer, nn.Module]:
        """Images (b, 3, H, W) in [-1, 1] -> latents (b, d, h, w) -> quantized latents, codes, loss -> images."""
        ...


class ResBlock(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions. (b, c, y, x) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # every block starts as the identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(update)))


class Attention(nn.Module):
    """Every cell looks at every other one, in one head; for the lowest resolution. (b, c, y, x) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = rearrange(self.to_qkv(self.norm(x)), "b (qkv c) y x -> qkv b 1 (y x) c", qkv=3)
        update = F.scaled_dot_product_attention(*qkv.unbind(0))
        return x + self.to_out(rearrange(update, "b 1 (y x) c -> b c y x", y=x.shape[2]))


class Encoder(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> latents (b, d, h, w).

    Args:
        dim: latent channels d.
        channels: width at each halving of the resolution; the stride is 2 ** len(channels).
        blocks: residual blocks at each resolution.
        attention: attention blocks at the lowest resolution.
    """

    def __init__(self, dim: int, channels: tuple[int, ...], blocks: int, attention: int = 0):
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in channels:
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * previous, width, 3, padding=1)]
            layers += [ResBlock(width) for _ in range(blocks)]
            previous = width
        layers += [Attention(previous) for _ in range(attention)]
        self.layers = nn.Sequential(*layers, norm(previous), nn.SiLU(), nn.Conv2d(previous, dim, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.contiguous(memory_format=torch.channels_last))


class Decoder(nn.Module):
    """Latents (b, d, h, w) -> images (b, 3, H, W), roughly in [-1, 1].

    Args:
        dim, channels: as in the encoder, whose order of widths is reversed here.
        blocks: residual blocks at each resolution.
        attention: attention blocks at the lowest resolution.
    """

    def __init__(self, dim: int, channels: tuple[int, ...], blocks: int, attention: int = 0):
        super().__init__()
        widths = tuple(reversed(channels))
        layers: list[nn.Module] = [nn.Conv2d(dim, widths[0], 3, padding=1)]
        layers += [Attention(widths[0]) for _ in range(attention)]
        for width, following in zip(widths, (*widths[1:], 3), strict=True):
            layers += [ResBlock(width) for _ in range(blocks)]
            last = following == 3
            layers += [norm(width), nn.SiLU()] if last else []
            layers += [nn.Conv2d(width, 4 * following, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.layers(latents.contiguous(memory_format=torch.channels_last))


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of at most 16 channels."""
    groups = max(1, channels // 16)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)
