"""How the bundled model `emoji-64` was chosen, trained and measured.

    python benchmarks/emoji_64.py prepare emoji-64.zip runs/emoji     # the 7,790 pictures without people and flags
    python benchmarks/emoji_64.py tokenizers runs/emoji               # stride and codebook, from a measured table
    python benchmarks/emoji_64.py tune runs/emoji MODEL               # samplers side by side
    python benchmarks/emoji_64.py bundle MODEL maskimg/bundled/emoji-64
    python benchmarks/emoji_64.py measure runs/emoji MODEL            # every figure of the model card, and sheets

The archive holds pictures by Microsoft, Google, Twitter, EmojiTwo and Mozilla (see the model card); it is not part
of this repository. Figures go to benchmarks/results/.
"""

import argparse
import csv
import io
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from maskimg.data.pictures import Pictures, list_pictures, read_pictures
from maskimg.evaluation.judge import Judge, kept_judge
from maskimg.evaluation.metrics import frechet_distance, nearest
from maskimg.evaluation.outside import NotMeasured
from maskimg.evaluation.tokenizer_report import evaluate_tokenizer
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler, describe
from maskimg.training.loop.run import Budget
from maskimg.training.settings import TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer
from vqgan import Tokenizer, TokenizerConfig, files
from vqgan.images import normalize, paired_sheet, sheet, to_pil

RESULTS = Path(__file__).parent / "results"
RECIPE = Sampler(steps=12, order="halton", guidance=3.0, choice_temperature=2.0)  # from results/emoji-64-samplers.json
PRESETS = {  # from results/quality-per-forward.md
    "fast": Sampler(steps=8, order="halton", guidance=4.0, guidance_end=0.5),
    "balanced": RECIPE,
    "best": Sampler(steps=18, order="halton", guidance=3.0),
}
EXAMPLE = {"class": "happy face", "style": "noto"}
LICENCE = "weights Apache-2.0; trained on pictures under MIT, Apache-2.0 and CC-BY 4.0"
CREDIT = (
    "Microsoft Fluent Emoji (MIT), Google Noto Emoji and Blobmoji (Apache-2.0), Twitter Twemoji, EmojiTwo (EmojiOne) "
    "and Mozilla FxEmoji (CC-BY 4.0)"
)
CARD = """# emoji-64

Draws emoji at 64 pixels from a class and a drawing style: 8x8 tokens of 3,750 codes (FSQ, stride 8), a generator of 7
blocks of 256, a token critic of 2. Weights in bf16.

![Samples, four rows of twelve, classes in turn](samples.png)

Unpicked samples: seeds 0 to 47, the classes in alphabetical order, the first style for the first 32, then the next.

## Use

    maskimg demo --model emoji-64
    maskimg sample --model emoji-64 --label bird --label style=noto --count 16 --out birds

- class: {classes}
- style: {styles}
- recipe: {recipe}
{presets}
## Training

7,790 pictures of seven drawing styles, without people, hands, body parts and flags; 487 of them held out by concept.
In bf16 on two cores of a shared x86-64 server CPU with AVX-512 (no GPU), with other work beside it:

| stage | steps | minutes |
| --- | --- | --- |
{training}
`configs/emoji-64.yaml` is the recipe, `benchmarks/emoji_64.py` the commands.

## Measured

The judge is a small classifier trained on the real training pictures; the Fréchet distance is in its features. These
are not FID figures and compare with nothing outside this card. The floor is the distance of held-out to training
pictures. Accuracy is of the class that was asked for. The tokenizer's perceptual loss used a classifier of the same
architecture (another seed, 600 steps), which may flatter the accuracy that reconstructions keep.

| | |
| --- | --- |
{figures}
## With the critic, and without

At equal forward passes the critic's order, which may revise earlier tokens, is nearer to real pictures than the order
by confidence, its counterpart without a critic, but no better than halton, which needs none: that is why no preset uses
it. It was trained for five minutes. Accuracy and Fréchet distance of 420 samples a cell, guidance 3 (two points of
accuracy and 0.05 of distance are noise; the critic's steps cost an eighth more):

| steps | confidence | critic | halton |
| --- | --- | --- | --- |
{critic}
![Accuracy and distance against forward passes, each order](quality.png)

## Does it copy?

{copying}

## What it is bad at

An hour on two cores is little. Shapes and colours are right more often than not; faces and simple signs come out
best, small print, thin lines and anything with parts that must agree (clock hands, letters, legs) come out soft or
garbled. The held-out pictures are new concepts, which the judge itself recognises far less often than the ones it
was trained on; read its accuracy on samples beside both. It was trained on pictures that seven vendors drew of the
same concepts, so some samples are close to a training picture.

## Credit and licence

Pictures: {credit}. {licence}.
"""
TOKENIZER_FIGURES = (
    "parameters_million", "psnr_db", "frechet_distance", "accuracy_real", "accuracy_reconstructed", "accuracy_kept",
    "codes_used", "entropy_bits", "bits_per_picture", "encode_per_second", "decode_per_second",
)  # fmt: skip
LEFT_OUT = ("People & Body", "Flags")
TOKENIZERS = {
    "fsq 1000, stride 4": TokenizerConfig(quantizer="fsq", levels=(8, 5, 5, 5), channels=(64, 128)),
    "vq 1024, stride 4": TokenizerConfig(quantizer="vq", codebook_size=1024, channels=(64, 128)),
    "fsq 1000, stride 8": TokenizerConfig(quantizer="fsq", levels=(8, 5, 5, 5), channels=(48, 96, 192)),
    "fsq 4096, stride 8": TokenizerConfig(quantizer="fsq", levels=(8, 8, 8, 8), channels=(48, 96, 192)),
    "vq 1024, stride 8": TokenizerConfig(quantizer="vq", codebook_size=1024, channels=(48, 96, 192)),
    "vq 4096, stride 8": TokenizerConfig(quantizer="vq", codebook_size=4096, channels=(48, 96, 192)),
}


