"""The training objective: what is masked, what is judged, and whom the gradient reaches."""

import dataclasses
import inspect
import math
import random

import pytest
import torch
from helpers import PLAIN, random_codes, tiny_critic, tiny_net
from safetensors.torch import load_file, save_file
from tiny import NETWORK
from torch import nn

from maskimg.maskgit import Losses, MaskGit
from maskimg.sampling import Sampler

CRITICS = ("none", "self", "external")


def _model(critic: str = "none", config=PLAIN, **options) -> MaskGit:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MaskGit(
            tiny_net(config),
            token_critic=tiny_critic(config) if critic == "external" else None,
            self_token_critic=critic == "self",
            **options,
        )


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Watched:
    """What a MaskGit's network was given: `codes`, `condition` and the `masked` positions of its last forward."""

    def __init__(self, model: MaskGit):
        self.calls = 0
        model.net.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.calls += 1
        self.codes, self.masked = args[0].clone(), kwargs.get("at")
        self.condition = args[1] if len(args) > 1 else None


class Oracle(nn.Module):
    """A critic that knows the pictures: +30 where a code is not theirs, -30 elsewhere; it keeps what it saw."""

    def __init__(self, codes: torch.Tensor):
        super().__init__()
        self.codes, self.seen, self.condition = codes, None, None

    def forward(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.seen, self.condition = codes.clone(), condition
        return torch.where(codes == self.codes, -30.0, 30.0)


# ----------------------------------------------------------------------------- what comes back


def test_the_signature_is_the_one_that_is_documented():
    names = list(inspect.signature(MaskGit.forward).parameters)
    assert names[:5] == ["self", "codes", "condition", "only_train_generator", "only_train_critic"]
    assert names[5:] == ["generator_sample_temperature", "generator"]
    assert Losses._fields == ("loss", "generator_loss", "critic_loss")


@pytest.mark.parametrize(
    ("critic", "flags"), [("none", {}), *((critic, {"only_train_generator": True}) for critic in CRITICS)]
)
def test_without_a_critic_or_for_the_generator_alone_there_is_one_loss(critic, flags):
    loss, generator_loss, critic_loss = _model(critic)(random_codes(3), generator=_generator(), **flags)
    assert loss is generator_loss
    assert critic_loss is None


@pytest.mark.parametrize("critic", CRITICS[1:])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_with_a_critic_the_loss_is_the_weighted_sum(critic, weight):
    losses = _model(critic, critic_loss_weight=weight)(random_codes(3), generator=_generator())
    expected = losses.generator_loss + weight * losses.critic_loss
    assert losses.loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("critic", CRITICS[1:])
def test_training_the_critic_alone_leaves_the_generator_without_gradient(critic):
    model = _model(critic)
    losses = model(random_codes(3), generator=_generator(), only_train_critic=True)
    assert losses.generator_loss is None
    assert losses.loss is losses.critic_loss

    losses.loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert not {name for name in reached if name.startswith("net.")}


@pytest.mark.parametrize("critic", CRITICS[1:])
def test_training_both_reaches_both(critic):
    model = _model(critic, config=NETWORK)
    model(random_codes(3, NETWORK), torch.tensor([[0, 1]] * 3), generator=_generator()).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_flags_that_cannot_be_served_are_refused():
    with pytest.raises(ValueError, match="only_train_critic needs a critic: give token_critic or self_token_critic"):
        _model()(random_codes(2), only_train_critic=True)
    with pytest.raises(ValueError, match="exclude each other"):
        _model("self")(random_codes(2), only_train_critic=True, only_train_generator=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_id": 11}, "mask_id must be vocab_size = 12, outside the codebook, got 11"),
        ({"token_critic": tiny_critic(), "self_token_critic": True}, "either token_critic or self_token_critic"),
        ({"no_replace_prob": 1.5}, "no_replace_prob must be in"),
        ({"random_token_prob": -0.1}, "random_token_prob must be in"),
        ({"no_replace_prob": 0.6, "random_token_prob": 0.6}, "both together at most 1"),
        ({"no_replace_prob": math.nan}, "no_replace_prob must be in"),
        ({"schedule": "cubic"}, "schedule must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MaskGit(tiny_net(), **options)


def test_mask_has_the_number_after_the_last_code():
    assert MaskGit(tiny_net(), mask_id=12).mask_id == 12
    assert MaskGit(tiny_net()).mask_id == 12


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 4), 12), r"expected codes in \[0, 12\), got 12 to 12: .*without MASK"),
        (torch.full((1, 4, 4), -1), r"expected codes in \[0, 12\), got -1 to -1"),
        (torch.zeros(1, 4, 5, dtype=torch.int64), r"expected a code grid of \(4, 4\), got \(4, 5\)"),
        (torch.zeros(2, 15, dtype=torch.int64), r"expected a code grid of \(4, 4\), got \(15,\)"),
        (torch.zeros(16, dtype=torch.int64), r"expected a code grid of \(4, 4\), got \(\)"),
    ],
)
def test_grids_that_are_not_whole_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        _model()(codes)


