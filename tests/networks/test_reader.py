"""Sources: what is read, what is padding, and what a condition without them means."""

import dataclasses

import pytest
import torch
from helpers import stirred

from maskimg import MaskGit, Objective
from maskimg.conditions import Condition, Context, drop_condition, from_source
from maskimg.network import joined
from maskimg.networks.context_encoder import SourceConfig
from maskimg.networks.transformer import MaskedTransformer, TokenCritic, TransformerConfig
from maskimg.paper.first import distinct
from maskimg.sampler import Sampler

WORDS = SourceConfig("words", vocab_size=20, grid=(1, 6), depth=1)
PICTURE = SourceConfig("picture", vocab_size=16, grid=(2, 2), over=True, depth=1)
FEATURES = SourceConfig("words", features=5, grid=(1, 6), depth=1)
SIZES = (3,)


def config(*sources: SourceConfig) -> TransformerConfig:
    return TransformerConfig(12, (4, 4), SIZES, dim=16, depth=2, heads=2, sources=sources)


def net_of(*sources: SourceConfig) -> MaskedTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stirred(MaskedTransformer(config(*sources))).eval()


def words(b: int, length: int = 4, seed: int = 0) -> Context:
    """(b, 6), of which `length` are there."""
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.randint(0, 20, (b, 6), generator=generator), (torch.arange(6) < length).expand(b, -1))


def picture(b: int, seed: int = 0) -> Context:
    values = torch.randint(0, 16, (b, 4), generator=torch.Generator().manual_seed(seed))
    return Context(values, torch.ones(b, 4, dtype=torch.bool))


def masked_codes(b: int) -> torch.Tensor:
    codes = torch.randint(0, 12, (b, 4, 4), generator=torch.Generator().manual_seed(3))
    return codes.masked_fill(torch.rand(b, 4, 4, generator=torch.Generator().manual_seed(4)) < 0.5, 12)


# ----------------------------------------------------------------------------- padding


@pytest.mark.parametrize("source", [WORDS, FEATURES])
def test_what_stands_in_the_padding_changes_nothing(source):
    net, codes, (values, present) = net_of(source), masked_codes(2), words(2)
    if source.features:
        values = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    told = net(codes, Condition(contexts={"words": Context(values, present)}))
    for row in (4, 5):
        values = values.clone()
        values[:, row] = 0 if source.features == 0 else 1e4
        assert torch.equal(net(codes, Condition(contexts={"words": Context(values, present)})), told)
    values[:, 3] = 7
    assert not torch.equal(net(codes, Condition(contexts={"words": Context(values, present)})), told)


