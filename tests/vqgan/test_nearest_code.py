"""The codebooks of imported tokenizers: the nearest row in fp32, whatever the autocast and however many rows."""

import pytest
import torch

from vqgan import quantizer as module
from vqgan.quantizer import NearestCode, ProbableCode, Quantizer, nearest


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _filled(quantizer: Quantizer) -> Quantizer:
    """Rows of different lengths, which freshly initialised ones would not have."""
    for seed, parameter in enumerate(quantizer.parameters()):
        parameter.data = _random(*parameter.shape, seed=seed + 1)
    return quantizer.eval()


QUANTIZERS = {
    "nearest": lambda: _filled(NearestCode(50, 6)),
    "cosine": lambda: _filled(NearestCode(50, 6, unit_length=True)),
    "gumbel": lambda: _filled(ProbableCode(50, 6)),
}


@pytest.mark.parametrize("unit_length", [False, True])
def test_each_latent_gets_the_row_at_the_least_distance(unit_length):
    quantizer = _filled(NearestCode(50, 6, unit_length=unit_length))
    latents, rows = _random(2, 6, 5, 7), quantizer.codebook.detach()
    vectors = latents.permute(0, 2, 3, 1).double()
    if unit_length:
        vectors, rows = vectors / vectors.norm(dim=-1, keepdim=True), rows / rows.norm(dim=-1, keepdim=True)
    distances = (vectors[..., None, :] - rows.double()).square().sum(-1)
    _, codes, _ = quantizer(latents)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, distances.argmin(-1))


def test_many_rows_are_searched_in_parts_that_change_no_code(monkeypatch):
    vectors, rows = _random(900, 4), _random(16384, 4, seed=1)
    expected = torch.cdist(vectors.double(), rows.double()).argmin(-1)
    sizes = []
    monkeypatch.setattr(
        module.torch, "cat", lambda parts, cat=torch.cat: (sizes.extend(map(len, parts)), cat(parts))[1]
    )
    assert torch.equal(nearest(vectors.repeat(3, 1), rows), expected.repeat(3))
    assert sizes == [1024, 1024, 652]  # of 16,384 distances each: 64 MB at a time


@pytest.mark.parametrize("name", QUANTIZERS)
def test_looking_codes_up_gives_the_quantized_latents_again(name):
    quantizer = QUANTIZERS[name]()
    quantized, codes, loss = quantizer(_random(2, 6, 5, 7))
    assert loss.shape == ()
    torch.testing.assert_close(quantizer.lookup(codes), quantized)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_the_same_under_bf16(name):
    quantizer = QUANTIZERS[name]()
    _, expected, _ = quantizer(_random(4, 6, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        quantized, codes, _ = quantizer(_random(4, 6, 16, 16))
    assert torch.equal(codes, expected)
    assert quantized.dtype == torch.float32


def test_the_gradient_passes_straight_through_and_the_loss_draws_both_sides_together():
    quantizer = NearestCode(50, 6)
    latents = _random(2, 6, 4, 4).requires_grad_()
    quantized, _, loss = quantizer(latents)
    (straight,) = torch.autograd.grad(quantized.sum(), latents, retain_graph=True)
    assert torch.equal(straight, torch.ones_like(latents))

    before = loss.item()
    optimizer = torch.optim.SGD([latents, quantizer.codebook], lr=1.0)
    loss.backward()
    assert quantizer.codebook.grad is not None and quantizer.codebook.grad.abs().sum() > 0
    optimizer.step()
    assert quantizer(latents)[2].item() < before
