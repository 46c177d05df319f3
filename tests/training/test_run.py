"""What every training loop relies on: a budget, an order of pictures, averaged weights, checkpoints, a clean stop."""

import json
import math
import os
import signal

import pytest
import torch
from helpers import differing, stirred
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from maskimg.training.loop.budget import Tenths
from maskimg.training.loop.order import Balanced
from maskimg.training.loop.run import Budget, Ema, Run, batch_indices, learning_rate_scale, step_generator
from vqgan.files import ModelError


def _run(directory, steps: int = 6, **identity) -> Run:
    return Run(directory, Budget(steps=steps), stage="toy", identity=identity or {"settings": {"rate": 0.1}})


def _train(directory, steps: int = 6, stop: int | None = None, number: int = signal.SIGTERM) -> tuple[nn.Module, Run]:
    """A toy with two optimizers' worth of state; a signal arrives during step `stop`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = Ema(model, 0.9)
    run = _run(directory, steps)
    run.restore(model=model, optimizer=optimizer, ema=ema)
    for step, progress in run.steps():
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * learning_rate_scale(progress)
        loss = model(torch.randn(5, 4, generator=step_generator(0, step))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model, step)
        run.log(loss=loss)
        if step == stop:
            os.kill(os.getpid(), number)
    ema.copy_to(model)
    return model, run


def _checkpoints(directory) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


# ----------------------------------------------------------------------------- budget and rate


@pytest.mark.parametrize(
    ("budget", "step", "seconds", "share"),
    [
        (Budget(steps=10), 0, 9999.0, 0.0),
        (Budget(steps=10), 5, 0.0, 0.5),
        (Budget(steps=10), 12, 0.0, 1.0),
        (Budget(minutes=2), 999, 30.0, 0.25),
        (Budget(minutes=2), 0, 600.0, 1.0),
        (Budget(steps=10, minutes=1), 2, 30.0, 0.5),
        (Budget(steps=10, minutes=1), 8, 30.0, 0.8),
        (Budget(steps=0), 0, 0.0, 1.0),
        (Budget(minutes=0), 0, 0.0, 1.0),
        (Budget(steps=10, minutes=0), 0, 0.0, 1.0),
    ],
)
def test_a_budget_ends_with_whatever_ends_first(budget, step, seconds, share):
    assert budget.progress(step, seconds) == pytest.approx(share)


def test_a_budget_without_an_end_is_refused():
    with pytest.raises(ValueError, match="a budget needs steps or minutes"):
        Budget()


def test_the_learning_rate_warms_up_stays_and_cools_down_to_nothing():
    rates = [learning_rate_scale(i / 1000) for i in range(1001)]
    assert 0 < rates[0] < 0.1
    assert all(rate == 1 for rate in rates[20:600])
    assert rates[800] == pytest.approx(0.5)
    assert rates[1000] == 0
    assert all(0 <= rate <= 1 for rate in rates)
    assert learning_rate_scale(0.5, cooldown=1.0) == 0.5


# ----------------------------------------------------------------------------- order and chance


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_each_picture_comes_once_an_epoch_in_another_order_each_time(count, batch_size, seed):
    steps = -(-3 * count // batch_size)
    seen = torch.cat([batch_indices(seed, step, count, batch_size) for step in range(steps)])[: 3 * count]
    epochs = seen.split(count)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(count))
    if count > 20:  # the same order twice has a chance of 1 in 10^19
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[0], batch_indices(seed + 1, 0, count, count))


def test_the_order_follows_from_seed_and_step():
    assert torch.equal(batch_indices(1, 7, 30, 8), batch_indices(1, 7, 30, 8))
    assert batch_indices(1, 7, 30, 8).dtype == torch.int64


SKEWED = torch.tensor([0] * 300 + [1] * 75 + [3] * 12 + [4] * 3)[
    torch.randperm(390, generator=torch.Generator().manual_seed(5))
]


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_rare_classes_have_their_share_of_every_epoch_and_no_picture_comes_again_before_its_class_is_through(
    balance, batch_size
):
    """Drawn with replacement, an epoch at a balance of one half showed 61 % of the pictures."""
    order = Balanced(SKEWED, balance, seed=3)
    seen = torch.cat([order(step, batch_size) for step in range(-(-4 * 390 // batch_size))])[: 4 * 390]
    sizes = SKEWED.bincount()
    weights = torch.where(sizes > 0, sizes.double() ** (1 - balance), 0.0)
    for epoch in seen.split(390):
        shares = SKEWED[epoch].bincount(minlength=5) / 390
        assert (shares - weights / weights.sum()).abs().max() < 1 / 390
    first = SKEWED[seen[:390]].bincount(minlength=5)
    assert len(seen[:390].unique()) == first.minimum(sizes).sum()
    for c in sizes.nonzero()[:, 0].tolist():
        mine = seen[SKEWED[seen] == c]
        for once_through in mine.split(int(sizes[c])):
            assert len(once_through.unique()) == len(once_through)
    assert not torch.equal(seen[:390], seen[390:780])
    assert not torch.equal(Balanced(SKEWED, balance, seed=4)(0, 390), seen[:390])


def test_a_balanced_order_follows_from_seed_and_step_whatever_was_asked_before():
    order, again = Balanced(SKEWED, 0.5, seed=1), Balanced(SKEWED, 0.5, seed=1)
    forwards = [order(step, 50) for step in range(20)]
    assert all(torch.equal(again(step, 50), forwards[step]) for step in reversed(range(20)))
    assert forwards[0].dtype == torch.int64


@pytest.mark.parametrize("balance", [-0.1, 1.1, math.nan])
def test_a_balance_out_of_range_is_refused(balance):
    with pytest.raises(ValueError, match=f"balance must be between 0 and 1, got {balance}"):
        Balanced(SKEWED, balance, seed=0)


def test_every_step_has_random_numbers_of_its_own():
    draws = [torch.rand(2, generator=step_generator(seed, step)) for seed in (0, 1) for step in range(9)]
    assert len(torch.stack(draws).unique(dim=0)) == 18
    assert torch.equal(torch.rand(2, generator=step_generator(1, 8)), draws[-1])


# ----------------------------------------------------------------------------- averaged weights


def test_averages_of_weights_that_rest_are_those_weights():
    model = stirred(nn.Linear(3, 3))
    ema, other = Ema(model, 0.99), nn.Linear(3, 3)
    for step in range(5):
        ema.update(model, step)
    ema.copy_to(other)
    torch.testing.assert_close(other.state_dict(), model.state_dict())


def test_averages_follow_fast_at_first_and_then_as_slowly_as_asked():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0)
    ema = Ema(model, 0.5)
    model.weight.data.fill_(1)
    ema.update(model, 0)
    assert ema.shadow["weight"].item() == pytest.approx(0.9)  # the ramp: (1 + 0) / (10 + 0) of the old
    ema.shadow["weight"].fill_(0)
    ema.update(model, 10_000)
    assert ema.shadow["weight"].item() == pytest.approx(0.5)


def test_averages_copy_what_is_no_fraction():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.99)
    model(torch.ones(4, 2))
    ema.update(model, 0)
    assert ema.shadow["num_batches_tracked"] == 1


# ----------------------------------------------------------------------------- checkpoints


def test_a_run_does_all_its_steps_and_keeps_one_checkpoint(tmp_path):
    _, run = _train(tmp_path / "run")
    assert (run.step, run.finished, run.stopped) == (6, True, False)
    assert _checkpoints(tmp_path / "run") == ["step-000000006"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_stopped_run_continues_to_the_very_same_weights(tmp_path, stop, number):
    expected, _ = _train(tmp_path / "whole")
    before = signal.getsignal(number)

    _, run = _train(tmp_path / "run", stop=stop, number=number)
    assert (run.step, run.stopped, run.finished) == (stop + 1, True, stop == 5)
    assert _checkpoints(tmp_path / "run") == [f"step-{stop + 1:09d}"]
    assert signal.getsignal(number) is before

    model, run = _train(tmp_path / "run")
    assert run.step == 6
    assert not run.stopped
    assert differing(model, expected) == []


def test_a_finished_run_is_not_trained_further(tmp_path):
    expected, _ = _train(tmp_path / "run")
    model, run = _train(tmp_path / "run")
    assert run.step == 6
    assert differing(model, expected) == []


def test_a_second_interrupt_stops_at_once(tmp_path):
    """A shell starts background jobs with SIGINT ignored; the test has to hold there too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = _run(tmp_path / "run")
    run.restore(model=nn.Linear(1, 1))
    steps = run.steps()
    next(steps)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    steps.close()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def _damage(checkpoint) -> None:
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_of_a_damaged_checkpoint_the_one_before_is_used_and_that_is_said(tmp_path, capsys):
    expected, _ = _train(tmp_path / "whole")
    folder = tmp_path / "run" / "checkpoints"
    _train(tmp_path / "run", stop=1)
    _train(tmp_path / "run", stop=3)
    assert _checkpoints(tmp_path / "run") == ["step-000000002", "step-000000004"]
    _damage(folder / "step-000000004")

    model, _ = _train(tmp_path / "run")
    note = "".join(capsys.readouterr())
    assert "step-000000004/model.safetensors` is damaged" in note
    assert differing(model, expected) == []
    # What is not as it was written might be somebody's, and is left.
    assert _checkpoints(tmp_path / "run") == ["step-000000004", "step-000000006"]


