"""The training objective: what is masked, what is judged, and whom the gradient reaches."""

import dataclasses
import inspect
import itertools
import math
import random

import pytest
import torch
from helpers import PLAIN, differing, maskgit, random_codes, tiny_critic, tiny_net
from safetensors.torch import load_file, save_file
from tiny import NETWORK
from torch import nn

from maskimg.maskgit import Losses, MaskGit, Objective
from maskimg.masking import elbo_weights, random_mask
from maskimg.networks.wrapper import ForeignNet
from maskimg.paper.checks import complete_grids
from maskimg.sampler import Sampler

CRITICS = ("none", "self", "external")


def _model(critic: str = "none", config=PLAIN, **options) -> MaskGit:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return maskgit(
            tiny_net(config),
            token_critic=tiny_critic(config) if critic == "external" else None,
            self_token_critic=critic == "self",
            **options,
        )


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Watched:
    """What a MaskGit's network was given: `codes`, `condition`, and the `masked` positions, of its last forward."""

    def __init__(self, model: MaskGit, monkeypatch: pytest.MonkeyPatch):
        self.calls = 0
        model.net.trunk.register_forward_pre_hook(self._see)
        monkeypatch.setattr("maskimg.maskgit.random_mask", self._mask)

    def _see(self, module, args):
        self.calls += 1
        self.codes, self.condition, self.sum_embeds = (args[0].clone(), *args[1:], None, None)[:3]

    def _mask(self, *args):
        self.masked, r = random_mask(*args)
        return self.masked, r


@pytest.fixture
def watch(monkeypatch):
    """`watch(model)` -> Watched."""
    return lambda model: Watched(model, monkeypatch)


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
    assert names[:5] == ["self", "codes", "condition", "fixed", "only_train_generator"]
    assert names[5:] == ["only_train_critic", "generator_sample_temperature", "generator"]
    names = list(inspect.signature(MaskGit.generate).parameters)
    assert names == ["self", "batch_size", "condition", "codes", "sampler", "seeds", "earlier"]
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
@pytest.mark.parametrize("self_cond", [False, True])
def test_a_step_of_the_critic_alone_moves_nothing_but_the_critic(critic, self_cond):
    """x-transformers trained the whole network through its self critic."""
    model, before = (_model(critic, self_cond=self_cond) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(random_codes(3), generator=_generator(), only_train_critic=True).loss.backward()
    optimizer.step()
    moved = differing(model, before)
    assert moved
    assert all(name.startswith(("token_critic.", "self_critic.")) for name in moved)


@pytest.mark.parametrize("critic", CRITICS[1:])
def test_a_step_of_the_generator_alone_does_not_move_the_critic(critic):
    model, before = (_model(critic, self_cond=True) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(random_codes(3), generator=_generator(), only_train_generator=True).loss.backward()
    optimizer.step()
    moved = differing(model, before)
    assert "net.bias" in moved
    assert not any(name.startswith(("token_critic.", "self_critic.")) for name in moved)


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
        ({"token_critic": tiny_critic(), "self_token_critic": True}, "either token_critic or self_token_critic"),
        ({"no_replace_prob": 1.5}, "no_replace_prob must be in"),
        ({"random_token_prob": -0.1}, "random_token_prob must be in"),
        ({"no_replace_prob": 0.6, "random_token_prob": 0.6}, "both together at most 1"),
        ({"no_replace_prob": math.nan}, "no_replace_prob must be in"),
        ({"schedule": "cubic"}, "schedule must be one of"),
        ({"self_cond_train_prob": 1.5}, r"self_cond_train_prob must be in \[0, 1\], got 1.5"),
        ({"self_cond_train_prob": math.nan}, "self_cond_train_prob must be in"),
        ({"critic_target": "fake"}, "critic_target must be one of wrong, sampled, got `fake`"),
        ({"loss_weight": "mdlm"}, "loss_weight must be `none`, `elbo` or a function of r, got `mdlm`"),
        ({"condition_drop": -0.1}, r"condition_drop must be in \[0, 1\], got -0.1"),
        ({"label_smoothing": 2}, r"label_smoothing must be in \[0, 1\], got 2"),
        ({"loss_weight": "elbo", "schedule": "beta(12, 3)"}, r"never masks 1 of 16 tokens: choose another for `elbo`"),
        ({"visible_weight": -0.1}, r"visible_weight must be in \[0, 1\]"),
        ({"visible_weight": 0.1, "loss_weight": "elbo"}, "and 0 with another loss_weight than `none`, got 0.1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        maskgit(tiny_net(), **options)


def test_a_network_of_another_library_is_referred_to_its_wrapper():
    with pytest.raises(TypeError, match="got a Linear: give a network of another library to NonAutoregressiveWrapper"):
        MaskGit(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(2, "cat"), "the condition must be a tensor of labels .*, got a str"),
        (lambda model: model(random_codes(2), [[1, 2]]), "the condition must be a tensor of labels .*, got a list"),
        (lambda model: model(random_codes(2), True), "the condition must be a tensor of labels .*, got a bool"),
        (lambda model: model(random_codes(2), {"context": 1}), "the condition must be .*, got a dict"),
        (lambda model: model.generate(2, temperature=1), "`MaskGit.generate` takes no `temperature`"),
        (lambda model: MaskGit(model.net, colour=1), "`MaskGit` takes no `colour`"),
    ],
)
def test_what_is_no_condition_and_no_option_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call(_model("self"))


@pytest.mark.parametrize(
    ("earlier", "objective"),
    [
        ({"no_replace_prob": 0.2, "schedule": "linear"}, Objective(no_replace_prob=0.2, schedule="linear")),
        ({"use_simple_mdlm_loss_weight": True}, Objective(loss_weight="elbo")),
        ({"mask_id": 12, "grid": (4, 4)}, Objective()),
    ],
)
def test_earlier_arguments_are_taken_and_the_new_way_is_said(earlier, objective):
    with pytest.warns(DeprecationWarning) as warned:
        model = MaskGit(tiny_net(), **earlier)
    assert model.objective == objective
    said = [str(each.message) for each in warned]
    for name in earlier:
        assert any(f"takes `{name}` in this version only: write `" in words for words in said)
    assert all(each.filename == __file__ for each in warned)


def test_earlier_numbers_of_generate_draw_what_they_drew():
    seeds = torch.arange(3)
    with pytest.warns(DeprecationWarning, match=r"`MaskGit.generate` takes `steps` .*: write `sampler=Sampler\(steps"):
        drawn = _model().generate(3, seeds=seeds, steps=4)
    assert torch.equal(drawn, _model().generate(3, seeds=seeds, sampler=_model().make_sampler(steps=4)))
    with pytest.warns(DeprecationWarning, match="`MaskGit` takes `steps`"):
        model = MaskGit(tiny_net(), steps=4)
    assert torch.equal(model.generate(3, seeds=seeds), drawn)
    with (
        pytest.warns(DeprecationWarning, match="takes `steps`"),
        pytest.raises(ValueError, match="give either steps or a whole sampler"),
    ):
        model.generate(3, steps=3, sampler=Sampler())


def test_earlier_arguments_that_contradict_are_refused():
    for earlier, message in (
        ({"mask_id": 11}, "the network's own mask_id is 12, got 11"),
        (
            {"loss_weight": torch.ones_like, "use_simple_mdlm_loss_weight": True},
            "give either loss_weight or use_simple",
        ),
    ):
        with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match=message):
            MaskGit(tiny_net(), **earlier)


