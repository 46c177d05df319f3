"""The report of a generator's samples, and its forms for people: lines, and a table for a model's card.

What is measured, and how, `quality` knows.
"""

import dataclasses
from typing import Any

from maskimg.sampler import Sampler, describe

OWN = "of our own classifier's features: not FID"


@dataclasses.dataclass(frozen=True)
class Closeness:
    """`count` pictures beside as many training pictures, all in the judge's features; see `metrics.overlap`."""

    count: int
    frechet_distance: float
    precision: float
    recall: float
    density: float
    coverage: float


@dataclasses.dataclass(frozen=True)
class GenerationReport:
    """What was measured of samples.

    Attributes:
        samples, training, held_out: how many there were of each.
        own_frechet_distance, _low, _high: of all samples to all training pictures in our own classifier's features,
            which is no FID, and a bootstrapped interval of 95 %.
        alike, floor: samples, and held-out pictures, beside as many training pictures.
        own_accuracy, _low, _high: share of samples that our classifier takes for what was asked, and its interval;
            own_accuracy_held_out: of the held-out pictures.
        memorisation: as in `memorisation.Memorisation`, and in words.
        fid, fid_low, fid_high, inception_score, inception_score_spread, inception_precision, inception_recall: in the
            features of Inception-v3, of torch-fidelity's port.
        not_measured: why a figure is None, in words.
        warnings: what to mind, in words.
    """

    samples: int
    training: int
    held_out: int
    sampler: dict[str, Any]
    seed: int
    seconds_per_picture: float
    memorisation: dict[str, Any]
    own_frechet_distance: float | None = None
    own_frechet_low: float | None = None
    own_frechet_high: float | None = None
    alike: Closeness | None = None
    floor: Closeness | None = None
    own_accuracy: float | None = None
    own_accuracy_low: float | None = None
    own_accuracy_high: float | None = None
    own_accuracy_held_out: float | None = None
    fid: float | None = None
    fid_low: float | None = None
    fid_high: float | None = None
    inception_score: float | None = None
    inception_score_spread: float | None = None
    inception_precision: float | None = None
    inception_recall: float | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def table(report: GenerationReport) -> list[tuple[str, str, str, str]]:
    """Name, value of the samples, value of the held-out pictures, and a note: a row for each figure there is."""
    all_of_them = f"{report.samples:,} samples, {report.training:,} training pictures"
    rows = [
        ("Fréchet distance", _interval(report, "own_frechet_distance", ".3g"), "", f"{OWN}; {all_of_them}"),
        ("class accuracy", _interval(report, "own_accuracy", ".1%"), _number(report.own_accuracy_held_out, ".1%"),
         "share that our own classifier takes for what was asked"),
    ]  # fmt: skip
    if report.alike:
        floor = report.floor
        beside = f"{report.alike.count:,} beside as many training pictures"
        notes = {"frechet_distance": f"{OWN}; {beside}"}
        for name in ("frechet_distance", "precision", "recall", "density", "coverage"):
            words = "Fréchet distance, equal counts" if name == "frechet_distance" else name
            theirs = _number(getattr(floor, name), ".3g") if floor else ""
            ours = _number(getattr(report.alike, name), ".3g")
            rows.append((words, ours, theirs, notes.get(name, f"in our own classifier's features; {beside}")))
    learnt = report.memorisation
    theirs = f"{learnt['unseen_shared']:.0%}" if learnt["unseen"] else ""
    rows += [
        ("tokens shared", f"{learnt['shared']:.0%}", theirs, "with the nearest training picture"),
        ("FID", _interval(report, "fid", ".2f"), "", all_of_them),
        ("Inception Score", _number(report.inception_score, ".2f"), "", f"± {report.inception_score_spread or 0:.2f}"),
        ("Inception precision", _number(report.inception_precision, ".3f"), "", ""),
        ("Inception recall", _number(report.inception_recall, ".3f"), "", ""),
        ("time", f"{report.seconds_per_picture:.3g} s", "", "a picture"),
    ]
    return [row for row in rows if row[1]]


def summary(report: GenerationReport) -> str:
    """The report in lines for people."""
    rows = [("", "samples", "held-out", ""), *table(report)]
    wide, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    lines = [f"{a:<{wide}}  {b:>{second}}  {c:>{third}}  {note}".rstrip() for a, b, c, note in rows]
    return "\n".join(lines + _sentences(report))


def markdown(report: GenerationReport, command: str, day: str) -> str:
    """The report for a model's card."""
    lines = [
        f"`{command}`, {day}; {describe(Sampler(**report.sampler))}; seeds from {report.seed}. Our own "
        "classifier was trained on the training pictures: its figures compare with nothing outside this table, and "
        "held-out pictures show what is as good as real.",
        "",
        "| | samples | held-out pictures | |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in table(report)),
        "",
        *(f"- {sentence}" for sentence in _sentences(report)),
    ]
    return "\n".join(lines)


def _sentences(report: GenerationReport) -> list[str]:
    lines = [f"memorisation: {report.memorisation['in_words']}"]
    lines += [f"{name}: not measured: {reason}" for name, reason in report.not_measured.items()]
    return lines + [f"warning: {each}" for each in report.warnings]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(report: GenerationReport, name: str, form: str) -> str:
    """A figure with its interval."""
    value, stem = getattr(report, name), name.removesuffix("_distance")
    if value is None:
        return ""
    low, high = getattr(report, f"{stem}_low"), getattr(report, f"{stem}_high")
    return f"{value:{form}} ({low:{form}} to {high:{form}})"
