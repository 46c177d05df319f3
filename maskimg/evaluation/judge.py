"""The judge: a small classifier trained on the very pictures that it is to judge, so that no weights are needed.

Shapes: n pictures.
"""

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from torch import nn

from maskimg.data.pictures import Pictures, move
from maskimg.evaluation.outside import NotMeasured
from maskimg.hardware import autocast, pick_device, pick_dtype
from vqgan import files, writing
from vqgan.images import normalize
from vqgan.network import ResBlock, norm

FEATURES = 128
WEAK = 0.2  # a classifier that is right on fewer of the held-out pictures judges little
FEW = 2 * FEATURES  # below so many pictures a Fréchet distance is mostly chance


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
                group["lr"] = 2e-3 * _rate_scale(step / steps)
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
            chosen = torch.multinomial(weights, 128, replacement=True, generator=generator)
            images = normalize(move(pixels[chosen], pixels.shape[-1] // 8, generator)).to(device)
            with autocast(device, dtype):
                loss = F.cross_entropy(model(images).float(), labels[chosen].to(device), label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return Judge(model.eval(), device, dtype)


def judge_for(pictures: Pictures, steps: int, *, seed: int = 0, progress=None) -> Judge | NotMeasured:
    """A classifier of the training pictures' labels, or why there can be none. See `judged_field` for which labels."""
    if not steps:
        return NotMeasured("the classifier was left out")
    field = judged_field(pictures)
    if field is None:
        return NotMeasured("needs a folder with labels, to train a classifier on")
    train = pictures.part(held_out=False)
    labels, classes = train.labels[:, field], len(list(pictures.fields.values())[field])
    known = labels < classes
    if len(labels[known].unique()) < 2:
        return NotMeasured("needs training pictures of two classes or more")
    if pictures.size % 8:
        return NotMeasured("needs pictures whose size is a multiple of 8")
    return train_judge(train.pixels[known], labels[known], classes, steps, seed=seed, progress=progress)


def kept_judge(kept: Path, pictures: Pictures, steps: int, *, progress=None) -> Judge | NotMeasured:
    """`judge_for`, trained once and kept in the directory `kept`.

    Raises:
        ModelError: what is kept there knows other classes.
    """
    field = judged_field(pictures)
    if field is None or not files.is_whole(kept):
        writing.make_way(kept)
        judge = judge_for(pictures, steps, progress=progress)
        if not isinstance(judge, NotMeasured):
            with writing.atomic_directory(kept) as directory:
                about = {"classes": judge.classifier.head.out_features, "steps": steps}
                files.write_module(directory, about, judge.classifier)
        return judge
    device = pick_device()
    classifier = files.read_weights(kept, Classifier(len(list(pictures.fields.values())[field])))
    return Judge(classifier.to(device).eval(), device, pick_dtype("auto", device))


def judged_field(pictures: Pictures) -> int | None:
    """Which column of labels the judge knows: the field `class`, else the first; None without labels."""
    fields = list(pictures.fields)
    return (fields.index("class") if "class" in fields else 0) if fields else None


def _rate_scale(progress: float) -> float:
    """The learning rate's share at this share of training: warm-up, constant, and linear to zero from 0.6 on."""
    return min(1.0, (progress + 1e-3) / 0.02, max(0.0, 1 - progress) / 0.4)