@pytest.mark.parametrize("temperature", [-1.0, math.nan])
def test_a_temperature_below_0_is_refused(temperature):
    with pytest.raises(ValueError, match=f"generator_sample_temperature must be 0 or more, got {temperature}"):
        _model("self")(random_codes(2), generator_sample_temperature=temperature)


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


def test_the_host_does_not_wait_for_codes_on_a_device():
    """A tensor without values stands for one whose values are not there yet: to look at them is an error."""
    codes = torch.empty(2, 4, 4, dtype=torch.int64, device="meta")
    assert complete_grids(codes, (4, 4), 12) is codes


def test_flat_codes_are_the_same_grid():
    codes = random_codes(3)
    losses = [_model()(given, generator=_generator()).loss.item() for given in (codes, codes.reshape(3, 16))]
    assert losses[0] == losses[1]


# ----------------------------------------------------------------------------- what is masked


def test_the_network_sees_mask_at_masked_tokens_and_the_picture_elsewhere(watch):
    model = _model()
    watched, codes = watch(model), random_codes(64)
    model(codes, generator=_generator())
    assert (watched.codes[watched.masked] == model.mask_id).all()
    assert torch.equal(watched.codes[~watched.masked], codes[~watched.masked])
    assert watched.masked.sum((1, 2)).min() >= 1


@pytest.mark.parametrize("schedule", ["linear", torch.ones_like])
def test_the_schedule_given_decides_how_many_are_masked(schedule, watch):
    model = _model(schedule=schedule)
    watched = watch(model)
    model(random_codes(64), generator=_generator())
    assert (watched.masked.all().item()) == (schedule is torch.ones_like)


def test_so_many_masked_tokens_are_kept_and_replaced_as_asked(watch):
    """Of 32,000 masked tokens: 1.5 points off would be six standard deviations; the seed is fixed."""
    config = dataclasses.replace(PLAIN, vocab_size=1000)
    model = _model(config=config, schedule=torch.ones_like, no_replace_prob=0.2, random_token_prob=0.1)
    watched, codes = watch(model), random_codes(2000, config)
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


