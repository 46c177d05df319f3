"""Other projects' tokenizers become ours exactly, the same codes and the same pictures, or a sentence says why not."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import differing
from peers import LLAMAGEN, MAGE, OPEN_MUSE, TAMING, GumbelVqgan, MaskGitVq, Vqgan, save_flax
from PIL import Image
from safetensors.torch import load_file, save_file

from maskimg.cli.main import main
from vqgan import Tokenizer
from vqgan.export import to_diffusers
from vqgan.files import ModelError
from vqgan.interop import convert, foreign
from vqgan.interop.convert import read_foreign
from vqgan.interop.maskgit_vq import MaskGitVqConfig
from vqgan.interop.taming import TamingConfig
from vqgan.interop.unpickle import tensors_of
from vqgan.tokenizer import TokenizerConfig

# ----------------------------------------------------------------------------- the formats


def read_tokenizer(source: str | Path, **options: Any) -> Tokenizer:
    return Tokenizer.from_weights(*read_foreign(source, **options))


def save(content: Any, path: Path, pickled: bool) -> Path:
    """As a pickle, or as the safetensors file that the process which reads a pickle would hand over: much faster."""
    if pickled:
        torch.save(content, path)
    else:
        save_file({name: tensor.clone() for name, tensor in tensors_of(content).items()}, path)
    return path


def save_taming(peer: Any, folder: Path, pickled: bool) -> Path:
    extra = {
        "loss.discriminator.main.0.weight": torch.ones(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(2),
    }
    content = {"epoch": 3, "global_step": 9, "state_dict": peer.weights | extra, "optimizer_states": [{"lr": 1e-4}]}
    return save(content, folder / "last.ckpt", pickled)


def save_gumbel(peer: Any, folder: Path, pickled: bool) -> Path:
    peer.weights.pop("quantize.embedding.weight")
    return save_taming(peer, folder, pickled)


def save_llamagen(peer: Any, folder: Path, pickled: bool) -> Path:
    state = peer.weights | {"quantize.codebook_used": torch.zeros(65536)}
    content = {"model": state, "optimizer": {}, "args": argparse.Namespace(lr=1e-4)}
    return save(content, folder / "vq_ds16_c2i.pt", pickled)


def save_state_dict(peer: Any, folder: Path, pickled: bool) -> Path:
    return save({"state_dict": dict(peer.weights)}, folder / "vqgan_jax_strongaug.ckpt", pickled)


def save_google(peer: Any, folder: Path, pickled: bool) -> Path:
    save_flax(peer.weights, folder / "tokenizer_imagenet256_checkpoint")
    return folder / "tokenizer_imagenet256_checkpoint"


def save_open_muse(peer: Any, folder: Path, pickled: bool) -> Path:
    (folder / "muse").mkdir()
    (folder / "muse" / "config.json").write_text(json.dumps({"_class_name": "MaskGitVQGAN", "num_res_blocks": 2}))
    save(dict(peer.weights), folder / "muse" / ("pytorch_model.bin" if pickled else "model.safetensors"), pickled)
    return folder / "muse"


# name -> the network, how it is saved, and whether its own pixels lie in [0, 1]
FORMATS: dict[str, tuple[Callable[[], Any], Callable[[Any, Path, bool], Path], bool]] = {
    "taming": (lambda: Vqgan(TAMING), save_taming, False),
    "taming, first level wider": (lambda: Vqgan(TAMING, stem=32, widths=(64, 64, 96)), save_taming, False),
    "taming, Gumbel": (lambda: GumbelVqgan(TAMING), save_gumbel, False),
    "llamagen, 4x": (lambda: Vqgan(LLAMAGEN, unit=True), save_llamagen, False),
    "llamagen, 8x": (lambda: Vqgan(LLAMAGEN, unit=True, widths=(32, 32, 64, 96)), save_llamagen, False),
    "google": (lambda: MaskGitVq("flax"), save_google, True),
    "google, five levels": (lambda: MaskGitVq("flax", widths=(32, 32, 64, 64, 96)), save_google, True),
    "mage": (lambda: MaskGitVq(MAGE), save_state_dict, True),
    "open-muse": (lambda: MaskGitVq(OPEN_MUSE), save_open_muse, True),
    "hmorimitsu": (lambda: MaskGitVq("hmorimitsu"), save_state_dict, True),
}


def written(name: str, folder: Path, *, pickled: bool = False) -> tuple[Any, Path, bool]:
    """The network, its file or directory, and whether its own pixels lie in [0, 1]."""
    make, save_peer, unit = FORMATS[name]
    peer = make()
    return peer, save_peer(peer, folder, pickled), unit


def images(b: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def vq_model() -> Callable[..., Any]:
    """diffusers' own VQModel with weights far from their start; `amused=True` has its settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers and its imports say about themselves
        from diffusers import VQModel

    def make(*, amused: bool = False, seed: int = 0, **settings: Any) -> Any:
        attends = {
            "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        }
        plain = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        chosen = {
            "block_out_channels": (16, 16, 32), "layers_per_block": 2, "latent_channels": 12, "num_vq_embeddings": 40,
            "vq_embed_dim": None if amused else 4, "norm_num_groups": 8, "mid_block_add_attention": not amused,
            "lookup_from_codebook": True, "force_upcast": amused, **(plain if amused else attends), **settings,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VQModel(**chosen).eval()
            for parameter in model.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            rows = model.quantize.embedding.weight
            rows.data = torch.exp(0.5 * torch.randn(len(rows), 1)) * torch.randn_like(rows)
        return model

    make.load = VQModel.from_pretrained  # type: ignore[attr-defined]
    return make


@torch.no_grad()
def diffusers_codes(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    latents = model.encode(pixels).latents
    return model.quantize(latents)[2][2].view(latents.shape[0], *latents.shape[2:])


@torch.no_grad()
def diffusers_decode(model: Any, codes: torch.Tensor) -> torch.Tensor:
    shape = (*codes.shape, model.quantize.embedding.weight.shape[1])
    return model.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample


def require_equal(tokenizer: Tokenizer, encode: Any, decode: Any, *, unit: bool, height: int = 32, width: int = 32):
    """The same codes, and the same picture within 1e-4 before it is clamped, for the network's own range of pixels."""
    x = images(3, height, width)
    with torch.no_grad():
        codes = encode((x + 1) / 2 if unit else x)
        assert len(codes.unique()) > 5, "too few codes to tell anything"
        assert torch.equal(tokenizer.encode(x), codes)
        expected = decode(codes)
        ours = tokenizer.decoder(tokenizer.quantizer.lookup(codes))
    torch.testing.assert_close((ours + 1) / 2 if unit else ours, expected, atol=1e-4, rtol=1e-4)


def sums(tensors: Any) -> list[float]:
    return sorted(round(tensor.double().sum().item(), 4) for tensor in tensors)


# ----------------------------------------------------------------------------- exactly the same


@pytest.mark.parametrize("name", FORMATS)
def test_a_foreign_tokenizer_gives_the_same_codes_and_pictures(name, tmp_path):
    peer, path, unit = written(name, tmp_path, pickled=True)
    tokenizer = read_tokenizer(path, trust_pickle=True)
    assert not tokenizer.training
    assert tokenizer.vocab_size == 40
    assert tokenizer.stride == 2 ** (len(peer.widths) - 1)
    require_equal(tokenizer, peer.encode, peer.decode, unit=unit)


@pytest.mark.parametrize("name", ["taming", "llamagen, 4x", "google"])
@pytest.mark.parametrize(("height", "width"), [(16, 40), (48, 16)])
def test_a_rectangular_picture_is_no_exception(name, height, width, tmp_path):
    peer, path, unit = written(name, tmp_path)
    tokenizer = read_tokenizer(path)
    require_equal(tokenizer, peer.encode, peer.decode, unit=unit, height=height, width=width)


@pytest.mark.parametrize("name", FORMATS)
def test_every_parameter_of_the_file_is_used_exactly_once(name, tmp_path):
    peer, path, _ = written(name, tmp_path)
    assert sums(read_tokenizer(path).parameters()) == sums(peer.weights.values())


@pytest.mark.parametrize("amused", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40)])
def test_a_vqmodel_of_diffusers_gives_the_same_codes_and_pictures(vq_model, amused, height, width, tmp_path):
    model = vq_model(amused=amused)
    model.save_pretrained(tmp_path / "vq")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "vq")
    assert tokenizer.config.pixels == ("unit" if amused else "symmetric")
    assert sums(tokenizer.parameters()) == sums(model.parameters())
    require_equal(
        tokenizer,
        lambda x: diffusers_codes(model, x),
        lambda codes: diffusers_decode(model, codes),
        unit=amused,
        height=height,
        width=width,
    )