def test_no_gradient_reaches_padding_and_some_reaches_every_word_that_is_there():
    net = net_of(FEATURES)
    values = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    present = torch.tensor([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    model = MaskGit(net, objective=Objective(condition_drop=0.0))
    codes = torch.randint(0, 12, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    condition = Condition(contexts={"words": Context(values, present)})
    model(codes, condition, generator=torch.Generator().manual_seed(0)).loss.backward()
    assert values.grad is not None
    size = values.grad.abs().sum(-1)
    assert (size[~present] == 0).all()  # exactly
    assert (size[present] > 0).all()


def test_an_absent_sequence_is_as_one_that_was_never_given():
    net, codes = net_of(WORDS, PICTURE), masked_codes(3)
    nothing = net(codes)
    for contexts in ({"words": words(3, 0)}, {"words": words(3, 0), "picture": picture(3)}):
        condition = Condition(contexts=contexts)
        torch.testing.assert_close(net(codes, condition.null(SIZES)), nothing, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(codes, Condition(contexts={"words": words(3, 0)})), nothing, rtol=1e-5, atol=1e-5)


def test_every_source_and_label_matters():
    net, codes = net_of(WORDS, PICTURE), masked_codes(3)
    told = Condition(torch.tensor([[0], [1], [2]]), ("class",), {"words": words(3), "picture": picture(3)})
    whole = net(codes, told)
    for name in ("class", "words", "picture"):
        assert (net(codes, told.without(name, SIZES)) - whole).abs().max() > 0.01
    with pytest.raises(ValueError, match="no `colour` in this condition, only `class`, `words`, `picture`"):
        told.without("colour", SIZES)


def test_a_picture_lies_over_the_grid_that_is_drawn():
    """Nothing but their places tells equal source tokens apart, and the same ones elsewhere mean something else."""
    net, codes = net_of(PICTURE), torch.full((1, 4, 4), 12)
    values = torch.tensor([[3, 0, 0, 0]])
    corner = net(codes, from_source(values))
    other = net(codes, from_source(values.flip(1)))
    assert (corner - other).abs().max() > 0.01


# ----------------------------------------------------------------------------- batches


def test_an_image_of_a_batch_is_told_its_own_condition():
    net, codes = net_of(WORDS, PICTURE), masked_codes(4)
    condition = Condition(torch.tensor([[0], [1], [2], [3]]), ("class",), {"words": words(4), "picture": picture(4)})
    together = net(codes, condition)
    for i in range(4):
        alone = net(codes[i : i + 1], condition.rows(slice(i, i + 1)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


def test_conditions_of_different_lengths_are_joined():
    trunk, codes = net_of(WORDS).trunk, masked_codes(2)
    short = Condition(contexts={"words": Context(*(tensor[:, :3] for tensor in words(1)))})
    long = Condition(contexts={"words": words(1, 6, seed=1)})
    both = joined([trunk.modulation(short, 1), trunk.modulation(long, 1), trunk.modulation(None, 1)])
    features = trunk(codes[[0, 0, 0]], both)
    for i, condition in enumerate((short, long, None)):
        torch.testing.assert_close(features[i : i + 1], trunk(codes[:1], condition), rtol=1e-4, atol=1e-4)


def test_different_conditions_are_told_apart_whatever_they_consist_of():
    condition = Condition(torch.tensor([[0], [1], [0], [0]]), ("class",), {"words": words(1).__class__(
        torch.tensor([[1, 2], [1, 2], [1, 2], [1, 3]]), torch.tensor([[True, True]] * 4))})  # fmt: skip
    different, rows = distinct(condition, 4)
    assert rows.tolist()[0] == rows.tolist()[2] and len(set(rows.tolist())) == 3
    again = different.rows(rows)
    assert all(torch.equal(left, right) for left, right in zip(again.tensors, condition.tensors, strict=True))


# ----------------------------------------------------------------------------- training


def test_training_forgets_all_of_a_condition_or_single_parts_as_often_as_asked():
    b = 20_000
    condition = Condition(torch.zeros(b, 1, dtype=torch.int64), ("class",), {"words": words(b), "picture": picture(b)})
    dropped = drop_condition(condition, SIZES, 0.1, torch.Generator().manual_seed(0))
    assert dropped.labels is not None
    gone = [dropped.labels[:, 0] == 3] + [~dropped.contexts[name].present.any(1) for name in ("words", "picture")]
    for each in gone:
        assert each.float().mean().item() == pytest.approx(0.1, abs=0.01)
    everything = (gone[0] & gone[1] & gone[2]).float().mean().item()
    assert everything == pytest.approx(0.05 + 0.95 * (0.05 / 0.95) ** 3, abs=0.008)
    kept = dropped.contexts["words"].present.any(1)
    assert torch.equal(dropped.contexts["words"].present[kept], condition.contexts["words"].present[kept])


def test_the_critic_is_told_the_sources_too():
    critic_config = dataclasses.replace(config(WORDS), depth=1)
    critic = stirred(TokenCritic(critic_config), 1).eval()
    model = MaskGit(net_of(WORDS), token_critic=critic).eval()
    codes = torch.randint(0, 12, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    said = [model.critic_logits(codes, Condition(contexts={"words": words(2, seed=seed)})) for seed in (0, 1)]
    assert (said[0] - said[1]).abs().max() > 0.01
    model(codes, Condition(contexts={"words": words(2)}), only_train_critic=True).loss.backward()
    assert critic.trunk.readers["words"].null.grad is not None
    assert critic.trunk.readers["words"].null.grad.abs().sum() > 0


# ----------------------------------------------------------------------------- guidance


def test_guidance_by_a_single_field_moves_away_from_what_is_said_without_it():
    model, codes = MaskGit(net_of(WORDS)).eval(), masked_codes(2)
    condition = Condition(torch.tensor([[0], [2]]), ("class",), {"words": words(2)})
    told, nothing = model.net(codes, condition), model.net(codes, condition.null(SIZES))
    by = {name: model.net(codes, condition.without(name, SIZES)) for name in ("class", "words")}
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(model.logits(codes, condition, {"": 2.0}), nothing + 2 * (told - nothing), **close)
    torch.testing.assert_close(
        model.logits(codes, condition, {"": 1.0, "words": 3.0}), by["words"] + 3 * (told - by["words"]), **close
    )
    expected = nothing + 2 * (told - nothing) + 0.5 * (told - by["class"]) + 2 * (told - by["words"])
    torch.testing.assert_close(model.logits(codes, condition, {"": 2.0, "class": 1.5, "words": 3.0}), expected, **close)


def test_guidance_moves_away_from_the_negative_condition_where_there_is_one():
    model, codes = MaskGit(net_of(WORDS)).eval(), masked_codes(2)
    negative = Condition(contexts={"words": words(2, seed=5)})
    condition = Condition(contexts={"words": words(2)}, negative=negative)
    told, other = model.net(codes, condition), model.net(codes, negative)
    torch.testing.assert_close(model.logits(codes, condition, 3.0), other + 3 * (told - other), rtol=1e-3, atol=1e-3)


def test_a_point_between_two_labels_is_between_what_they_say():
    trunk = net_of().trunk
    ends = [trunk.modulation(torch.tensor([[i]]), 1).shared for i in (0, 2)]
    for share in (0.0, 1.0):
        between = Condition(torch.tensor([[0]]), ("class",), {}, torch.tensor([[2]]), torch.tensor([[share]]))
        torch.testing.assert_close(trunk.modulation(between, 1).shared, ends[int(share)])
    half = Condition(torch.tensor([[0]]), ("class",), {}, torch.tensor([[2]]), torch.tensor([[0.5]]))
    shared = trunk.modulation(half, 1).shared
    assert all((shared - end).abs().max() > 0.01 for end in ends)


def test_images_drawn_together_from_different_sources_are_those_drawn_alone():
    model = MaskGit(net_of(WORDS, PICTURE))
    condition = Condition(torch.tensor([[0], [1], [3]]), ("class",), {"words": words(3), "picture": picture(3)})
    sampler = Sampler(steps=4, guidance=2.0, field_guidance=(("words", 1.5),))
    together = model.generate(3, condition, sampler=sampler, seeds=torch.tensor([4, 5, 6]))
    for i in range(3):
        alone = model.generate(1, condition.rows(slice(i, i + 1)), sampler=sampler, seeds=torch.tensor([4 + i]))
        assert torch.equal(alone[0], together[i])


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "condition, sentence",
    [
        (Condition(contexts={"colour": words(2)}), "does not attend to `colour`, only to words"),
        (Condition(contexts={"words": words(3)}), r"expected a `words` of \(2, 6 or fewer\), got \(3, 6\)"),
        (Condition(contexts={"words": Context(words(2).values + 20, words(2).present)}), r"`words` in \[0, 20\)"),
        (Condition(torch.tensor([[9], [0]]), ("class",)), r"expected labels in \[0, 3\], got 0 to 9"),
        (Condition(contexts={}, negative=Condition(contexts={"colour": words(2)})), "does not attend to `colour`"),
    ],
)
def test_what_is_no_condition_is_refused(condition, sentence):
    with pytest.raises(ValueError, match=sentence):
        MaskGit(net_of(WORDS)).generate(2, condition)


@pytest.mark.parametrize("wrong", [{}, {"vocab_size": 4, "features": 4}, {"vocab_size": 4, "grid": (0, 4)}])
def test_a_source_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="either a vocabulary or features"):
        SourceConfig("words", **wrong)
