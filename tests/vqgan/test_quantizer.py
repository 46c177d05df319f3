"""All quantizers keep one promise: codes name the very vectors that the decoder was trained on."""

import pytest
import torch
from helpers import stirred

from vqgan import quantizer as quantizers
from vqgan.quantizer import Codebook, EvenScalar, FiniteScalar, LinearCodebook, Signs, far_from_gaussian


def _codebook(size: int = 32, dim: int = 8, **options) -> Codebook:
    """A VQ codebook in use, whose rows no longer have length 1.

    LlamaGen normalises at look-up only, which nobody sees while the rows still have the length they start with.
    """
    quantizer = Codebook(size, dim, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer.train()(_latents(dim, h=16, w=16))
    book = quantizer.vq._codebook.embed
    book.data.mul_(torch.linspace(0.5, 2, size)[None, :, None])
    return quantizer.eval()


def _linear_codebook() -> LinearCodebook:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LinearCodebook(32, 8).eval()


def _latents(dim: int, *, b: int = 2, h: int = 8, w: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, dim, h, w, generator=torch.Generator().manual_seed(seed))


QUANTIZERS = {
    "efsq": lambda: EvenScalar((8, 5, 5, 5)).eval(),
    "efsq of 2": lambda: EvenScalar((2, 2, 3)).eval(),
    "fsq": lambda: FiniteScalar((8, 5, 5, 5)).eval(),
    "vq": _codebook,
    "vq of 3": lambda: _codebook(16, 3),
    "vq by distance": lambda: _codebook(cosine=False),
    "vq by rotation": lambda: _codebook(rotation=True),
    "simvq": _linear_codebook,
    "lfq": lambda: Signs(64, spherical=False).eval(),
    "bsq": lambda: Signs(64, spherical=True).eval(),
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


@pytest.mark.parametrize("kind", [EvenScalar, FiniteScalar])
def test_every_combination_of_fsq_levels_is_a_code(kind):
    quantizer = kind((8, 5, 3))
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


def test_fsq_of_older_models_rounds_as_it_did():
    """Codes that maskimg gave before efsq was there; the bundled model's depend on it."""
    ramp = torch.linspace(-3, 3, 9)
    latents = torch.stack([ramp, ramp.flip(0), 0.5 * ramp, ramp.square() - 4, ramp])[None, :, None]
    _, codes, _ = FiniteScalar((6, 5, 5, 5, 5)).eval()(latents)
    assert codes.flatten().tolist() == [624, 624, 54, 799, 1575, 2350, 3095, 3725, 3725]


@pytest.mark.parametrize("levels", [(8, 8, 8, 8), (8, 5, 5, 5), (3, 2)])
def test_latents_like_a_gaussian_use_all_codes_of_efsq_alike(levels):
    """A quarter off for any level of any channel; fsq rounds to its outermost ones half as often as to others."""
    quantizer = EvenScalar(levels).eval()
    _, codes, _ = quantizer(_latents(len(levels), b=16, h=128, w=128))
    parts = quantizer.lookup(codes).transpose(0, 1).flatten(1)
    for channel, count in zip(parts, levels, strict=True):
        shares = channel.unique(return_counts=True)[1] / len(channel)
        assert len(shares) == count
        assert 0.75 / count < shares.min() <= shares.max() < 1.25 / count
    uses = codes.flatten().bincount(minlength=quantizer.vocab_size)
    assert uses.min() > 0.3 * uses.float().mean()  # a code has four levels


def test_the_loss_of_efsq_brings_latents_of_any_mean_scale_and_likeness_to_all_levels():
    """Five channels of much the same, narrow and off the middle: without it they keep to 14 of 1,024 codes."""
    same, own = _latents(1, b=8, h=32, w=32), _latents(5, b=8, h=32, w=32, seed=1)
    mixed = 0.5 + 0.3 * (same + 0.5 * own)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(5, 5, 1)
    quantizer = EvenScalar((4,) * 5).train()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.2)

    def used() -> int:
        return len(quantizer(layer(mixed))[1].unique())

    before = used()
    for _ in range(400):
        optimizer.zero_grad()
        quantizer(layer(mixed))[2].backward()
        optimizer.step()
    assert before < 50
    assert used() > 1000


def test_independent_gaussian_latents_cost_nothing_and_others_do():
    latents = _latents(4, b=16, h=64, w=64).flatten(2).transpose(1, 2)
    assert far_from_gaussian(latents) < 1e-3
    assert far_from_gaussian(latents + 0.5) == pytest.approx(0.25, abs=0.02)
    assert far_from_gaussian(2 * latents) == pytest.approx(9 / 4, abs=0.1)  # (4 - 1)² on the diagonal, a quarter of all
    assert far_from_gaussian(latents[..., :1].expand(-1, -1, 4)) == pytest.approx(0.75, abs=0.02)
    assert EvenScalar((4, 4)).eval()(_latents(2) + 5)[2] == 0  # a loss is for training


def test_efsq_asks_nothing_of_its_past():
    """No averages: what it makes of latents depends on these latents alone, in training as in use."""
    quantizer, latents = EvenScalar((8, 5, 5, 5)).train(), _latents(4)
    expected = quantizer(latents)
    quantizer(10 * _latents(4, seed=1) + 3)
    assert all(torch.equal(a, b) for a, b in zip(quantizer(latents), expected, strict=True))
    assert torch.equal(quantizer.eval()(latents)[1], expected[1])
    assert torch.equal(quantizer(latents)[0], expected[0])


def test_latents_that_are_not_finite_get_codes_and_a_loss_that_says_so():
    """A code outside the vocabulary would stop a training where the step is merely to be left out."""
    quantizer = EvenScalar((8, 5, 5, 5)).train()
    latents = _latents(4)
    latents[0, 0, 0, 0], latents[0, 1, 0, 0] = float("nan"), float("inf")
    _, codes, loss = quantizer(latents)
    assert 0 <= codes.min() <= codes.max() < quantizer.vocab_size
    assert not loss.isfinite()


@pytest.mark.parametrize("levels", [(), (8, 1), (0,)])
def test_efsq_levels_that_are_no_choice_are_refused(levels):
    with pytest.raises(ValueError, match="EFSQ levels must each be 2 or more, got"):
        EvenScalar(levels)


@pytest.mark.parametrize("levels", [(), (8, 2), (1,)])
def test_levels_that_cannot_be_rounded_to_are_refused(levels):
    with pytest.raises(ValueError, match="FSQ levels must each be 3 or more, got"):
        FiniteScalar(levels)


@pytest.mark.parametrize("kind", [EvenScalar, FiniteScalar])
def test_a_quantizer_of_fsq_has_nothing_to_learn_or_to_save(kind):
    quantizer = stirred(kind((8, 5, 5, 5)))
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_bits_make_a_power_of_two(size):
    with pytest.raises(ValueError, match=f"power of two, got {size}"):
        Signs(size, spherical=True)


def test_a_code_of_signs_is_its_bits():
    codes = torch.arange(8)[None, None]
    for spherical, length in ((False, 1.0), (True, 3**-0.5)):
        vectors = Signs(8, spherical=spherical).eval().lookup(codes)[0, :, 0].T
        assert vectors.abs().unique().tolist() == pytest.approx([length])
        bits = (vectors > 0).long()
        assert (bits * torch.tensor([4, 2, 1])).sum(1).tolist() == list(range(8))


def test_the_loss_of_signs_asks_for_all_codes_to_be_used():
    """Tokens that all have the same code cost more than tokens spread over the codes."""
    quantizer = Signs(16, spherical=False).train()
    spread = torch.where(quantizer.lookup(torch.arange(16).reshape(1, 4, 4)) > 0, 1.0, -1.0)
    same = spread[:, :, :1, :1].expand_as(spread)
    assert quantizer(spread)[2] < quantizer(same)[2] - 0.1


def test_the_entropy_of_signs_looks_at_a_sample_of_the_tokens():
    """The library would compare each of 10,000 tokens with each code, whatever the weight of the entropy."""
    quantizer = Signs(16, spherical=False).train()
    quantizer(_latents(4, b=1, h=100, w=100))
    assert quantizer.lfq.frac_per_sample_entropy == pytest.approx(quantizers.ENTROPY_TOKENS / 10_000)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_numbers_of_a_quantizer_stay_in_fp32(name):
    """The averages of a codebook in bf16 stand still: a hundredth of a code's count is less than its last bit."""
    quantizer = QUANTIZERS[name]().bfloat16()
    assert {t.dtype for t in quantizer.state_dict().values() if t.is_floating_point()} <= {torch.float32}
    before = QUANTIZERS[name]()
    assert torch.equal(quantizer(_latents(quantizer.dim))[1], before(_latents(quantizer.dim))[1])


def _used_after_the_latents_moved(cosine: bool) -> int:
    """Of 32 codes: all began on one side, and all latents went over to the other."""
    quantizer = Codebook(32, 4, cosine=cosine).train()
    here = torch.tensor([1.0, 0, 0, 0])[:, None, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        quantizer(here + 0.1 * _latents(4, h=16, w=16))
        for i in range(300):
            quantizer(0.1 * _latents(4, h=16, w=16, seed=i) - here)
    return quantizer.eval()(0.1 * _latents(4, b=8, h=16, w=16, seed=1000) - here)[1].unique().numel()


@pytest.mark.parametrize("cosine", [True, False])
def test_codes_that_fall_out_of_use_are_restarted(cosine, monkeypatch):
    assert _used_after_the_latents_moved(cosine) >= 30
    monkeypatch.setattr(quantizers, "RESTART", 0.0)
    assert _used_after_the_latents_moved(cosine) < 5


@pytest.mark.parametrize(("restart", "few"), [(0.1, True), (1.6, False)])
def test_live_codes_are_not_restarted_where_a_batch_has_fewer_tokens_than_codes(restart, few, monkeypatch):
    """16 tokens a batch for 256 codes: 0.1 of a batch is more than a live code has. 1.6 undoes the correction."""
    monkeypatch.setattr(quantizers, "RESTART", restart)
    quantizer = Codebook(256, 4).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = _latents(4, b=16, h=4, w=4).split(1)
        quantizer(_latents(4, h=16, w=16))
        for _ in range(20):
            for batch in batches:
                quantizer(batch)
        before = quantizer.vq.codebook.clone()
        for batch in batches:
            quantizer(batch)
    jumped = ((quantizer.vq.codebook - before).norm(dim=-1) > 0.5).sum()
    assert bool(jumped < 16) is few


def test_a_first_batch_smaller_than_the_codebook_is_enough_to_begin():
    quantizer = Codebook(64, 4).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for i in range(100):
            quantizer(_latents(4, b=1, h=4, w=4, seed=i))
    assert quantizer.eval()(_latents(4, h=32, w=32))[1].unique().numel() > 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cosine", [True, False])
def test_one_bad_batch_does_not_spoil_the_codebook(bad, cosine):
    """Its loss is not finite, so that the step is left out; but the averages move in the forward pass already."""
    quantizer = _codebook(cosine=cosine).train()
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    latents = _latents(8)
    latents[0, 0, 0, 0] = bad
    assert not quantizer(latents)[2].isfinite()
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