def described(zipped: zipfile.ZipFile) -> list[dict[str, str]]:
    """What the archive says of each picture that is no person, body part or flag."""
    text = io.TextIOWrapper(zipped.open("labels.csv"), encoding="utf-8")
    return [row for row in csv.DictReader(text) if row["group"] not in LEFT_OUT]


def unpack(archive: Path, folder: Path) -> list[dict[str, str]]:
    """The chosen pictures into a folder -> what the archive says of each."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as zipped:
        rows = described(zipped)
        for row in tqdm(rows, desc="unpacking"):
            (folder / row["file"]).write_bytes(zipped.read(row["file"]))
    return rows


def prepare(archive: Path, folder: Path) -> None:
    """Unpack the chosen pictures and write a labels.csv with the fields class and style."""
    rows = unpack(archive, folder)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "style", "split"])
        writer.writerows([row["file"], row["name"], row["style"], row["split"]] for row in rows)
    print(f"{len(rows)} pictures in {folder}")


def read(folder: Path) -> Pictures:
    return read_pictures(list_pictures(folder), 64, folder.with_name(folder.name + "-cache"), progress=tqdm)


def judge_of(folder: Path, pictures: Pictures, steps: int = 2400) -> tuple[Judge, float]:
    """A classifier trained on the training part (kept in FOLDER-judge-STEPS), and its accuracy on the held-out part."""
    unseen, field = pictures.part(held_out=True), list(pictures.fields).index("class")
    judge = kept_judge(folder.with_name(f"{folder.name}-judge-{steps}"), pictures, steps, progress=tqdm)
    if isinstance(judge, NotMeasured):
        raise SystemExit(f"the classifier {judge.reason}")
    return judge, judge.accuracy(unseen.pixels, unseen.labels[:, field])


def tokenizer_figures(tokenizer: Tokenizer, pictures: Pictures, judge: Judge) -> dict[str, float]:
    """Reconstruction of the held-out pictures: dB, Fréchet distance, accuracy kept, usage, speed."""
    report = evaluate_tokenizer(tokenizer, pictures, judge=judge)
    return {name: getattr(report, name) for name in TOKENIZER_FIGURES}


def tokenizers(folder: Path, minutes: float, only: str) -> None:
    """Train each candidate for the same time and compare."""
    pictures = read(folder)
    judge, accuracy = judge_of(folder, pictures)
    print(f"the judge's accuracy on held-out pictures: {accuracy:.3f}")
    for name, config in TOKENIZERS.items():
        if only not in name:
            continue
        run = folder.with_name(folder.name + "-tokenizers") / name.replace(", ", "-").replace(" ", "")
        tokenizer, state = train_tokenizer(pictures, config, TokenizerTraining(), Budget(minutes=minutes), run)
        figures = {"steps": state.step, **tokenizer_figures(tokenizer, pictures, judge)}
        record("emoji-64-tokenizers", name, {"minutes": minutes, **figures})


def bits_per_token(pipeline: Pipeline, pictures: Pictures, draws: int = 8) -> dict[str, float]:
    """The any-order bound on held-out pictures, with their labels and without, and its standard error over pictures."""
    unseen = pictures.part(held_out=True)
    codes = torch.cat([pipeline.tokenizer.encode(normalize(part)) for part in unseen.pixels.split(64)])
    figures = {"uniform": torch.tensor(float(pipeline.tokenizer.vocab_size)).log2().item()}
    for name, labels in (("with labels", unseen.labels), ("without", None)):
        generator = torch.Generator().manual_seed(0)
        nats = torch.cat(
            [
                pipeline.running.elbo(
                    part, labels[rows] if labels is not None else None, draws=draws, generator=generator
                )
                for part, rows in zip(codes.split(64), torch.arange(len(codes)).split(64), strict=True)
            ]
        )
        bits = nats / codes[0].numel() / torch.tensor(2.0).log()
        figures[name] = bits.mean().item()
        figures[f"{name}, standard error"] = (bits.std() / len(bits) ** 0.5).item()
    return figures


def draw(
    pipeline: Pipeline, count: int, sampler: Sampler, styles: bool, first_seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` samples evenly over the classes (and styles) -> images (n, 3, H, W), classes (n,)."""
    classes, every_style = list(pipeline.labels.names["class"]), list(pipeline.labels.names["style"])
    images = []
    chosen = torch.arange(count) % len(classes)
    for start in range(0, count, 32):
        rows = [
            pipeline.labels.encode(
                {"class": classes[int(chosen[i])]}
                | ({"style": every_style[i // len(classes) % len(every_style)]} if styles else {})
            )
            for i in range(start, min(count, start + 32))
        ]
        condition = torch.cat([row for row in rows if row is not None])
        seeds = torch.arange(start, start + len(condition)) + first_seed
        codes = pipeline.running.generate(len(condition), condition, sampler=sampler, seeds=seeds)
        images.append(pipeline.decode(codes).cpu())
    return torch.cat(images), chosen


def sampling_figures(
    pipeline: Pipeline,
    judge: Judge,
    pictures: Pictures,
    sampler: Sampler,
    count: int,
    styles: bool = False,
    first_seed: int = 0,
) -> tuple[dict[str, float], torch.Tensor]:
    """Accuracy and Fréchet distance of `count` samples; the distance is to as many training pictures a class."""
    started = time.perf_counter()
    images, classes = draw(pipeline, count, sampler, styles, first_seed)
    seconds = time.perf_counter() - started
    train = even(pictures.part(held_out=False), count)
    return {
        "accuracy": judge.accuracy(images, classes),
        "frechet_distance": frechet_distance(judge.features(images), judge.features(train)),
        "seconds_per_picture": seconds / count,
    }, images


def even(pictures: Pictures, count: int) -> torch.Tensor:
    """About `count` pictures, evenly over the classes."""
    field = pictures.labels[:, list(pictures.fields).index("class")]
    classes = len(pictures.fields["class"])
    each = -(-count // classes)
    rows = []
    for i in range(classes):
        of_class = (field == i).nonzero()[:, 0]
        rows.append(of_class[torch.linspace(0, len(of_class) - 1, min(each, len(of_class))).long()])
    return pictures.pixels[torch.cat(rows)]


def tune(folder: Path, model: str, count: int) -> None:
    """A few samplers side by side; the recipe is chosen from this table."""
    pictures, pipeline = read(folder), Pipeline.from_pretrained(model)
    judge, _ = judge_of(folder, pictures)
    halton = Sampler(steps=12, order="halton")
    tried = [replace(halton, guidance=g) for g in (1.0, 2.5, 4.0)]
    tried += [replace(halton, guidance=2.5, token_temperature=t) for t in (0.8, 0.6)]
    tried += [replace(halton, guidance=2.5, steps=8)]
    tried += [replace(halton, order="confidence", guidance=2.5, choice_temperature=t) for t in (4.5, 10.0)]
    tried += [replace(halton, order="critic", guidance=2.5, choice_temperature=t) for t in (0.5, 2.0)]
    for sampler in tried:
        name = (
            f"{sampler.order}, {sampler.steps} steps, guidance {sampler.guidance}, temperature "
            f"{sampler.token_temperature}, choice {sampler.choice_temperature}"
        )
        figures, _ = sampling_figures(pipeline, judge, pictures, sampler, count)
        record("emoji-64-samplers", name, {"samples": count, **figures})


def measure(folder: Path, model: str) -> None:
    """Every figure of the model card."""
    pictures, pipeline = read(folder), Pipeline.from_pretrained(model)
    judge, unseen_accuracy = judge_of(folder, pictures)
    train, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    field = list(pictures.fields).index("class")
    record("emoji-64", "tokenizer", tokenizer_figures(pipeline.tokenizer, pictures, judge))
    record("emoji-64", "held-out bits per token", bits_per_token(pipeline, pictures))

    floor = frechet_distance(judge.features(even(train, 840)), judge.features(even(unseen, 840)))
    train_accuracy = judge.accuracy(train.pixels[:2000], train.labels[:2000, field])
    record(
        "emoji-64",
        "judge",
        {"accuracy_train": train_accuracy, "accuracy_held_out": unseen_accuracy, "frechet_train_held_out": floor},
    )
    orders = {
        "critic off": pipeline.recipe,
        "critic on": replace(pipeline.recipe, order="critic"),
    }
    for name, sampler in orders.items():
        for styles in (False, True) if name == "critic off" else (False,):
            figures, images = sampling_figures(pipeline, judge, pictures, sampler, 840, styles)
            record("emoji-64", f"840 samples, {name}, {'class and style' if styles else 'class'}", figures)
            if not styles:
                show(images, train, judge, folder.with_name(f"{folder.name}-{name.replace(' ', '-')}"))


def show(images: torch.Tensor, train: Pictures, judge: Judge, path: Path) -> None:
    """Sheets: one sample a class twice over, and the same beside the nearest training picture (not for publishing)."""
    images = images[:64]
    sheet([to_pil(image) for image in images], 16).save(f"{path}-samples.png")
    closest = nearest(judge.features(images), judge.features(train.pixels))
    found = train.pixels[closest]
    pairs = [[to_pil(image), to_pil(normalize(real))] for image, real in zip(images, found, strict=True)]
    paired_sheet(pairs, 16).save(f"{path}-nearest.png")


def bundle(model: str, target: Path) -> None:
    """Store the model as bf16 with its card; `measure` must have been run on the result for the card's figures.

    A model that is bundled already is written again, with today's recipe, presets, figures and samples.
    """
    pipeline = Pipeline.from_pretrained(model, device="cpu")
    figures = json.loads((RESULTS / "emoji-64.json").read_text()) if (RESULTS / "emoji-64.json").exists() else {}
    pipeline.recipe, pipeline.presets = RECIPE, PRESETS
    pipeline.about |= {
        "name": "emoji-64",
        "example": EXAMPLE,
        "licence": LICENCE,
        "credit": CREDIT,
        "measured": figures,
    }
    work = Path(f"{model}.training")
    if work.exists():
        states = {
            stage: files.read_json(max((work / stage / "checkpoints").glob("step-*")) / "state.json")
            for stage in ("tokenizer", "generator", "critic")
        }
        pipeline.about["training"] = {
            stage: {"steps": last["step"], "minutes": round(last["seconds"] / 60, 1)} for stage, last in states.items()
        }
    pipeline.about.pop("minutes", None)
    images, _ = draw(pipeline, 48, RECIPE, styles=True)
    card = CARD.format(
        classes=", ".join(pipeline.labels.names["class"]),
        styles=", ".join(pipeline.labels.names["style"]),
        credit=CREDIT,
        licence=LICENCE,
        training="".join(
            f"| {stage} | {each['steps']:,} | {each['minutes']:.0f} |\n"
            for stage, each in pipeline.about["training"].items()
        ),
        figures="".join(f"| {name} | {_row(row)} |\n" for name, row in figures.items()),
        critic=_critic_rows(),
        copying=_copying(),
        recipe=describe(RECIPE),
        presets="".join(
            f"- preset {name}, {sampler.forwards} forward passes: {describe(sampler)}\n"
            for name, sampler in PRESETS.items()
        ),
    )
    pictures = {
        "samples.png": sheet([to_pil(image) for image in images], 12),
        "quality.png": Image.open(RESULTS / "quality-per-forward.png"),
    }
    pipeline.save_pretrained(target, half=True, card=card, pictures=pictures)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


def _critic_rows() -> str:
    """The rows of results/quality-per-forward.json that tell whether the critic is worth its forward passes."""
    rows = json.loads((RESULTS / "quality-per-forward.json").read_text())

    def cell(order: str, steps: int) -> str:
        row = rows[f"{order}, {steps} steps, guided"]
        return f"{row['accuracy']:.0%}, {row['frechet_distance']:.2f} ({row['forwards']:g} passes)"

    return "".join(
        f"| {steps} | {' | '.join(cell(order, steps) for order in ('confidence', 'critic', 'halton'))} |\n"
        for steps in (8, 12, 18)
    )


def _copying() -> str:
    """What `maskimg eval emoji-64 runs/emoji --json results/emoji-64-eval.json` found beside the nearest pictures."""
    found = json.loads((RESULTS / "emoji-64-eval.json").read_text())
    ours, floor, words = found["alike"], found["floor"], found["memorisation"]["in_words"]
    measures = ("frechet_distance", "precision", "recall", "density", "coverage")
    rows = "".join(f"| {name.replace('_', ' ')} | {ours[name]:.2f} | {floor[name]:.2f} |\n" for name in measures)
    asked, unseen = found["own_accuracy"], found["own_accuracy_held_out"]
    return f"""{words[:1].upper()}{words[1:]}.

| beside as many training pictures | samples | held-out pictures |
| --- | --- | --- |
{rows}| class that was asked for | {asked:.0%} | {unseen:.0%} |

`maskimg eval emoji-64 FOLDER`: {found["samples"]:,} samples with labels as the pictures have them, in the features of a
classifier of 600 steps, a worse judge than the one above."""


def _row(figures: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in figures.items())


def record(table: str, name: str, figures: dict) -> None:
    """Print a row and keep it in benchmarks/results/TABLE.json."""
    path = RESULTS / f"{table}.json"
    path.parent.mkdir(exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    path.write_text(json.dumps(rows, indent=2) + "\n")
    print(name, rows[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verb = verbs.add_parser("prepare")
    verb.add_argument("archive", type=Path)
    verb.add_argument("folder", type=Path)
    verb = verbs.add_parser("tokenizers")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--minutes", type=float, default=4)
    verb.add_argument("--only", default="")
    for name in ("tune", "measure"):
        verb = verbs.add_parser(name)
        verb.add_argument("folder", type=Path)
        verb.add_argument("model")
        if name == "tune":
            verb.add_argument("--count", type=int, default=224)
    verb = verbs.add_parser("bundle")
    verb.add_argument("model")
    verb.add_argument("target", type=Path)
    options = vars(parser.parse_args())
    {"prepare": prepare, "tokenizers": tokenizers, "tune": tune, "measure": measure, "bundle": bundle}[
        options.pop("verb")
    ](**options)


if __name__ == "__main__":
    main()
