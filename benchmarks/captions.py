"""Emoji from captions: a style as a label, the emoji in words; measured on pairs of both that training never saw.

    python benchmarks/captions.py prepare emoji-64.zip runs/captions
    maskimg encode runs/captions emoji-64 --size 64 --out runs/captions-codes
    maskimg train-generator runs/captions-codes emoji-64 --out runs/emoji-captions --config configs/emoji-captions.yaml
    python benchmarks/captions.py measure runs/captions runs/emoji-captions

One picture in twelve is held out whose emoji at least two other styles draw in training: the model has seen the style
and the emoji, but never together. The judges are one classifier, trained on the real training pictures, of the
style and of the emoji's class (32 of them). Figures go to benchmarks/results/captions.json, sheets beside MODEL.
"""

import argparse
import copy
import csv
import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from emoji_64 import record, unpack
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from maskimg.evaluate import Classifier, Judge
from maskimg.hardware import autocast, pick_dtype
from maskimg.metrics import frechet_distance
from maskimg.pictures import list_pictures, move, read_pictures
from maskimg.pipeline import Pipeline
from maskimg.prompt import Prompt
from maskimg.sampler import Sampler
from maskimg.training.run import learning_rate_scale, step_generator
from vqgan.images import normalize, sheet, to_tensor
from vqgan.network import ResBlock, norm

SHOWN = ("red apple", "grinning face", "dog face", "rocket", "sun", "birthday cake", "crown", "octopus")
NEVER_SEEN = ("a blue apple", "dog with sunglasses", "purple rocket", "quokka", "zeppelin")
GUIDANCE = (1.0, 2.0, 3.0, 5.0)
CPU = torch.device("cpu")


def prepare(archive: Path, folder: Path) -> None:
    """Unpack the pictures without people and flags, and write labels.csv (style, caption) and classes.csv."""
    rows = unpack(archive, folder)
    of_emoji = defaultdict(list)
    for row in rows:
        of_emoji[row["emoji"]].append(row["file"])
    chance, held_out = random.Random(0), set()
    for files in of_emoji.values():
        chance.shuffle(files)
        for file in files[2:]:  # two styles of each emoji at least stay
            if chance.random() < 1 / 12 * len(files) / (len(files) - 2):
                held_out.add(file)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "style", "caption", "split"])
        for row in rows:
            split = "val" if row["file"] in held_out else "train"
            writer.writerow([row["file"], row["style"], row["emoji"], split])
    with (folder / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row["file"], row["name"]] for row in rows)
    print(f"{len(rows)} pictures in {folder}, {len(held_out)} held out")


