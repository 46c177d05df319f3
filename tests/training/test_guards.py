"""Steps that go wrong: numbers that are not finite, memory that is too small, batches in parts."""

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from helpers import differing, maskgit, tiny_cache, tiny_net, tiny_pictures
from safetensors.torch import load_file
from tiny import NETWORK, TOKENIZER
from torch import nn

from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import TokenCritic
from maskimg.noise import Chance
from maskimg.training.batches import Batches
from maskimg.training.generator import train_generator
from maskimg.training.loop.errors import TrainingError
from maskimg.training.loop.order import parts
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer

ON_CPU: Any = {"session": Session("cpu", "fp32")}


class Toy:
    """One linear layer, trained by AdamW on a sum of squares; each sample's input is its place in the batch."""

    def __init__(self, directory, steps: int, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.run = Run(directory, Budget(steps=steps), stage="toy", identity={})
        self.run.restore(model=self.model, optimizer=optimizer)
        self.update = Update(self.run, self.model, {"optimizer": optimizer}, **options)

    def train(self, harm=lambda step, loss: loss, size: int = 4) -> "Toy":
        for step, _ in self.run.steps():

            def loss_of(places, step=step):
                inputs = places[:, None] / size + torch.arange(3) + 0.1 * step
                return harm(step, self.model(inputs).square().sum() / size)

            self.run.log(loss=self.update(loss_of, size, torch.arange(size)))
        return self


@pytest.fixture(autouse=True)
def torch_as_it_was():
    with torch.random.fork_rng():
        yield


def _log(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("late", [False, True])
def test_a_step_whose_loss_is_no_number_is_as_if_it_had_not_been(tmp_path, value, late, monkeypatch):
    """Decided by the host, or on the device without asking it, which on a GPU would wait."""
    monkeypatch.setattr(Update, "_skips_on_device", lambda self, device: late)
    toy, other = Toy(tmp_path / "toy", 6), Toy(tmp_path / "other", 6)
    toy.train(lambda step, loss: loss * value if step == 3 else loss)
    gradients = Update._gradients

    def none_at_three(self, loss_of, size):
        if self.run.step == 3:
            return torch.tensor(math.nan)
        return gradients(self, loss_of, size)

    monkeypatch.setattr(Update, "_skips_on_device", lambda self, device: False)
    monkeypatch.setattr(Update, "_gradients", none_at_three)
    other.train()
    assert differing(toy.model, other.model) == []
    assert toy.run.nonfinite.skipped == [3]
    lines = _log(toy.run)
    assert "step 3 was skipped: its loss is" in lines[0]["warning"]
    assert lines[-1]["skipped"] == 1
    assert math.isfinite(lines[-1]["loss"])


@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_no_number_is_skipped_although_the_loss_is_one(tmp_path, late, monkeypatch):
    monkeypatch.setattr(Update, "_skips_on_device", lambda self, device: late)
    toy = Toy(tmp_path, 4)
    toy.model.weight.register_hook(lambda gradient: gradient * (math.inf if toy.run.step == 2 else 1))
    toy.train()
    assert toy.run.nonfinite.skipped == [2]
    assert all(tensor.isfinite().all() for tensor in toy.model.state_dict().values())


def test_ten_bad_steps_in_a_hundred_are_borne_and_an_eleventh_stops_the_run(tmp_path):
    toy = Toy(tmp_path, 40)
    with pytest.raises(
        TrainingError, match="not finite in 11 of the last 100 steps, at step 30 at last: lower"
    ) as info:
        toy.train(lambda step, loss: loss * math.nan if step >= 20 else loss)
    assert "nonfinite-30.json`" in str(info.value)
    about = json.loads((tmp_path / "nonfinite-30.json").read_text())
    assert about["skipped"] == list(range(20, 31))
    assert about["samples"] == [0, 1, 2, 3]
    assert (about["loss"], about["learning_rate"]) == ("nan", "0.1")
    assert all(tensor.isfinite().all() for tensor in toy.model.state_dict().values())


def test_bad_steps_that_are_rare_are_forgotten(tmp_path):
    toy = Toy(tmp_path, 420).train(lambda step, loss: loss * math.nan if step % 20 == 7 else loss)
    assert toy.run.finished  # 21 in all, but never more than five in a hundred
    assert toy.run.nonfinite.skipped == [327, 347, 367, 387, 407]


def test_skipped_steps_are_remembered_over_a_stop(tmp_path):
    Toy(tmp_path, 9).train(lambda step, loss: loss * math.nan if step < 9 else loss)
    toy = Toy(tmp_path, 20)
    with pytest.raises(TrainingError, match="11 of the last 100 steps, at step 10 at last"):
        toy.train(lambda step, loss: loss * math.nan)


def test_a_loss_that_is_no_number_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    def train(steps: int):
        return train_generator(
            tiny_cache(), NETWORK, GeneratorTraining(batch_size=8), Budget(steps=steps), tmp_path, **ON_CPU
        )

    forward = MaskGit.forward

    def broken(self, *args, **kwargs):
        losses = forward(self, *args, **kwargs)
        return losses._replace(loss=losses.loss * torch.nan) if self.training else losses

    train(3)
    monkeypatch.setattr("maskimg.training.loop.run.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(MaskGit, "forward", broken)
    with pytest.raises(TrainingError, match="not finite in 11 of the last 100 steps"):
        train(20)
    monkeypatch.undo()
    _, run = train(20)
    assert run.finished
    (newest,) = (tmp_path / "checkpoints").iterdir()
    for path in newest.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


# ----------------------------------------------------------------------------- parts of a batch


@pytest.mark.parametrize(("size", "world", "accumulation"), [(8, 1, 1), (8, 2, 1), (7, 2, 3), (64, 8, 4), (3, 3, 1)])
def test_every_place_of_a_batch_is_taken_once(size, world, accumulation):
    taken = [part for rank in range(world) for part in parts(size, rank, world, accumulation)]
    assert len(taken) == world * accumulation
    assert torch.cat(taken).sort().values.tolist() == list(range(size))
    assert max(len(part) for part in taken) - min(len(part) for part in taken) <= 1


def test_a_batch_too_small_to_split_is_refused():
    with pytest.raises(ValueError, match="a batch of 5 cannot be split over 2 processes with 3 parts each"):
        parts(5, 0, 2, 3)
    with pytest.raises(ValueError, match="cannot be split"):
        parts(5, 0, 1, 0)


OBJECTIVES = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "elbo": {"loss_weight": "elbo", "schedule": "linear"},
    "of visible tokens too": {"visible_weight": 0.2},
    "augmented": {"no_replace_prob": 0.2, "random_token_prob": 0.2},
    "self-conditioned": {"self_cond": True},
    "its own critic": {"self_token_critic": True},
    "weighted": {"loss_weight": lambda r: 1 + r},
    "a critic's": {"critic": True},
}


def _gradients(options: dict, accumulation: int, directory) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one step on ten grids."""
    critic_only = "critic" in options
    torch.manual_seed(3)
    model = maskgit(tiny_net(NETWORK), **{name: value for name, value in options.items() if name != "critic"})
    if critic_only:
        model.token_critic = TokenCritic(NETWORK)
        model.net.requires_grad_(False)
    model.train()
    run = Run(directory, Budget(steps=1), stage="toy", identity={})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    update = Update(run, model, {"adamw": optimizer}, accumulation=accumulation, clip=None)
    batch = Batches(tiny_cache().part(False), GeneratorTraining(batch_size=10, seed=5), torch.device("cpu"))(4)

    def loss_of(places):
        codes, condition, chance = batch.part(places)
        return model(codes, condition, only_train_critic=critic_only, generator=chance).loss

    loss = update._gradients(loss_of, 10)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_of_parts_add_up_to_the_whole_batchs(objective, tmp_path):
    """Masks of all sizes, so that a mean of means would be another."""
    loss, gradients = _gradients(OBJECTIVES[objective], 1, tmp_path / "one")
    for accumulation in (3, 10):
        parted_loss, parted = _gradients(OBJECTIVES[objective], accumulation, tmp_path / str(accumulation))
        torch.testing.assert_close(parted_loss, loss, rtol=2e-6, atol=0)
        assert parted.keys() == gradients.keys() != set()
        size = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
        for name, gradient in gradients.items():
            assert (parted[name] - gradient).norm() <= 5e-6 * size, name


def test_a_samples_chance_does_not_depend_on_its_part():
    whole = Chance(7, 3, 10)
    for purpose, shape in (("order", (5,)), ("labels", (1,)), ("version", ())):
        drawn = whole.rand(purpose, *shape)
        some = torch.tensor([8, 2, 5])
        assert torch.equal(whole.of(some).rand(purpose, *shape), drawn[some])
    assert whole.of(torch.tensor([4])).of_step("temperature") == whole.of_step("temperature")


def test_chance_differs_between_seeds_steps_places_and_purposes():
    draws = [
        Chance(seed, step, 2).rand(purpose, 2, dtype=dtype).flatten().double()
        for seed in (0, 1, 2**31 + 1)
        for step in (0, 1)
        for purpose in ("order", "keep")
        for dtype in (torch.float32, torch.float64)
    ]
    drawn = torch.cat(draws)
    assert len(drawn.unique()) == len(drawn)
    assert ((drawn > 0) & (drawn < 1)).all()
    dice = Chance(0, 0, 60_000).randint("version", 1, 7)  # within six standard deviations: 1 in 10^8
    assert dice.bincount(minlength=7)[1:].sub(10_000).abs().max() < 560
    assert dice.bincount(minlength=7)[0] == 0


def test_a_tokenizer_learns_the_same_from_parts(tmp_path):
    def train(accumulation: int) -> nn.Module:
        training = TokenizerTraining(
            batch_size=6,
            accumulation=accumulation,
            perceptual_weight=0.0,
            adversarial_weight=0.1,
            adversarial_start=0.0,
            discriminator_check="r1",
            learning_rate=1e-4,
        )
        directory = tmp_path / str(accumulation)
        return train_tokenizer(tiny_pictures(), TOKENIZER, training, Budget(steps=3), directory, **ON_CPU)[0]

    whole, parted = train(1).state_dict(), train(3).state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(parted[name], tensor, rtol=0, atol=1e-4 * 3)


def test_parts_are_no_other_training(tmp_path):
    """A run may be continued on a machine with less memory."""
    training = GeneratorTraining(batch_size=8)
    train_generator(tiny_cache(), NETWORK, training, Budget(steps=2), tmp_path, **ON_CPU)
    smaller = dataclasses.replace(training, accumulation=4)
    _, run = train_generator(tiny_cache(), NETWORK, smaller, Budget(steps=4), tmp_path, **ON_CPU)
    assert run.step == 4


# ----------------------------------------------------------------------------- out of memory


def _small_memory(most: int, error: BaseException, calls: list[int]):
    """A harm that lets at most so many samples at a time be computed."""

    @contextlib.contextmanager
    def checked():
        gradients = Update._accumulated

        def limited(self, loss_of, size):
            def small(places):
                calls.append(len(places))
                if len(places) > most:
                    raise error
                return loss_of(places)

            return gradients(self, small, size)

        Update._accumulated = limited
        try:
            yield
        finally:
            Update._accumulated = gradients

    return checked()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_a_batch_that_does_not_fit_is_split_and_learns_the_same(tmp_path, error, capsys):
    calls = []
    expected = Toy(tmp_path / "whole", 3).train(size=16)
    with _small_memory(4, error, calls):
        toy = Toy(tmp_path / "toy", 3).train(size=16)
    assert calls[:7] == [16, 8, 4, 4, 4, 4, 4]  # tried, halved, halved; from then on in four parts
    torch.testing.assert_close(toy.model.state_dict(), expected.model.state_dict(), rtol=1e-5, atol=1e-6)
    said = capsys.readouterr().err
    assert "8 samples at a time do not fit into memory: going on with 4 at a time in 4 parts a step" in said
    assert "which leaves the batch at 16; a batch_size of 8, or accumulation 4, would have fitted" in said


def test_where_no_process_can_try_again_it_is_said_what_would_fit(tmp_path):
    """A sharded network exchanges weights in the midst of a step."""
    toy = Toy(tmp_path, 3, exchanges=True)
    toy.update.called = toy.model
    with (
        _small_memory(8, MemoryError(), []),
        pytest.raises(
            TrainingError,
            match="16 samples at a time do not fit into a process's memory: set accumulation to 2, which leaves the "
            "batch at 16, or try batch_size 8",
        ),
    ):
        toy.train(size=16)


def test_a_network_that_does_not_fit_with_one_sample_is_an_error(tmp_path):
    with (
        _small_memory(0, torch.OutOfMemoryError("out of memory"), []),
        pytest.raises(
            TrainingError,
            match="the toy does not fit into memory even with one sample at a time: use a smaller network",
        ),
    ):
        Toy(tmp_path, 3).train()


def test_other_errors_are_left_alone(tmp_path):
    with _small_memory(0, RuntimeError("mat1 and mat2 shapes"), []), pytest.raises(RuntimeError, match="mat1 and mat2"):
        Toy(tmp_path, 3).train()


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_tokenizer_that_does_not_fit_is_trained_in_parts(tmp_path, adversarial):
    training = TokenizerTraining(
        batch_size=8, perceptual_weight=0.0, adversarial_weight=adversarial, adversarial_start=0.0
    )
    with _small_memory(3, torch.OutOfMemoryError("out of memory"), []):
        _, run = train_tokenizer(tiny_pictures(), TOKENIZER, training, Budget(steps=2), tmp_path, **ON_CPU)
    assert run.finished
