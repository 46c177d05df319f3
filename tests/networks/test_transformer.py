"""The networks see every token, its row and its column, and the labels; large codebooks are compared in two groups."""

import dataclasses

import pytest
import torch
from helpers import PLAIN, random_codes, stirred, tiny_critic, tiny_net
from tiny import NETWORK
from torch.nn.functional import cross_entropy

from maskimg.maskgit import MaskGit, Objective
from maskimg.networks.transformer import (
    GROUPED_ABOVE,
    GroupedCodes,
    MaskedTransformer,
    TokenCritic,
    TransformerConfig,
    group_size,
)
from maskimg.sampler import Sampler


def test_there_is_a_logit_for_every_code_and_none_for_mask():
    net = tiny_net()
    assert net(random_codes(2)).shape == (2, 4, 4, PLAIN.vocab_size)
    assert net.trunk.embed.num_embeddings == PLAIN.vocab_size + 1
    assert net(torch.full((1, 4, 4), PLAIN.vocab_size)).isfinite().all()


@pytest.mark.parametrize("build", [tiny_net, tiny_critic])
def test_every_token_sees_every_other(build):
    """A causal network would not see the last code from the first position."""
    network = build()
    codes = random_codes(1)
    before = network(codes)
    for y, x in ((3, 3), (0, 0), (1, 2)):
        changed = codes.clone()
        changed[0, y, x] = (codes[0, y, x] + 1) % PLAIN.vocab_size
        moved = (network(changed) - before).abs().reshape(1, 4, 4, -1).amax(-1)
        assert (moved > 1e-5).all()


def test_positions_are_told_apart_by_row_and_by_column():
    """All codes alike: only the positions differ, and no two of them see the same distances in rows and columns."""
    features = tiny_net()(torch.full((1, 4, 4), PLAIN.vocab_size))[0].reshape(16, -1)
    apart = torch.cdist(features, features) + 10 * torch.eye(16)
    assert apart.min() > 1e-5


def test_rows_are_not_columns():
    net = tiny_net()
    codes = random_codes(1)
    assert not torch.allclose(net(codes.mT), net(codes).transpose(1, 2), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (2, 6), (6, 2), (1, 5), (1, 1)])
def test_grids_may_be_rectangular_and_of_another_size(shape):
    assert tiny_net()(random_codes(2, dataclasses.replace(PLAIN, grid=shape))).shape == (2, *shape, PLAIN.vocab_size)
    assert tiny_critic()(random_codes(2, dataclasses.replace(PLAIN, grid=shape))).shape == (2, *shape)


def test_logits_at_some_positions_are_those_of_the_whole_grid():
    net, codes = tiny_net(), random_codes(3)
    at = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(net(codes, at=at), net(codes)[at])
    assert net(codes, at=torch.zeros_like(at)).shape == (0, PLAIN.vocab_size)


@pytest.mark.parametrize("build", [tiny_net, tiny_critic])
def test_every_field_of_a_condition_matters_and_none_is_the_null_one(build):
    network = build(NETWORK)
    codes = random_codes(1, NETWORK)
    outputs = [network(codes, torch.tensor([row])) for row in ([0, 0], [1, 0], [0, 1], [3, 2])]
    for i, left in enumerate(outputs):
        for right in outputs[i + 1 :]:
            assert (left - right).abs().max() > 1e-3
    assert torch.equal(network(codes), outputs[-1])