class Emoji:
    """The prepared pictures, with two judges."""

    def __init__(self, folder: Path, steps: int):
        listing = list_pictures(folder)
        self.pictures = read_pictures(listing, 64, folder.with_name(folder.name + "-cache"), progress=tqdm)
        with (folder / "classes.csv").open(encoding="utf-8") as file:
            classes = dict(csv.reader(file))
        self.class_names = sorted(set(classes.values()))
        self.classes = torch.tensor([self.class_names.index(classes[name]) for name in self.pictures.names])
        self.styles = self.pictures.labels[:, 0]
        self.unseen = self.pictures.held_out.nonzero()[:, 0]
        train = (~self.pictures.held_out).nonzero()[:, 0]
        self.train_pixels = self.pictures.pixels[train]
        styles = len(self.pictures.fields["style"])
        whole = BothJudged(len(self.class_names), styles)
        kept = folder.with_name(f"{folder.name}-judges") / f"both-{steps}.safetensors"
        if kept.exists():
            whole.load_state_dict(load_file(kept))
        else:
            whole.learn(self.pictures.pixels[train], self.classes[train], self.styles[train], steps)
            kept.parent.mkdir(exist_ok=True)
            save_file({name: part.contiguous() for name, part in whole.state_dict().items()}, kept)
        self.class_judge, self.style_judge = whole.judges()

    def caption(self, i: int) -> str:
        return self.pictures.captions[i][0]

    def style(self, i: int) -> str:
        return self.pictures.fields["style"][int(self.styles[i])]

    def figures(self, images: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        """Of drawn or real images (n, 3, H, W) that are to show the captions and styles of pictures `rows` (n,)."""
        features = self.class_judge.features(images)
        return {
            "style_accuracy": self.style_judge.accuracy(images, self.styles[rows]),
            "class_accuracy": self.class_judge.accuracy(images, self.classes[rows]),
            "frechet_distance": frechet_distance(features, self.class_judge.features(self.train_pixels[::3])),
            "diversity": _spread(features),
        }


class BothJudged(Classifier):
    """A classifier of emoji's class and style at once, larger than that of `maskimg eval`, which is right on only
    54 and 64 % of these held-out pictures after 2,000 and 1,000 steps."""

    def __init__(self, classes: int, styles: int):
        super().__init__(classes + styles)
        self.sizes = [classes, styles]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 32, 3, padding=1), norm(32), nn.SiLU()),
                nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(128, 96, 3, padding=1), ResBlock(96)),
                nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(384, 256, 3, padding=1), ResBlock(256), ResBlock(256)),
            ]
        )
        self.finish = nn.Sequential(norm(256), nn.SiLU())
        self.head = nn.Linear(256, classes + styles)
        self.to(memory_format=torch.channels_last)

    def learn(self, pixels: torch.Tensor, classes: torch.Tensor, styles: torch.Tensor, steps: int) -> None:
        """From uint8 pixels (n, 3, H, W), moved by up to four pixels, classes (n,) and styles (n,)."""
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        self.train()
        for step in tqdm(range(steps), desc="judges"):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * learning_rate_scale(step / steps)
            chance = step_generator(0, step)
            chosen = torch.randint(len(pixels), (128,), generator=chance)
            images = normalize(move(pixels[chosen], 4, chance))
            with autocast(CPU, pick_dtype("auto", CPU)):
                logits = self(images).float().split(self.sizes, dim=1)
            loss = sum(
                F.cross_entropy(part, right[chosen]) for part, right in zip(logits, (classes, styles), strict=True)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def judges(self) -> tuple[Judge, Judge]:
        """Of the class and of the style, which share everything but the head."""
        self.eval()
        found = []
        for weight, bias in zip(self.head.weight.split(self.sizes), self.head.bias.split(self.sizes), strict=True):
            judged = copy.copy(self)
            judged._modules = {**self._modules, "head": nn.Linear(256, len(bias))}
            judged.head.load_state_dict({"weight": weight, "bias": bias})
            found.append(Judge(judged, CPU, pick_dtype("auto", CPU)))
        return found[0], found[1]


def draw(pipeline: Pipeline, emoji: Emoji, rows: torch.Tensor, sampler: Sampler, seed: int = 0) -> torch.Tensor:
    """One sample for the caption and style of each picture `rows` (n,) -> images (n, 3, H, W)."""
    images = []
    for i in tqdm(rows.tolist(), desc="drawing"):
        prompt = Prompt(label={"style": emoji.style(i)}, text=emoji.caption(i))
        *_, last = pipeline.steps(prompt, seeds=seed + i, sampler=sampler, complete=False)
        images.append(pipeline.decode(last.codes).cpu())
    return torch.cat(images)


def measure(folder: Path, model: str, steps: int, count: int) -> None:
    """Accuracy on held-out pairs by guidance, with and without its interval, and the sheets."""
    emoji, pipeline = Emoji(folder, steps), Pipeline.from_pretrained(model)
    rows = emoji.unseen[torch.linspace(0, len(emoji.unseen) - 1, min(count, len(emoji.unseen))).long()]
    real = torch.stack([to_tensor(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in emoji.pictures.pixels[rows]])
    record("captions", "the held-out pictures themselves", emoji.figures(real, rows))
    restored = torch.cat([pipeline.decode(pipeline.tokenizer.encode(part)).cpu() for part in real.split(32)])
    record("captions", "through the tokenizer and back", emoji.figures(restored, rows))
    for guidance in GUIDANCE:
        for end in (1.0, 0.6) if guidance != 1 else (1.0,):
            sampler = replace(pipeline.recipe, guidance=guidance, guidance_end=end)
            images = draw(pipeline, emoji, rows, sampler)
            name = f"guidance {guidance:g}" + (", until 60 % are revealed" if end < 1 else "")
            record("captions", name, {"samples": len(rows), **emoji.figures(images, rows)})
    show(folder, model)


def show(folder: Path, model: str) -> None:
    """Sheets: the same words in every style, and words that training never saw."""
    pipeline = Pipeline.from_pretrained(model)
    styles = pipeline.labels.names["style"]
    for name, captions in (("styles", SHOWN), ("never-seen", NEVER_SEEN)):
        images = [
            pipeline.generate({"style": style}, prompt=caption, seeds=0).images[0]
            for caption in captions
            for style in styles
        ]
        sheet(images, len(styles)).save(f"{Path(model)}-{name}.png")
    print(json.dumps({"words": len(getattr(pipeline.words, "vocabulary", ()))}))


def _spread(features: torch.Tensor) -> float:
    """Mean distance between two samples' features."""
    return torch.pdist(features.float()).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verb = verbs.add_parser("prepare")
    verb.add_argument("archive", type=Path)
    verb.add_argument("folder", type=Path)
    verb = verbs.add_parser("measure")
    verb.add_argument("folder", type=Path)
    verb.add_argument("model")
    verb.add_argument("--steps", type=int, default=1200, help="of the judges' training")
    verb.add_argument("--count", type=int, default=280)
    verb = verbs.add_parser("show")
    verb.add_argument("folder", type=Path)
    verb.add_argument("model")
    options = vars(parser.parse_args())
    {"prepare": prepare, "measure": measure, "show": show}[options.pop("verb")](**options)


if __name__ == "__main__":
    main()