def test_flat_codes_are_the_same_grid():
    codes = random_codes(3)
    losses = [_model()(given, generator=_generator()).loss.item() for given in (codes, codes.reshape(3, 16))]
    assert losses[0] == losses[1]


# ----------------------------------------------------------------------------- what is masked


def test_the_network_sees_mask_at_masked_tokens_and_the_picture_elsewhere():
    model = _model()
    watched, codes = Watched(model), random_codes(64)
    model(codes, generator=_generator())
    assert (watched.codes[watched.masked] == model.mask_id).all()
    assert torch.equal(watched.codes[~watched.masked], codes[~watched.masked])
    assert watched.masked.sum((1, 2)).min() >= 1


@pytest.mark.parametrize("schedule", ["linear", torch.ones_like])
def test_the_schedule_given_decides_how_many_are_masked(schedule):
    model = _model(schedule=schedule)
    watched = Watched(model)
    model(random_codes(64), generator=_generator())
    assert (watched.masked.all().item()) == (schedule is torch.ones_like)


def test_so_many_masked_tokens_are_kept_and_replaced_as_asked():
    """Of 32,000 masked tokens: 1.5 points off would be six standard deviations; the seed is fixed."""
    config = dataclasses.replace(PLAIN, vocab_size=1000)
    model = _model(config=config, schedule=torch.ones_like, no_replace_prob=0.2, random_token_prob=0.1)
    watched, codes = Watched(model), random_codes(2000, config)
    with torch.no_grad():
        model(codes, generator=_generator())

    assert watched.masked.all()
    kept = watched.codes == codes
    masked = watched.codes == model.mask_id
    assert abs(kept.double().mean() - 0.2) < 0.015
    assert abs(masked.double().mean() - 0.7) < 0.015
    replacements = watched.codes[~kept & ~masked]
    assert 0 <= replacements.min() <= replacements.max() < model.mask_id
    assert len(replacements.unique()) > 900  # of 1,000 codes, in 3,200 draws


def test_only_masked_tokens_may_be_replaced():
    model = _model(random_token_prob=1.0)
    watched, codes = Watched(model), random_codes(64)
    model(codes, generator=_generator())
    assert torch.equal(watched.codes[~watched.masked], codes[~watched.masked])
    assert not (watched.codes == model.mask_id).any()


def test_a_network_that_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    model = _model()
    for parameter in model.net.parameters():
        parameter.data.zero_()
    for options in ({}, {"label_smoothing": 0.1}):
        model.label_smoothing = options.get("label_smoothing", 0.0)
        loss = model(random_codes(8), generator=_generator()).loss.item()
        assert loss == pytest.approx(math.log(PLAIN.vocab_size), abs=1e-6)


def test_the_loss_is_the_cross_entropy_of_masked_tokens_only():
    model = _model()
    watched, codes = Watched(model), random_codes(5)
    loss, masked = model(codes, generator=_generator()).loss, watched.masked
    logs = model.net(watched.codes).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    assert loss.item() == pytest.approx(-logs[masked].mean().item(), abs=1e-5)


# ----------------------------------------------------------------------------- what is judged


def test_codes_of_the_picture_are_never_called_wrong():
    """x-transformers compared draws even where the critic saw the picture's own code."""
    codes = random_codes(64)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes))
    watched = Watched(model)
    losses = model(codes, generator=_generator(), generator_sample_temperature=1.0)
    assert losses.critic_loss < 1e-9  # the oracle answers as it should

    seen = model.token_critic.seen
    assert torch.equal(seen[~watched.masked], codes[~watched.masked])
    assert (seen != codes).any()
    assert 0 <= seen.min() <= seen.max() < model.mask_id


def test_the_critic_judges_the_most_probable_codes_at_temperature_0():
    codes = random_codes(16)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes))
    watched = Watched(model)
    model(codes, generator=_generator(), generator_sample_temperature=0.0)
    expected = torch.where(watched.masked, tiny_net()(watched.codes).argmax(-1), codes)
    assert torch.equal(model.token_critic.seen, expected)


def test_the_critic_judges_wilder_codes_at_higher_temperatures():
    codes = random_codes(200)
    right = []
    for temperature in (0.01, 100.0):
        model = MaskGit(tiny_net(), token_critic=Oracle(codes), schedule=torch.ones_like)
        model(codes, generator=_generator(), generator_sample_temperature=temperature)
        right.append(len(model.token_critic.seen.unique(dim=0)))
    assert right[0] < 10 < 190 < right[1]  # the same few grids, and as many as there are images


def test_condition_reaches_generator_and_critic():
    codes, condition = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    model = MaskGit(tiny_net(NETWORK), token_critic=Oracle(codes)).eval()
    watched = Watched(model)
    model(codes, condition, generator=_generator())
    assert torch.equal(watched.condition, condition)
    assert torch.equal(model.token_critic.condition, condition)


def test_the_condition_is_forgotten_in_training_only():
    codes, condition = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    model = MaskGit(tiny_net(NETWORK), condition_drop=1.0)
    watched = Watched(model)
    model.train()(codes, condition, generator=_generator())
    assert watched.condition.tolist() == [[3, 2]] * 4
    model.eval()(codes, condition, generator=_generator())
    assert watched.condition.tolist() == [[0, 1]] * 4