def test_only_masked_tokens_may_be_replaced(watch):
    model = _model(random_token_prob=1.0)
    watched, codes = watch(model), random_codes(64)
    model(codes, generator=_generator())
    assert torch.equal(watched.codes[~watched.masked], codes[~watched.masked])
    assert not (watched.codes == model.mask_id).any()


def test_a_network_that_knows_nothing_loses_the_logarithm_of_the_vocabulary():
    model = _model()
    for parameter in model.net.parameters():
        parameter.data.zero_()
    for options in ({}, {"label_smoothing": 0.1}):
        model.objective = Objective(**options)
        loss = model(random_codes(8), generator=_generator()).loss.item()
        assert loss == pytest.approx(math.log(PLAIN.vocab_size), abs=1e-6)


def test_the_loss_is_the_cross_entropy_of_masked_tokens_only(watch):
    model = _model()
    watched, codes = watch(model), random_codes(5)
    loss, masked = model(codes, generator=_generator()).loss, watched.masked
    logs = model.net(watched.codes).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    assert loss.item() == pytest.approx(-logs[masked].mean().item(), abs=1e-5)


def _nats(model: MaskGit, watched: Watched, codes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token (b, h, w) at what the network saw last."""
    logs = model.net(watched.codes).log_softmax(-1)
    uniform = logs.mean(-1)
    right = logs.gather(-1, codes[..., None])[..., 0]
    return -(1 - model.objective.label_smoothing) * right - model.objective.label_smoothing * uniform


@pytest.mark.parametrize("options", [{}, {"visible_weight": 0.3}])
def test_label_smoothing_is_a_share_of_all_codes(options, watch):
    model = _model(label_smoothing=0.2, **options)
    watched, codes = watch(model), random_codes(5)
    loss = model(codes, generator=_generator()).loss
    weights = torch.where(watched.masked, 1.0, options.get("visible_weight", 0.0))
    expected = (_nats(model, watched, codes) * weights).sum() / weights.sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_tokens_that_are_not_masked_count_as_much_as_asked(weight, watch):
    model = _model(visible_weight=weight)
    watched, codes = watch(model), random_codes(5)
    loss = model(codes, generator=_generator()).loss
    nats, masked = _nats(model, watched, codes), watched.masked
    expected = (nats[masked].sum() + weight * nats[~masked].sum()) / (masked.sum() + weight * (~masked).sum())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_weight_of_the_bound_follows_from_the_number_of_masked_tokens(schedule, watch):
    model = _model(schedule=schedule, loss_weight="elbo")
    watched, codes = watch(model), random_codes(5)
    loss = model(codes, generator=_generator()).loss
    counts = watched.masked.sum((1, 2))
    weights = elbo_weights(16, schedule)[counts].float()
    sums = (_nats(model, watched, codes) * watched.masked).sum((1, 2))
    assert len(counts.unique()) > 1
    assert loss.item() == pytest.approx(((weights * sums).sum() / codes.numel()).item(), rel=1e-5)


def test_a_weight_may_be_a_function_of_r(watch):
    seen = []

    def weight(r):
        seen.append(r)
        return 1 + r

    model = _model(schedule="linear", loss_weight=weight)
    watched, codes = watch(model), random_codes(5)
    loss = model(codes, generator=_generator()).loss
    (r,) = seen
    assert ((1 - r) * 16).ceil().tolist() == watched.masked.sum((1, 2)).tolist()
    weighted = _nats(model, watched, codes) * (1 + r)[:, None, None]
    assert loss.item() == pytest.approx(weighted[watched.masked].mean().item(), abs=1e-5)


@pytest.mark.parametrize("options", [{}, {"loss_weight": "elbo", "schedule": "linear"}, {"label_smoothing": 0.1}])
def test_no_gradient_comes_from_tokens_that_are_not_masked(options, watch):
    model = _model(**options)
    watched, features = watch(model), []
    model.net.trunk.register_forward_hook(lambda module, args, result: features.append(result))
    (gradient,) = torch.autograd.grad(model(random_codes(5), generator=_generator()).loss, features)
    reached = (gradient != 0).any(-1)
    assert torch.equal(reached, watched.masked)


# ----------------------------------------------------------------------------- the bound on the likelihood


class Oracle3(nn.Module):
    """A network that knows how often each of 3^4 sequences occurs: codes (b, 4), some MASK = 3 -> logits (b, 4, 3)."""

    num_tokens, max_seq_len = 4, 4

    def __init__(self, counts: torch.Tensor):
        super().__init__()
        self.states = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
        self.counts = nn.Parameter(counts.double())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        fits = ((codes[:, None] == 3) | (codes[:, None] == self.states)).all(-1)  # (b, 81)
        each = nn.functional.one_hot(self.states, 3).double()  # (81, 4, 3)
        return torch.einsum("bs,snv->bnv", fits * self.counts, each).log()


@pytest.fixture(scope="module")
def known() -> tuple[Oracle3, torch.Tensor, float]:
    """The oracle, every sequence as often as it occurs (m, 4), and their entropy in nats."""
    counts = torch.randint(1, 6, (81,), generator=_generator())
    oracle = Oracle3(counts)
    probs = counts.double() / counts.sum()
    return oracle, oracle.states.repeat_interleave(counts, dim=0), -(probs * probs.log()).sum().item()


@pytest.mark.parametrize(
    ("schedule", "when"),
    [("linear", lambda share: 1 - share), ("cosine", lambda share: 2 / math.pi * math.acos(share))],
)
def test_the_expected_loss_of_the_bound_is_the_entropy_exactly(schedule, when, known, monkeypatch):
    """Of all 15 masks, each as often as `random_mask` draws it; to 1e-6, as the losses are summed in fp32.

    x-transformers' loss of the same oracle is -7 for the linear schedule and -14 for the cosine.
    """
    oracle, codes, entropy = known
    model = maskgit(ForeignNet(oracle, 3), schedule=schedule, loss_weight="elbo")
    total = 0.0
    for mask in itertools.product([False, True], repeat=4):
        if k := sum(mask):
            masked = torch.tensor(mask).expand(len(codes), 1, 4)
            monkeypatch.setattr("maskimg.maskgit.random_mask", lambda *_, masked=masked: (masked, None))
            chance = (when((k - 1) / 4) - when(k / 4)) / math.comb(4, k)
            total += chance * model(codes).loss.item()
    assert 4 * total == pytest.approx(entropy, rel=1e-6)


def test_the_bound_of_an_oracle_is_the_entropy_on_average(known):
    """40 draws for each of about 240 sequences: 1 % is more than four standard deviations; the seed is fixed."""
    oracle, codes, entropy = known
    bound = MaskGit(ForeignNet(oracle, 3)).elbo(codes, draws=40, generator=_generator())
    assert bound.shape == (len(codes),)
    assert bound.mean().item() == pytest.approx(entropy, rel=0.01)


def test_a_network_that_knows_nothing_has_a_bound_of_exactly_that():
    """Every draw alike, whatever its mask: the weight is n / k."""
    model = _model(loss_weight="elbo", schedule="linear", condition_drop=0.0)
    for parameter in model.parameters():
        parameter.data.zero_()
    expected = math.log(PLAIN.vocab_size)
    for seed in range(5):
        assert model(random_codes(1), generator=_generator(seed)).loss.item() == pytest.approx(expected, rel=1e-6)
        bound = model.elbo(random_codes(3), draws=2, generator=_generator(seed))
        assert bound.tolist() == pytest.approx([16 * expected] * 3, rel=1e-6)


def test_the_bound_is_taken_without_what_training_adds():
    """Nothing is augmented, smoothed or forgotten, and flat codes are the same grid."""
    options = {"no_replace_prob": 0.5, "random_token_prob": 0.5, "label_smoothing": 0.5, "condition_drop": 1.0}
    codes, condition = random_codes(3, NETWORK), torch.tensor([[0, 1]] * 3)
    bounds = [
        model.train().elbo(given, condition, generator=_generator())
        for model in (_model(config=NETWORK, **options), _model(config=NETWORK, loss_weight="elbo", schedule="linear"))
        for given in (codes, codes.reshape(3, 16))
    ]
    assert all(torch.equal(bound, bounds[0]) for bound in bounds)
    assert not bounds[0].requires_grad
    other = _model(config=NETWORK).elbo(codes, generator=_generator())
    assert not torch.equal(other, bounds[0])  # the condition counts


def test_more_draws_bring_the_bound_closer():
    model, codes = _model(), random_codes(64)
    exact = model.elbo(codes, draws=128, generator=_generator(1))
    few, many = (model.elbo(codes, draws=draws, generator=_generator(2)) for draws in (1, 16))
    assert (many - exact).abs().mean() < 0.5 * (few - exact).abs().mean()


# ----------------------------------------------------------------------------- what is judged


def test_codes_of_the_picture_are_never_called_wrong(watch):
    """x-transformers compared draws even where the critic saw the picture's own code."""
    codes = random_codes(64)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes))
    watched = watch(model)
    losses = model(codes, generator=_generator(), generator_sample_temperature=1.0)
    assert losses.critic_loss < 1e-9  # the oracle answers as it should

    seen = model.token_critic.seen
    assert torch.equal(seen[~watched.masked], codes[~watched.masked])
    assert (seen != codes).any()
    assert 0 <= seen.min() <= seen.max() < model.mask_id


