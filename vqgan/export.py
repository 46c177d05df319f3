"""A Tokenizer -> what diffusers' VQModel loads."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vqgan import files, writing
from vqgan.files import ModelError
from vqgan.interop.convert import DIFFUSERS_WEIGHTS, PIXELS
from vqgan.interop.layouts import Sizes, rename_diffusers
from vqgan.interop.taming import TamingConfig
from vqgan.tokenizer import Tokenizer


def to_diffusers(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write a directory that `diffusers.VQModel.from_pretrained` loads.

    Raises:
        ModelError: VQModel cannot express this tokenizer.
    """
    config = tokenizer.config
    if not isinstance(config, TamingConfig):
        raise ModelError(f"diffusers' VQModel cannot hold a tokenizer of the architecture `{config.architecture}`")
    if config.quantizer != "nearest":
        raise ModelError(f"diffusers' VQModel has no `{config.quantizer}` codebook, only `nearest`")
    if config.stem != config.channels[0]:
        raise ModelError(
            f"diffusers' VQModel starts at the width of its first level: here {config.stem} and {config.channels[0]}"
        )
    sizes = Sizes(len(config.channels), config.blocks)
    tensors = {
        rename_diffusers(name, sizes): tensor.detach().cpu().contiguous()
        for name, tensor in tokenizer.state_dict().items()
    }
    with writing.atomic_directory(directory) as temporary:
        files.write_json(temporary / "config.json", _diffusers_config(config))
        save_file(tensors, temporary / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})


def _diffusers_config(config: TamingConfig) -> dict[str, Any]:
    levels = range(len(config.channels))
    down = ["AttnDownEncoderBlock2D" if i in config.encoder_attention else "DownEncoderBlock2D" for i in levels]
    up = ["AttnUpDecoderBlock2D" if i in config.decoder_attention else "UpDecoderBlock2D" for i in reversed(levels)]
    return {
        "_class_name": "VQModel",
        PIXELS: config.pixels,
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "up_block_types": up,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.blocks,
        "lookup_from_codebook": True,
        "mid_block_add_attention": config.middle_attention,
        "norm_num_groups": config.groups,
        "norm_type": "group",
        "num_vq_embeddings": config.codebook_size,
        "vq_embed_dim": config.codebook_dim,
    }
