"""The best sampler for so many forward passes: a random search with successive halving, after AutoNAT's idea.

Ni et al. 2024 ("Revisiting Non-Autoregressive Transformers", arXiv 2406.05478) let a search, not a person, choose
schedule, temperatures and guidance for each number of steps. Here every candidate of a budget draws a few pictures, the
better third draws twice as many, and so on; all of them from the same seeds and labels, so that what differs is the
sampler. The model's own presets are among the candidates. What wins is then measured with seeds that nothing was chosen
by, beside the best of those presets, and only takes its place if it is better there, too.

Quality is the Fréchet distance in our own classifier's features: good for comparing samplers, and for nothing else.
"""

import dataclasses
import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maskimg.evaluation.charts import COLOURS, FAINT, Curve, Panel, draw_panels
from maskimg.evaluation.metrics import frechet_distance
from maskimg.evaluation.outside import NotMeasured
from maskimg.evaluation.quality import Reference, draw_samples, own_figures, scattered
from maskimg.noise import SEEDS
from maskimg.outputs import require_folder
from maskimg.pipeline import Pipeline
from maskimg.sampler import BEFORE_DRAW, ORDERS, Sampler, describe
from vqgan import files
from vqgan.writing import atomic_file

PRESETS = ("fast", "balanced", "best")
BUDGETS = (8, 18, 36)
SHARES = (4, 2, 1)  # of the pictures of a whole measurement, a quarter in the first round
KEPT = 3  # one candidate in so many goes on to the next round
FRESH = SEEDS // 2  # the first seed of those that nothing is chosen by
SCHEDULES = ("cosine", "arccos", "linear", "square")
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
CHOICES = (0.0, 0.5, 1.0, 2.0, 4.5, 10.0)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
ENDS = (0.5, 0.75, 1.0)  # of guidance, in what is revealed