class Doubtful(nn.Module):
    """A critic that calls every code wrong with the same logit."""

    def __init__(self, logit: float):
        super().__init__()
        self.logit = logit

    def forward(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        self.seen = codes.clone()
        return torch.full(codes.shape, self.logit)


@pytest.mark.parametrize("options", [{"no_replace_prob": 0.5}, {"random_token_prob": 0.5}])
@pytest.mark.parametrize("critic", CRITICS[1:])
def test_what_the_critic_alone_judges_is_drawn_without_a_sight_of_the_truth(critic, options, watch):
    """The generator's own training may show it some masked codes: its draws there were right far too often."""
    model = _model(critic, **options)
    watched = watch(model)
    first = []
    model.net.trunk.register_forward_pre_hook(lambda _, args: first.append(args[0].clone()))
    codes = random_codes(8)
    model(codes, generator=_generator(), only_train_critic=True)
    assert torch.equal(first[0], codes.masked_fill(watched.masked, 12))
    first.clear()
    model(codes, generator=_generator())
    assert not torch.equal(first[0], codes.masked_fill(watched.masked, 12))


@pytest.mark.parametrize("target", ["wrong", "sampled"])
def test_the_critic_learns_to_find_wrong_codes_or_all_that_were_sampled(target, watch):
    model = MaskGit(tiny_net(), token_critic=Doubtful(2.0), objective=Objective(critic_target=target))
    watched, codes = watch(model), random_codes(16)
    loss = model(codes, generator=_generator(), generator_sample_temperature=1.0).critic_loss
    wrong = model.token_critic.seen != codes
    assert (wrong & watched.masked).any() and (~wrong & watched.masked).any()
    share = (wrong if target == "wrong" else watched.masked).float().mean().item()
    # -log sigmoid(2) where the answer is yes, 2 more where it is no.
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)) + 2 * (1 - share), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30, 1e-7])
def test_a_temperature_next_to_nothing_takes_the_most_probable_codes(temperature):
    """Divided by so little, logits are infinite, and MASK was drawn."""
    codes = random_codes(16)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes), objective=Objective(schedule=torch.ones_like))
    model(codes, generator=_generator(), generator_sample_temperature=temperature)
    most_probable = tiny_net()(torch.full((1, 4, 4), 12)).argmax(-1)
    assert torch.equal(model.token_critic.seen, most_probable.expand(16, -1, -1))


