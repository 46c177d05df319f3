"""Pictures -> codes -> pictures, whatever the mode, the number format and the shape."""

import pytest
import torch
from helpers import differing, stirred

from vqgan import Tokenizer, TokenizerConfig
from vqgan.files import ModelError
from vqgan.network import Attention

SMALL = {"channels": (16, 16), "encoder_blocks": 1, "decoder_blocks": 1}
CONFIGS = {
    "efsq": TokenizerConfig(quantizer="efsq", levels=(4, 4, 4), **SMALL),
    "fsq": TokenizerConfig(quantizer="fsq", levels=(4, 4, 4), **SMALL),
    "vq": TokenizerConfig(quantizer="vq", codebook_size=32, codebook_dim=8, **SMALL),
    "simvq": TokenizerConfig(quantizer="simvq", codebook_size=32, codebook_dim=4, attention=1, **SMALL),
    "lfq": TokenizerConfig(quantizer="lfq", codebook_size=32, **SMALL),
    "bsq": TokenizerConfig(quantizer="bsq", codebook_size=32, attention=2, **SMALL),
}


def _images(b: int = 2, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _tokenizer(name: str = "efsq") -> Tokenizer:
    """A tokenizer after one training step's forward, so that a VQ codebook has found its first codes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = stirred(Tokenizer(CONFIGS[name]), size=0.05)
        tokenizer.train()(_images(4))
    return tokenizer.eval()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 32), (32, 16), (4, 4), (4, 40)])
def test_a_picture_of_any_shape_becomes_one_code_per_stride_and_comes_back(name, height, width):
    tokenizer = _tokenizer(name)
    codes = tokenizer.encode(_images(2, height, width))
    assert codes.shape == (2, height // 4, width // 4)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < tokenizer.vocab_size
    images = tokenizer.decode(codes)
    assert images.shape == (2, 3, height, width)
    assert images.dtype == torch.float32
    assert -1 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_codes_shows_what_training_showed(name):
    tokenizer = _tokenizer(name)
    with torch.no_grad():
        reconstructions, codes, _ = tokenizer(_images())
    assert torch.equal(codes, tokenizer.encode(_images()))
    torch.testing.assert_close(tokenizer.decode(codes), reconstructions.clamp(-1, 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_while_training_changes_neither_codebook_nor_mode_nor_codes(name):
    tokenizer = _tokenizer(name)
    expected = tokenizer.encode(_images())
    before = {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}

    tokenizer.train()
    codes = tokenizer.encode(_images(seed=0))
    tokenizer.encode(_images(seed=1))

    assert torch.equal(codes, expected)
    assert all(torch.equal(before[key], tensor) for key, tensor in tokenizer.state_dict().items())
    assert all(module.training for module in tokenizer.modules())


def test_encoding_with_a_codebook_that_never_trained_does_not_invent_one():
    """The library starts its codebook from the first pictures it sees, in eval mode too."""
    tokenizer = Tokenizer(CONFIGS["vq"]).eval()
    before = {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}
    with pytest.raises(ValueError, match="train it first"):
        tokenizer.encode(_images())
    assert all(torch.equal(before[key], tensor) for key, tensor in tokenizer.state_dict().items())


def test_the_mode_is_restored_even_if_encoding_fails(monkeypatch):
    tokenizer = _tokenizer().train()
    monkeypatch.setattr(tokenizer.encoder, "forward", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenizer.encode(_images())
    assert tokenizer.training


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_are_the_same_under_bf16(name):
    tokenizer = _tokenizer(name)
    expected = tokenizer.encode(_images(8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(_images(8)), expected)
        assert tokenizer.decode(expected).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["efsq", "vq", "simvq"])
def test_a_tokenizer_in_another_number_format_encodes_and_decodes_in_fp32(name, dtype):
    """torch's own error came instead: `Input type (float) and bias type (c10::BFloat16) should be the same`."""
    small, images = _tokenizer(name).to(dtype), _images()
    exact = _tokenizer(name).to(dtype).float()  # with the same rounded weights
    codes = small.encode(images)
    assert torch.equal(codes, exact.encode(images))
    assert torch.equal(small.decode(codes), exact.decode(codes))
    assert small.decode(codes).dtype == torch.float32
    assert next(small.encoder.parameters()).dtype == dtype


def test_sizes_that_do_not_divide_are_refused():
    for shape in ((30, 32), (32, 30), (2, 2)):
        with pytest.raises(ValueError, match=r"divisible by the stride 4, got \(\d+, \d+\)"):
            _tokenizer().encode(_images(1, *shape))


def test_what_is_no_batch_of_pictures_is_refused():
    for images in (_images()[0], _images()[:, :1]):
        with pytest.raises(ValueError, match=r"expected images \(b, 3, H, W\), got"):
            _tokenizer().encode(images)
    with pytest.raises(ValueError, match=r"expected codes \(b, h, w\), got"):
        _tokenizer().decode(torch.zeros(2, 16, dtype=torch.int64))


@pytest.mark.parametrize("code", [64, -1])
def test_a_masked_code_is_not_decoded(code):
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)
    codes[0, 2, 3] = code
    with pytest.raises(ValueError, match=r"expected codes in \[0, 64\).*masked codes must be filled"):
        _tokenizer().decode(codes)


def test_configurations_count_their_codes_and_pixels():
    assert Tokenizer().vocab_size == 1000
    assert TokenizerConfig().stride == 4
    for name, size in {"efsq": 64, "fsq": 64, "vq": 32}.items():
        tokenizer = Tokenizer(CONFIGS[name])
        assert (tokenizer.vocab_size, tokenizer.stride) == (size, 4)


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(ValueError, match="quantizer must be one of efsq, fsq, vq, lfq, bsq, simvq, got `none`"):
        Tokenizer(TokenizerConfig(quantizer="none"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_tokenizer_comes_back_bit_for_bit(name, tmp_path):
    tokenizer = _tokenizer(name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    assert again.config == tokenizer.config
    assert not again.training
    assert differing(again, tokenizer) == []
    assert torch.equal(again.encode(_images()), tokenizer.encode(_images()))


def test_a_tokenizer_that_is_nowhere_is_reported(tmp_path):
    with pytest.raises(ModelError, match="there is no model directory"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("halvings", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("attention", [0, 1])
def test_strides_from_2_to_32_and_pictures_that_are_not_square(halvings, attention):
    tokenizer = Tokenizer(
        TokenizerConfig(levels=(4, 4), channels=(16,) * halvings, decoder_blocks=1, attention=attention)
    ).eval()
    stride = 2**halvings
    codes = tokenizer.encode(_images(2, 2 * stride, 3 * stride))
    assert tokenizer.stride == stride
    assert codes.shape == (2, 2, 3)
    assert tokenizer.decode(codes).shape == (2, 3, 2 * stride, 3 * stride)


def test_attention_compares_every_cell_with_every_other():
    attention = stirred(Attention(8), size=0.5)
    x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.to_qkv(attention.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (b, cells, c) each
    update = ((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v
    expected = x + attention.to_out(update.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected)
    assert not torch.allclose(attention(x), x)


def test_a_codebook_is_not_rounded_where_the_other_weights_are(tmp_path):
    tokenizer = _tokenizer("vq")
    tokenizer.write(tmp_path, torch.bfloat16)
    again = Tokenizer.from_directory(tmp_path)
    assert torch.equal(again.quantizer.vq.codebook, tokenizer.quantizer.vq.codebook)
    assert not torch.equal(again.encoder.layers[1].weight, tokenizer.encoder.layers[1].weight)
