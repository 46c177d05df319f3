"""What the figures of a run say in words; and the log they are read from."""

import json
import math
import random

import pytest

from maskimg.training.tracking.logs import read_log
from maskimg.training.tracking.watch import (
    health_warnings,
    learning_rate_warning,
    overfitting_warning,
    unlearnt_warning,
)

FALLING = [3.0, 2.8, 2.6, 2.4, 2.2, 2.0]


def _curve(count: int, *, end: float = 2.0, noise: float = 0.02, seed: int = 0) -> list[float]:
    """A loss that falls from 6 to `end` as losses do, with noise."""
    chance = random.Random(seed)
    return [end + (6 - end) * math.exp(-6 * i / count) + chance.gauss(0, noise) for i in range(count)]


def _write(path, lines) -> None:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))


# ----------------------------------------------------------------------------- overfitting


def test_a_held_out_loss_that_rises_while_training_improves_is_said_in_words():
    sentence = overfitting_warning([3.2, 3.0, 2.9, 3.0, 3.1, 3.3], FALLING)
    assert sentence is not None
    assert "risen for 3 evaluations, from 2.900 to 3.300, while that of training fell from 2.600 to 2.000" in sentence


@pytest.mark.parametrize(
    ("held_out", "training"),
    [
        ([], []),
        ([3.0, 3.1, 3.2], FALLING[:3]),  # too few
        ([3.2, 3.0, 2.9, 3.0, 3.1, 3.05], FALLING),  # the last one fell
        ([3.0, 2.9, 2.9001, 2.9002, 2.9003], FALLING[:5]),  # by next to nothing
        ([3.2, 3.0, 2.9, 3.0, 3.1, 3.3], FALLING[::-1]),  # training gets worse as well: no overfitting
    ],
)
def test_what_is_no_overfitting_is_not_called_so(held_out, training):
    assert overfitting_warning(held_out, training) is None


# ----------------------------------------------------------------------------- nothing learnt


def test_a_generator_that_is_hardly_better_than_guessing_is_said_so():
    sentence = unlearnt_warning(5.9, 6.1)
    assert sentence is not None and "held-out loss is 5.90" in sentence and "gives 6.10" in sentence
    assert unlearnt_warning(6.4, 6.1) and unlearnt_warning(5.7, 6.1) is None
    assert unlearnt_warning(float("nan"), float("nan")) is None  # nothing is held out


# ----------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_a_healthy_curve_is_let_pass(seed, noise):
    """Noise of up to a twentieth of the loss; the seeds are fixed."""
    losses = _curve(100, noise=noise, seed=seed)
    norms = [1 + loss / 6 for loss in losses]
    for seen in (15, 30, 60, 100):
        assert learning_rate_warning(losses[:seen], norms[:seen], 2e-3) is None


def test_a_loss_that_climbs_away_from_its_best_is_said_in_words():
    losses = _curve(30) + [2.1 + 0.2 * i for i in range(10)]
    sentence = learning_rate_warning(losses, [], 2e-3)
    assert sentence is not None
    assert "the learning rate 0.002 may be too high: the loss stands at 3.500, above its best of 2.0" in sentence
    assert sentence.endswith("try 0.0007")


def test_a_loss_that_swings_is_said_in_words():
    losses = [*_curve(30), *([2.6, 1.9] * 6)]
    assert "the loss swings by" in (learning_rate_warning(losses, [], 1e-3) or "")


def test_gradients_that_spike_are_said_in_words():
    losses = _curve(30)
    norms = [1.0] * 28 + [9.0, 1.0]
    assert "the gradient norm has reached 9, usually 1" in (learning_rate_warning(losses, norms, 1e-3) or "")
    assert learning_rate_warning(losses, [1.0] * 10 + [9.0] + [1.0] * 19, 1e-3) is None  # long ago


def test_of_few_lines_nothing_is_said():
    assert learning_rate_warning([5.0, *[1.0, 9.0] * 5], [], 1e-3) is None


# ----------------------------------------------------------------------------- the log


def test_a_run_that_went_back_to_a_checkpoint_counts_once(tmp_path):
    _write(
        tmp_path / "log.jsonl",
        [{"step": 49, "loss": 3}, {"step": 99, "loss": 2}, {"step": 149, "loss": 1}, {"step": 99, "loss": 2.5}],
    )
    assert read_log(tmp_path / "log.jsonl").series("loss") == ([49, 99], [3.0, 2.5])


def test_lines_of_one_step_are_one(tmp_path):
    _write(tmp_path / "log.jsonl", [{"step": 49, "loss": 3}, {"step": 49, "held_out_loss": 4, "warning": "oh"}])
    (line,) = read_log(tmp_path / "log.jsonl").lines
    assert line == {"step": 49, "loss": 3, "held_out_loss": 4, "warning": "oh"}


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    bad = ["{", "[1]", '{"loss": 3}', '{"step": "x"}', '{"step": -1}', "\x00\xff", '{"step": 5, "lo']
    _write(tmp_path / "log.jsonl", [{"step": 1, "loss": 3}, *bad[:4], "", {"step": 2, "loss": 2}, *bad[4:]])
    log = read_log(tmp_path / "log.jsonl")
    assert (log.damaged, log.series("loss")) == (7, ([1, 2], [3.0, 2.0]))


def test_a_figure_that_is_no_number_is_left_out_of_its_series(tmp_path):
    _write(tmp_path / "log.jsonl", [{"step": 1, "a": float("nan"), "b": 1}, {"step": 2, "a": "x"}, {"step": 3, "a": 1}])
    log = read_log(tmp_path / "log.jsonl")
    assert log.series("a") == ([3], [1.0])
    assert log.names == ["step", "b", "a"]


def test_a_run_without_a_log_has_told_nothing(tmp_path):
    assert read_log(tmp_path / "log.jsonl").lines == []
    assert list(health_warnings(tmp_path, 1e-3)) == []


def test_what_a_log_calls_for_is_found_in_it(tmp_path):
    """Training falls all the way; what is held out turns after half of it."""
    lines = []
    for i, loss in enumerate(_curve(100, noise=0)):
        lines.append({"step": 50 * i + 49, "loss": loss, "gradient_norm": 1.0})
        if i % 10 == 9:
            lines.append({"step": 50 * i + 49, "held_out_loss": 3 + abs(i - 50) / 100})
    _write(tmp_path / "log.jsonl", lines)
    (sentence,) = health_warnings(tmp_path, 1e-3)
    assert "the held-out loss has risen for 5 evaluations, from 3.010 to 3.490" in sentence