def test_an_image_does_not_depend_on_its_batch():
    net, codes = tiny_net(NETWORK), random_codes(3, NETWORK)
    condition = torch.tensor([[0, 0], [1, 1], [3, 2]])
    together = net(codes, condition)
    for i in range(3):
        torch.testing.assert_close(net(codes[i : i + 1], condition[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 1, 3])
def test_there_may_be_any_number_of_registers(registers):
    config = dataclasses.replace(PLAIN, registers=registers)
    assert tiny_net(config)(random_codes(2)).shape == (2, 4, 4, PLAIN.vocab_size)


def test_dropout_works_in_training_only():
    net = tiny_net(dataclasses.replace(PLAIN, dropout=0.5))
    codes = random_codes(1)
    assert torch.equal(net(codes), net(codes))
    net.train()
    assert not torch.equal(net(codes), net(codes))


@pytest.mark.parametrize("build", [MaskedTransformer, TokenCritic])
def test_every_weight_gets_a_gradient(build):
    network = stirred(build(NETWORK))
    network(random_codes(4, NETWORK), torch.tensor([[0, 0], [1, 1], [2, 0], [3, 2]])).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_an_untrained_network_prefers_no_code_by_much():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MaskedTransformer(NETWORK)
    assert net(random_codes(2, NETWORK)).softmax(-1).max() < 0.2


@pytest.mark.parametrize(("dim", "heads"), [(30, 4), (24, 4), (8, 4)])
def test_widths_that_rotary_positions_cannot_divide_are_refused(dim, heads):
    with pytest.raises(ValueError, match=f"dim / heads must be a multiple of 4, got {dim} / {heads}"):
        TransformerConfig(12, (4, 4), dim=dim, heads=heads)


def test_bf16_changes_logits_only_a_little():
    net, codes = tiny_net(), random_codes(2)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(codes).float()
    assert (rough - net(codes)).abs().max() < 0.1 * net(codes).abs().max()


def test_what_is_added_to_the_embeddings_reaches_every_token():
    """And nothing is added by zeros."""
    trunk, codes = tiny_net().trunk, random_codes(1)
    embeds = torch.zeros(1, 4, 4, PLAIN.dim)
    torch.testing.assert_close(trunk(codes, None, embeds), trunk(codes))
    embeds[0, 1, 2] = 1.0
    assert ((trunk(codes, None, embeds) - trunk(codes)).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("config", [PLAIN, NETWORK])
def test_a_condition_may_be_prepared_once(config):
    trunk, codes = tiny_net(config).trunk, random_codes(2, config)
    condition = torch.tensor([[0, 1], [2, 0]]) if config.label_sizes else None
    assert torch.equal(trunk(codes, trunk.modulation(condition, 2)), trunk(codes, condition))
    assert torch.equal(trunk(codes, trunk.modulation(None, 2)), trunk(codes))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_features_is_that_of_their_logits(smoothing):
    net, codes = tiny_net(), random_codes(3)
    features = net.trunk(codes)
    found = net.cross_entropy(features.flatten(0, 2), codes.flatten(), smoothing)
    expected = cross_entropy(
        net.to_logits(features).flatten(0, 2), codes.flatten(), reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(found, expected)


# ----------------------------------------------------------------------------- large codebooks

# Squares, products, a prime, twice a prime, and the first one above the limit (17 * 241).
LARGE = [4097, 4099, 4111 * 2, 5000, 8192, 16384]


def _large(vocab_size: int, **changes) -> TransformerConfig:
    return dataclasses.replace(PLAIN, vocab_size=vocab_size, **changes)


@pytest.mark.parametrize("vocab_size", [*range(1, 40), 1024, 4096, *LARGE, 65536, 262144, 262147])
def test_two_groups_hold_every_code_in_about_twice_the_root(vocab_size):
    """Whatever the number of codes; a prime's only divisor is 1, and so it is rounded up."""
    low = group_size(vocab_size)
    high = -(-vocab_size // low)
    assert high * low >= vocab_size > (high - 1) * low
    assert low + high <= 5 * vocab_size**0.5 + 2


@pytest.mark.parametrize("vocab_size", LARGE)
def test_a_large_codebook_has_few_vectors_and_a_logit_for_every_code(vocab_size):
    net = tiny_net(_large(vocab_size))
    assert isinstance(net.trunk.embed, GroupedCodes)
    assert net.trunk.embed.high.shape[0] + net.trunk.embed.low.shape[0] == len(net.bias) < 1000
    codes = random_codes(2, net.config)
    assert net(codes).shape == (2, 4, 4, vocab_size)
    assert net(codes).isfinite().all()
    assert not isinstance(tiny_net(_large(GROUPED_ABOVE)).trunk.embed, GroupedCodes)


@pytest.mark.parametrize("vocab_size", LARGE)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_of_groups_is_that_of_the_whole_softmax(vocab_size, smoothing):
    """And its gradients. The last code, in a group that may be shorter, is among them."""
    net = tiny_net(_large(vocab_size))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, PLAIN.dim, generator=generator, requires_grad=True)
    codes = torch.randint(0, vocab_size, (20,), generator=generator)
    codes[0], codes[1] = 0, vocab_size - 1
    found = net.cross_entropy(features, codes, smoothing)
    expected = cross_entropy(net.to_logits(features), codes, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    weights = [features, net.bias, net.trunk.embed.high, net.trunk.embed.low]
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocab_size", LARGE)
def test_every_code_of_a_large_codebook_has_a_vector_of_its_own_and_so_has_mask(vocab_size):
    """A code's logit is the product of a feature with that very vector, and its bias: the two groups are one table."""
    net = tiny_net(_large(vocab_size))
    embed = net.trunk.embed
    vectors = embed(torch.arange(vocab_size + 1))
    assert len(vectors.unique(dim=0)) == vocab_size + 1
    assert torch.equal(vectors[-1], embed.mask)
    features = torch.randn(3, PLAIN.dim, generator=torch.Generator().manual_seed(0))
    bias = net.to_logits(torch.zeros(PLAIN.dim))
    torch.testing.assert_close(net.to_logits(features), features @ vectors[:-1].T + bias, rtol=1e-4, atol=1e-4)


def test_a_large_codebook_is_trained_with_every_weight_and_drawn_from_without_mask():
    net = tiny_net(dataclasses.replace(NETWORK, vocab_size=4099))
    model, condition = (
        MaskGit(net, objective=Objective(random_token_prob=0.2, label_smoothing=0.1)),
        torch.tensor([[0, 1], [2, 0]] * 8),
    )
    model(random_codes(16, net.config), condition, generator=torch.Generator().manual_seed(0)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    codes = model.generate(8, seeds=torch.arange(8), sampler=Sampler(steps=3))
    assert 0 <= codes.min() <= codes.max() < 4099


@pytest.mark.parametrize("network", [PLAIN, _large(4099)])
def test_an_untrained_codebook_has_vectors_of_one_size(network):
    """A sum of two random vectors is as large as one: 0.02 a feature, here to a tenth."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        embed = MaskedTransformer(dataclasses.replace(network, dim=64, heads=4)).trunk.embed
    sizes = embed(torch.arange(network.vocab_size)).std()
    assert sizes.item() == pytest.approx(0.02, rel=0.1)