def test_attention_that_only_the_encoder_has_stays_where_it_is(vq_model, tmp_path):
    blocks = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D")
    model = vq_model(down_block_types=blocks, up_block_types=("UpDecoderBlock2D",) * 2 + ("AttnUpDecoderBlock2D",))
    model.save_pretrained(tmp_path / "vq")
    tokenizer = read_tokenizer(tmp_path / "vq")
    assert (tokenizer.config.encoder_attention, tokenizer.config.decoder_attention) == ((1,), (0,))
    require_equal(
        tokenizer, lambda x: diffusers_codes(model, x), lambda codes: diffusers_decode(model, codes), unit=False
    )


def test_the_old_names_of_diffusers_attention_are_read_as_well(vq_model, tmp_path):
    vq_model().save_pretrained(tmp_path / "vq")
    expected = read_tokenizer(tmp_path / "vq")
    path = tmp_path / "vq" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor.clone() for key, tensor in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, path)
    assert differing(read_tokenizer(tmp_path / "vq"), expected) == []


def test_the_tokenizer_inside_a_whole_pipeline_is_found(vq_model, tmp_path):
    vq_model(amused=True).save_pretrained(tmp_path / "amused" / "vqvae")
    (tmp_path / "amused" / "model_index.json").write_text("{}")
    assert Tokenizer.from_pretrained(tmp_path / "amused").config.pixels == "unit"


