"""Tokenizers of other projects -> a configuration and weights for `Tokenizer`.

Read are taming-transformers' VQGAN and its Gumbel kind (.ckpt), diffusers' VQModel (a directory; aMUSEd's too),
LlamaGen's VQ (.pt), and Google's MaskGIT tokenizer as flax msgpack and as MAGE, open-muse and hmorimitsu repacked it.
What a file is shows in the names of its parameters: each is used exactly once, or the file is refused.

Two things no file tells: LlamaGen's codebook is taken to be one of unit length, as published; and pixels are taken to
lie in [0, 1] for Google's, open-muse's and aMUSEd's networks and in [-1, 1] otherwise. `pixels` overrides that.
"""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqgan import files
from vqgan.files import ModelError
from vqgan.interop.foreign import Tensors, read_tensors
from vqgan.interop.layouts import Layout, layout_of, rename_diffusers
from vqgan.interop.taming import TamingConfig
from vqgan.network import Architecture

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS = (
    DIFFUSERS_WEIGHTS,
    "model.safetensors",
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
PIXELS = "_maskimg_pixels"  # diffusers keeps no note of the range; it passes over names that begin with _
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers before 0.15


def is_foreign(path: Path) -> bool:
    """Whether another project's library wrote this file or directory; whether it can be read shows later."""
    if path.is_file():
        return True
    if (path / files.MANIFEST).is_file() and not (path / DIFFUSERS_WEIGHTS).is_file():
        return False
    other = [name for name in WEIGHTS if name != files.WEIGHTS and (path / name).is_file()]
    return bool(other) or (path / "model_index.json").is_file() or "_class_name" in _config(path)


def read_foreign(
    source: str | Path, *, trust_pickle: bool = False, pixels: str | None = None
) -> tuple[Architecture, Tensors]:
    """The tokenizer in a file or directory of another project, for `Tokenizer.from_weights`.

    Args:
        trust_pickle: read pickles (.ckpt, .pt, .pth, .bin) too, in a process of their own that loads tensors only.
        pixels: `unit` if the network's own pixels lie in [0, 1], `symmetric` for [-1, 1]; by default as known.

    Raises:
        ModelError: it is none that can be read; the message says what it resembles, or what is wrong with it.
    """
    source = Path(source).expanduser()
    weights, config = _locate(source)
    tensors = _plain_names(read_tensors(weights, trust_pickle=trust_pickle))
    try:
        layout = layout_of(tensors)
        inferred = dataclasses.replace(layout.infer(layout, tensors), **_settings(layout, config, pixels))
        if layout.rename is rename_diffusers and isinstance(inferred, TamingConfig):
            _check_config(config, inferred)
        return inferred, _weights(layout, inferred, tensors)
    except ValueError as error:
        raise ModelError(f"`{source}` cannot be converted: {error}") from error


def _locate(source: Path) -> tuple[Path, dict[str, Any]]:
    """The file that holds the weights, and the config.json beside it."""
    if not source.exists():
        raise ModelError(f"there is no file or directory `{source}`")
    if (source / "model_index.json").is_file() and (source / "vqvae").is_dir():
        source = source / "vqvae"  # a whole pipeline, such as aMUSEd's
    if source.is_file():
        with contextlib.suppress(ModelError):  # one that cannot be read is none of this file's
            return source, _config(source.parent)
        return source, {}
    if (source / files.MANIFEST).is_file():
        files.verify(source)
    config = _config(source)
    if not config:
        raise ModelError(f"`{source}` has no config.json: it is not the whole directory, download it again")
    for name in WEIGHTS:
        if (source / name).is_file():
            return source / name, config
    raise ModelError(f"`{source}` holds no weights: expected one of {', '.join(WEIGHTS)}")


def _config(directory: Path) -> dict[str, Any]:
    return files.read_json(directory / "config.json") if (directory / "config.json").is_file() else {}


def _plain_names(tensors: Tensors) -> Tensors:
    """Names without what torch.compile and DataParallel put before them, and without diffusers' old ones."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    old = re.compile(rf"(attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.")
    return {old.sub(lambda match: f"{match[1]}.{OLD_ATTENTION[match[2]]}.", name): t for name, t in tensors.items()}


def _settings(layout: Layout, config: dict[str, Any], pixels: str | None) -> dict[str, Any]:
    """What shapes do not show."""
    settings: dict[str, Any] = {}
    is_diffusers = layout.rename is rename_diffusers
    is_amused = bool(config.get("lookup_from_codebook")) and config.get("mid_block_add_attention") is False
    if pixels is not None:
        settings["pixels"] = pixels
    elif is_diffusers and PIXELS in config:
        settings["pixels"] = config[PIXELS]
    elif (is_diffusers and is_amused) or config.get(
        "_class_name"
    ) == "VQGANModel":  # the latter is open-muse's taming VQGAN
        settings["pixels"] = "unit"
    if is_diffusers:
        settings["groups"] = config.get("norm_num_groups", 32)
        if not isinstance(settings["groups"], int) or settings["groups"] < 1:
            raise ModelError(f"its config.json says norm_num_groups = {settings['groups']!r}, expected a whole number")
    return settings


def _check_config(config: dict[str, Any], inferred: TamingConfig) -> None:
    """A VQModel's config.json must say what its parameters show, and nothing that this network lacks."""
    if config.get("_class_name") != "VQModel":
        raise ModelError(
            f"a diffusers VQModel needs the config.json that came with it, got the class `{config.get('_class_name')}`"
        )
    expected: dict[str, Any] = {
        "act_fn": "silu",
        "norm_type": "group",
        "block_out_channels": list(inferred.channels),
        "layers_per_block": inferred.blocks,
        "latent_channels": inferred.latent_channels,
        "num_vq_embeddings": inferred.codebook_size,
        "mid_block_add_attention": inferred.middle_attention,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ModelError(f"its config.json says {key} = {config[key]}, expected {value}")


def _weights(layout: Layout, config: Architecture, tensors: Tensors) -> Tensors:
    """The parameters of a tokenizer of this configuration by our names, each of theirs used exactly once."""
    # On meta: a file that lies about its sizes must not make us allocate them.
    with torch.device("meta"):
        encoder, quantizer, decoder = config.build()
    sizes = layout.sizes(tensors)
    expected = nn.ModuleDict({"encoder": encoder, "quantizer": quantizer, "decoder": decoder}).state_dict()
    theirs = {ours: layout.rename(ours, sizes) for ours in expected}
    _check_names(set(theirs.values()), tensors, layout.ignored)
    return {ours: _fitted(name, tensors[name], expected[ours].shape) for ours, name in theirs.items()}


def _check_names(expected: set[str], tensors: Tensors, ignored: tuple[str, ...]) -> None:
    missing = sorted(expected - set(tensors))
    if missing:
        raise ModelError(f"its parameter `{missing[0]}` is missing ({len(missing)} in all)")
    surplus = sorted(name for name in set(tensors) - expected if not name.startswith(ignored or ("\0",)))
    if surplus:
        raise ModelError(f"its parameter `{surplus[0]}` has no place in this network ({len(surplus)} such in all)")


def _fitted(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A parameter of their shape -> ours in fp32; a 1x1 convolution is a matrix."""
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and len(shape) == 2:
        tensor = tensor[:, :, 0, 0]
    if tensor.shape != shape:
        raise ModelError(f"its parameter `{name}` is {tuple(tensor.shape)}, expected {tuple(shape)}")
    if not tensor.is_floating_point():
        raise ModelError(f"its parameter `{name}` is of {tensor.dtype}, expected floating point")
    if not tensor.isfinite().all():
        raise ModelError(f"its parameter `{name}` holds numbers that are not finite")
    return tensor.float().clone(memory_format=torch.contiguous_format)