@pytest.mark.parametrize(
    "damage",
    [
        _damage,
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "state.json").write_text(""),
        lambda path: (path / "optimizer.safetensors").unlink(),
    ],
)
def test_without_a_whole_checkpoint_a_run_starts_over_and_says_so(tmp_path, capsys, damage):
    expected, _ = _train(tmp_path / "whole")
    _train(tmp_path / "run", stop=3)
    damage(tmp_path / "run" / "checkpoints" / "step-000000004")
    model, run = _train(tmp_path / "run")
    assert "step-000000004" in "".join(capsys.readouterr())
    assert run.step == 6
    assert differing(model, expected) == []


def test_settings_that_changed_are_refused(tmp_path):
    _train(tmp_path / "run", stop=3)
    run = _run(tmp_path / "run", settings={"rate": 0.2})
    with pytest.raises(ModelError, match=r"holds a toy run with settings\.rate 0\.1, now 0\.2: use the same settings"):
        run.restore(model=nn.Linear(1, 1))
    with pytest.raises(ModelError, match="with data None, now new"):
        _run(tmp_path / "run", settings={"rate": 0.1}, data="new").restore(model=nn.Linear(1, 1))


def test_a_longer_budget_continues_a_run(tmp_path):
    _train(tmp_path / "run", steps=4)
    _, run = _train(tmp_path / "run", steps=7)
    assert run.step == 7


