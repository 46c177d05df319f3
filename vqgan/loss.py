"""What a tokenizer's pictures are compared by: pixels, edges, and the features of a frozen network.

Random features and those of a classifier of one's own need no download; VGG, LPIPS and ResNet-50 do, once. All
take images (b, 3, H, W) in [-1, 1] twice and give a mean (), so weights do not depend on sizes.
"""

import contextlib
from collections.abc import Iterable, Iterator

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


def vgg_perceptual() -> Perceptual:
    """The five stages of torchvision's VGG-16, trained on ImageNet (Johnson et al. 2016, arXiv 1603.08155).

    Raises:
        WeightsError: the weights are not on this machine and cannot be fetched.
    """
    from torchvision.models import VGG16_Weights, vgg16

    with _fetching("VGG-16"):
        layers = list(vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features.children())
    ends = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    # Each stage ends before its pooling, which then begins the next one; a ReLU in place would alter what is compared.
    starts = [0, *ends[:-1]]
    stages = [
        nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in layers[start:end]))
        for start, end in zip(starts, ends, strict=True)
    ]
    return Perceptual([nn.Sequential(ImageNetScale(), stages[0]), *stages[1:]])


class Lpips(nn.Module):
    """LPIPS as published (Zhang et al. 2018, arXiv 1801.03924), by the `lpips` package: images twice -> ().

    Raises:
        WeightsError: the package is not installed, or its VGG weights cannot be fetched.
    """

    def __init__(self):
        super().__init__()
        try:
            import lpips  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise WeightsError("LPIPS needs the package lpips: `pip install 'maskimg[eval]'`") from error
        with _fetching("LPIPS"):
            self.lpips = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.lpips(images, targets).float().mean()


class LogitDistance(nn.Module):
    """Mean squared difference of a frozen classifier's logits; MaskGIT's and VQGAN+'s perceptual loss with ResNet-50.

    Weber et al. 2024, "MaskBit", arXiv 2409.16211, section 3.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = nn.Sequential(ImageNetScale(), classifier).eval().requires_grad_(False)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        both = torch.cat((images, targets)).contiguous(memory_format=torch.channels_last)
        if both.shape[-1] < 224:  # what ImageNet's classifiers were trained at
            both = F.interpolate(both, size=(224, 224), mode="bilinear", antialias=True)
        ours, theirs = self.classifier(both).float().chunk(2)
        return (ours - theirs).square().mean()


def resnet_perceptual() -> LogitDistance:
    """Raises: WeightsError: the weights are not on this machine and cannot be fetched."""
    from torchvision.models import ResNet50_Weights, resnet50

    with _fetching("ResNet-50"):
        return LogitDistance(resnet50(weights=ResNet50_Weights.IMAGENET1K_V1))


class ImageNetScale(nn.Module):
    """Images in [-1, 1] -> the mean and spread that torchvision's ImageNet networks expect."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.new_tensor([0.485, 0.456, 0.406])[:, None, None]
        spread = images.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        return ((images + 1) / 2 - mean) / spread


class WeightsError(ValueError):
    """Weights that must be downloaded once and cannot be; the message says what to use instead."""


@contextlib.contextmanager
def _fetching(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of {name} are not on this machine and cannot be fetched ({error}): "
            "connect once, or use the perceptual loss `random` or `classifier`, which need none"
        ) from error
