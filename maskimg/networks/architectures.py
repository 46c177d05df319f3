"""The networks a generator's directory can hold: config.json names the architecture where it is not our own."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from maskimg.network import Network
from maskimg.networks.google import GoogleMaskGit
from maskimg.networks.halton import HaltonMaskGit
from maskimg.networks.transformer import MaskedTransformer
from vqgan import files

ARCHITECTURES: dict[str, Any] = {kind.architecture: kind for kind in (MaskedTransformer, GoogleMaskGit, HaltonMaskGit)}


def write_network(directory: Path, net: Network, dtype: torch.dtype | None = None) -> None:
    """config.json and model.safetensors; `dtype` narrows its floating-point numbers."""
    own = isinstance(net, MaskedTransformer)
    kind = {} if own else {"architecture": net.architecture}
    files.write_module(directory, kind | dataclasses.asdict(net.config), net, dtype)


def read_network(directory: Path) -> Network:
    """The network of an already verified directory.

    Raises:
        ModelError: it is incomplete or damaged, or of an architecture that this version does not know.
    """
    kind = files.read_json(directory / "config.json").get("architecture", MaskedTransformer.architecture)
    if kind not in ARCHITECTURES:
        raise files.ModelError(f"`{directory}` is a generator of the unknown architecture `{kind}`: upgrade maskimg")
    architecture = ARCHITECTURES[kind]
    net = architecture(files.read_config(directory, architecture.config_type))
    return files.read_weights(directory, net)
