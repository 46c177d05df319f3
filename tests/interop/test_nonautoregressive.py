"""Networks of other libraries: flat codes, their own arguments, and MASK that is never drawn."""

import itertools
import math
from typing import Any

import pytest
import torch
from helpers import differing, random_codes, tiny_critic, tiny_net
from safetensors.torch import load_file, save_file
from tiny import NETWORK
from torch import nn
from x_transformers import Encoder, TransformerWrapper

from maskimg import NonAutoregressiveWrapper
from maskimg.sampler import Sampler

V, N, MASK = 12, 16, 12


def _transformer(seed: int = 0, *, encoder: dict[str, Any] | None = None, **options: Any) -> TransformerWrapper:
    """x-transformers' own, with weights away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = Encoder(dim=64, depth=1, heads=2, **(encoder or {}))
        net = TransformerWrapper(**{"num_tokens": V + 1, "max_seq_len": N, "attn_layers": layers, **options})
        for parameter in net.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def _codes(b: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (b, N), generator=_generator(seed))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder(nn.Module):
    """The plainest network there is: a table of logits for each code that it sees. Keeps what it is given."""

    def __init__(self, logits: int = V):
        super().__init__()
        self.table = nn.Parameter(torch.randn(V + 1, logits, generator=_generator()))
        self.seen: list[torch.Tensor] = []
        self.extras: list[dict[str, Any]] = []

    def forward(self, codes: torch.Tensor, **extras: Any) -> torch.Tensor:
        self.seen.append(codes.clone())
        self.extras.append(extras)
        return self.table[codes]


def _recording(**options: Any) -> tuple[NonAutoregressiveWrapper, Recorder, Recorder]:
    """A model of two recorders: network and critic."""
    net, critic = Recorder(), Recorder(1)
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    return NonAutoregressiveWrapper(net, mask_id=MASK, grid=(4, 4), token_critic=critic, **options), net, critic


# ----------------------------------------------------------------------------- flat codes and grids


def test_codes_are_flat_where_the_network_is():
    model = NonAutoregressiveWrapper(_transformer())
    assert (model.mask_id, model.model.grid) == (MASK, (1, N))
    assert model(_codes()).loss.shape == ()
    assert model.model.elbo(_codes()).shape == (3,)
    assert model.generate(2, sampler=Sampler(steps=3)).shape == (2, N)
    assert model.generate(sampler=Sampler(steps=3)).shape == (N,)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [(torch.full((N,), MASK), (N,)), (torch.full((1, N), MASK), (1, N)), (torch.full((2, N), MASK), (2, N))],
)
def test_flat_codes_are_completed_as_they_come(codes, expected):
    codes[..., 3] = 7
    done = NonAutoregressiveWrapper(_transformer()).generate(codes=codes, sampler=Sampler(steps=3))
    assert done.shape == expected
    assert (done[..., 3] == 7).all()
    assert done.max() < MASK


def test_a_network_of_flat_codes_may_be_given_a_grid():
    """It sees them row by row; and only the shape differs."""
    codes = _codes()
    flat, grid = NonAutoregressiveWrapper(_transformer()), NonAutoregressiveWrapper(_transformer(), grid=(2, 8))
    losses = [
        model(given, generator=_generator()).loss.item()
        for model, given in ((flat, codes), (grid, codes), (grid, codes.reshape(3, 2, 8)))
    ]
    assert losses[0] == losses[1] == losses[2]

    sampler, seeds = Sampler(steps=4, order="confidence"), torch.arange(3)
    drawn = grid.generate(3, seeds=seeds, sampler=sampler)
    assert torch.equal(drawn.flatten(1), flat.generate(3, seeds=seeds, sampler=sampler))
    assert drawn.shape == (3, 2, 8)
    assert grid.generate(sampler=Sampler(steps=2)).shape == (2, 8)


def test_the_network_and_its_critic_are_given_flat_codes():
    model, net, critic = _recording()
    codes = _codes().reshape(3, 4, 4)
    model(codes, generator=_generator())
    assert net.seen[0].shape == critic.seen[0].shape == (3, N)
    kept = net.seen[0] != MASK
    assert torch.equal(net.seen[0][kept], codes.flatten(1)[kept])
    assert torch.equal(critic.seen[0][kept], codes.flatten(1)[kept])


def test_an_image_depends_on_its_seed_alone_not_on_its_batch():
    model = NonAutoregressiveWrapper(_transformer(), token_critic=_transformer(1, logits_dim=1), self_cond=True)
    seeds = torch.tensor([3, 9, 2**32 - 1])
    together = model.generate(3, seeds=seeds, sampler=Sampler(steps=4))
    for i in range(3):
        assert torch.equal(model.generate(1, seeds=seeds[i : i + 1], sampler=Sampler(steps=4))[0], together[i])


# ----------------------------------------------------------------------------- MASK


@pytest.mark.parametrize("logits", [V, V + 1])
def test_mask_is_never_drawn_and_costs_nothing(logits):
    """x-transformers drew MASK from untrained networks, half of all codes."""
    net = Recorder(logits)
    net.table.data.zero_()
    net.table.data[:, V:] = 50.0  # nothing is likelier than MASK, where it has a logit
    model = NonAutoregressiveWrapper(net, mask_id=MASK, grid=(4, 4))
    assert model(_codes(64), generator=_generator()).loss.item() == pytest.approx(math.log(V), abs=1e-6)
    drawn = model.generate(64, seeds=torch.arange(64), sampler=Sampler(steps=3))
    assert set(drawn.flatten().tolist()) == set(range(V))


def test_a_random_replacement_is_never_mask():
    """x-transformers drew replacements among all tokens, MASK too."""
    model, net, _ = _recording(random_token_prob=1.0)
    model(_codes(500), generator=_generator())
    assert set(net.seen[0].flatten().tolist()) == set(range(V))


def test_codes_that_hold_mask_are_refused():
    with pytest.raises(ValueError, match=r"expected codes in \[0, 12\), got 12 to 12: .*without MASK"):
        NonAutoregressiveWrapper(_transformer())(torch.full((1, N), MASK))


# ----------------------------------------------------------------------------- further arguments


@pytest.mark.parametrize("by_name", [True, False])
def test_further_arguments_reach_network_and_critic(by_name):
    """x-transformers gave them to the network only, so no critic could be conditioned."""
    model, net, critic = _recording()
    extras = {"context": torch.randn(3, 5, 8), "context_mask": torch.ones(3, 5, dtype=torch.bool)}

    sampler = Sampler(steps=4, order="critic")
    if by_name:
        model(_codes(), **extras)
        model.generate(3, sampler=sampler, **extras)
    else:  # in the dictionary that MaskGit takes for a condition
        model.model(_codes(), extras)
        model.model.generate(3, extras, sampler=sampler)
    model.model.elbo(_codes(), extras, draws=2)
    assert len(net.extras) == 1 + 2 + 4
    assert len(critic.extras) == 1 + 3  # the last step of a generation masks nothing
    for given in net.extras + critic.extras:
        assert given.keys() == extras.keys()
        assert all(given[name] is extras[name] for name in extras)


def test_no_further_arguments_are_made_up():
    model, net, critic = _recording()
    model(_codes())
    model.generate(2, sampler=Sampler(steps=2))
    assert net.extras + critic.extras == [{}] * (len(net.extras) + len(critic.extras))


@pytest.mark.parametrize("judge", ["self", "external"])
def test_cross_attention_conditions_network_and_critic(judge):
    """What is padded away changes nothing, what is not changes both losses; and each image has a context of its own."""
    attending = {"encoder": {"cross_attend": True}}
    model = NonAutoregressiveWrapper(
        _transformer(**attending),
        token_critic=_transformer(1, logits_dim=1, **attending) if judge == "external" else None,
        self_token_critic=judge == "self",
        self_cond=True,
    )
    context, valid = torch.randn(3, 5, 64, generator=_generator()), torch.ones(3, 5, dtype=torch.bool)
    valid[:, 3:] = False

    def losses(context: torch.Tensor) -> list[float]:
        found = model(_codes(), context=context, context_mask=valid, generator=_generator())
        return [found.generator_loss.item(), found.critic_loss.item()]

    padded, other = context.clone(), context.clone()
    padded[:, 3:] += 1
    other[:, :3] += 1
    assert losses(padded) == losses(context)
    assert all(abs(before - after) > 1e-4 for before, after in zip(losses(context), losses(other), strict=True))

    seeds = torch.tensor([4, 4, 5])
    drawn = model.generate(3, seeds=seeds, sampler=Sampler(steps=4), context=context, context_mask=valid)
    assert not torch.equal(drawn[0], drawn[1])
    alone = model.generate(1, seeds=seeds[1:2], sampler=Sampler(steps=4), context=context[1:2], context_mask=valid[1:2])
    assert torch.equal(alone[0], drawn[1])


# ----------------------------------------------------------------------------- which networks


@pytest.mark.parametrize(
    "options",
    [
        {"logits_dim": V},
        {"logits_dim": V, "emb_dim": 32},  # x-transformers could not condition this one on itself
        {"tie_embedding": True},
        {"num_memory_tokens": 2},
        {"post_emb_norm": True},
        {"use_abs_pos_emb": False, "encoder": {"rotary_pos_emb": True}},
    ],
)
def test_x_transformers_of_many_kinds_condition_and_judge_themselves(options):
    model = NonAutoregressiveWrapper(_transformer(**options), self_cond=True, self_token_critic=True)
    losses = model(_codes(8), generator=_generator())
    losses.loss.backward()
    assert losses.loss.isfinite()
    assert model.model.self_cond.to_self_cond.weight.grad.any()
    assert model.model.self_critic.weight.grad.any()
    drawn = model.generate(2, sampler=Sampler(steps=3))
    assert 0 <= drawn.min() <= drawn.max() < MASK


def test_log_probabilities_are_as_good_as_logits():
    """A mixture of softmaxes gives those; what it says of MASK is left out and the rest made to sum to 1."""
    net = _transformer(mixture_of_softmax=True)
    model = NonAutoregressiveWrapper(net)
    codes = _codes()
    logs = net(codes)[..., :V]
    expected = logs.exp() / logs.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(model.model.logits(codes[:, None]).softmax(-1)[:, 0], expected)
    assert model.generate(2, sampler=Sampler(steps=3)).max() < MASK


@pytest.mark.parametrize("option", ["self_cond", "self_token_critic"])
@pytest.mark.parametrize("build", [lambda: _transformer(mixture_of_softmax=True), Recorder])
def test_a_network_without_features_can_neither_see_nor_judge_itself(build, option):
    """x-transformers failed in its first step, with an UnboundLocalError."""
    with pytest.raises(ValueError, match="self_cond and self_token_critic need a network that has features"):
        NonAutoregressiveWrapper(build(), mask_id=MASK, grid=(4, 4), **{option: True})


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (_transformer, {"mask_id": 3}, "mask_id must be the network's last token, 12, after all codes, got 3"),
        (_transformer, {"grid": (3, 5)}, r"a grid of \(3, 5\) has 15 codes, but the network's max_seq_len is 16"),
        (Recorder, {"grid": (4, 4)}, "give mask_id: this network has no num_tokens"),
        (Recorder, {"mask_id": MASK}, "give grid: this network has no max_seq_len"),
    ],
)
def test_sizes_that_do_not_fit_the_network_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        NonAutoregressiveWrapper(build(), **options)


@pytest.mark.parametrize("logits", [V - 1, V + 2])
def test_a_network_with_another_number_of_logits_is_refused(logits):
    with pytest.raises(ValueError, match=f"expected 12 logits a token, or one more for MASK, got {logits}"):
        NonAutoregressiveWrapper(Recorder(logits), mask_id=MASK, grid=(4, 4))(_codes())


@pytest.mark.parametrize("shape", [(2, N - 1), (2, N + 1), (N,), (2, 2, 8)])
def test_sequences_of_another_length_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected a code grid of \(1, 16\), got"):
        NonAutoregressiveWrapper(_transformer())(torch.zeros(shape, dtype=torch.int64))


def test_labels_are_refused():
    model, condition = NonAutoregressiveWrapper(_transformer()), torch.zeros(3, 1, dtype=torch.int64)
    for call in (lambda: model(_codes(), condition=condition), lambda: model.generate(3, condition=condition)):
        with pytest.raises(ValueError, match="this network knows no labels: give what else it takes by name"):
            call()


def test_a_critic_may_come_from_here():
    model = NonAutoregressiveWrapper(_transformer(), token_critic=tiny_critic())
    losses = model(_codes(), generator=_generator())
    losses.loss.backward()
    assert model.model.token_critic.head.weight.grad.any()
    assert model.generate(2, sampler=Sampler(steps=3)).shape == (2, N)


# ----------------------------------------------------------------------------- training and files


@pytest.mark.parametrize("judge", ["self", "external"])
def test_a_step_of_the_critic_alone_moves_nothing_but_the_critic(judge):
    """x-transformers trained the whole network through its self critic."""

    def build() -> NonAutoregressiveWrapper:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            critic = _transformer(1, logits_dim=1) if judge == "external" else None
            return NonAutoregressiveWrapper(
                _transformer(), token_critic=critic, self_token_critic=judge == "self", self_cond=True
            )

    model, before = build(), build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(_codes(), generator=_generator(), only_train_critic=True).loss.backward()
    optimizer.step()
    moved = differing(model, before)
    assert moved
    assert all(name.startswith(("model.token_critic.", "model.self_critic.")) for name in moved)


def test_weights_are_saved_once_each_and_come_back(tmp_path):
    """x-transformers had every weight twice where the critic shares the trunk, which safetensors refuses."""
    model, again = (
        NonAutoregressiveWrapper(_transformer(seed), self_token_critic=True, self_cond=True).eval() for seed in (0, 1)
    )
    state = model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    save_file(state, tmp_path / "all.safetensors")
    again.load_state_dict(load_file(tmp_path / "all.safetensors"))
    losses = [one(_codes(), generator=_generator()).loss.item() for one in (model, again)]
    assert losses[0] == losses[1]
    assert set(model.model.heads) == {"self_cond", "self_critic"}


def test_a_sequence_that_is_always_the_same_is_learnt():
    """In 60 steps; the seeds are fixed."""
    model = NonAutoregressiveWrapper(_transformer(), steps=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    codes = _codes(1).expand(8, -1)
    for step in range(60):
        loss = model(codes, generator=_generator(step)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert model.eval().model.elbo(codes, generator=_generator()).mean() / N < 0.1
    assert torch.equal(model.generate(2, start_temperature=0.0), codes[:2])


# ----------------------------------------------------------------------------- its numbers, around a network of ours


def _own(critic: str = "none", **options: Any) -> NonAutoregressiveWrapper:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = tiny_critic() if critic == "external" else None
        return NonAutoregressiveWrapper(tiny_net(), token_critic=judge, self_token_critic=critic == "self", **options)


def test_every_argument_works_by_its_place_in_the_original():
    """Around a network of ours, too; `model(codes, True)` once trained the critic, and `generate(8, 0.9)` drew at 1."""
    model, codes, seeds = _own("self", steps=5), random_codes(3), torch.arange(3)
    assert model(codes, True).critic_loss is None
    assert model(codes, False, True).generator_loss is None
    by_place, by_name = (
        model(codes, generator=_generator(), **options).critic_loss
        if options
        else model(codes, False, True, 0.5, generator=_generator()).critic_loss
        for options in ({}, {"only_train_critic": True, "generator_sample_temperature": 0.5})
    )
    assert by_place.item() == by_name.item()
    drawn = model.generate(3, 0.9, 0.5, 2.0, seeds=seeds)
    named = {"start_temperature": 0.9, "filter_thres": 0.5, "noise_level_scale": 2.0}
    assert torch.equal(drawn, model.generate(3, seeds=seeds, **named))
    assert not torch.equal(drawn, model.generate(3, seeds=seeds))
    assert drawn.shape == (3, 4, 4)


def test_a_network_of_ours_is_given_its_labels():
    model = NonAutoregressiveWrapper(tiny_net(NETWORK), steps=3)
    seen = []
    model.model.net.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    labels = torch.tensor([[0, 1]] * 2)
    model.eval()(random_codes(2, NETWORK), condition=labels)
    assert torch.equal(seen[-1].labels, labels)
    drawn, other = (model.generate(2, condition=each, seeds=torch.arange(2)) for each in (labels, labels * 0 + 1))
    assert not torch.equal(drawn, other)


def test_arguments_that_a_network_of_ours_does_not_take_are_refused():
    model = _own()
    with pytest.raises(ValueError, match="unknown arguments context: this network takes codes and a condition"):
        model(random_codes(2), context=1)
    with pytest.raises(ValueError, match="unknown arguments context, mask"):
        model.generate(2, context=1, mask=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_id": 11}, "mask_id must be vocab_size = 12, outside the codebook, got 11"),
        ({"grid": (2, 8)}, r"the network's own grid is \(4, 4\), got \(2, 8\)"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"no_replace_prob": 1.5}, "no_replace_prob must be in"),
        ({"token_critic": tiny_critic(), "self_token_critic": True}, "either token_critic or self_token_critic"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NonAutoregressiveWrapper(tiny_net(), **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"filter_thres": 1.5}, r"filter_thres must be in \[0, 1\], got 1.5"),
        ({"start_temperature": 100.0}, "token_temperature must be between 0.001 and 10"),
        ({"start_temperature": 1.0, "sampler": Sampler()}, "give either start_temperature or a whole sampler"),
    ],
)
def test_numbers_that_cannot_be_drawn_with_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        _own().generate(2, **given)


def test_mask_has_the_number_after_the_last_code():
    assert NonAutoregressiveWrapper(tiny_net(), mask_id=12).mask_id == 12
    assert NonAutoregressiveWrapper(tiny_net()).mask_id == 12


def test_the_temperature_falls_to_almost_nothing_from_where_it_starts():
    """One step is the last one: whatever it starts from, only the most probable codes are drawn."""
    model = _own(steps=1)
    best = model.model.logits(torch.full((1, 4, 4), 12)).argmax(-1)
    assert torch.equal(model.generate(20, start_temperature=9.0), best.expand(20, -1, -1))
    drawn = [
        len(_own(steps=8).generate(64, start, seeds=torch.arange(64)).flatten(1).unique(dim=0)) for start in (0.0, 5.0)
    ]
    assert drawn[0] < 16 < 40 < drawn[1]


def test_a_filter_of_everything_leaves_the_most_probable_code():
    """x-transformers drew code 0 everywhere."""
    model = _own(steps=1)
    best = model.model.logits(torch.full((1, 4, 4), 12)).argmax(-1)
    assert torch.equal(model.generate(20, filter_thres=1.0), best.expand(20, -1, -1))


def test_noise_on_the_critics_scores_may_be_turned_off():
    """Then the draws alone, here the most probable codes, decide what is masked again, and all seeds agree."""
    model = _own("external", steps=6)
    for scale, alike in ((0.0, True), (20.0, False)):
        seen = []
        model.model.net.trunk.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0] == 12))
        model.generate(8, 0.0, None, scale, seeds=torch.arange(8))
        assert (len(seen[3].unique(dim=0)) == 1) == alike


def test_a_schedule_that_is_a_function_is_also_followed_in_generating():
    model = _own(schedule=lambda r: (1 - r) ** 2, steps=4)
    seen = []
    model.model.net.trunk.register_forward_pre_hook(lambda module, args: seen.append(int((args[0] == 12).sum())))
    model.generate(1)
    assert seen == [16, 9, 4, 1]
    seen.clear()
    model.steps = 40
    model.generate(1)  # more than there are tokens
    assert seen == list(range(16, 0, -1))


@pytest.mark.parametrize("revises", [True, False])
def test_the_critic_may_mask_what_was_kept_only_if_it_is_allowed_to(revises):
    model = _own("external", can_mask_prev_unmasked=revises, steps=8)
    seen = []
    model.model.net.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    model.generate(8, seeds=torch.arange(8))
    returned = any(((before < 12) & (after == 12)).any() for before, after in itertools.pairwise(seen[1:]))
    assert returned == revises
