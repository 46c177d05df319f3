"""The search for samplers: what it may try, what it keeps, and that a stopped one goes on."""

import dataclasses
import json
import random

import numpy as np
import pytest
from helpers import tiny_pictures
from tiny import LABELS, tiny_pipeline

from maskimg.cli.main import main
from maskimg.evaluation import tune as tuning
from maskimg.evaluation.judge import judge_for
from maskimg.evaluation.outside import NotMeasured
from maskimg.evaluation.quality import refer
from maskimg.evaluation.tune import FRESH, Bench, Trial, fitted, passes, random_sampler, tune
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan import load_image


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def reference():
    pictures = tiny_pictures(40, held_out=10)
    return refer(pictures, judge_for(pictures, 3))


@dataclasses.dataclass
class KnownBench:
    """Measures by a formula: best at guidance 3 and temperature 0.8; fresh seeds may see it otherwise."""

    pipeline: Pipeline
    reference: object
    fresh: float = 0.0  # what fresh seeds add to whatever is not one of the model's own samplers

    def __post_init__(self):
        self.trials = {}

    def bar(self, samplers, words):
        return samplers

    def passes(self, sampler):
        return passes(sampler, 1.0)

    def measure(self, sampler, count, seed=0):
        distance = (sampler.guidance - 3) ** 2 + 10 * abs(sampler.token_temperature - 0.8) + 1 / sampler.steps
        if seed == FRESH and sampler.token_temperature != 1.0:
            distance += self.fresh
        trial = Trial(sampler, count, seed, self.passes(sampler), {"own_frechet_distance": distance})
        return self.trials.setdefault((sampler, count, seed), trial)


# ----------------------------------------------------------------------------- what may be tried


def test_forward_passes_count_guidance_twice_and_a_critic_by_its_share():
    assert passes(Sampler(steps=6), 0.5) == 6
    assert passes(Sampler(steps=6, guidance=2.0), 0.5) == 12
    assert passes(Sampler(steps=6, guidance=2.0, guidance_end=0.5), 0.5) == Sampler(
        steps=6, guidance=2.0, guidance_end=0.5
    ).forwards < 12  # fmt: skip
    assert passes(Sampler(steps=6, order="critic"), 0.5) == 6 + 5 * 0.5  # none after the last step


def test_a_sampler_is_fitted_with_as_many_steps_as_the_budget_allows(pipeline, reference, tmp_path):
    bench, chance = Bench(pipeline, reference, tmp_path / "log.jsonl"), random.Random(0)
    for budget in (1, 5, 18):
        for _ in range(30):
            sampler = fitted(random_sampler(pipeline, chance), budget, bench)
            if sampler is None:
                continue
            assert bench.passes(sampler) <= budget
            assert bench.passes(dataclasses.replace(sampler, steps=sampler.steps + 1)) > budget
    assert fitted(Sampler(guidance=2.0), 1, bench) is None


def test_only_what_the_model_can_do_is_tried(pipeline):
    chance = random.Random(0)
    tried = [random_sampler(pipeline, chance) for _ in range(200)]
    assert {each.order for each in tried} == {"confidence", "halton", "random", "moment", "critic"}
    assert {each.guidance for each in tried} == set(tuning.GUIDANCES)
    plain = tiny_pipeline(labels=False, critic=False)
    tried = [random_sampler(plain, chance) for _ in range(200)]
    assert {each.order for each in tried} == {"confidence", "halton", "random", "moment"}
    assert {each.guidance for each in tried} == {1.0}


# ----------------------------------------------------------------------------- the search


def test_the_search_finds_what_is_better_within_each_budget(pipeline, reference):
    bench = KnownBench(pipeline, reference)
    found = tune(bench, budgets=(4, 8, 16), candidates=60, count=64)
    assert [each.preset for each in found] == ["fast", "balanced", "best"]
    for each in found:
        assert each.chosen.passes <= each.budget
        assert each.chosen.distance < each.before.distance
        assert (each.chosen.seed, each.chosen.count) == (FRESH, 64)
        assert each.chosen.sampler.guidance == 3
        assert each.chosen.sampler.token_temperature in (0.7, 0.8, 0.9)


