"""Against x-transformers' own NonAutoregressiveWrapper: the same weights, masks and noise give the same numbers.

Both wrap the very same TransformerWrapper; the reference runs as it was published, and its random draws are repeated
for ours. Where it has a fault that ours has not, the test puts the same question to both:

* With `use_simple_mdlm_loss_weight` its loss falls where cross-entropy rises (the weight is negative), so ours is
  given that very weight as a function.
* Its critic must call codes wrong that are the picture's own, wherever the generator would have drawn another one:
  its labels are put to our critic's logits, and the right ones to its.
* The first look of its self-conditioning, and its self critic, add nothing to the embeddings, where ours add the
  learned null: there the null is 0 in both.
* Its self critic trains the generator although only the critic is to be trained: there only the head is compared.
"""

import dataclasses
import inspect
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import x_transformers.nonautoregressive_wrapper as reference
from einops import rearrange
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from x_transformers import Encoder, TransformerWrapper

import maskimg
from maskimg.maskgit import Losses
from maskimg.masking import schedule_named
from maskimg.noise import gumbel, uniform
from maskimg.paper.draws import draw_codes
from maskimg.sampler import Sampler

V, N, B = 64, 64, 4
SEEDS = torch.tensor([0, 1, 2**32 - 1])
CRITICS = ("none", "self", "external")
CRITIC_WEIGHT = 0.7
AUGMENTED = {"no_replace_prob": 0.15, "random_token_prob": 0.1}
BOTH_COINS = (4, 7, 9)  # seeds with which the reference both keeps and replaces masked codes, where it may
NOT_AUGMENTED = {"no_replace_prob": 0.0, "random_token_prob": 0.0}


def _transformer(**options: Any) -> TransformerWrapper:
    net = TransformerWrapper(num_tokens=V + 1, max_seq_len=N, attn_layers=Encoder(dim=64, depth=2, heads=2), **options)
    for parameter in net.parameters():  # away from 0, where gains and biases start
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


