"""How good are a generator's samples? Held against real pictures, in the eyes of a classifier trained on these.

A figure of our own classifier is no FID and compares with nothing outside: it means something beside its floor, the
same figure of held-out pictures in as large a number. Samples have the labels of training pictures, drawn at random.
Inception joins in where it is installed and there are pictures enough.

Shapes: n samples, m pictures, d features, h w tokens.
"""

import dataclasses
import itertools
import time
from typing import Any

import torch
from PIL import Image

from maskimg.conditions import Label
from maskimg.data.pictures import Pictures
from maskimg.drawing.folders import draw_each
from maskimg.evaluation import memorisation
from maskimg.evaluation.judge import FEW, WEAK, Judge, judged_field
from maskimg.evaluation.metrics import (
    NEIGHBOURS_OF_DENSITY,
    frechet_distance,
    frechet_interval,
    inception_score,
    overlap,
)
from maskimg.evaluation.outside import Features, NotMeasured
from maskimg.evaluation.sample_report import Closeness, GenerationReport
from maskimg.evaluation.tokenizer_report import encode_all
from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan.images import normalize, to_tensor, to_uint8

INCEPTION_LEAST = 2048  # with fewer pictures than features a covariance has no full rank
INCEPTION_USUAL = 50_000
SHOWN = 48  # samples on the sheet beside their nearest pictures


@dataclasses.dataclass(frozen=True)
class Reference:
    """The real pictures, and what the judge sees in them.

    Attributes:
        training, unseen: the pictures that were trained on, and those held out.
        judge: where there is none, why.
        training_features, unseen_features: (m, d) each; without a judge (m, 0).
    """

    training: Pictures
    unseen: Pictures
    judge: Judge | NotMeasured
    training_features: torch.Tensor
    unseen_features: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Samples:
    """Drawn pictures.

    Attributes:
        pixels: (n, 3, H, W) uint8. codes: (n, h, w).
        classes: (n,) the class that was asked for, as the judge counts them; -1 where none was.
        sampler, seed: picture i has the seed `seed + i`.
        seconds: that drawing took.
    """

    pixels: torch.Tensor
    codes: torch.Tensor
    classes: torch.Tensor
    sampler: Sampler
    seed: int
    seconds: float


def refer(pictures: Pictures, judge: Judge | NotMeasured) -> Reference:
    """Raises: ValueError: there are no training pictures."""
    training, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    if not len(training.names):
        raise ValueError("there are no training pictures to hold samples against: hold out fewer")
    seen = [torch.zeros(len(each.names), 0) for each in (training, unseen)]
    if not isinstance(judge, NotMeasured):
        seen = [judge.features(each.pixels) if len(each.names) else torch.zeros(0, 1) for each in (training, unseen)]
    return Reference(training, unseen, judge, *seen)


def draw_samples(
    pipeline: Pipeline,
    training: Pictures,
    count: int,
    *,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    seed: int = 0,
    progress=None,
) -> Samples:
    """`count` samples with the labels of training pictures in a random order, always the same one.

    Raises:
        ValueError: there is nothing to draw, or the model cannot draw so.
    """
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    if pipeline.grid[0] != pipeline.grid[1]:
        raise ValueError(f"only models of square pictures can be measured so, and this one's grid is {pipeline.grid}")
    rows = scattered(len(training.names))
    labels, classes = _labels_of(pipeline, training, [rows[i % len(rows)] for i in range(count)])
    seeds = [(seed + i) % SEEDS for i in range(count)]
    pixels: list[Any] = [None] * count
    codes: list[Any] = [None] * count

    def each_picture():
        for positions, result in draw_each(pipeline, labels, seeds, sampler=sampler, best_of=best_of, batch_size=64):
            for i, image, grid in zip(positions, result.images, result.codes.cpu(), strict=True):
                pixels[i], codes[i] = to_uint8(to_tensor(image)), grid
                yield i

    started = time.perf_counter()
    for _ in progress(each_picture(), total=count, desc="drawing", unit="picture") if progress else each_picture():
        pass
    seconds = time.perf_counter() - started
    numbers = pipeline.sampler(sampler)
    return Samples(torch.stack(pixels), torch.stack(codes), torch.tensor(classes), numbers, seed, seconds)


