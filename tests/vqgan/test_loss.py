"""What a tokenizer's pictures are compared by. Nothing is downloaded: networks with weights are replaced by others."""

import sys
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from vqgan.loss import (
    ImageNetScale,
    Lpips,
    WeightsError,
    random_perceptual,
    reconstruction_loss,
    resnet_perceptual,
    vgg_perceptual,
)


def _images(seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _small_vgg(weights=None) -> nn.Module:
    """VGG's plan of five stages with few channels; the weights asked for must be the real ones."""
    assert str(weights) == "VGG16_Weights.IMAGENET1K_V1"
    layers: list[nn.Module] = []
    previous = 3
    for width in (4, 4, 8, 8, 8):
        layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        previous = width
    return SimpleNamespace(features=nn.Sequential(*layers))  # pyright: ignore


def _fake_lpips(monkeypatch) -> None:
    def distance(images, targets):
        return (images - targets).abs().mean((1, 2, 3), keepdim=True)

    class Fake(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        forward = staticmethod(distance)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Fake))


def _losses(monkeypatch):
    monkeypatch.setattr(torchvision.models, "vgg16", _small_vgg)
    monkeypatch.setattr(
        torchvision.models,
        "resnet50",
        lambda weights: nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)),
    )
    _fake_lpips(monkeypatch)
    return {
        "pixels": reconstruction_loss,
        "random": random_perceptual(),
        "vgg": vgg_perceptual(),
        "resnet50": resnet_perceptual(),
        "lpips": Lpips(),
    }


@pytest.mark.parametrize("name", ["pixels", "random", "vgg", "resnet50", "lpips"])
def test_a_loss_is_zero_for_equal_pictures_and_grows_with_the_difference(name, monkeypatch):
    loss = _losses(monkeypatch)[name]
    images, other = _images(), _images(1)
    assert loss(images, images).item() == pytest.approx(0, abs=1e-6)
    near, far = (loss(torch.lerp(images, other, share), images).item() for share in (0.1, 0.9))
    assert 0 < near < far


@pytest.mark.parametrize("name", ["pixels", "random", "vgg", "resnet50"])
def test_a_loss_gives_gradients_to_pictures_only(name, monkeypatch):
    loss = _losses(monkeypatch)[name]
    images = _images().requires_grad_()
    loss(images, _images(1)).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    assert not [p for p in getattr(loss, "parameters", list)() if p.requires_grad]


def test_vgg_compares_what_comes_before_each_pooling(monkeypatch):
    """Were a stage to end with a pooling, or to overwrite what is compared, moving a picture by a pixel would hide."""
    monkeypatch.setattr(torchvision.models, "vgg16", _small_vgg)
    stages = vgg_perceptual().stages
    assert len(stages) == 5
    x, sides = _images(), []
    for stage in stages:
        before = x.clone()
        after = stage(x)
        assert torch.equal(x, before)
        sides.append(after.shape[-1])
        x = after
    assert sides == [32, 16, 8, 4, 2]


def test_pictures_are_scaled_to_what_imagenet_networks_expect():
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    white = ImageNetScale()(torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(white[0, :, 0, 0], (1 - mean) / spread)


@pytest.mark.parametrize(("name", "build"), [("vgg16", vgg_perceptual), ("resnet50", resnet_perceptual)])
def test_weights_that_cannot_be_fetched_get_a_sentence(name, build, monkeypatch):
    def unreachable(weights):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models, name, unreachable)
    with pytest.raises(WeightsError, match="not on this machine and cannot be fetched .*no route.*: connect once, or"):
        build()


def test_a_missing_lpips_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(WeightsError, match=r"pip install 'maskimg\[eval\]'"):
        Lpips()