def test_fewer_are_measured_with_more_pictures_and_all_from_the_same_seeds(pipeline, reference):
    bench = KnownBench(pipeline, reference)
    tune(bench, budgets=(8, 8, 8), candidates=18, count=64)
    searched = [each for each in bench.trials.values() if each.seed != FRESH]
    rounds = {count: sum(each.count == count for each in searched) for count in (16, 32, 64)}
    assert rounds[16] > 2 * rounds[32] > 0 and rounds[32] > 2 * rounds[64] > 0
    assert {each.seed for each in searched} == {0}


def test_what_only_chance_made_better_does_not_take_a_presets_place(pipeline, reference):
    """On fresh seeds the winner is worse than what the model has: it keeps what it has."""
    bench = KnownBench(pipeline, reference, fresh=100.0)
    for each in tune(bench, budgets=(4, 8, 16), candidates=40, count=64):
        assert each.chosen == each.before
        assert each.chosen.sampler.token_temperature == 1.0


def test_presets_as_dear_as_the_budget_are_tried_as_they_are():
    own = {"best": Sampler(steps=9, order="random")}
    pipeline = tiny_pipeline()
    pipeline.presets |= own
    bench = KnownBench(pipeline, refer(tiny_pictures(40, held_out=10), judge_for(tiny_pictures(40), 2)))
    tune(bench, budgets=(9, 9, 9), candidates=1, count=8)
    assert own["best"] in {each.sampler for each in bench.trials.values()}


def test_a_dearer_preset_is_never_worse_than_a_cheaper_one(pipeline, reference):
    """Even where more steps only do harm."""

    class Tiring(KnownBench):
        def measure(self, sampler, count, seed=0):
            trial = Trial(sampler, count, seed, self.passes(sampler), {"own_frechet_distance": float(sampler.steps)})
            return self.trials.setdefault((sampler, count, seed), trial)

    found = tune(Tiring(pipeline, reference), budgets=(2, 8, 16), candidates=4, count=8)
    assert len({each.chosen.sampler for each in found}) == 1
    assert found[2].before.distance > found[2].chosen.distance


def test_the_floor_is_of_as_many_held_out_pictures_as_there_are_samples(reference):
    few, all_of_them = tuning.floor_of(reference, 5), tuning.floor_of(reference, 10)
    assert few is not None and all_of_them is not None and few != all_of_them
    assert tuning.floor_of(reference, 11) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budgets": (8, 4, 16)}, "three rising numbers"),
        ({"budgets": (8, 16)}, "three rising numbers"),
        ({"budgets": (0, 8, 16)}, "1 or more"),
        ({"candidates": 0}, "candidates must be 1 or more"),
        ({"count": 3}, "count 4 or more"),
    ],
)
def test_numbers_out_of_range_get_a_sentence(pipeline, reference, options, words):
    with pytest.raises(ValueError, match=words):
        tune(KnownBench(pipeline, reference), **options)


def test_without_a_classifier_there_is_nothing_to_tune_by(pipeline):
    alone = refer(tiny_pictures(), NotMeasured("needs a folder with labels"))
    with pytest.raises(ValueError, match="tuning needs a classifier of our own, which needs a folder with labels"):
        tune(KnownBench(pipeline, alone))


# ----------------------------------------------------------------------------- what is remembered