class Pair(NamedTuple):
    """The reference and ours around the same network, in eval mode."""

    theirs: reference.NonAutoregressiveWrapper
    ours: maskimg.NonAutoregressiveWrapper

    def parameters(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Everything that learns: the reference's and ours, by name."""
        theirs, ours = self.theirs, self.ours.model
        pairs = {f"net.{name}": (parameter, parameter) for name, parameter in theirs.net.named_parameters()}
        if ours.token_critic is not None:
            pairs |= {f"critic.{name}": (p, p) for name, p in theirs.token_critic.named_parameters()}
        if ours.self_critic is not None:
            head = theirs.token_critic.to_logits
            pairs |= {
                f"critic.{name}": (p, ours.self_critic.get_parameter(name)) for name, p in head.named_parameters()
            }
        if ours.self_cond is not None:
            pairs["to_self_cond"] = (theirs.to_self_cond.weight, ours.self_cond.to_self_cond.weight)
            if ours.self_critic is None:  # which is told the null here, and nothing there
                pairs["null_embed"] = (theirs.null_embed, ours.self_cond.null_embed)
        return pairs


def _pair(
    schedule: str = "linear",
    critic: str = "none",
    *,
    mdlm: bool = False,
    self_cond: bool = False,
    null: bool = True,
    **options: Any,
) -> Pair:
    """
    Args:
        null: whether the self-conditioning's null differs from 0.
        options: that both take.
    """
    options |= {
        "schedule": schedule,
        "self_cond": self_cond,
        "self_token_critic": critic == "self",
        "critic_loss_weight": CRITIC_WEIGHT,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = _transformer(logits_dim=V)
        judge = _transformer(logits_dim=1) if critic == "external" else None
        theirs = reference.NonAutoregressiveWrapper(
            net, mask_id=V, token_critic=judge, use_simple_mdlm_loss_weight=mdlm, **options
        )
    ours = maskimg.NonAutoregressiveWrapper(
        net, mask_id=V, token_critic=judge, use_simple_mdlm_loss_weight=False, **options
    )
    if mdlm:
        ours.model.objective = dataclasses.replace(
            ours.model.objective, loss_weight=lambda r: theirs.loss_weight_fn(r.float())
        )
    if self_cond:
        theirs.null_embed.data.mul_(null)
        ours.model.self_cond.null_embed.data.copy_(theirs.null_embed)
    pair = Pair(theirs.eval(), ours.eval())
    for reference_parameter, parameter in pair.parameters().values():
        parameter.data.copy_(reference_parameter)
    return pair


def _seed(seed: int) -> None:
    """The reference draws from torch and from Python."""
    torch.manual_seed(seed)
    random.seed(seed)


def test_every_argument_of_the_reference_is_taken_in_its_place():
    """So that one may take the other's place. Where a default differs, the reference's is one of its faults."""
    theirs, ours = reference.NonAutoregressiveWrapper, maskimg.NonAutoregressiveWrapper
    others = {}
    for name in ("__init__", "forward", "generate"):
        expected, found = (dict(inspect.signature(getattr(one, name)).parameters) for one in (theirs, ours))
        expected.pop("kwargs", None)
        kinds = {each: parameter.kind for each, parameter in expected.items()}
        assert {each: found[each].kind for each in kinds} == kinds
        by_place = [each for each, kind in kinds.items() if kind == inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert list(found)[: len(by_place)] == by_place
        others |= {each: found[each].default for each in expected if found[each].default != expected[each].default}
    numbers = {"start_temperature": None, "filter_thres": None, "noise_level_scale": None}
    assert others == {"mask_id": None, "can_mask_prev_unmasked": True, **numbers}
    assert reference.Losses._fields == Losses._fields


# ----------------------------------------------------------------------------- training


class Draws(NamedTuple):
    """What the reference draws before its network sees anything: t (b,), masked (b, n), corrupted codes (b, n)."""

    t: torch.Tensor
    masked: torch.Tensor
    corrupted: torch.Tensor


def _draws(seed: int, codes: torch.Tensor, schedule: str, no_replace_prob: float, random_token_prob: float) -> Draws:
    """The draws of the reference's `forward` after `_seed(seed)`, in its order."""
    _seed(seed)
    t = torch.empty(len(codes)).uniform_(0, 1)
    ranks = torch.rand(codes.shape).argsort(-1)
    masked = ranks < (schedule_named(schedule)(t) * codes.shape[1]).clamp(min=1)[:, None]

    hidden, left, corrupted = masked, 1.0, codes
    if no_replace_prob and random.random() < 0.5:
        hidden = hidden & ~_share_of(hidden, no_replace_prob)
        left -= no_replace_prob
    if random_token_prob and random.random() < 0.5:
        other = _share_of(hidden, random_token_prob * left)
        corrupted = torch.where(other, torch.randint(0, V + 1, codes.shape), corrupted)
        hidden = hidden & ~other
    return Draws(t, masked, corrupted.masked_fill(hidden, V))


def _share_of(masked: torch.Tensor, share: float) -> torch.Tensor:
    """A random share, rounded up, of what is True in each row."""
    chance = torch.rand(masked.shape).masked_fill(~masked, -1)
    ranks = chance.argsort(-1).argsort(-1) - (~masked).sum(-1, keepdim=True)
    return masked & (ranks < masked.sum(-1, keepdim=True) * share)


class Call(NamedTuple):
    """What a module was given and what it returned."""

    given: torch.Tensor
    returned: torch.Tensor


@contextmanager
def _recorded(module: nn.Module) -> Iterator[list[Call]]:
    calls: list[Call] = []
    handle = module.register_forward_hook(lambda _, args, returned: calls.append(Call(args[0].clone(), returned)))
    yield calls
    handle.remove()


class Outcome(NamedTuple):
    """Losses, the generator's passes, and what the critic judged and said (b, n) if it was asked."""

    losses: tuple
    passes: list[Call]
    judged: torch.Tensor | None = None
    doubts: torch.Tensor | None = None


def _outcome(model: nn.Module, net: nn.Module, judge: nn.Module | None, codes: torch.Tensor, flags: dict) -> Outcome:
    """
    Args:
        judge: the external critic, or the head of the self critic.
    """
    with _recorded(net) as passes, _recorded(judge or nn.Identity()) as calls:
        losses = model(codes, generator_sample_temperature=0.0, **flags)
    if not calls:
        return Outcome(losses, passes)
    judged, doubts = calls[0]
    if judged.is_floating_point():  # features: the codes went through the generator's network
        judged = passes.pop().given
    return Outcome(losses, passes, judged, doubts.reshape(codes.shape))


def _both(
    pair: Pair, codes: torch.Tensor, draws: Draws, seed: int, flags: dict, monkeypatch
) -> tuple[Outcome, Outcome]:
    """The reference after `_seed(seed)`, and ours with the draws that it made."""
    theirs, ours = pair
    head = theirs.token_critic if ours.model.self_critic is None else theirs.token_critic.to_logits
    _seed(seed)
    expected = _outcome(theirs, theirs.net, head, codes, flags)

    masked, corrupted = (rearrange(part, "b n -> b 1 n") for part in (draws.masked, draws.corrupted))
    monkeypatch.setattr("maskimg.maskgit.random_mask", lambda *_: (masked, draws.t))
    monkeypatch.setattr("maskimg.maskgit.corrupted", lambda *_: corrupted)
    return expected, _outcome(ours, theirs.net, ours.model.self_critic or theirs.token_critic, codes, flags)


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-6 of the value: sums of fp32 numbers in another order."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def _require_same_gradients(pair: Pair, ours: torch.Tensor, theirs: torch.Tensor, only: str = "") -> None:
    """To 1e-4 of each tensor's largest; names that do not start with `only` get none from ours."""
    names, parameters = zip(*pair.parameters().items(), strict=True)
    losses = (theirs, ours)
    expected, found = (
        dict(zip(names, torch.autograd.grad(loss, side, allow_unused=True), strict=True))
        for loss, side in zip(losses, zip(*parameters, strict=True), strict=True)
    )
    assert any(gradient is not None for gradient in found.values())
    for name in names:
        if not name.startswith(only):
            assert found[name] is None, name
        elif expected[name] is None or found[name] is None:
            assert not any(gradient is not None and gradient.any() for gradient in (expected[name], found[name])), name
        else:
            scale = expected[name].abs().max().clamp(min=1e-3)
            assert (found[name] - expected[name]).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize("augmentation", [AUGMENTED, NOT_AUGMENTED], ids=["augmented", "not augmented"])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("self_cond", ["", "first look", "null"])
@pytest.mark.parametrize("mdlm", [True, False])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_losses_and_gradients_are_those_of_the_reference(schedule, mdlm, self_cond, critic, augmentation, monkeypatch):
    """48 configurations; self-conditioned ones once with a first look at every grid and once without any."""
    pair = _pair(
        schedule,
        critic,
        mdlm=mdlm,
        self_cond=bool(self_cond),
        self_cond_train_prob=float(self_cond == "first look"),
        null=self_cond == "null" and critic != "self",
        **augmentation,
    )
    codes = torch.randint(0, V, (B, N), generator=torch.Generator().manual_seed(1))
    flag_sets = [{}, {"only_train_generator": True}, {"only_train_critic": True}] if critic != "none" else [{}]
    for seed, flags in zip(BOTH_COINS, flag_sets, strict=False):
        # The reference shows a generator whose draws a critic judges some of the truth; ours does not.
        shown = NOT_AUGMENTED if "only_train_critic" in flags else augmentation
        for name, share in shown.items():
            setattr(pair.theirs, name, share)
        draws = _draws(seed, codes, schedule, **shown)
        theirs, ours = _both(pair, codes, draws, seed, flags, monkeypatch)

        # Both networks saw the same codes, in as many passes.
        assert len(theirs.passes) == len(ours.passes) == 1 + (self_cond == "first look")
        for call in theirs.passes + ours.passes:
            assert torch.equal(call.given, draws.corrupted)

        # The generator's loss is the reference's.
        _, generator_loss, critic_loss = theirs.losses
        assert (generator_loss is None) == (ours.losses.generator_loss is None) == ("only_train_critic" in flags)
        if generator_loss is not None:
            _close(ours.losses.generator_loss, generator_loss)
        if critic == "none" or "only_train_generator" in flags:
            assert critic_loss is ours.losses.critic_loss is ours.judged is None
            _require_same_gradients(pair, ours.losses.loss, theirs.losses.loss)
            continue

        # The critics saw the same codes, and said the same of them.
        drawn = theirs.passes[-1].returned.argmax(-1)
        assert torch.equal(ours.judged, theirs.judged)
        assert torch.equal(ours.judged, torch.where(draws.masked, drawn, codes))
        _close(bce(ours.doubts, (drawn != codes).float()), critic_loss)

        # With the right labels the critic's loss is ours, and so is all that follows.
        corrected = bce(theirs.doubts, (theirs.judged != codes).float())
        _close(ours.losses.critic_loss, corrected)
        if "only_train_critic" in flags:
            assert ours.losses.loss is ours.losses.critic_loss
            _require_same_gradients(pair, ours.losses.loss, corrected, only="critic.")
        else:
            expected = generator_loss + CRITIC_WEIGHT * corrected
            _close(ours.losses.loss, expected)
            _require_same_gradients(pair, ours.losses.loss, expected)


@pytest.mark.parametrize(
    ("name", "function"), [("linear", reference.linear_schedule), ("cosine", reference.cosine_schedule)]
)
def test_schedules_are_those_of_the_reference(name, function):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule_named(name)(t), function(t), rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("steps", [1, 5, 12])
@pytest.mark.parametrize("self_cond", [True, False])
@pytest.mark.parametrize("critic", ["none", "external"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_generating_gives_the_codes_of_the_reference(schedule, critic, self_cond, steps, monkeypatch):
    """Its counts are rounded down, so ours are given; its token temperature falls to (almost) 0, step by step."""
    pair = _pair(schedule, critic, self_cond=self_cond, steps=steps, can_mask_prev_unmasked=critic == "external")
    start, noise = 1.5, 0.8
    with _recorded(pair.theirs.net) as theirs, _our_noise(monkeypatch):
        expected = pair.theirs.generate(len(SEEDS), start, filter_thres=None, noise_level_scale=noise)

    left = [N, *(int((call.given[0] == V).sum()) for call in theirs[1:]), 0]
    sampler = Sampler(
        counts=tuple(before - after for before, after in itertools.pairwise(left)),
        order="confidence" if critic == "none" else "critic",
        token_temperature=tuple(max(start * (steps - 1 - i) / steps, 1e-3) for i in range(steps)),
        choice_temperature=0.0 if critic == "none" else noise,
    )
    with _recorded(pair.theirs.net) as ours:
        found = pair.ours.generate(len(SEEDS), seeds=SEEDS, sampler=sampler)
    assert torch.equal(found, expected)
    assert len(ours) == len(theirs) == steps
    for call, other in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(call.given, other.given)


@pytest.mark.parametrize(
    ("critic", "arguments"),
    [
        ("external", {"start_temperature": 1.5, "filter_thres": 0.7, "noise_level_scale": 0.8}),
        ("external", {"start_temperature": 0.5, "filter_thres": 0.9, "noise_level_scale": 0.0}),
        # Without a critic it ranks by what the filter left, ours by what the network said.
        ("none", {"start_temperature": 2.0, "filter_thres": None, "noise_level_scale": 0.0}),
    ],
)
def test_the_arguments_of_generate_mean_what_they_mean_there(critic, arguments, monkeypatch):
    """Eight linear steps of 64 tokens: nothing has to be rounded."""
    pair = _pair("linear", critic, steps=8, can_mask_prev_unmasked=critic == "external")
    with _our_noise(monkeypatch):
        expected = pair.theirs.generate(len(SEEDS), **arguments)
    assert torch.equal(pair.ours.generate(len(SEEDS), seeds=SEEDS, **arguments), expected)
    assert pair.ours.generate(**arguments).shape == pair.theirs.generate(**arguments).shape == (N,)


@contextmanager
def _our_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the reference draw with our uniforms, step by step.

    Its Gumbel noise is added to the critic's doubts and ours to its trust, so the sign differs.
    """
    drawn, doubted = itertools.count(), itertools.count()

    def gumbel_sample(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        return draw_codes((logits / temperature).softmax(-1), uniform(SEEDS, next(drawn), 0, N))

    def gumbel_noise(scores: torch.Tensor) -> torch.Tensor:
        return -gumbel(uniform(SEEDS, next(doubted), 1, N))

    with monkeypatch.context() as patched:
        patched.setattr(reference, "gumbel_sample", gumbel_sample)
        patched.setattr(reference, "gumbel_noise", gumbel_noise)
        yield