def test_without_a_temperature_one_between_0_and_1_is_drawn():
    """In 30 batches: once only the most probable codes, as near 0, and once mostly others, as near 1."""
    codes = random_codes(1)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes), objective=Objective(schedule=torch.ones_like))
    best = tiny_net()(torch.full((1, 4, 4), 12)).argmax(-1)
    alike = []
    for seed in range(30):
        model(codes, generator=_generator(seed))
        alike.append(int((model.token_critic.seen == best).sum()))
    assert min(alike) < 10 and max(alike) == 16


def test_the_critic_judges_the_most_probable_codes_at_temperature_0(watch):
    codes = random_codes(16)
    model = MaskGit(tiny_net(), token_critic=Oracle(codes))
    watched = watch(model)
    model(codes, generator=_generator(), generator_sample_temperature=0.0)
    expected = torch.where(watched.masked, tiny_net()(watched.codes).argmax(-1), codes)
    assert torch.equal(model.token_critic.seen, expected)


def test_the_critic_judges_wilder_codes_at_higher_temperatures():
    codes = random_codes(200)
    right = []
    for temperature in (0.01, 100.0):
        model = MaskGit(tiny_net(), token_critic=Oracle(codes), objective=Objective(schedule=torch.ones_like))
        model(codes, generator=_generator(), generator_sample_temperature=temperature)
        right.append(len(model.token_critic.seen.unique(dim=0)))
    assert right[0] < 10 < 190 < right[1]  # the same few grids, and as many as there are images


def test_condition_reaches_generator_and_critic(watch):
    codes, condition = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    model = MaskGit(tiny_net(NETWORK), token_critic=Oracle(codes)).eval()
    watched = watch(model)
    model(codes, condition, generator=_generator())
    assert torch.equal(watched.condition.labels, condition)
    assert torch.equal(model.token_critic.condition.labels, condition)


def test_the_condition_is_forgotten_in_training_only(watch):
    codes, condition = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    model = MaskGit(tiny_net(NETWORK), objective=Objective(condition_drop=1.0))
    watched = watch(model)
    model.train()(codes, condition, generator=_generator())
    assert watched.condition.labels.tolist() == [[3, 2]] * 4
    model.eval()(codes, condition, generator=_generator())
    assert watched.condition.labels.tolist() == [[0, 1]] * 4