@dataclasses.dataclass(frozen=True)
class Trial:
    """One sampler, measured with `count` pictures of seeds from `seed` on."""

    sampler: Sampler
    count: int
    seed: int
    passes: float
    figures: dict[str, float]

    @property
    def distance(self) -> float:
        return self.figures["own_frechet_distance"]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What came of one budget.

    Attributes:
        preset: whose place it takes. chosen: measured with fresh seeds.
        before: the best of the model's own presets that the budget allows, or that was made to fit it, measured alike.
    """

    preset: str
    budget: float
    chosen: Trial
    before: Trial


class Bench:
    """Measures samplers of one model against one reference, and remembers in `log` what it has measured."""

    def __init__(self, pipeline: Pipeline, reference: Reference, log: Path, *, progress=None):
        self.pipeline, self.reference, self.log, self.progress = pipeline, reference, log, progress
        if log.exists() and not log.read_bytes().endswith(b"\n"):  # cut off in the middle of a line
            with log.open("a", encoding="utf-8") as file:
                file.write("\n")
        self.trials = {self._key(each.sampler, each.count, each.seed): each for each in read_trials(log)}

    def measure(self, sampler: Sampler, count: int, seed: int = 0) -> Trial:
        key = self._key(sampler, count, seed)
        if key not in self.trials:
            drawn = draw_samples(self.pipeline, self.reference.training, count, sampler=sampler, seed=seed)
            figures = {**own_figures(drawn, self.reference), "seconds_per_picture": drawn.seconds / count}
            self.trials[key] = Trial(sampler, count, seed, self.passes(sampler), figures)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**vars(self.trials[key]), "sampler": sampler.numbers()}) + "\n")
        return self.trials[key]

    def bar(self, samplers: list[Sampler], words: str) -> Iterable[Sampler]:
        return self.progress(samplers, desc=words, unit="sampler") if self.progress else samplers

    def passes(self, sampler: Sampler) -> float:
        """Forward passes a picture; a self critic is the whole generator once more."""
        critic, depth = self.pipeline.critic, getattr(self.pipeline.net.config, "depth", 0)
        return passes(sampler, critic.config.depth / depth if critic and depth else 1.0)

    @staticmethod
    def _key(sampler: Sampler, count: int, seed: int) -> tuple:
        return tuple(map(str, vars(sampler).values())), count, seed


def tune(
    bench: Bench, *, budgets: Sequence[float] = BUDGETS, candidates: int = 18, count: int = 400, seed: int = 0
) -> list[Tuned]:
    """The best sampler found for each of three budgets of forward passes a picture.

    Args:
        candidates: samplers in the first round of each budget.
        count: pictures of a whole measurement.

    Raises:
        ValueError: a number is out of range, or there is no classifier to measure with.
    """
    if len(budgets) != len(PRESETS) or list(budgets) != sorted(budgets) or budgets[0] < 1:
        raise ValueError(f"budgets must be three rising numbers of forward passes, 1 or more, got {list(budgets)}")
    if candidates < 1 or count < SHARES[0]:
        raise ValueError(f"candidates must be 1 or more and count {SHARES[0]} or more, got {candidates} and {count}")
    if isinstance(bench.reference.judge, NotMeasured):
        raise ValueError(f"tuning needs a classifier of our own, which {bench.reference.judge.reason}")
    found: list[Tuned] = []
    for preset, budget in zip(PRESETS, budgets, strict=True):
        chance = random.Random(f"{seed} {budget}")
        cheaper = [each.chosen.sampler for each in found]  # so that more passes are never worse
        found.append(_tuned(bench, preset, budget, cheaper, candidates, count, chance))
    return found


def read_trials(log: Path) -> list[Trial]:
    """What has been measured so far; a line that was cut off is left out."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            values = json.loads(line)
            found.append(Trial(**{**values, "sampler": Sampler(**values["sampler"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def passes(sampler: Sampler, critic_share: float) -> float:
    """Forward passes a picture, those with guidance twice; the critic's, at all steps but the last, by its share."""
    return sampler.forwards + (critic_share * (sampler.steps - 1) if sampler.order == "critic" else 0)


def fitted(sampler: Sampler, budget: float, bench: Bench) -> Sampler | None:
    """With as many steps as the budget allows; None where not even one fits."""
    for steps in range(int(budget), 0, -1):
        fit = dataclasses.replace(sampler, steps=steps, counts=())
        if bench.passes(fit) <= budget:
            return fit
    return None


def random_sampler(pipeline: Pipeline, chance: random.Random) -> Sampler:
    """Any sampler that this model can draw with; its steps are still to be fitted."""
    orders = [order for order in ORDERS if order != "critic"] + ["critic"] * pipeline.generator.has_critic
    order = chance.choice(orders)
    guided = bool(pipeline.labels.names) and pipeline.net.has_null
    guidance = chance.choice(GUIDANCES) if guided else 1.0
    return Sampler(
        schedule=chance.choice(SCHEDULES),
        order=order,
        token_temperature=chance.choice(TEMPERATURES),
        # These orders do not look at scores: noise on them would only make equal samplers look different.
        choice_temperature=1.0 if order in BEFORE_DRAW else chance.choice(CHOICES),
        guidance=guidance,
        guidance_end=1.0 if guidance == 1 else chance.choice(ENDS),
    )


def write_presets(about: dict[str, Any], tuned: Sequence[Tuned], command: str) -> None:
    """Into what pipeline.json holds: the presets, the balanced one as the model's recipe, and how they were found."""
    about["presets"] = about.get("presets", {}) | {each.preset: each.chosen.sampler.numbers() for each in tuned}
    about["recipe"] = about["presets"]["balanced"]
    about["tuned"] = {
        "command": command,
        **{each.preset: {"passes": each.chosen.passes, **each.chosen.figures} for each in tuned},
    }


def table(tuned: Sequence[Tuned]) -> list[str]:
    """What was found, as lines of markdown."""
    lines = [
        "| preset | forward passes | our own classifier's Fréchet distance, not FID | accuracy | before | sampler |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in tuned:
        accuracy = each.chosen.figures.get("own_accuracy")
        shown = "" if accuracy is None else f"{accuracy:.1%}"
        before = "as it was" if each.before.sampler == each.chosen.sampler else f"{each.before.distance:.3g}"
        lines.append(
            f"| {each.preset} | {each.chosen.passes:g} | {each.chosen.distance:.3g} | {shown} | {before} | "
            f"{describe(each.chosen.sampler)} |"
        )
    return lines


def pareto_plot(trials: Sequence[Trial], tuned: Sequence[Tuned], floor: float | None) -> Image.Image:
    """Quality against forward passes: what was tried with all pictures, the front of it, and the presets."""
    whole = max(each.count for each in trials)
    tried = sorted((each for each in trials if each.count == whole and each.seed != FRESH), key=lambda t: t.passes)
    chosen = [each.chosen for each in tuned]
    panels = []
    for name, title, better, percent in (
        ("own_frechet_distance", "distance to real pictures (our classifier, no FID)", min, False),
        ("own_accuracy", "class accuracy (our classifier)", max, True),
    ):
        points = [(each.passes, each.figures[name]) for each in tried if name in each.figures]
        if not points:
            continue
        front = [point for i, point in enumerate(points) if better([y for _, y in points[: i + 1]]) == point[1]]
        ends = [(each.passes, each.figures[name]) for each in chosen]
        curves = [
            _curve(points, "#b9c0c9", "tried", joined=False),
            _curve(front, COLOURS[0], "front"),
            _curve(ends, COLOURS[1], "presets, fresh seeds", joined=False),
        ]
        if name == "own_frechet_distance" and floor is not None:
            last = max(x for x, _ in [*points, *ends])
            curves.append(Curve([0, last], [floor, floor], FAINT, "held-out pictures"))
        panels.append(Panel(title, curves, percent=percent))
    return draw_panels(panels, title=f"Quality against forward passes, {whole:,} pictures each")


def floor_of(reference: Reference, count: int) -> float | None:
    """The distance of `count` held-out pictures; None where there are not so many: of fewer it is larger."""
    unseen = reference.unseen_features
    if len(unseen) < max(2, count):
        return None
    return frechet_distance(unseen[scattered(len(unseen))[:count]], reference.training_features)


def require_directory(directory: Path) -> None:
    """Raises ValueError where nothing can be tried in a directory, since it holds other people's notes of that name."""
    require_folder(directory)
    log, about = directory / "log.jsonl", directory / "tune.json"
    for path in (log, about):
        if os.path.lexists(path) and not path.is_file():
            raise ValueError(f"`{path}` is not a file: choose another --out")
    ours = about.is_file() and {"model", "pictures", "classifier"} <= files.read_json(about).keys()
    if about.is_file() and not ours or log.is_file() and not ours:
        odd = about if about.is_file() else log
        raise ValueError(f"`{odd}` was not written by `maskimg tune`: choose another --out")


def require_same(directory: Path, about: Mapping[str, Any]) -> None:
    """Note in tune.json what the log in this directory is of, or compare.

    Raises:
        ValueError: it is of another model, of other pictures, or of another classifier.
    """
    path = directory / "tune.json"
    if path.exists():
        found = files.read_json(path)
        for key, value in about.items():
            if found.get(key) != value:
                raise ValueError(f"`{directory}` holds what was tried with another {key}: choose another --out")
    else:
        with atomic_file(path) as temporary:
            files.write_json(temporary, dict(about))


def _tuned(
    bench: Bench,
    preset: str,
    budget: float,
    cheaper: list[Sampler],
    candidates: int,
    count: int,
    chance: random.Random,
) -> Tuned:
    own = [bench.pipeline.recipe, *bench.pipeline.presets.values()]
    fits = [each if bench.passes(each) <= budget else fitted(each, budget, bench) for each in own]
    incumbents = list(dict.fromkeys(each for each in fits if each is not None))
    pool = dict.fromkeys([*incumbents, *cheaper])
    least = len(pool)
    for _ in range(20 * candidates):  # some are alike, and some do not fit
        if len(pool) >= max(candidates, least):
            break
        fit = fitted(random_sampler(bench.pipeline, chance), budget, bench)
        pool |= {fit: None} if fit else {}
    if not pool:
        raise ValueError(f"no sampler of this model fits into {budget:g} forward passes")

    left = list(pool)
    for share in SHARES:
        words = f"{preset}, {count // share} pictures each"
        distances = {sampler: bench.measure(sampler, count // share).distance for sampler in bench.bar(left, words)}
        left = sorted(left, key=distances.__getitem__)[: -(-len(left) // KEPT)]
    finalists = list(dict.fromkeys([left[0], *incumbents, *cheaper]))
    fresh = {each: bench.measure(each, count, FRESH) for each in bench.bar(finalists, f"{preset}, fresh seeds")}
    best, before = (
        min((fresh[each] for each in several), key=lambda trial: trial.distance)
        for several in (finalists, incumbents or finalists)
    )
    return Tuned(preset, budget, best, before)


def _curve(points: Sequence[tuple[float, float]], colour: str, label: str, *, joined: bool = True) -> Curve:
    xs, ys = zip(*points, strict=True)
    return Curve(xs, ys, colour, label, dots=True, joined=joined)