def test_checkpoints_are_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("maskimg.training.loop.run.CHECKPOINT_SECONDS", 0.0)
    run = _run(tmp_path / "run")
    run.restore(model=nn.Linear(1, 1))
    for step, _ in run.steps():
        kept = [f"step-{earlier:09d}" for earlier in (step - 1, step) if earlier > 0]
        assert _checkpoints(tmp_path / "run") == kept if step else True


def test_a_run_of_minutes_ends_in_time(tmp_path):
    run = Run(tmp_path / "run", Budget(minutes=0.3 / 60), stage="toy", identity={})
    run.restore(model=nn.Linear(1, 1))
    shares = [progress for _, progress in run.steps()]
    assert run.finished
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] < 1
    assert 0.3 <= run.seconds < 5


# ----------------------------------------------------------------------------- log


def test_the_log_holds_means_of_fifty_steps(tmp_path):
    run = _run(tmp_path / "run", steps=101)
    run.restore()
    for step, _ in run.steps():
        run.log(loss=torch.tensor(float(step)), rate=0.5)
    run.write_log(held_out_loss=3.0)  # a line of its own
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("loss")) for line in lines] == [(49, 24.5), (99, 74.5), (101, 100.0), (101, None)]
    assert lines[0]["rate"] == 0.5
    assert lines[3]["held_out_loss"] == 3.0


def test_a_training_is_evaluated_once_in_each_tenth_and_not_again_after_a_stop():
    tenths = Tenths(0.0)
    assert [step for step in range(20) if tenths.passed(step / 20)] == list(range(2, 20, 2))
    tenths = Tenths(0.35)
    assert [tenths.passed(progress) for progress in (0.35, 0.39, 0.4, 0.75, 0.79)] == [False, False, True, True, False]
