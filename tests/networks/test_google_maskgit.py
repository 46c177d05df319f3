"""Google's MaskGIT transformer: what it computes is what the original computes, and it takes our network's place."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stirred
from peer_generators import Sizes, google_logits, google_params, write_flax

from maskimg.interop.convert import read_generator
from maskimg.maskgit import MaskGit
from maskimg.networks.google import GoogleConfig, GoogleMaskGit
from maskimg.sampler import Sampler

SIZES = Sizes()
MASK = SIZES.codes


def imported(folder: Path, params: dict) -> GoogleMaskGit:
    net = read_generator(write_flax(params, folder / "checkpoint"), classes=SIZES.classes)
    assert isinstance(net, GoogleMaskGit)
    return net


def grids(seed: int, b: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, h, w), about half of them MASK, and classes (b, 1)."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, SIZES.codes, (b, SIZES.side, SIZES.side), generator=generator)
    masked = torch.rand(codes.shape, generator=generator) < 0.5
    return codes.masked_fill(masked, MASK), torch.randint(0, SIZES.classes, (b, 1), generator=generator)


def expected(params: dict, codes: torch.Tensor, classes: torch.Tensor, **options) -> torch.Tensor:
    """The original's logits (b, h, w, v), cut to the codes."""
    flat = codes.flatten(1).masked_fill(codes.flatten(1) == MASK, -1)
    words = torch.cat((classes + SIZES.codes, flat), dim=1).numpy()
    logits = google_logits(params, words, **options)[:, 1:, : SIZES.codes]
    return torch.from_numpy(logits).unflatten(1, codes.shape[1:]).float()


def tiny(null_trained: bool = False) -> GoogleMaskGit:
    config = GoogleConfig(SIZES.codes, (4, 4), (SIZES.classes,), 24, 2, 3, 40, null_trained)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stirred(GoogleMaskGit(config)).eval()


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_the_originals_for_every_class_and_with_masked_codes(tmp_path, seed):
    params = google_params(seed=seed)
    net, (codes, classes) = imported(tmp_path, params), grids(seed)
    with torch.no_grad():
        torch.testing.assert_close(net(codes, classes), expected(params, codes, classes), atol=1e-4, rtol=1e-4)


def test_the_activation_is_the_approximate_gelu(tmp_path):
    """The exact one differs by more than the tolerance above, so that comparison does tell them apart."""
    params = google_params()
    net, (codes, classes) = imported(tmp_path, params), grids(0)
    wrong = expected(params, codes, classes, exact_gelu=True)
    with torch.no_grad():
        assert (net(codes, classes) - wrong).abs().max() > 3e-4


def test_the_epsilon_of_the_norms_is_small_enough_for_small_embeddings(tmp_path):
    """With embeddings around 1e-4, an epsilon of 1e-5 would shrink them to a tenth."""
    params = google_params()
    for name in ("word_embeddings", "position_embeddings"):
        params["Embed_0"][name]["embedding"] *= np.float32(1e-4)
    net, (codes, classes) = imported(tmp_path, params), grids(0)
    with torch.no_grad():
        features = net.trunk(codes, classes)
    word = params["Embed_0"]["word_embeddings"]["embedding"]
    # The head shares those embeddings, so its logits are compared at a scale of 1.
    bias = torch.from_numpy(params["MlmLayer_0"]["mlm_bias"]["bias"][: SIZES.codes])
    ours = (net.to_logits(features) - bias) * 1e4
    right = (expected(params, codes, classes) - bias) * 1e4
    wrong = (expected(params, codes, classes, epsilon=1e-5) - bias) * 1e4
    assert word.std() < 1e-4
    assert (right - wrong).abs().max() > 0.1
    torch.testing.assert_close(ours.detach(), right, atol=2e-3, rtol=1e-3)


def test_no_label_stands_at_the_place_of_mask_which_fine_tuning_can_teach():
    net, (codes, _) = tiny(), grids(1)
    null = torch.full((len(codes), 1), SIZES.classes)
    assert torch.equal(net(codes), net(codes, null))
    assert torch.equal(net.trunk.modulation(None, 1).shared[0, 0], net.trunk.words.weight[-1])


def test_a_prepared_condition_gives_the_same_features():
    net, (codes, classes) = tiny(), grids(2)
    assert torch.equal(net.trunk(codes, net.trunk.modulation(classes, len(codes))), net.trunk(codes, classes))


def test_logits_at_some_positions_are_those_of_all():
    net, (codes, classes) = tiny(), grids(3)
    at = codes == MASK
    torch.testing.assert_close(net(codes, classes, at=at), net(codes, classes)[at])


def test_it_draws_complete_grids_that_depend_on_their_class():
    model = MaskGit(tiny())
    seeds = torch.arange(4)
    one = model.generate(4, torch.zeros(4, 1, dtype=torch.int64), seeds=seeds, sampler=Sampler(steps=5))
    other = model.generate(4, torch.ones(4, 1, dtype=torch.int64), seeds=seeds, sampler=Sampler(steps=5))
    assert one.shape == (4, 4, 4)
    assert int(one.max()) < MASK
    assert not torch.equal(one, other)


def test_guidance_and_drawing_without_a_class_are_refused_in_a_sentence():
    model, classes = MaskGit(tiny()), torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="guidance must be 1, got 3"):
        model.generate(1, classes, sampler=Sampler(guidance=3.0))
    with pytest.raises(ValueError, match="never trained without a label, so it cannot draw anything"):
        model.generate(1)
    with pytest.raises(ValueError, match=r"expected labels in \[0, 4\], got 5 to 5"):
        model.generate(1, classes + SIZES.classes)


def test_a_network_whose_null_was_trained_can_be_guided():
    model, classes = MaskGit(tiny(null_trained=True)), torch.zeros(1, 1, dtype=torch.int64)
    seeds, guided = torch.zeros(1, dtype=torch.int64), Sampler(steps=4, guidance=5.0)
    assert model.generate(1, seeds=seeds).shape == (1, 4, 4)
    plain = model.generate(1, classes, seeds=seeds, sampler=dataclasses.replace(guided, guidance=1.0))
    assert not torch.equal(model.generate(1, classes, seeds=seeds, sampler=guided), plain)


def test_it_can_be_fine_tuned_with_self_conditioning_and_a_self_critic():
    model = MaskGit(tiny(), self_cond=True, self_token_critic=True).train()
    codes, classes = grids(4)
    losses = model(codes.clamp(max=MASK - 1), classes, generator=torch.Generator().manual_seed(0))
    losses.loss.backward()
    assert losses.loss.isfinite()
    for name, parameter in model.net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("side, millions", [(16, 172.457), (32, 173.047)])
def test_the_defaults_are_the_published_network(side, millions):
    with torch.device("meta"):
        net = GoogleMaskGit(GoogleConfig(grid=(side, side)))
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 3) == millions


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one label field, got 2"):
        GoogleConfig(label_sizes=(3, 2))
    with pytest.raises(ValueError, match="heads must divide dim, got 24 / 5"):
        GoogleConfig(dim=24, heads=5)