# ----------------------------------------------------------------------------- self-conditioning


def _looking(**options) -> tuple[MaskGit, list[list[torch.Tensor]]]:
    """A self-conditioned model, and the [codes, sum_embeds, features] of each pass to come."""
    model, passes = _model(self_cond=True, **options), []
    model.net.trunk.register_forward_hook(
        lambda module, args, result: passes.append([args[0].clone(), args[2], result])
    )
    return model, passes


def test_the_network_looks_first_and_then_again_at_the_same_codes():
    """The first look is told the null, as the first step of a generation is; x-transformers told it nothing."""
    model, passes = _looking(self_cond_train_prob=1.0)
    model(random_codes(4), generator=_generator())
    (first, null, seen), (second, told, _) = passes
    assert torch.equal(first, second)
    conditioning = model.self_cond
    torch.testing.assert_close(null, conditioning(conditioning.null_embed).expand(4, 4, 4, -1))
    torch.testing.assert_close(told, conditioning(seen))


def test_each_grid_has_a_first_look_by_a_chance_of_its_own():
    """Of 2,000 grids 0.75 are told what was seen: 4 points off would be four standard deviations; the seed is fixed.

    x-transformers tossed one coin for the whole batch.
    """
    model, passes = _looking(self_cond_train_prob=0.75)
    with torch.no_grad():
        model(random_codes(2000), generator=_generator())
    null, told = passes[0][1], passes[1][1]
    looked = (told != null).flatten(1).any(1)
    torch.testing.assert_close(told[looked], model.self_cond(passes[0][2])[looked])
    assert abs(looked.double().mean() - 0.75) < 0.04


def test_without_a_chance_of_a_first_look_there_is_one_pass():
    model, passes = _looking(self_cond_train_prob=0.0)
    model(random_codes(3), generator=_generator())
    assert len(passes) == 1
    torch.testing.assert_close(passes[0][1], model.self_cond(model.self_cond.null_embed).expand(3, 4, 4, -1))


def test_gradients_reach_a_first_look_through_its_projection_only():
    model, passes = _looking(self_cond_train_prob=1.0)
    model(random_codes(3), generator=_generator()).loss.backward()
    assert not passes[0][2].requires_grad
    assert model.self_cond.to_self_cond.weight.grad.any()
    assert not model.self_cond.null_embed.grad.any()  # it was not told


def test_the_null_is_learnt_where_it_is_told():
    model, _ = _looking(self_cond_train_prob=0.0)
    model(random_codes(3), generator=_generator()).loss.backward()
    assert model.self_cond.null_embed.grad.any()


def test_a_generation_is_told_what_it_saw_a_step_before():
    model, passes = _looking()
    model.generate(3, seeds=torch.arange(3), sampler=model.make_sampler(steps=4))
    assert len(passes) == 4
    conditioning = model.self_cond
    torch.testing.assert_close(passes[0][1], conditioning(conditioning.null_embed).expand(1, 4, 4, -1))
    for before, after in itertools.pairwise(passes):
        torch.testing.assert_close(after[1], conditioning(before[2]).expand(3, -1, -1, -1))


def test_the_bound_of_a_self_conditioned_model_always_looks_first():
    model, passes = _looking(self_cond_train_prob=0.25)
    model.elbo(random_codes(2), draws=3, generator=_generator())
    assert len(passes) == 6
    for first, second in zip(passes[::2], passes[1::2], strict=True):
        torch.testing.assert_close(second[1], model.self_cond(first[2]))


def test_guidance_of_a_self_conditioned_model_may_begin_and_end_on_the_way():
    """And an image does not depend on its batch."""
    model = _model(config=NETWORK, self_cond=True)
    condition, seeds = torch.tensor([[0, 1], [2, 0]]), torch.tensor([1, 2])
    drawn = []
    for start, end in ((0.0, 1.0), (0.3, 1.0), (0.0, 0.5), (0.3, 0.6)):
        sampler = Sampler(steps=8, schedule="linear", guidance=4.0, guidance_start=start, guidance_end=end)
        together = model.generate(2, condition, seeds=seeds, sampler=sampler)
        alone = model.generate(1, condition[1:], seeds=seeds[1:], sampler=sampler)
        assert torch.equal(together[1:], alone)
        drawn.append(together)
    assert len(torch.stack(drawn).unique(dim=0)) == 4


