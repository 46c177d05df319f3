"""Emoji from captions: a style as a label, the emoji in words; measured on pairs of both that training never saw.

    python benchmarks/captions.py prepare emoji-64.zip runs/captions
    maskimg encode runs/captions emoji-64 --size 64 --out runs/captions-codes
    maskimg train-generator runs/captions-codes emoji-64 --out runs/emoji-captions --config configs/emoji-captions.yaml
    python benchmarks/captions.py measure runs/captions runs/emoji-captions
    python benchmarks/captions.py bundle runs/emoji-captions maskimg/bundled/emoji-64-captions

One picture in twelve is held out whose emoji at least two other styles draw in training: the model has seen the style
and the emoji, but never together. There are two judges of the style and of the emoji's class (32 of them), both trained
on the real training pictures: one from nothing, and one that has seen ImageNet (`imagenet_judge.py`, which says what it
needs). Figures go to benchmarks/results/captions.json, sheets beside MODEL.
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
from emoji_64 import CREDIT, LICENCE, RESULTS, record, unpack
from imagenet_judge import kept_imagenet_judge
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from maskimg.data.pictures import list_pictures, move, read_pictures
from maskimg.drawing.edits import generation
from maskimg.drawing.request import Request
from maskimg.evaluation.judge import Classifier, Judge
from maskimg.evaluation.metrics import frechet_distance
from maskimg.hardware import autocast, pick_dtype
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler, describe
from maskimg.training.loop.run import learning_rate_scale, step_generator
from vqgan import Tokenizer
from vqgan.images import normalize, sheet
from vqgan.network import ResBlock, norm

SHOWN = ("red apple", "grinning face", "dog face", "rocket", "sun", "birthday cake", "crown", "octopus")
HELD_OUT, STEPS = 635, 6640  # as in runs/captions, and of the generator that is bundled
NEVER_SEEN = ("a blue apple", "dog with sunglasses", "purple rocket", "quokka", "zeppelin")
GUIDANCE = (1.0, 2.0, 3.0, 5.0)
RECIPE = Sampler(steps=12, order="halton", guidance=2.0, guidance_end=0.6, token_temperature=0.7)
PRESETS = {"fast": replace(RECIPE, steps=8), "balanced": RECIPE, "best": replace(RECIPE, steps=18)}
CARD = """# emoji-64-captions

Draws emoji at 64 pixels from words, in one of seven drawing styles. It has the tokenizer of `emoji-64` (8x8 tokens of
3,750 codes) and a generator of its own: 6 blocks of 256, which look at the words through 2 blocks that were trained
along. Weights in bf16.

![The same words in seven styles: {shown}](styles.png)

Unpicked samples, seed 0; the styles from left to right: {styles}.

## Use

    maskimg demo --model emoji-64-captions
    maskimg sample --model emoji-64-captions --prompt "red apple" --label style=noto --count 16 --out apples

- style: {styles}
- words: the names of emoji, such as those above; it knows {words} pieces of words
- recipe: {recipe}

## Training

7,790 pictures of seven drawing styles, without people, hands, body parts and flags; {held_out} pairs of style and emoji
held out. {steps} steps of batch 128 in bf16 on one core of a shared x86-64 server CPU with AMX (no GPU), 214 minutes.
`configs/emoji-captions.yaml` is the recipe, `benchmarks/captions.py` the commands.

## Measured

Of {samples} pairs of style and emoji that training never saw together, how often a judge finds the style (of seven) and
the emoji's class (of 32) that were asked for. The first judge was trained on the real training pictures from nothing,
the second began on ImageNet. What they find in the real held-out pictures is the most that samples can show, and what
they find after the tokenizer the most that any generator can do with it.

| | style, first judge | class, first judge | style, second judge | class, second judge | Fréchet distance |
| --- | --- | --- | --- | --- | --- |
{figures}
The Fréchet distance is in the first judge's features, to real training pictures: no FID, and it compares with nothing
outside this table.

## What it is bad at

Styles: two real pictures of different vendors are often alike at 64 pixels, and the tokenizer blurs what tells them
apart. Fine print, thin lines and parts that must agree come out soft or garbled. Words that no emoji is called (quokka,
zeppelin) give some emoji without a warning; known words in a new pair work where they change a colour (a purple
rocket), hardly where they add a thing (a dog with sunglasses):

![{never_seen}, each in seven styles](never-seen.png)

Its pictures are of things that seven vendors drew; some samples are close to a training picture.

## Credit and licence

Pictures: {credit}. {licence}.
"""
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
    """The prepared pictures, with their judges."""

    def __init__(self, folder: Path, steps: int, imagenet_steps: int, tokenizer: Tokenizer):
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
        emoji = [self.caption(i) for i in range(len(self.classes))]
        numbers = {name: number for number, name in enumerate(sorted(set(emoji)))}
        told = torch.tensor([numbers[name] for name in emoji])
        of_class = torch.zeros(len(numbers), dtype=torch.int64).scatter(0, told, self.classes)
        self.imagenet = kept_imagenet_judge(
            kept.with_name(f"imagenet-{imagenet_steps}.safetensors"),
            of_class,
            self.styles[train],
            told[train],
            lambda: (self.train_pixels, through(tokenizer, self.train_pixels)),
            imagenet_steps,
        )

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
            **self.imagenet.figures(images, self.styles[rows], self.classes[rows]),
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


def through(tokenizer: Tokenizer, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels (n, 3, H, W) -> the same as the tokenizer gives them back."""
    parts = [tokenizer.decode(tokenizer.encode(normalize(part))) for part in tqdm(pixels.split(64), desc="restoring")]
    return ((torch.cat(parts) + 1) * 127.5).round().to(torch.uint8)


