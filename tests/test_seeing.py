"""What one sees of a training: figures of its predictions, pictures, trackers, an early stop."""

import json

import pytest
import torch
from helpers import differing, random_codes, tiny_cache, tiny_net
from tiny import NETWORK

from maskimg.maskgit import MaskGit, Predictions
from maskimg.masking import random_mask
from maskimg.training import run as running
from maskimg.training.generator import GeneratorTraining, prediction_figures, train_generator
from maskimg.training.run import Budget, Run

ON_CPU = {"device": "cpu", "dtype": "fp32"}


def _generator(directory, steps: int = 6, cache=None, **options) -> tuple[MaskGit, Run]:
    training = GeneratorTraining(batch_size=8)
    cache = cache or tiny_cache()
    return train_generator(cache, NETWORK, training, Budget(steps=steps), directory, **ON_CPU, **options)


def _lines(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------- figures of predictions


@pytest.mark.parametrize("options", [{}, {"visible_weight": 0.5}, {"loss_weight": "elbo", "schedule": "linear"}])
def test_an_observer_sees_the_masked_tokens_with_their_own_losses(options):
    model, codes, seen = MaskGit(tiny_net(NETWORK), **options), random_codes(6, NETWORK), []
    model.observer = seen.append
    condition = torch.zeros(6, 2, dtype=torch.int64)
    model.eval()
    loss = model(codes, condition, generator=torch.Generator().manual_seed(3)).loss
    (told,) = seen

    masked, _ = random_mask(codes, model.schedule, torch.Generator().manual_seed(3))
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