def test_each_half_of_a_guided_batch_remembers_what_it_saw_itself():
    """Guidance off, on, on and off again; one image."""
    model, passes = _looking(config=NETWORK)
    sampler = Sampler(steps=4, schedule="linear", guidance=4.0, guidance_start=0.2, guidance_end=0.6)
    model.generate(1, torch.tensor([[0, 1]]), seeds=torch.tensor([1]), sampler=sampler)
    told, seen = [told for _, told, _ in passes], [features for _, _, features in passes]
    conditioning = model.self_cond
    null = conditioning(conditioning.null_embed).expand(1, 4, 4, -1)
    assert [len(features) for features in seen] == [1, 2, 2, 1]
    torch.testing.assert_close(told[1], torch.cat((conditioning(seen[0]), null)))
    torch.testing.assert_close(told[2], conditioning(seen[1]))
    torch.testing.assert_close(told[3], conditioning(seen[2][:1]))


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


def _train(model: MaskGit, batch, steps: int) -> None:
    """`batch(step)` -> codes; the steps become smaller to the end."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for step in range(steps):
        loss = model(batch(step), generator=_generator(step)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falling.step()
    model.eval()


def _plain_loss(model: MaskGit, codes: torch.Tensor) -> float:
    """Nats a masked token, without what the objective adds."""
    model.objective = Objective(schedule=model.objective.schedule)
    with torch.no_grad():
        return model(codes, generator=_generator(9), only_train_generator=True).loss.item()


@pytest.mark.parametrize(
    "options",
    [
        {"critic": "self"},
        {"no_replace_prob": 0.15, "random_token_prob": 0.1},
        {"loss_weight": "elbo", "schedule": "linear"},
        {"loss_weight": "elbo", "schedule": "cosine"},
        {"loss_weight": lambda r: 1 / (1.001 - r), "schedule": "linear"},
        {"visible_weight": 0.2, "self_cond": True},
    ],
)
def test_a_grid_that_is_always_the_same_is_learnt_with_each_objective(options):
    """In 300 steps; x-transformers' default weight made the loss of it rise without end. Every seed is fixed."""
    model = _model(config=dataclasses.replace(PLAIN, dim=32), **options)
    codes = random_codes(1).expand(8, -1, -1)
    _train(model, lambda step: codes, 300)
    assert _plain_loss(model, codes) < 0.1
    assert torch.equal(model.generate(2, sampler=Sampler(steps=2, token_temperature=0.001)), codes[:2])


@pytest.mark.parametrize("options", [{}, {"loss_weight": "elbo", "schedule": "linear"}])
def test_codes_without_a_pattern_cost_their_entropy(options):
    """Independent draws of four codes: no network can do better, and a trained one does as well, within 2 %.

    4,000 tokens measure it to 1 %; the seeds are fixed.
    """
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    entropy = -(probs * probs.log()).sum().item()

    def batch(step: int, count: int = 32) -> torch.Tensor:
        return torch.multinomial(probs, count * 16, True, generator=_generator(1000 + step)).reshape(count, 4, 4)

    model = _model(**options)
    _train(model, batch, 150)
    assert _plain_loss(model, batch(5000, 500)) == pytest.approx(entropy, rel=0.02)


# ----------------------------------------------------------------------------- guidance and drawing


def test_guidance_costs_one_doubled_batch_and_only_if_it_is_on(watch):
    model = _model(config=NETWORK)
    watched, codes, condition = watch(model), random_codes(3, NETWORK), torch.tensor([[0, 1]] * 3)
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
    codes = model.generate(3, seeds=seeds, sampler=model.make_sampler(steps=3))
    assert codes.shape == (3, 4, 4)
    assert 0 <= codes.min() <= codes.max() < model.mask_id
    assert torch.equal(codes, model.generate(3, seeds=seeds, sampler=model.make_sampler(steps=3)))
    assert model.generate(2, sampler=model.make_sampler(steps=1)).shape == (2, 4, 4)


def test_generating_completes_the_grids_it_is_given():
    model = _model()
    codes = random_codes(2)
    codes[:, 1:3, 1:3] = model.mask_id
    drawn = model.generate(2, codes=codes, seeds=torch.tensor([0, 1]))
    assert torch.equal(drawn[codes != model.mask_id], codes[codes != model.mask_id])


def test_a_sampler_overrides_the_models_own_numbers(watch):
    model = _model(sampler=Sampler(steps=7))
    watched = watch(model)
    model.generate(1, seeds=torch.tensor([0]))
    assert watched.calls == 7
    model.generate(1, seeds=torch.tensor([0]), sampler=Sampler(steps=2, order="random"))
    assert watched.calls == 9


def test_generating_follows_the_models_own_schedule():
    """MaskGit's docstring: the schedule is also the default one of `generate`."""
    model = _model(schedule="linear")
    seen = []
    model.net.trunk.register_forward_pre_hook(lambda module, args: seen.append(int((args[0] == model.mask_id).sum())))
    model.generate(1, seeds=torch.tensor([0]), sampler=model.make_sampler(steps=4))
    assert seen == [16, 12, 8, 4]


