"""What one sees of a training: figures of its predictions, pictures, trackers, an early stop."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from helpers import differing, random_codes, stopped_at, tiny_cache, tiny_net, tiny_pictures
from safetensors.torch import load_file
from tiny import NETWORK, TOKENIZER, tiny_pipeline

from maskimg.maskgit import MaskGit, Objective, Predictions
from maskimg.masking import random_mask
from maskimg.sampler import Sampler
from maskimg.training.evaluations import prediction_figures
from maskimg.training.folder import check_memorisation
from maskimg.training.generator import train_generator
from maskimg.training.loop import run as running
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.plan import NetworkSize, Plan
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.stages import generator_stage, tokenizer_stage
from maskimg.training.tokenizer import train_tokenizer
from vqgan import load_image

ON_CPU: Any = {"session": Session("cpu", "fp32")}


def _generator(directory, steps: int = 6, cache=None, **options) -> tuple[MaskGit, Run]:
    training = GeneratorTraining(batch_size=8)
    cache = cache or tiny_cache()
    return train_generator(cache, NETWORK, training, Budget(steps=steps), directory, **ON_CPU, **options)


def _lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------- figures of predictions


@pytest.mark.parametrize("options", [{}, {"visible_weight": 0.5}, {"loss_weight": "elbo", "schedule": "linear"}])
def test_an_observer_sees_the_masked_tokens_with_their_own_losses(options):
    model, codes, seen = MaskGit(tiny_net(NETWORK), objective=Objective(**options)), random_codes(6, NETWORK), []
    model.observer = seen.append
    condition = torch.zeros(6, 2, dtype=torch.int64)
    model.eval()
    loss = model(codes, condition, generator=torch.Generator().manual_seed(3)).loss
    (told,) = seen

    masked, _ = random_mask(codes, model.objective.schedule, torch.Generator().manual_seed(3))
    assert torch.equal(told.masked, masked)
    assert torch.equal(told.codes, codes[masked])
    logits = model.logits(codes.masked_fill(masked, model.mask_id), condition)[masked]
    expected = torch.nn.functional.cross_entropy(logits, codes[masked], reduction="none")
    torch.testing.assert_close(told.losses, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.to_logits(told.features), logits, atol=1e-4, rtol=1e-4)
    assert loss.requires_grad and not told.losses.requires_grad and not told.features.requires_grad


def test_looking_at_predictions_changes_no_weight(tmp_path, monkeypatch):
    plain, run = _generator(tmp_path / "plain")
    assert "accuracy" not in _lines(run)[0]
    monkeypatch.setattr(running, "LOG_EVERY", 1)
    seen, run = _generator(tmp_path / "seen")
    assert differing(plain, seen) == []
    assert "accuracy" in _lines(run)[0]


def test_the_log_tells_losses_by_mask_ratio_and_accuracy_with_its_band(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LOG_EVERY", 2)
    _, run = _generator(tmp_path / "run")
    lines = [line for line in _lines(run) if "accuracy" in line]
    assert [line["step"] for line in lines] == [1, 3, 5]
    for line in lines:
        assert 0 <= line["accuracy"] <= 1
        assert line["accuracy_low"] < line["accuracy_expected"] < line["accuracy_high"]
        assert line["gradient_norm"] > 0
    named = {name for line in lines for name in line if name.startswith("loss_masked")}
    assert named <= {f"loss_masked_{low}_{low + 25}" for low in (0, 25, 50, 75)}
    assert "loss_masked_75_100" in named


def test_of_a_huge_codebook_only_some_tokens_are_looked_at():
    """2**24 logits are 64 MiB; of more tokens than that every few are taken."""

    class Wide:
        mask_id = 2**20
        asked = 0

        def to_logits(self, features):
            self.asked = len(features)
            return torch.zeros(len(features), 4)

    model = Wide()
    masked = torch.ones(4, 4, 5, dtype=torch.bool)
    seen = Predictions(torch.zeros(80, 3), torch.ones(80), torch.zeros(80, dtype=torch.int64), masked)
    figures = prediction_figures(model, seen)  # pyright: ignore[reportArgumentType]
    assert model.asked == 16
    assert figures["loss_masked_75_100"] == 1


# ----------------------------------------------------------------------------- an early stop


@pytest.fixture
def judged(monkeypatch):
    """Held-out losses as one likes them, one for each evaluation of the training under test."""

    def play(*losses: float) -> None:
        coming = iter(losses)
        monkeypatch.setattr("maskimg.training.evaluations.masked_loss", lambda model, unseen: next(coming))

    return play


def test_training_ends_after_so_many_evaluations_without_a_better_loss(tmp_path, judged):
    """Steps 1, 2, 3 ... 9 of ten are evaluated: the best is the second, and three more are waited for."""
    judged(3.0, 2.0, 2.5, 2.0, 2.2, 9.9)
    model, run = _generator(tmp_path / "run", steps=10, patience=3)
    assert (run.step, run.finished, run.stopped) == (6, True, False)
    (line,) = (line for line in _lines(run) if "ended" in line)
    assert line["ended"] == "no better held-out loss than 2.000 of step 2 in 3 evaluations"
    kept = load_file(run.directory / "best" / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_the_best_weights_are_the_averages_of_their_step(tmp_path, judged, monkeypatch):
    """Beside a run that looks at nothing else but the weights of step 2."""
    seen = []

    def note(model, unseen):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return 3.0 - len(seen) if len(seen) <= 2 else 5.0 + len(seen)

    monkeypatch.setattr("maskimg.training.evaluations.masked_loss", note)
    model, run = _generator(tmp_path / "run", steps=10, patience=20)
    assert (run.step, len(seen)) == (10, 10)
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(tensor, seen[-1][name]) for name, tensor in model.state_dict().items())


def test_a_run_that_gave_up_stays_so_and_one_with_more_patience_goes_on(tmp_path, judged):
    judged(3.0, 2.0, 2.5, 2.5, 9.9)
    first, run = _generator(tmp_path / "run", steps=10, patience=2)
    assert run.step == 5
    judged(9.9)
    again, run = _generator(tmp_path / "run", steps=10, patience=2)
    assert run.step == 5
    assert differing(first, again) == []
    judged(2.4, 2.4, 1.0, 1.1, 1.2, 1.3)
    other, run = _generator(tmp_path / "run", steps=10, patience=9)
    assert run.step == 10
    assert differing(first, other)


def test_waiting_goes_on_where_a_stopped_run_left_it(tmp_path, judged):
    """Steps 2, 4 and 6 of twenty were evaluated, then 8 and 10."""
    judged(3.0, 2.0, 2.5)
    with stopped_at(6):
        _, run = _generator(tmp_path / "run", steps=20, patience=3)
    assert (run.step, run.stopped, run.finished) == (7, True, False)
    judged(2.5, 2.5, 9.9)
    _, run = _generator(tmp_path / "run", steps=20, patience=3)
    assert run.step == 11


def test_patience_with_nothing_held_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no picture is held out: leave `--patience` out"):
        _generator(tmp_path / "run", cache=tiny_cache(held_out=0), patience=2)
    with pytest.raises(ValueError, match="patience must be 0 or more, got -1"):
        Plan(patience=-1)


# ----------------------------------------------------------------------------- pictures


def test_the_use_of_the_codebook_is_drawn_while_a_tokenizer_trains(tmp_path):
    training = TokenizerTraining(batch_size=4)
    _, run = train_tokenizer(tiny_pictures(), TOKENIZER, training, Budget(steps=3), tmp_path / "run", **ON_CPU)
    assert load_image(run.directory / "codebook.png").size == (1280, 656)
    assert [line["held_out_loss"] > 0 for line in _lines(run) if "held_out_loss" in line] == [True] * 3


# ----------------------------------------------------------------------------- all of it together


@pytest.mark.parametrize(
    ("module", "rate", "options"), [("evaluations", 2e-3, {}), ("tokenizer", 2e-3, {"loss": "pixel_loss"})]
)
def test_what_the_log_calls_for_is_said_while_training(tmp_path, monkeypatch, capsys, module, rate, options):
    asked = []

    def health_warnings(directory, *arguments, **named):
        asked.append((directory, arguments, named))
        return ["mind the gap"]

    monkeypatch.setattr(f"maskimg.training.{module}.health_warnings", health_warnings)
    if module == "evaluations":
        _, run = _generator(tmp_path / "run")
    else:
        training = TokenizerTraining(batch_size=4)
        _, run = train_tokenizer(tiny_pictures(), TOKENIZER, training, Budget(steps=6), tmp_path / "run", **ON_CPU)
    assert asked == [(run.directory, (rate,), options)] * 5
    assert sum(line.get("warning") == "mind the gap" for line in _lines(run)) == 5
    assert "mind the gap" in capsys.readouterr().err


def test_of_a_tokenizer_with_an_opponent_the_rate_is_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr("maskimg.training.tokenizer.health_warnings", lambda *_, **__: pytest.fail("judged"))
    training = TokenizerTraining(batch_size=4, adversarial_weight=0.1, adversarial_start=0.0)
    train_tokenizer(tiny_pictures(), TOKENIZER, training, Budget(steps=3), tmp_path / "run", **ON_CPU)


def test_the_stages_of_a_model_hand_on_patience_and_tracker(tmp_path, monkeypatch, judged):
    opened = []
    monkeypatch.setattr(running, "open_tracker", lambda name, _, stage, *__: opened.append((name, stage)))
    judged(1.0, 2.0, 3.0)
    plan = Plan(
        tokenizer=TOKENIZER,
        tokenizer_training=TokenizerTraining(batch_size=4),
        tokenizer_budget=Budget(steps=2),
        generator=NetworkSize(dim=32, depth=1, heads=2, critic_depth=1),
        generator_training=GeneratorTraining(batch_size=4),
        generator_budget=Budget(steps=10),
        critic_budget=Budget(steps=2),
        patience=1,
        recipe=Sampler(steps=2),
    )
    session = Session("cpu", "fp32", track="wandb")
    tokenizer = tokenizer_stage(tiny_pictures(), plan, tmp_path / "tokenizer", session)
    generator_stage(tiny_cache(), tokenizer, plan, tmp_path, session=session)
    assert opened == [("wandb", "tokenizer"), ("wandb", "generator"), ("wandb", "critic")]
    assert "no better held-out loss than 1.000" in (tmp_path / "generator" / "log.jsonl").read_text()


@pytest.mark.parametrize("labels", [True, False])
def test_a_model_that_repeats_its_training_grids_is_found_out(tmp_path, monkeypatch, labels):
    pipeline, cache = tiny_pipeline(labels=labels), tiny_cache(labels=labels)
    noise = random_codes(48, NETWORK, seed=5).view(2, 24, 4, 4)
    cache = dataclasses.replace(cache, codes=noise)
    honest = check_memorisation(pipeline, cache, tiny_pictures(24, held_out=4), tmp_path / "nearest.png")
    assert not honest.alarming
    assert load_image(tmp_path / "nearest.png").size == (8 * 18 + 2, 8 * 18 + 2)

    def repeat(self, count, condition, **_):
        assert (condition.labels is not None) == labels
        return noise[1, torch.arange(count) % 20]

    monkeypatch.setattr(MaskGit, "generate", repeat)
    report = check_memorisation(pipeline, cache, tiny_pictures(24, held_out=4), tmp_path / "nearest.png")
    assert (report.most, report.shared, report.near, report.alarming) == (1.0, 1.0, 32, True)