def test_names_that_a_wrapper_has_prefixed_are_read(tmp_path):
    peer = Vqgan(TAMING)
    save_file({f"_orig_mod.module.{name}": tensor for name, tensor in peer.weights.items()}, tmp_path / "a.safetensors")
    require_equal(read_tokenizer(tmp_path / "a.safetensors"), peer.encode, peer.decode, unit=False)


def test_of_two_sets_of_weights_the_averaged_one_is_taken(tmp_path):
    averaged, last = Vqgan(LLAMAGEN, unit=True, seed=1), Vqgan(LLAMAGEN, unit=True, seed=2)
    save({"model": dict(last.weights), "ema": dict(averaged.weights)}, tmp_path / "a.pt", False)
    require_equal(read_tokenizer(tmp_path / "a.pt"), averaged.encode, averaged.decode, unit=False)


def test_weights_of_half_precision_become_fp32(tmp_path):
    peer = Vqgan(TAMING)
    for name, tensor in peer.weights.items():
        peer.weights[name] = tensor.half()
    save_file(dict(peer.weights), tmp_path / "half.safetensors")
    for name, tensor in peer.weights.items():
        peer.weights[name] = tensor.float()
    tokenizer = read_tokenizer(tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in tokenizer.parameters()} == {torch.float32}
    require_equal(tokenizer, peer.encode, peer.decode, unit=False)


def test_a_config_json_that_happens_to_lie_beside_a_file_does_no_harm(tmp_path):
    peer, path, _ = written("taming", tmp_path)
    for content in ("[1, 2", json.dumps({"lookup_from_codebook": True, "mid_block_add_attention": False})):
        (tmp_path / "config.json").write_text(content)
        require_equal(read_tokenizer(path), peer.encode, peer.decode, unit=False)


AMUSED = TamingConfig(
    8192, 64, pixels="unit", channels=(128, 256, 256, 512, 768), encoder_attention=(), decoder_attention=(),
    middle_attention=False, latent_channels=64,
)  # fmt: skip


EIGHT = TamingConfig(16384, 8, "cosine", channels=(128, 256, 256, 512), encoder_attention=(3,), decoder_attention=(3,))