def scattered(count: int) -> list[int]:
    """The numbers below `count` in a random order, always the same one: folders are often sorted by class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def own_figures(samples: Samples, reference: Reference) -> dict[str, float]:
    """The two figures that samplers are compared by, in our own classifier's eyes.

    Raises:
        ValueError: there is no classifier.
    """
    if isinstance(reference.judge, NotMeasured):
        raise ValueError(f"samplers are compared with a classifier of our own, which {reference.judge.reason}")
    features = reference.judge.features(samples.pixels)
    figures = {"own_frechet_distance": frechet_distance(features, reference.training_features)}
    asked = samples.classes >= 0
    if asked.any():
        figures["own_accuracy"] = reference.judge.accuracy(samples.pixels[asked], samples.classes[asked])
    return figures


def measure_samples(
    pipeline: Pipeline,
    samples: Samples,
    reference: Reference,
    *,
    inception: Features | NotMeasured = NotMeasured("was not asked for"),  # noqa: B008 (frozen)
    progress=None,
) -> tuple[GenerationReport, memorisation.Nearest]:
    """Every figure that can be had, and the training picture nearest to each sample.

    Args:
        inception: as `maskimg.evaluation.outside` loads it.
        progress: wraps the iteration, such as `tqdm`.
    """
    grids = [
        encode_all(pipeline.tokenizer, each.pixels, progress) if len(each.names) else samples.codes[:0]
        for each in (reference.training, reference.unseen)
    ]
    learnt, nearest = memorisation.compare(samples.codes, grids[1], grids[0][None])
    figures: dict[str, Any] = {
        "samples": len(samples.pixels),
        "training": len(reference.training.names),
        "held_out": len(reference.unseen.names),
        "sampler": samples.sampler.numbers(),
        "seed": samples.seed,
        "seconds_per_picture": samples.seconds / len(samples.pixels),
        "memorisation": {**dataclasses.asdict(learnt), "in_words": learnt.sentence},
    }
    reasons: dict[str, str] = {}
    figures |= _own(samples, reference, reasons)
    figures |= _inception(samples.pixels, reference.training.pixels, inception, reasons, progress)
    warnings = tuple(_warnings(figures, learnt))
    return GenerationReport(**figures, not_measured=reasons, warnings=warnings), nearest


def nearest_page(samples: Samples, reference: Reference, nearest: memorisation.Nearest) -> Image.Image:
    """Some samples above the training pictures that share most of their tokens, the nearest first."""
    originals = reference.training.pixels[nearest.index[:SHOWN]]
    return memorisation.nearest_sheet(normalize(samples.pixels[:SHOWN]), normalize(originals), nearest.shares[:SHOWN])


def _labels_of(pipeline: Pipeline, pictures: Pictures, rows: list[int]) -> tuple[list[Label], list[int]]:
    """What to ask the model for, to get the like of these pictures; and the judge's class of it, -1 for none."""
    known = {
        field: (column, names)
        for column, (field, names) in enumerate(pictures.fields.items())
        if field in pipeline.labels.names
    }
    judged = judged_field(pictures)
    labels, classes = [], []
    for row in pictures.labels[rows].tolist():
        label = {
            field: names[row[column]]
            for field, (column, names) in known.items()
            if row[column] < len(names) and names[row[column]] in pipeline.labels.names[field]
        }
        said = judged is not None and list(pictures.fields)[judged] in label
        labels.append(label or None)
        classes.append(row[judged] if said and judged is not None else -1)
    return labels, classes


def _own(samples: Samples, reference: Reference, reasons: dict[str, str]) -> dict[str, Any]:
    """What the judge says; why it does not goes into `reasons`."""
    judge = reference.judge
    if isinstance(judge, NotMeasured):
        reasons["Fréchet distance, precision and recall of our own classifier"] = judge.reason
        return {}
    features, real = judge.features(samples.pixels), reference.training_features
    figures: dict[str, Any] = {}
    if min(len(features), len(real)) > 1:
        low, high = frechet_interval(features, real)
        figures["own_frechet_distance"] = frechet_distance(features, real)
        figures |= {"own_frechet_low": low, "own_frechet_high": high}
    unseen = reference.unseen_features
    enough = len(unseen) > NEIGHBOURS_OF_DENSITY
    count = min(len(features), len(real), len(unseen) if enough else len(real))
    try:
        figures["alike"] = _closeness(features, real, count)
        figures["floor"] = _closeness(unseen, real, count) if enough else None
    except ValueError as error:
        reasons["precision and recall"] = str(error)
    if not enough:
        reasons["the floor"] = f"only {len(unseen)} pictures are held out" if len(unseen) else "no picture is held out"
    return figures | _accuracies(judge, samples, reference.unseen, reasons)