# ----------------------------------------------------------------------------- chance, files, learning


@pytest.mark.parametrize("critic", CRITICS)
def test_all_chance_comes_from_the_generator(critic):
    model = _model(critic, config=NETWORK, no_replace_prob=0.1, random_token_prob=0.1).train()
    codes, condition = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    python, torchs = random.getstate(), torch.random.get_rng_state()
    losses = [model(codes, condition, generator=_generator(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert random.getstate() == python
    assert torch.equal(torch.random.get_rng_state(), torchs)


def test_without_a_generator_torchs_own_seed_decides():
    model = _model("external")
    losses = []
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(5)
            losses.append(model(random_codes(4)).loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("critic", CRITICS)
def test_weights_are_saved_once_each_and_come_back(critic, tmp_path):
    model = _model(critic)
    state = model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)

    save_file(state, tmp_path / "all.safetensors")
    again = MaskGit(
        tiny_net(seed=5),
        token_critic=tiny_critic(seed=6) if critic == "external" else None,
        self_token_critic=critic == "self",
    )
    again.load_state_dict(load_file(tmp_path / "all.safetensors"))
    losses = [one(random_codes(4), generator=_generator()).loss.item() for one in (model, again)]
    assert losses[0] == losses[1]


def test_a_grid_that_is_always_the_same_is_learnt():
    """In 200 steps; every seed is fixed."""
    model = _model("self", condition_drop=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    codes = random_codes(1).expand(8, -1, -1)
    for step in range(200):
        losses = model(codes, generator=_generator(step))
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert losses.generator_loss < 0.1
    assert torch.equal(model.eval().generate(2, seeds=torch.tensor([1, 2]), steps=4), codes[:2])


# ----------------------------------------------------------------------------- guidance and drawing


def test_guidance_costs_one_doubled_batch_and_only_if_it_is_on():
    model = _model(config=NETWORK)
    watched, codes, condition = Watched(model), random_codes(3, NETWORK), torch.tensor([[0, 1]] * 3)
    for guidance, given, rows in ((1.0, condition, 3), (2.0, None, 3), (2.0, condition, 6), (0.0, condition, 6)):
        before = watched.calls
        assert model.logits(codes, given, guidance).shape == (3, 4, 4, 64)
        assert (watched.calls - before, len(watched.codes)) == (1, rows)


def test_guidance_moves_from_the_unconditional_logits_past_the_conditional_ones():
    model = _model(config=NETWORK)
    codes, condition = random_codes(3, NETWORK), torch.tensor([[0, 1], [2, 0], [3, 1]])
    with_label, without = model.net(codes, condition), model.net(codes)
    for guidance in (0.0, 1.0, 2.5):
        expected = without + guidance * (with_label - without)
        torch.testing.assert_close(model.logits(codes, condition, guidance), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_fp32_under_bf16():
    model = _model()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.logits(random_codes(1)).dtype == torch.float32


@pytest.mark.parametrize("critic", CRITICS)
def test_generating_gives_whole_grids_that_follow_from_their_seeds(critic):
    model = _model(critic).eval()
    seeds = torch.tensor([3, 2**32 - 1, 0])
    codes = model.generate(3, seeds=seeds, steps=3)
    assert codes.shape == (3, 4, 4)
    assert 0 <= codes.min() <= codes.max() < model.mask_id
    assert torch.equal(codes, model.generate(3, seeds=seeds, steps=3))
    assert model.generate(2, steps=1).shape == (2, 4, 4)


def test_generating_completes_the_grids_it_is_given():
    model = _model()
    codes = random_codes(2)
    codes[:, 1:3, 1:3] = model.mask_id
    drawn = model.generate(2, codes=codes, seeds=torch.tensor([0, 1]))
    assert torch.equal(drawn[codes != model.mask_id], codes[codes != model.mask_id])


def test_a_sampler_overrides_the_models_own_numbers():
    model = _model(steps=7)
    watched = Watched(model)
    model.generate(1, seeds=torch.tensor([0]))
    assert watched.calls == 7
    model.generate(1, seeds=torch.tensor([0]), sampler=Sampler(steps=2, order="random"))
    assert watched.calls == 9


def test_generating_follows_the_models_own_schedule():
    """MaskGit's docstring: the schedule is also the default one of `generate`."""
    model = _model(schedule="linear")
    seen = []
    model.net.register_forward_pre_hook(lambda module, args: seen.append(int((args[0] == model.mask_id).sum())))
    model.generate(1, seeds=torch.tensor([0]), steps=4)
    assert seen == [16, 12, 8, 4]


def test_a_model_without_a_critic_says_so():
    with pytest.raises(ValueError, match="this model has no critic: choose another order, or train one"):
        _model().critic_logits(random_codes(1))
    with pytest.raises(ValueError, match="this model has no critic"):
        _model().generate(1, sampler=Sampler(order="critic"))
