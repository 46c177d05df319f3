"""Pairs of source and target: batches, prefixes that stay, the copy task, and x-transformers' own way to do it."""

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers import PLAIN, maskgit, random_codes, tiny_critic, tiny_net
from x_transformers import Encoder, NonAutoregressiveWrapper, TransformerWrapper

import maskimg
from maskimg import MaskGit
from maskimg.data.datasets import paired_batches
from maskimg.data.sources import DataError
from maskimg.masking import random_mask, training_counts
from maskimg.sampler import Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import copy_task

# ----------------------------------------------------------------------------- batches


def test_batches_never_end_differ_and_are_the_same_for_the_same_seed():
    sources = torch.arange(60).view(20, 3)
    targets = torch.arange(80).view(20, 2, 2)
    first, again = (list(islice(paired_batches(sources, targets, 4, seed=1), 100)) for _ in range(2))
    for source, target, present in first:
        assert source.dtype == target.dtype == torch.int64 and present.dtype == torch.bool
        assert source.shape == present.shape == (4, 3) and target.shape == (4, 4)
        assert present.all()
        assert torch.equal(source[:, 0] // 3, target[:, 0] // 4)  # still pairs
    assert all(torch.equal(left[0], right[0]) for left, right in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
    other = next(paired_batches(sources, targets, 4, seed=2))
    assert not torch.equal(other[0], first[0][0])


def test_sources_of_different_lengths_are_padded_where_the_mask_says_so():
    sources = [torch.arange(1, length + 1) for length in (2, 5, 3)]
    targets = [torch.full((4,), len(source)) for source in sources]
    for source, target, present in islice(paired_batches(sources, targets, 6), 20):
        assert torch.equal(present.sum(1), target[:, 0])
        assert (source[~present] == 0).all() and (source[present] > 0).all()


def test_what_is_no_set_of_pairs_is_refused():
    with pytest.raises(DataError, match="as many sources as targets, got 2 and 3"):
        next(paired_batches(torch.zeros(2, 3), torch.zeros(3, 3), 1))
    with pytest.raises(DataError, match="differ in length"):
        next(paired_batches(torch.zeros(2, 3), [torch.zeros(3), torch.zeros(4)], 1))


# ----------------------------------------------------------------------------- the copy task


def test_a_generator_learns_to_mirror_its_source_and_nothing_else():
    """The copy, and 8x8 tokens: benchmarks/results/copy-task.json."""
    model = copy_task.train(4, True, 450)
    figures = copy_task.measure(model, 4, True, 128)
    assert figures["exact"] > 0.99
    assert figures["codes_right_with_others_sources"] == pytest.approx(1 / copy_task.VOCABULARY, abs=0.02)


# ----------------------------------------------------------------------------- prefixes

PREFIX = torch.zeros(4, 4, dtype=torch.bool)
PREFIX[0] = True


def test_a_prefix_is_never_masked_and_the_others_as_often_as_their_number_asks():
    codes = random_codes(500)
    for fixed in (PREFIX, PREFIX.flip(0)):
        masked, r = random_mask(codes, "linear", torch.Generator().manual_seed(0), fixed)
        assert not masked[:, fixed].any()
        assert torch.equal(masked.sum((1, 2)), training_counts(r, "linear", 12))
        share = masked[:, ~fixed].float().mean(0)
        assert (share - share.mean()).abs().max() < 0.1  # none of the others is favoured


@pytest.mark.parametrize("loss_weight", ["none", "elbo"])
@pytest.mark.parametrize("visible_weight", [0.0, 0.5])
def test_a_prefix_is_never_scored(loss_weight, visible_weight):
    if loss_weight == "elbo" and visible_weight:
        return
    model = maskgit(
        tiny_net(), token_critic=tiny_critic(), loss_weight=loss_weight, visible_weight=visible_weight,
        schedule="linear",
    )  # fmt: skip
    gradients = {}

    def watch(name: str):
        def keep(_, __, features: torch.Tensor) -> None:
            features.register_hook(lambda gradient: gradients.update({name: gradient}))

        return keep

    trunks = {"net": model.net.trunk, "critic": model.token_critic.trunk}
    hooks = [trunk.register_forward_hook(watch(name)) for name, trunk in trunks.items()]
    model(random_codes(6), fixed=PREFIX, generator=torch.Generator().manual_seed(1)).loss.backward()
    for hook in hooks:
        hook.remove()
    for gradient in gradients.values():
        assert (gradient[:, 0] == 0).all()
        assert (gradient[:, 1:] != 0).any()
    assert set(gradients) == {"net", "critic"}


def test_constant_logits_give_ln_v_whatever_is_fixed():
    model = maskgit(tiny_net(), loss_weight="elbo", schedule="linear")
    model.net.trunk.final.data.zero_()
    model.net.trunk.final.data[0] = -1  # features are 0
    model.net.bias.data.zero_()
    for fixed in (None, PREFIX, PREFIX.flatten()):
        loss = model(random_codes(64), fixed=fixed, generator=torch.Generator().manual_seed(0)).loss
        assert loss.item() == pytest.approx(torch.tensor(float(PLAIN.vocab_size)).log().item(), rel=1e-5)


@pytest.mark.parametrize("order", ["confidence", "halton", "critic"])
def test_a_prefix_that_is_given_stays_whatever_the_critic_says(order):
    model = MaskGit(tiny_net(), token_critic=tiny_critic())
    codes = random_codes(3).masked_fill(~PREFIX, model.mask_id)
    sampler = Sampler(steps=5, order=order, revise=0.2 if order != "critic" else 0.0)
    drawn = model.generate(3, codes=codes, seeds=torch.arange(3), sampler=sampler)
    assert torch.equal(drawn[:, 0], codes[:, 0])
    assert (drawn != model.mask_id).all()


@pytest.mark.parametrize("fixed", [torch.zeros(3, 4, dtype=torch.bool), torch.zeros(4, 4), torch.ones(4, 4) > 0])
def test_what_is_no_prefix_is_refused(fixed):
    with pytest.raises(ValueError, match="fixed must be"):
        MaskGit(tiny_net())(random_codes(2), fixed=fixed)


# ----------------------------------------------------------------------------- beside the reference


def test_with_the_reference_s_own_cross_attention_the_loss_is_the_reference_s(monkeypatch):
    """Its Encoder(cross_attend=True) in both wrappers: same weights, masks and source, padding included."""
    torch.manual_seed(0)
    net = TransformerWrapper(
        num_tokens=17, max_seq_len=16, logits_dim=16, attn_layers=Encoder(dim=32, depth=2, heads=2, cross_attend=True)
    )
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, "use_simple_mdlm_loss_weight": False}
    theirs = NonAutoregressiveWrapper(net, mask_id=16, schedule="cosine", **options).eval()
    ours = maskimg.NonAutoregressiveWrapper(net, mask_id=16, schedule="cosine", **options).eval()
    codes = torch.randint(0, 16, (4, 16))
    present = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    context = torch.randn(4, 5, 32)

    seen = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    expected = theirs(codes, context=context, context_mask=present).loss
    masked = (seen[0] == 16).view(4, 1, 16)
    monkeypatch.setattr("maskimg.maskgit.random_mask", lambda *_: (masked, torch.zeros(4)))
    loss = ours(codes, context=context, context_mask=present).loss
    handle.remove()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    changed = context.masked_fill(~present[..., None], 1e3)
    assert ours(codes, context=changed, context_mask=present).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    changed[0, 0] += 1
    assert ours(codes, context=changed, context_mask=present).loss.item() != pytest.approx(loss.item(), rel=1e-4)