@pytest.mark.parametrize(
    ("config", "tensors", "millions"),
    [
        (TamingConfig(), 343, 72.142),
        (TamingConfig(16384), 343, 76.074),
        (TamingConfig(16384, 8, "cosine"), 343, 71.88),
        (EIGHT, 299, 70.11),
        (AMUSED, 277, 146.24),
        (MaskGitVqConfig(), 168, 54.516),
    ],
)  # fmt: skip
def test_the_networks_have_the_published_sizes(config, tensors, millions):
    """Counted in the projects' own classes with their published settings, without LlamaGen's one buffer."""
    with torch.device("meta"):
        parameters = list(Tokenizer(config).parameters())
    assert len(parameters) == tensors
    assert sum(parameter.numel() for parameter in parameters) / 1e6 == pytest.approx(millions, abs=0.006)


# ----------------------------------------------------------------------------- the range of pixels


@pytest.mark.parametrize("name", ["taming", "google"])
def test_only_the_range_of_pixels_differs_between_unit_and_symmetric(name, tmp_path):
    """Mid-grey is 0 with us and 0.5 in [0, 1]: a network read with the wrong range would see another picture.

    Not quite flat: of a flat picture, networks this narrow would normalise nothing but rounding errors.
    """
    peer, path, _ = written(name, tmp_path)
    grey = 0.1 * images(1)
    for pixels, seen in (("unit", (grey + 1) / 2), ("symmetric", grey)):
        tokenizer = read_tokenizer(path, trust_pickle=True, pixels=pixels)
        assert tokenizer.config.pixels == pixels
        codes = peer.encode(seen)
        assert torch.equal(tokenizer.encode(grey), codes)
        shown = peer.decode(codes)
        shown = shown * 2 - 1 if pixels == "unit" else shown
        torch.testing.assert_close(tokenizer.decode(codes), shown.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert not torch.equal(peer.encode(grey), peer.encode((grey + 1) / 2)), "the range makes no difference here"


def test_an_unknown_range_of_pixels_is_refused(tmp_path):
    _, path, _ = written("google", tmp_path)
    with pytest.raises(
        ModelError, match=r"pixels must be `symmetric` for \[-1, 1\] or `unit` for \[0, 1\], got `0-255`"
    ):
        read_tokenizer(path, pixels="0-255")


def test_our_own_directory_says_itself_what_its_pixels_are(tmp_path):
    Tokenizer(TokenizerConfig(channels=(16,))).save_pretrained(tmp_path / "own")
    with pytest.raises(ModelError, match="says itself what its pixels are"):
        Tokenizer.from_pretrained(tmp_path / "own", pixels="unit")


# ----------------------------------------------------------------------------- kept, trained, written back


@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_tokenizer_saved_and_loaded_is_the_same_bit_for_bit(name, tmp_path):
    _, path, _ = written(name, tmp_path)
    tokenizer = Tokenizer.from_pretrained(path)
    tokenizer.save_pretrained(tmp_path / "ours")
    again = Tokenizer.from_pretrained(tmp_path / "ours")
    assert again.config == tokenizer.config
    assert differing(again, tokenizer) == []
    codes = again.encode(images())
    assert torch.equal(codes, tokenizer.encode(images()))
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("name", ["taming", "taming, Gumbel", "llamagen, 4x", "google"])
def test_a_converted_tokenizer_can_be_trained_further(name, tmp_path):
    _, path, _ = written(name, tmp_path)
    tokenizer = read_tokenizer(path).train()
    restored, codes, loss = tokenizer(images())
    assert codes.dtype == torch.int64
    ((restored - images()).square().mean() + loss).backward()
    without = [key for key, parameter in tokenizer.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.abs().sum() > 0 for parameter in tokenizer.encoder.conv_in.parameters())


@pytest.mark.parametrize("pixels", ["symmetric", "unit"])
def test_diffusers_loads_what_we_write_and_we_read_it_back(vq_model, pixels, tmp_path):
    peer = Vqgan(TAMING)
    save_taming(peer, tmp_path, False)
    tokenizer = read_tokenizer(tmp_path / "last.ckpt", trust_pickle=True, pixels=pixels)
    to_diffusers(tokenizer, tmp_path / "vq")

    model = vq_model.load(tmp_path / "vq").eval()
    require_equal(
        tokenizer,
        lambda x: diffusers_codes(model, x),
        lambda codes: diffusers_decode(model, codes),
        unit=pixels == "unit",
    )
    again = Tokenizer.from_pretrained(tmp_path / "vq")
    assert again.config == tokenizer.config
    assert differing(again, tokenizer) == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (TokenizerConfig(channels=(16,)), "cannot hold a tokenizer of the architecture `maskimg`"),
        (MaskGitVqConfig(8, 4, stem=32, channels=(32,)), "cannot hold a tokenizer of the architecture `maskgit-vq`"),
        (TamingConfig(8, 4, "cosine", stem=32, channels=(32,)), "has no `cosine` codebook"),
        (TamingConfig(8, 4, "gumbel", stem=32, channels=(32,)), "has no `gumbel` codebook"),
        (TamingConfig(8, 4, stem=32, channels=(64,)), "the width of its first level: here 32 and 64"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_and_nothing_is_written(config, sentence, tmp_path):
    with pytest.raises(ModelError, match=sentence):
        to_diffusers(Tokenizer(config), tmp_path / "vq")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_cannot_be_built_is_refused():
    for config, sentence in (
        (TamingConfig(quantizer="lfq"), "quantizer must be `nearest`, `cosine` or `gumbel`, got `lfq`"),
        (TamingConfig(pixels="byte"), "pixels must be"),
        (TamingConfig(channels=(128, 100)), "divisible by the 32 groups of normalisation, got 100"),
        (MaskGitVqConfig(pixels="byte"), "pixels must be"),
        (MaskGitVqConfig(stem=100), "divisible by the 32 groups of normalisation, got 100"),
    ):
        with pytest.raises(ValueError, match=sentence):
            config.build()


# ----------------------------------------------------------------------------- files that are not it

SMALL = torch.ones(2, 2)
STRANGERS = {
    "aMUSEd's transformer": ["embed.embeddings.weight", "mlm_layer.conv2.weight"],
    "Halton-MaskGIT generator": ["cls_emb.weight", "tok_emb.weight", "transformer.layers.0.ln1.weight"],
    "Google's MaskGIT transformer": ["Embed_0.word_embeddings.embedding", "MlmLayer_0.mlm_bias.bias"],
    "a taming transformer": ["transformer.tok_emb.weight", "first_stage_model.encoder.conv_in.weight"],
    "a whole Stable Diffusion model": [
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.conv_in.weight",
    ],
    "TiTok": ["latent_tokens", "encoder.ln_pre.weight", "quantize.embedding.weight"],
    "a KL autoencoder": ["encoder.down.0.block.0.conv1.bias", "decoder.mid.block_1.conv1.bias", "quant_conv.weight"],
    "a KL autoencoder.*": ["encoder.down_blocks.0.resnets.0.conv1.bias", "decoder.up_blocks.0.resnets.0.conv1.bias"],
    "UNet": ["down_blocks.0.resnets.0.conv1.weight", "time_embedding.linear_1.weight"],
    "a file from a directory of maskimg": ["quantizer.codebook", "encoder.levels.0.blocks.0.conv1.weight"],
    "of none of the known kinds .*the first of its parameters is `bert.weight`": ["bert.weight"],
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_file_of_another_kind_is_named_for_what_it_is(what, tmp_path):
    save_file({name: SMALL.clone() for name in STRANGERS[what]}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=f"`{tmp_path / 'a.safetensors'}` cannot be converted: this is .*{what}"):
        read_tokenizer(tmp_path / "a.safetensors")


def rewritten(name: str, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The format's file after `change` has been at its parameters."""
    make, save_peer, _ = FORMATS[name]
    peer = make()
    change(peer.weights)
    return save_peer(peer, folder, False)


MISSING = {
    "taming": ("decoder.up.2.attn.1.q.weight", "encoder.down.1.block.0.conv1.weight", "encoder.conv_in.weight"),
    "taming, Gumbel": ("quantize.proj.bias",),
    "llamagen, 4x": ("encoder.mid.1.norm.weight", "decoder.conv_blocks.0.upsample.conv.bias"),
    "google": ("encoder.ResBlock_3.Conv_1.weight", "decoder.Conv_2.bias", "encoder.Conv_0.weight"),
    "mage": ("encoder.mid.block_2.norm1.bias", "decoder.conv_in.bias"),
    "open-muse": ("decoder.up.1.upsample_conv.weight",),
    "hmorimitsu": ("decoder.res_blocks.1.3.weight", "quantizer.codebook.weight"),
}


@pytest.mark.parametrize(("name", "lost"), [(name, lost) for name, all_lost in MISSING.items() for lost in all_lost])
def test_a_missing_parameter_is_named_as_its_authors_named_it(name, lost, tmp_path):
    path = rewritten(name, tmp_path, lambda weights: weights.pop(lost))
    shown = lost.replace(".weight", ".kernel") if name == "google" else lost
    with pytest.raises(ModelError, match=f"its parameter `{shown}` is missing"):
        read_tokenizer(path)


@pytest.mark.parametrize("name", ["taming", "llamagen, 4x", "google", "mage", "open-muse", "hmorimitsu"])
def test_one_parameter_too_many_is_named(name, tmp_path):
    path = rewritten(name, tmp_path, lambda weights: weights.update({"encoder.extra.bias": torch.ones(3)}))
    with pytest.raises(ModelError, match="its parameter `encoder.extra.bias` has no place in this network"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda w: w["encoder.conv_out.bias"].fill_(float("nan")), "`encoder.conv_out.bias` holds numbers"),
        (lambda w: w["quantize.embedding.weight"][3].fill_(float("inf")), "`quantize.embedding.weight` holds numbers"),
        (lambda w: w.update({"encoder.conv_out.bias": torch.ones(5)}), r"conv_out.bias` is \(5,\), expected \(12"),
        (lambda w: w.update({"encoder.conv_out.bias": torch.ones(12, dtype=torch.int64)}), "int64, expected floating"),
        (lambda w: w.update({"encoder.conv_out.weight": torch.ones(5)}), r"conv_out.weight` is \(5,\), expected 4"),
        (lambda w: w.update({"encoder.conv_in.weight": torch.ones(32, 1, 3, 3)}), "its pictures have 1 channels"),
        (lambda w: w.update({"encoder.conv_in.weight": torch.ones(33, 3, 3, 3)}), "divisible by the 32 groups"),
    ],
)  # fmt: skip
def test_a_spoilt_parameter_is_named(spoil, sentence, tmp_path):
    with pytest.raises(ModelError, match=sentence):
        read_tokenizer(rewritten("taming", tmp_path, spoil))


@pytest.mark.parametrize(("name", "pickled"), [("taming", True), ("taming", False), ("google", False)])
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_file_that_is_cut_off_is_reported(name, pickled, share, tmp_path):
    _, path, _ = written(name, tmp_path, pickled=pickled)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelError, match="cut off or damaged"):
        read_tokenizer(path, trust_pickle=True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "neither safetensors nor"),
        (b"no model at all" * 9, "neither safetensors nor"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "only a pointer of Git LFS"),
        (b"\x81\xa6params\x05", "of none of the known kinds"),
        (b"\x80\x02N.", "cut off or damaged"),
        (b"PK\x03\x04" + b"\0" * 60, "cut off or damaged"),
        ((99).to_bytes(8, "little") + b'{"a": 1}', "cut off or damaged"),
    ],
)
def test_a_file_of_no_kind_is_reported(content, sentence, tmp_path):
    (tmp_path / "file.ckpt").write_bytes(content)
    with pytest.raises(ModelError, match=sentence):
        Tokenizer.from_pretrained(tmp_path / "file.ckpt", trust_pickle=True)


