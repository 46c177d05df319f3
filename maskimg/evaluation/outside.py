"""LPIPS and rFID, measured with other people's networks, where these are installed and their weights can be had.

Neither is needed for anything else: where one is missing, `NotMeasured` carries the reason in words. LPIPS is that of
Zhang et al. 2018 (arXiv 1801.03924) in VGG16; the features for rFID are those of Inception-v3 in the port that
torch-fidelity keeps. Both download their weights once.

Shapes: n images.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

LPIPS_SMALLEST = 16  # VGG16 halves the resolution four times
LAYERS = ("2048", "logits_unbiased")  # as torch-fidelity calls them; its own score is of the latter
OFFLINE = "and an internet connection once"

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images (n, 3, H, W) in [-1, 1] twice -> (n,)
Features = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # uint8 (n, 3, H, W) -> (n, 2048), (n, 1008)


@dataclasses.dataclass(frozen=True)
class NotMeasured:
    """Stands where a network would, and says why there is none."""

    reason: str


def load_lpips(device: torch.device) -> Compare | NotMeasured:
    """LPIPS in VGG16 -> a function of two batches, 0 for equal images."""
    made = _make("lpips", lambda module: module.LPIPS(net="vgg", verbose=False), device)
    if isinstance(made, NotMeasured):
        return made

    @torch.no_grad()
    def compare(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return made(images.to(device), targets.to(device)).flatten().float().cpu()

    return compare


def load_inception(device: torch.device) -> Features | NotMeasured:
    """Inception-v3's pooled features, between which a Fréchet distance is the FID, and its logits, for its score."""

    def build(module: Any) -> Any:
        return module.FeatureExtractorInceptionV3("inception-v3-compat", list(LAYERS), verbose=False)

    made = _make("torch_fidelity.feature_extractor_inceptionv3", build, device)
    if isinstance(made, NotMeasured):
        return made

    @torch.no_grad()
    def features(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, logits = made(pixels.to(device))
        return pooled.float().cpu(), logits.float().cpu()

    return features


def _make(name: str, build: Callable[[Any], Any], device: torch.device) -> Any:
    """The network that `build` makes of the module `name`, or why there is none."""
    package = name.partition(".")[0].replace("_", "-")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what these packages use of torchvision that is deprecated
            return build(importlib.import_module(name)).to(device).eval()
    except ImportError:
        return NotMeasured(f"needs `pip install {package}` {OFFLINE}")
    except (OSError, RuntimeError) as error:  # no way out to the internet, or a download that was cut off
        reason = " ".join(str(error).split())
        return NotMeasured(
            f"the weights of `{package}` cannot be had ({reason}): it needs {OFFLINE.removeprefix('and ')}"
        )