def _closeness(features: torch.Tensor, real: torch.Tensor, count: int) -> Closeness:
    """Of the first `count` samples, or of as many held-out pictures at random, to as many training pictures."""
    chosen, beside = (each[scattered(len(each))[:count]] for each in (features, real))
    shares = overlap(chosen, beside)
    return Closeness(count, frechet_distance(chosen, beside), **shares._asdict())


def _accuracies(judge: Judge, samples: Samples, unseen: Pictures, reasons: dict[str, str]) -> dict[str, float]:
    asked = samples.classes >= 0
    if not asked.any():
        reasons["class accuracy"] = "the model knows none of the classes of these pictures"
        return {}
    share = judge.accuracy(samples.pixels[asked], samples.classes[asked])
    margin = 1.96 * (share * (1 - share) / int(asked.sum())) ** 0.5
    figures = {
        "own_accuracy": share,
        "own_accuracy_low": max(0.0, share - margin),
        "own_accuracy_high": min(1.0, share + margin),
    }
    field = judged_field(unseen)
    labels = unseen.labels[:, field or 0]
    labelled = labels < len(list(unseen.fields.values())[field or 0])
    if labelled.any():
        figures["own_accuracy_held_out"] = judge.accuracy(unseen.pixels[labelled], labels[labelled])
    return figures


def _inception(
    drawn: torch.Tensor, real: torch.Tensor, inception: Features | NotMeasured, reasons: dict[str, str], progress
) -> dict[str, float]:
    """FID and its company, with pictures enough."""
    few = min(len(drawn), len(real))
    if isinstance(inception, NotMeasured) or few < INCEPTION_LEAST:
        reasons["FID"] = (
            inception.reason
            if isinstance(inception, NotMeasured)
            else f"needs {INCEPTION_LEAST:,} samples and as many training pictures or more, and there are {few:,}"
        )
        return {}
    parts = itertools.chain(drawn.split(32), real.split(32))
    wrapped = progress(list(parts), desc="Inception", unit="batch") if progress else parts
    seen = [inception(part) for part in wrapped]
    features = torch.cat([pooled for pooled, _ in seen]).split([len(drawn), len(real)])
    logits = torch.cat([each for _, each in seen])[: len(drawn)]
    low, high = frechet_interval(*features, draws=20)
    score, spread = inception_score(logits)
    beside = overlap(*(each[scattered(len(each))[: min(few, 10_000)]] for each in features))
    return {
        "fid": frechet_distance(*features),
        "fid_low": low,
        "fid_high": high,
        "inception_score": score,
        "inception_score_spread": spread,
        "inception_precision": beside.precision,
        "inception_recall": beside.recall,
    }


def _warnings(figures: dict[str, Any], learnt: memorisation.Memorisation) -> list[str]:
    found = []
    count = figures["alike"].count if figures.get("alike") else figures["samples"]
    if "own_frechet_distance" in figures and count < FEW:
        found.append(f"{count} pictures are few for a Fréchet distance, then mostly chance: give {FEW} of each or more")
    if 0 < figures["held_out"] < FEW:
        found.append(
            f"only {figures['held_out']} pictures are held out: below {FEW} what is measured against them means "
            "little, also that there is no sign of memorisation"
        )
    accuracy = figures.get("own_accuracy_held_out")
    if accuracy is not None and accuracy < WEAK:
        found.append(
            f"our classifier is right on only {accuracy:.0%} of the held-out pictures, so that its figures say little: "
            "train it longer (`--classifier-steps`)"
        )
    if "fid" in figures and figures["samples"] < INCEPTION_USUAL:
        found.append(
            f"FID of {figures['samples']:,} samples is higher than of the usual {INCEPTION_USUAL:,}: compare it only "
            "with figures of as many"
        )
    if learnt.alarming:
        found.append("some samples may be copies of training pictures: look at the sheet (`--sheet`)")
    return found