def test_a_directory_that_is_not_whole_is_reported(vq_model, tmp_path):
    vq_model().save_pretrained(tmp_path / "vq")
    config = json.loads((tmp_path / "vq" / "config.json").read_text())

    (tmp_path / "vq" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        Tokenizer.from_pretrained(tmp_path / "vq")
    with pytest.raises(ModelError, match=r"needs the config\.json that came with it"):
        Tokenizer.from_pretrained(tmp_path / "vq" / "diffusion_pytorch_model.safetensors")

    for change, sentence in (
        ({"_class_name": "AutoencoderKL"}, "got the class `AutoencoderKL`"),
        ({"act_fn": "relu"}, "says act_fn = relu, expected silu"),
        ({"norm_type": "spatial"}, "says norm_type = spatial"),
        ({"norm_num_groups": 0}, "says norm_num_groups = 0"),
        ({"norm_num_groups": 7}, "divisible by the 7 groups"),
        ({"num_vq_embeddings": 8192}, "says num_vq_embeddings = 8192, expected 40"),
    ):
        (tmp_path / "vq" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=sentence):
            Tokenizer.from_pretrained(tmp_path / "vq")

    (tmp_path / "vq" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights: expected one of"):
        Tokenizer.from_pretrained(tmp_path / "vq")
    with pytest.raises(ModelError, match="there is no file or directory"):
        read_tokenizer(tmp_path / "nowhere")


def test_a_directory_that_we_wrote_for_diffusers_is_verified(tmp_path):
    to_diffusers(Tokenizer(TamingConfig(8, 4, stem=32, channels=(32,), latent_channels=4)), tmp_path / "vq")
    with (tmp_path / "vq" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(ModelError, match="is damaged"):
        Tokenizer.from_pretrained(tmp_path / "vq")


def test_flax_files_without_msgpack_say_what_to_install(monkeypatch, tmp_path):
    _, path, _ = written("google", tmp_path)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ModelError, match=r"pip install 'maskimg\[convert\]'"):
        read_tokenizer(path)


# ----------------------------------------------------------------------------- pickles


class Harm:
    """What a malicious file does when an ordinary pickle reader opens it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("zip", r"holds `\w+\.system`, which is no tensor and was not opened"),
        (2, r"holds `\w+\.system`, which is no tensor and was not opened"),
        (4, "holds instructions that no PyTorch checkpoint has, and was not opened"),
    ],
)
def test_a_malicious_pickle_does_not_run_and_gets_a_sentence(kind, sentence, tmp_path):
    mark, path = tmp_path / "harmed", tmp_path / "model.ckpt"
    if kind == "zip":
        torch.save({"state_dict": {"encoder.conv_in.weight": SMALL}, "callbacks": Harm(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Harm(mark)}, protocol=kind))
    with pytest.raises(ModelError, match=sentence):
        read_tokenizer(path, trust_pickle=True)
    assert not mark.exists()

    # It would have run: the test is not about a harmless file.
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if kind == "zip" else pickle.load(file)
    assert mark.exists()


def test_a_pickle_is_not_even_touched_without_the_users_word(monkeypatch, tmp_path):
    _, path, _ = written("taming", tmp_path, pickled=True)
    monkeypatch.setattr(foreign.subprocess, "run", lambda *a, **k: pytest.fail("it was opened"))
    for read in (read_tokenizer, Tokenizer.from_pretrained):
        with pytest.raises(ModelError, match="is a pickle, and a pickle can run programs .* add --trust-pickle"):
            read(path)


def test_a_pickle_is_never_opened_in_this_process(monkeypatch, tmp_path):
    peer, path, _ = written("taming", tmp_path, pickled=True)
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("it was opened here"))
    require_equal(read_tokenizer(path, trust_pickle=True), peer.encode, peer.decode, unit=False)


def test_a_pickle_that_takes_for_ever_is_given_up(monkeypatch, tmp_path):
    _, path, _ = written("taming", tmp_path, pickled=True)
    monkeypatch.setattr(foreign, "SECONDS", 0.01)
    with pytest.raises(ModelError, match="was given up after 0.01 seconds"):
        read_tokenizer(path, trust_pickle=True)


def test_a_reader_that_dies_is_reported(monkeypatch, tmp_path):
    _, path, _ = written("taming", tmp_path, pickled=True)
    monkeypatch.setattr(foreign.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=-9, stderr=""))
    with pytest.raises(ModelError, match=r"made the process that read it fail \(exit code -9\)"):
        read_tokenizer(path, trust_pickle=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how much memory a process has")
def test_the_reader_cannot_take_more_memory_than_the_file_explains():
    script = "import unpickle as u; u.limit_memory(2**28); print(len(bytearray(2**20))); bytearray(2**30)"
    folder = Path(foreign.__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.stdout == f"{2**20}\n"
    assert "MemoryError" in done.stderr


def test_a_pickle_without_tensors_is_reported(tmp_path):
    for value, sentence in (
        ([1, 2], "holds a list, not the tensors"),
        ({"state_dict": {"lr": 1.0}}, "holds no tensors"),
    ):
        torch.save(value, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=sentence):
            read_tokenizer(tmp_path / "a.pt", trust_pickle=True)


# ----------------------------------------------------------------------------- the command


def run(capsys, *arguments: object) -> tuple[int, str]:
    """Exit code, and the last line that was printed."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    shown = capsys.readouterr()
    return code, (shown.out + shown.err).strip().splitlines()[-1]


def test_the_command_converts_to_maskimg_and_on_to_diffusers(tmp_path, capsys):
    peer, path, _ = written("taming", tmp_path, pickled=True)
    code, line = run(capsys, "convert", path, "--out", tmp_path / "ours", "--trust-pickle")
    assert (code, line[:40]) == (0, "done: 40 codes, 4 pixels per token side,")
    code, _ = run(capsys, "convert", tmp_path / "ours", "--out", tmp_path / "vq", "--to", "diffusers")
    assert code == 0
    require_equal(Tokenizer.from_pretrained(tmp_path / "ours"), peer.encode, peer.decode, unit=False)
    require_equal(Tokenizer.from_pretrained(tmp_path / "vq"), peer.encode, peer.decode, unit=False)
    # Converting again replaces what was converted before.
    assert run(capsys, "convert", path, "--out", tmp_path / "ours", "--trust-pickle", "--pixels", "unit")[0] == 0
    assert Tokenizer.from_pretrained(tmp_path / "ours").config.pixels == "unit"


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    _, path, _ = written("taming", tmp_path, pickled=True)
    out = tmp_path / "ours"
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "dear.jpg").write_bytes(b"1")
    for arguments, sentence in (
        ((path, "--out", out), "is a pickle"),
        ((path, "--out", out, "--trust-pickle", "--to", "onnx"), "--to must be maskimg or diffusers, got `onnx`"),
        ((path, "--out", mine, "--trust-pickle"), "holds `dear.jpg`, which maskimg did not write there"),
        ((path, "--out", path, "--trust-pickle"), "or contains, SOURCE"),
        ((tmp_path / "nowhere", "--out", out), "there is no model directory"),
    ):
        code, line = run(capsys, "convert", *arguments)
        assert code == 2
        assert line.startswith("maskimg: ") and sentence in line
    assert (mine / "dear.jpg").read_bytes() == b"1"
    assert not out.exists()


def test_a_picture_goes_through_a_converted_tokenizer(tmp_path, capsys):
    _, path, _ = written("google", tmp_path)
    run(capsys, "convert", path, "--out", tmp_path / "ours")
    Image.new("RGB", (35, 22), (200, 30, 30)).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    code, line = run(capsys, "reconstruct", tmp_path / "in.png", "--tokenizer", tmp_path / "ours", "--out", out)
    assert (code, "done" in line) == (0, True)
    with Image.open(out) as picture:
        assert picture.size == (36, 24)  # the next multiples of the stride

    code, line = run(
        capsys, "reconstruct", tmp_path / "in.png", "--tokenizer", tmp_path / "ours", "--out", out, "--size", "3"
    )
    assert (code, "size must be between the stride 4 and" in line) == (2, True)


def test_a_whole_directory_of_ours_is_not_taken_for_a_foreign_one(tmp_path):
    Tokenizer(TokenizerConfig(channels=(16,))).save_pretrained(tmp_path / "own")
    assert not convert.is_foreign(tmp_path / "own")
    assert Tokenizer.from_pretrained(tmp_path / "own").config.architecture == "maskimg"
