"""The networks see every token, its row and its column, and the labels."""

import dataclasses

import pytest
import torch
from helpers import PLAIN, random_codes, stirred, tiny_critic, tiny_net
from tiny import NETWORK

from maskimg.transformer import MaskedTransformer, TokenCritic, TransformerConfig


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
