"""The patch discriminator, what keeps it in check, and the watchdog that sends it out when it does harm.

Esser et al. 2021, "Taming transformers", arXiv 2012.09841, with the hinge loss and a fixed small weight, as in
MaskBit (Weber et al. 2024, arXiv 2409.16211), rather than the adaptive one.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


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


def r1_penalty(discriminator: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Squared slope of the logits at real images (Mescheder et al. 2018, arXiv 1801.04406), half its mean a picture."""
    images = images.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(images).float().mean((1, 2, 3)).sum(), images, create_graph=True)
    return 0.5 * slope.square().sum((1, 2, 3)).mean()


class LeCam(nn.Module):
    """Keeps logits near the average that the other kind of picture has had (Tseng et al. 2021, arXiv 2104.03310).

    For discriminators that see few pictures often. Real and fake logits -> ().
    """

    averages: torch.Tensor

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        real, fake = real.float(), fake.float()
        now = torch.stack((real.mean(), fake.mean())).detach()
        self.averages.lerp_(torch.where(now.isfinite(), now, self.averages), 1 - self.decay)
        real_average, fake_average = self.averages
        return F.relu(real - fake_average).square().mean() + F.relu(real_average - fake).square().mean()


class Watchdog(nn.Module):
    """Pauses the discriminator while reconstruction is clearly worse than before it joined.

    A running mean of the reconstruction loss above `limit` times the best one so far sends it out; back below half of
    that excess it may join again. The state is saved with the run.
    """

    state: torch.Tensor

    def __init__(self, limit: float = 1.15, decay: float = 0.98):
        super().__init__()
        self.limit, self.decay = limit, decay
        self.register_buffer("state", torch.tensor([0.0, torch.inf, 0.0]))  # mean, best mean, whether paused

    @property
    def paused(self) -> bool:
        return bool(self.state[2])

    def notice(self, loss: float) -> bool:
        """Take note of a step's reconstruction loss; returns whether the discriminator may take part."""
        mean, best, paused = self.state.tolist()
        if not math.isfinite(loss):  # that step is skipped; in the mean it would stay for ever
            return not paused
        mean = self.decay * mean + (1 - self.decay) * loss if mean else loss
        best = min(best, mean)
        excess = mean / best - 1 if best else 0.0
        paused = excess > (self.limit - 1) / 2 if paused else excess > self.limit - 1
        self.state.copy_(torch.tensor([mean, best, float(paused)]))
        return not paused