def test_what_was_measured_is_not_measured_again(pipeline, reference, tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    samplers = [Sampler(steps=2, guidance=(1.0, 2.0)), Sampler(counts=(4, 12))]
    before = [Bench(pipeline, reference, log).measure(each, 4) for each in samplers]
    monkeypatch.setattr(tuning, "draw_samples", None)  # from here on nothing can be drawn
    bench = Bench(pipeline, reference, log)
    assert [bench.measure(each, 4) for each in samplers] == before
    with pytest.raises(TypeError):
        bench.measure(samplers[0], 4, seed=FRESH)
    assert before[0].figures["own_frechet_distance"] > 0
    assert 0 <= before[0].figures["own_accuracy"] <= 1


def test_a_line_that_was_cut_off_is_measured_again(pipeline, reference, tmp_path):
    log = tmp_path / "log.jsonl"
    first = [Bench(pipeline, reference, log).measure(Sampler(steps=steps), 4) for steps in (1, 2)]
    log.write_text(log.read_text()[:-40])
    assert len(tuning.read_trials(log)) == 1
    again = Bench(pipeline, reference, log).measure(Sampler(steps=2), 4)
    assert again.distance == first[1].distance
    assert [each.sampler.steps for each in tuning.read_trials(log)] == [1, 2]


def test_trials_of_another_model_are_refused(tmp_path):
    tuning.require_same(tmp_path, {"model": {"a": "1"}, "pictures": "x"})
    tuning.require_same(tmp_path, {"model": {"a": "1"}, "pictures": "x"})
    with pytest.raises(ValueError, match="was tried with another model: choose another --out"):
        tuning.require_same(tmp_path, {"model": {"a": "2"}, "pictures": "x"})


def test_the_plot_shows_every_trial_the_presets_and_the_floor(pipeline, reference):
    bench = KnownBench(pipeline, reference)
    found = tune(bench, budgets=(4, 8, 16), candidates=20, count=64)
    trials = list(bench.trials.values())
    page, bare = (np.asarray(tuning.pareto_plot(trials, found, floor)) for floor in (2.0, None))
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0xB9, 0xC0, 0xC9)):
        assert (np.abs(page.astype(int) - colour).sum(-1) < 30).sum() > 50
    assert (page != bare).any()


# ----------------------------------------------------------------------------- the command


def test_the_command_tunes_goes_on_and_writes_presets(tmp_path, draw_pictures, capsys, monkeypatch):
    draw_pictures(tmp_path / "pictures", count=60, size=16)
    for shape, name in zip(("circle", "square", "triangle"), LABELS["class"], strict=True):
        (tmp_path / "pictures" / shape).rename(tmp_path / "pictures" / name)
    model, out = tmp_path / "model", tmp_path / "tuned"
    tiny_pipeline().save_pretrained(model)
    command = ["tune", str(model), str(tmp_path / "pictures"), "--out", str(out)]
    command += ["--budgets", "2,3,5", "--candidates", "3", "--count", "8", "--classifier-steps", "2"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert Pipeline.from_pretrained(model, device="cpu").presets["fast"].steps == 8  # not asked to write
    logged = (out / "log.jsonl").read_text()

    monkeypatch.setattr(tuning, "draw_samples", None)  # everything is remembered
    assert main([*command, "--write"]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == first.splitlines()[:5]
    assert (out / "log.jsonl").read_text() == logged
    again = Pipeline.from_pretrained(model, device="cpu")
    for name, budget in (("fast", 2), ("balanced", 3), ("best", 5)):
        assert again.presets[name].forwards <= budget
        assert f"| {name} | " in (model / "README.md").read_text()
    assert again.recipe == again.presets["balanced"]
    assert "maskimg tune" in again.about["tuned"]["command"]
    assert load_image(out / "pareto.png").width > 800
    assert json.loads((out / "tune.json").read_text())["classifier"] == 2

    with pytest.raises(SystemExit) as stop:
        main([*command[:-1], "3"])
    assert stop.value.code == 2
    assert "was tried with another classifier: choose another --out" in capsys.readouterr().err


def test_wrong_budgets_get_a_sentence(tmp_path, draw_pictures, capsys):
    draw_pictures(tmp_path / "pictures", count=20, size=16)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    command = ["tune", str(tmp_path / "model"), str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]
    for budgets, sentence in (("many", "--budgets must be three numbers"), ("8,4,2", "three rising numbers")):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--budgets", budgets, "--classifier-steps", "1"])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