def draw(pipeline: Pipeline, emoji: Emoji, rows: torch.Tensor, sampler: Sampler, seed: int = 0) -> torch.Tensor:
    """One sample for the caption and style of each picture `rows` (n,) -> images (n, 3, H, W)."""
    images = []
    for i in tqdm(rows.tolist(), desc="drawing"):
        request = Request({"style": emoji.style(i)}, emoji.caption(i), seeds=[(seed + i) % 2**32], sampler=sampler)
        *_, last = pipeline.steps(generation(pipeline), request)
        images.append(pipeline.decode(last.codes).cpu())
    return torch.cat(images)


def measure(folder: Path, model: str, steps: int, imagenet_steps: int, count: int) -> None:
    """Accuracy on held-out pairs by guidance, with and without its interval, and the sheets."""
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    emoji = Emoji(folder, steps, imagenet_steps, pipeline.tokenizer)
    rows = emoji.unseen[torch.linspace(0, len(emoji.unseen) - 1, min(count, len(emoji.unseen))).long()]
    real = emoji.pictures.pixels[rows]
    record("captions", "the held-out pictures themselves", emoji.figures(real, rows))
    restored = through(pipeline.tokenizer, real)
    record("captions", "through the tokenizer and back", emoji.figures(restored, rows))
    samplers = {
        f"guidance {guidance:g}" + (", until 60 % are revealed" if end < 1 else ""): replace(
            RECIPE, guidance=guidance, guidance_end=end
        )
        for guidance in GUIDANCE
        for end in ((1.0, 0.6) if guidance != 1 else (1.0,))
    }
    samplers["guidance 2, at temperature 1"] = replace(RECIPE, guidance_end=1.0, token_temperature=1.0)
    samplers["guidance 2, by the style 2 more"] = replace(RECIPE, guidance_end=1.0, field_guidance=(("style", 2.0),))
    for name, sampler in samplers.items():
        images = draw(pipeline, emoji, rows, sampler)
        record("captions", name, {"samples": len(rows), **emoji.figures(images, rows)})
    show(folder, model)


def show(folder: Path, model: str) -> None:
    """Sheets: the same words in every style, and words that training never saw."""
    for name, page in _sheets(Pipeline.from_pretrained(model)).items():
        page.save(f"{Path(model)}-{name}")


def _sheets(pipeline: Pipeline) -> dict[str, Image.Image]:
    styles = pipeline.labels.names["style"]
    return {
        f"{name}.png": sheet(
            [
                pipeline.generate({"style": style}, prompt=caption, seeds=0).images[0]
                for caption in captions
                for style in styles
            ],
            len(styles),
        )
        for name, captions in (("styles", SHOWN), ("never-seen", NEVER_SEEN))
    }


def bundle(model: str, target: Path) -> None:
    """Store the model as bf16 with its card, beside `emoji-64`, whose tokenizer it has."""
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    measured = json.loads((RESULTS / "captions.json").read_text())
    pipeline.recipe, pipeline.presets = RECIPE, PRESETS
    pipeline.about |= {
        "name": target.name,
        "example": {"style": "noto", "prompt": SHOWN[0]},
        "licence": LICENCE,
        "credit": CREDIT,
        "measured": measured,
    }
    pipeline.about["data"] |= {"held_out": HELD_OUT}
    card = CARD.format(
        shown=", ".join(SHOWN),
        never_seen=", ".join(NEVER_SEEN),
        styles=", ".join(pipeline.labels.names["style"]),
        words=f"{len(pipeline.words.vocabulary):,}",
        recipe=describe(RECIPE),
        held_out=HELD_OUT,
        steps=f"{STEPS:,}",
        samples=next(row["samples"] for row in measured.values() if "samples" in row),
        figures="".join(_row(name, row) for name, row in measured.items()),
        credit=CREDIT,
        licence=LICENCE,
    )
    pipeline.save_pretrained(target, half=True, tokenizer_of="emoji-64", card=card, pictures=_sheets(pipeline))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def _row(name: str, figures: dict[str, float]) -> str:
    columns = ("style_accuracy", "class_accuracy", "style_accuracy_imagenet", "class_accuracy_imagenet")
    shares = " | ".join(f"{figures[column]:.0%}" for column in columns)
    return f"| {name} | {shares} | {figures['frechet_distance']:.2f} |\n"


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
    verb.add_argument("--steps", type=int, default=2500, help="of the training of the judge that begins from nothing")
    verb.add_argument("--imagenet-steps", type=int, default=700, help="of the other one's")
    verb.add_argument("--count", type=int, default=280)
    verb = verbs.add_parser("show")
    verb.add_argument("folder", type=Path)
    verb.add_argument("model")
    verb = verbs.add_parser("bundle")
    verb.add_argument("model")
    verb.add_argument("target", type=Path)
    options = vars(parser.parse_args())
    {"prepare": prepare, "measure": measure, "show": show, "bundle": bundle}[options.pop("verb")](**options)


if __name__ == "__main__":
    main()