def test_a_model_without_a_critic_says_so():
    with pytest.raises(ValueError, match="this model has no critic: choose another order, or train one"):
        _model().critic_logits(random_codes(1))
    with pytest.raises(ValueError, match="this model has no critic"):
        _model().generate(1, sampler=Sampler(order="critic"))


# ----------------------------------------------------------------------------- under autocast


@pytest.mark.parametrize("before", [lambda model, codes: None, lambda model, codes: model.elbo(codes, draws=1)])
@pytest.mark.parametrize("critic", CRITICS)
def test_every_matrix_is_trained_under_autocast_after_a_look_without_gradient(critic, before):
    """Up to torch 2.10 autocast kept the copies of the first look's weights, so no output matrix was ever trained."""
    model = _model(critic, NETWORK, self_cond=True, self_cond_train_prob=1.0, condition_drop=0.0).train()
    codes, labels = random_codes(4, NETWORK), torch.tensor([[0, 1]] * 4)
    with torch.autocast("cpu", torch.bfloat16):
        before(model, codes)
        loss = model(codes, labels, generator=_generator()).loss
    loss.backward()
    matrices = {name: p.grad for name, p in model.named_parameters() if p.ndim == 2}
    assert any(name.endswith("to_out.weight") for name in matrices)
    assert [name for name, gradient in matrices.items() if gradient is None or not gradient.any()] == []


@pytest.mark.parametrize("use", [lambda m, c: m.elbo(c, draws=1), lambda m, c: m.generate(1, sampler=Sampler(steps=1))])
def test_a_pass_without_gradient_leaves_nothing_in_autocasts_cache(use, monkeypatch):
    """What the test above asks, for a torch that keeps no such copies."""
    cleared = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(torch.is_grad_enabled()))
    use(_model(self_cond=True), random_codes(2))
    assert cleared and cleared[-1]


# ----------------------------------------------------------------------------- generating, as its arguments say


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (4, 4)),
        ({"batch_size": 1}, (1, 4, 4)),
        ({"batch_size": 3}, (3, 4, 4)),
        ({"codes": torch.full((4, 4), 12)}, (4, 4)),
        ({"codes": torch.full((16,), 12)}, (4, 4)),
        ({"codes": torch.full((1, 4, 4), 12)}, (1, 4, 4)),
        ({"codes": torch.full((1, 16), 12)}, (1, 4, 4)),
        ({"codes": torch.full((2, 16), 12)}, (2, 4, 4)),
        ({"codes": torch.full((2, 4, 4), 12), "batch_size": 2}, (2, 4, 4)),
    ],
)
def test_one_grid_comes_without_a_batch_axis_if_none_was_asked_for(given, expected):
    assert _model().generate(**given, sampler=Sampler(steps=2)).shape == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, 1 or more, got 2.5"),
        ({"batch_size": "2"}, "batch_size must be a whole number, 1 or more, got `2`"),
        ({"batch_size": 1, "sampler": "fast"}, "sampler must be a Sampler, got `fast`"),
        ({"batch_size": 2, "seeds": torch.tensor([1.0, 2.0])}, "seeds must be a tensor of whole numbers"),
        ({"codes": [[1, 2]]}, "codes must be a tensor of grids to complete"),
        ({"batch_size": -2, "codes": torch.full((2, 4, 4), 12)}, "batch_size must be 1 or more, got -2"),
        ({"codes": torch.full((2, 4, 4), 12), "batch_size": 3}, "batch_size is 3, but there are 2 grids to complete"),
        ({"codes": torch.full((2, 4, 5), 12)}, r"expected grids of \(4, 4\) codes to complete, got \(2, 4, 5\)"),
        ({"codes": torch.full((2, 8), 12)}, r"expected grids of \(4, 4\) codes to complete, got \(2, 8\)"),
        ({"batch_size": 2, "seeds": torch.tensor([1])}, "expected a seed for each of 2 grids, got 1"),
    ],
)
def test_generations_that_cannot_be_had_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        _model().generate(**given)


def test_every_module_is_in_its_own_mode_again_even_after_a_failure(monkeypatch):
    """x-transformers left the whole model in eval mode when a generation failed."""
    model = _model("external", self_cond=True).train()
    model.net.trunk.blocks.eval()
    model.token_critic.eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    seen = []
    model.net.trunk.register_forward_pre_hook(lambda *_: seen.append({module.training for module in model.modules()}))

    model.generate(1, sampler=model.make_sampler(steps=2))
    assert seen == [{False}, {False}]
    assert [module.training for module in model.modules()] == modes

    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.token_critic, "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(1, sampler=model.make_sampler(steps=2))
    assert [module.training for module in model.modules()] == modes
