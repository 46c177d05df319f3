"""Both quantizers keep one promise: codes name the very vectors that the decoder was trained on."""

import pytest
import torch
from helpers import stirred

from vqgan.quantizer import Codebook, FiniteScalar


def _codebook(size: int = 32, dim: int = 8) -> Codebook:
    """A VQ codebook in use, whose rows no longer have length 1.

    LlamaGen normalises at look-up only, which nobody sees while the rows still have the length they start with.
    """
    quantizer = Codebook(size, dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer.train()(_latents(dim, h=16, w=16))
    book = quantizer.vq._codebook.embed
    book.data.mul_(torch.linspace(0.5, 2, size)[None, :, None])
    return quantizer.eval()


def _latents(dim: int, *, b: int = 2, h: int = 8, w: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, dim, h, w, generator=torch.Generator().manual_seed(seed))


QUANTIZERS = {
    "fsq": lambda: FiniteScalar((8, 5, 5, 5)).eval(),
    "vq": _codebook,
    "vq of 3": lambda: _codebook(16, 3),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("h", "w"), [(8, 8), (4, 6), (1, 3), (16, 2)])
def test_looking_codes_up_gives_the_quantized_latents_again(name, h, w):
    """On an 8x8 grid of 8-dimensional codes, the library's image option looked up along the width, with no error."""
    quantizer = QUANTIZERS[name]()
    quantized, codes, _ = quantizer(_latents(quantizer.dim, h=h, w=w))
    assert quantized.shape == (2, quantizer.dim, h, w)
    assert torch.equal(quantizer.lookup(codes), quantized)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_whole_numbers_of_the_vocabulary(name):
    quantizer = QUANTIZERS[name]()
    _, codes, loss = quantizer(10 * _latents(quantizer.dim))
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 8, 8)
    assert 0 <= codes.min() <= codes.max() < quantizer.vocab_size
    assert loss.shape == ()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_code_of_the_vocabulary_can_be_looked_up_and_is_its_own_vector(name):
    quantizer = QUANTIZERS[name]()
    vectors = quantizer.lookup(torch.arange(quantizer.vocab_size)[None, None])[0, :, 0].T
    assert len(vectors.unique(dim=0)) == quantizer.vocab_size


def test_every_combination_of_fsq_levels_is_a_code():
    quantizer = FiniteScalar((8, 5, 3))
    assert quantizer.vocab_size == 120
    vectors = quantizer.lookup(torch.arange(120)[None, None])
    assert [len(channel.unique()) for channel in vectors[0]] == [8, 5, 3]
    assert vectors.abs().max() <= 1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_the_same_under_bf16(name):
    """A hundredth of them changed when the library was given bf16."""
    quantizer = QUANTIZERS[name]()
    latents = _latents(quantizer.dim, h=32, w=32)
    expected = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        quantized, codes, _ = quantizer(latents)
    assert torch.equal(codes, expected[1])
    assert torch.equal(quantized, expected[0])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradients_pass_straight_through(name):
    quantizer = QUANTIZERS[name]().train()
    latents = _latents(quantizer.dim).requires_grad_()
    quantized, _, loss = quantizer(latents)
    (quantized.square().sum() + loss).backward()
    assert latents.grad is not None
    assert latents.grad.isfinite().all()
    assert latents.grad.abs().sum() > 0


def test_the_codebook_moves_in_training_and_rests_otherwise():
    quantizer = _codebook()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(_latents(8))
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    quantizer.train()(_latents(8))
    assert any(not torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


def test_vq_asks_latents_to_stay_near_their_codes():
    quantizer = _codebook().train()
    assert quantizer(_latents(8))[2] > 0


@pytest.mark.parametrize("levels", [(), (8, 2), (1,)])
def test_levels_that_cannot_be_rounded_to_are_refused(levels):
    with pytest.raises(ValueError, match="FSQ levels must each be 3 or more, got"):
        FiniteScalar(levels)


def test_a_quantizer_of_fsq_has_nothing_to_learn_or_to_save():
    quantizer = stirred(FiniteScalar((8, 5, 5, 5)))
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()
