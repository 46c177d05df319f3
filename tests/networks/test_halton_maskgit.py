"""Halton-MaskGIT's transformer: what it computes is what the original computes, and it takes our network's place."""

from pathlib import Path

import pytest
import torch
from helpers import stirred
from peer_generators import Sizes, halton_logits, halton_state, write_safetensors

from maskimg.interop.convert import read_generator
from maskimg.maskgit import MaskGit
from maskimg.networks.halton import HaltonConfig, HaltonMaskGit
from maskimg.sampler import Sampler

SIZES = Sizes(dim=26, heads=3, registers=2)  # as in the published `small`, the heads do not fill the width
MASK = SIZES.codes


def imported(folder: Path, state: dict[str, torch.Tensor]) -> HaltonMaskGit:
    net = read_generator(write_safetensors(state, folder / "net.safetensors"), heads=SIZES.heads)
    assert isinstance(net, HaltonMaskGit)
    return net


def grids(seed: int, b: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, h, w), about half of them MASK, and classes (b, 1), null among them."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, SIZES.codes, (b, SIZES.side, SIZES.side), generator=generator)
    masked = torch.rand(codes.shape, generator=generator) < 0.5
    classes = torch.randint(0, SIZES.classes, (b, 1), generator=generator)
    classes[-1] = SIZES.classes
    return codes.masked_fill(masked, MASK), classes


def expected(
    state: dict[str, torch.Tensor], codes: torch.Tensor, classes: torch.Tensor, epsilon: float = 1e-5
) -> torch.Tensor:
    """The original's logits (b, h, w, v), that of MASK cut off."""
    logits = halton_logits(state, codes.flatten(1).numpy(), classes[:, 0].numpy(), SIZES.heads, epsilon=epsilon)
    return torch.from_numpy(logits[..., :MASK]).unflatten(1, codes.shape[1:]).float()


def tiny() -> HaltonMaskGit:
    config = HaltonConfig(SIZES.codes, (4, 4), (SIZES.classes,), SIZES.dim, 2, SIZES.heads, 40, SIZES.registers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stirred(HaltonMaskGit(config)).eval()


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_the_originals_with_masked_codes_and_without_a_class(tmp_path, seed):
    state = halton_state(SIZES, seed=seed)
    net, (codes, classes) = imported(tmp_path, state), grids(seed)
    with torch.no_grad():
        torch.testing.assert_close(net(codes, classes), expected(state, codes, classes), atol=1e-4, rtol=1e-4)


def test_the_epsilon_of_the_norms_is_the_originals(tmp_path):
    """The first norm sees embeddings of about 0.003, whose squares are as large as the epsilon."""
    state = halton_state(SIZES)
    for name in ("tok_emb.weight", "head.weight", "pos_emb.weight", "reg_tokens.weight"):
        state[name] *= 0.01
    state["head.bias"] *= 0
    net, (codes, classes) = imported(tmp_path, state), grids(0)
    with torch.no_grad():
        ours = net(codes, classes) * 100
    torch.testing.assert_close(ours, 100 * expected(state, codes, classes), atol=2e-4, rtol=1e-4)
    assert (ours - 100 * expected(state, codes, classes, epsilon=1e-6)).abs().max() > 1e-2


def test_no_condition_is_the_null_class():
    net, (codes, _) = tiny(), grids(1)
    assert torch.equal(net(codes), net(codes, torch.full((len(codes), 1), SIZES.classes)))


def test_a_prepared_condition_gives_the_same_features():
    net, (codes, classes) = tiny(), grids(2)
    assert torch.equal(net.trunk(codes, net.trunk.modulation(classes, len(codes))), net.trunk(codes, classes))


def test_logits_at_some_positions_are_those_of_all():
    net, (codes, classes) = tiny(), grids(3)
    at = codes == MASK
    torch.testing.assert_close(net(codes, classes, at=at), net(codes, classes)[at])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_guided_logits_are_the_originals_rule(guidance):
    """Its weight w counts from 0: (1 + w) c - w u."""
    net, (codes, classes) = tiny(), grids(4)
    model, w = MaskGit(net), guidance - 1
    with torch.no_grad():
        plain = (1 + w) * net(codes, classes) - w * net(codes)
        torch.testing.assert_close(model.logits(codes, classes, guidance), plain, atol=1e-4, rtol=1e-4)


def test_it_draws_complete_grids_that_depend_on_their_class_and_on_guidance():
    model, seeds = MaskGit(tiny()), torch.arange(4)
    classes = torch.zeros(4, 1, dtype=torch.int64)
    drawn = [
        model.generate(4, condition, seeds=seeds, sampler=Sampler(steps=5, guidance=guidance))
        for condition, guidance in ((None, 1.0), (classes, 1.0), (classes, 6.0), (classes + 1, 1.0))
    ]
    for codes in drawn:
        assert codes.shape == (4, 4, 4)
        assert int(codes.max()) < MASK
    assert all(not torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])


def test_it_can_be_fine_tuned_with_self_conditioning_and_a_self_critic():
    model = MaskGit(tiny(), self_cond=True, self_token_critic=True).train()
    codes, classes = grids(5)
    losses = model(codes.clamp(max=MASK - 1), classes, generator=torch.Generator().manual_seed(0))
    losses.loss.backward()
    assert losses.loss.isfinite()
    for name, parameter in model.net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_fresh_network_begins_with_blocks_that_change_nothing():
    config = HaltonConfig(SIZES.codes, (4, 4), (SIZES.classes,), SIZES.dim, 2, SIZES.heads, 40, 0)
    block, x = HaltonMaskGit(config).trunk.blocks[0], torch.randn(1, 16, SIZES.dim)
    assert torch.equal(block(x, torch.zeros(1, 6, 1, SIZES.dim)), x)
    assert torch.count_nonzero(block.modulate(torch.randn(1, SIZES.dim))) == 0


@pytest.mark.parametrize(
    "side, dim, depth, heads, hidden, millions",
    [
        (16, 384, 6, 6, 1024, 23.0),
        (16, 512, 12, 6, 1536, 69.3),
        (16, 768, 12, 12, 2048, 142.2),
        (24, 1024, 24, 16, 2816, 480.0),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(side, dim, depth, heads, hidden, millions):
    config = HaltonConfig(grid=(side, side), dim=dim, depth=depth, heads=heads, hidden=hidden)
    with torch.device("meta"):
        net = HaltonMaskGit(config)
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == millions


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one label field, got 0"):
        HaltonConfig(label_sizes=())
    with pytest.raises(ValueError, match="heads must be between 1 and dim = 24, got 25"):
        HaltonConfig(dim=24, heads=25)
