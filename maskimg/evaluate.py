"""How good are reconstructions and samples? Measured with a small classifier trained on the same pictures.

No pretrained weights are needed and none are used, so none of these figures is an FID: the Fréchet distance here is
in the features of our own classifier, and means something only beside its floor (real pictures against real ones).
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.pictures import move
from maskimg.training.run import learning_rate_scale, step_generator
from vqgan.images import normalize
from vqgan.network import ResBlock, norm


class Classifier(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> logits (b, classes); `features` are its 128 penultimate activations."""

    def __init__(self, classes: int):
        super().__init__()
        self.stages = nn.ModuleList()
        previous = 3
        for width in (32, 64, 128):
            fold = nn.Conv2d(4 * previous, width, 3, padding=1)
            self.stages.append(nn.Sequential(nn.PixelUnshuffle(2), fold, ResBlock(width)))
            previous = width
        self.finish = nn.Sequential(norm(previous), nn.SiLU())
        self.head = nn.Linear(previous, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return reduce(self.finish(x).float(), "b c y x -> b c", "mean")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.features(images), 0.2, self.training))


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier and the device and format it runs in."""

    classifier: Classifier
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, H, W), uint8 or float in [-1, 1] -> features (n, 128) float32."""
        parts = []
        for part in images.split(256):
            part = (normalize(part) if part.dtype == torch.uint8 else part).to(self.device)
            with autocast(self.device, self.dtype):
                parts.append(self.classifier.features(part).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of images (n, 3, H, W) whose most probable class is `labels` (n,)."""
        logits = self.classifier.head(self.features(images).to(self.device))
        return (logits.argmax(-1).cpu() == labels).float().mean().item()


def train_judge(
    pixels: torch.Tensor, labels: torch.Tensor, classes: int, steps: int, *, seed: int = 0, progress=None
) -> Judge:
    """Train the classifier on uint8 pixels (n, 3, H, W) and labels (n,), evenly over the classes."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(classes).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        model.train()
        # Rare classes are drawn as often as common ones.
        weights = 1 / labels.bincount(minlength=classes).clamp(min=1)[labels].float()
        for step in progress(range(steps), desc="classifier") if progress else range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * learning_rate_scale(step / steps)
            generator = step_generator(seed, step)
            chosen = torch.multinomial(weights, 128, replacement=True, generator=generator)
            images = normalize(move(pixels[chosen], pixels.shape[-1] // 8, generator)).to(device)
            with autocast(device, dtype):
                loss = F.cross_entropy(model(images).float(), labels[chosen].to(device), label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return Judge(model.eval(), device, dtype)
