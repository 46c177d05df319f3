"""What a tokenizer is trained on, with no downloaded weights: pixels, edges, random features, a patch critic.

All functions take images (b, 3, H, W) in [-1, 1]; all losses are means, so weights do not depend on sizes.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


def reconstruction_loss(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels plus L1 of a three-level Laplacian pyramid: () >= 0.

    The pyramid (Bojanowski et al. 2017, arXiv 1707.05776) weighs edges that plain L1 leaves blurred.
    """
    difference = images.float() - targets.float()
    loss = difference.abs().mean()
    for _ in range(3):
        if min(difference.shape[-2:]) < 2:
            break
        smooth = F.avg_pool2d(difference, 2)
        # The pyramid is linear, so the pyramid of the difference is the difference of the pyramids.
        detail = difference[..., : smooth.shape[-2] * 2, : smooth.shape[-1] * 2] - F.interpolate(smooth, scale_factor=2)
        loss = loss + detail.abs().mean()
        difference = smooth
    return loss


class Perceptual(nn.Module):
    """L1 between the features that frozen stages give of two pictures, each stage relative to its features' size.

    Args:
        stages: modules applied one after the other, each to the output of the one before; they are frozen.
    """

    def __init__(self, stages: Iterable[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages).eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = torch.cat((images, targets)).contiguous(memory_format=torch.channels_last)
        loss = images.new_zeros((), dtype=torch.float32)
        for stage in self.stages:
            x = stage(x)
            ours, theirs = x.float().chunk(2)
            loss = loss + (ours - theirs).abs().mean() / theirs.detach().abs().mean().clamp(min=1e-4)
        return loss / len(self.stages)


def random_perceptual(channels: tuple[int, ...] = (16, 32, 64), seed: int = 0) -> Perceptual:
    """A perceptual loss on an untrained network, the same for the same seed.

    For perceptual losses "what matters is the network structure instead of the trained weights" (Liu et al. 2021,
    arXiv 2103.10571).
    """
    generator = torch.Generator().manual_seed(seed)
    stages = []
    previous = 3
    for width in channels:
        layer = nn.Conv2d(previous, width, 3, padding=1)
        layer.weight.data = (2 / (9 * previous)) ** 0.5 * torch.randn(layer.weight.shape, generator=generator)
        layer.bias.data.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        pool = [nn.AvgPool2d(2)] if stages else []
        stages.append(nn.Sequential(*pool, layer, nn.LeakyReLU(0.2)))
        previous = width
    return Perceptual(stages)


class PatchDiscriminator(nn.Module):
    """Images (b, 3, H, W) -> one logit per patch (b, 1, y, x): high where the patch looks real (Isola et al. 2017)."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in channels:
            layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * previous, width, 3, padding=1), nn.LeakyReLU(0.2)]
            previous = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(previous, 1, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator's logits on real and reconstructed pictures."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adversarial_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the decoder adds to please the discriminator."""
    return -fake.float().mean()
