"""What is in a model directory: safetensors, JSON and a manifest, and how it is read and verified.

No pickle is ever opened. Loading checks size and SHA-256 of every file, because safetensors itself notices a truncated
file but not a flipped bit. `vqgan.writing` puts such directories in their place.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"

Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config")


class ModelError(ValueError):
    """A model directory that cannot be used; the message says why and what to do."""


def write_manifest(directory: Path) -> None:
    """manifest.json: size and SHA-256 of every other file below `directory`."""
    entries = {name: _fingerprint(directory / name) for name in _files(directory)}
    write_json(directory / MANIFEST, {"format": 1, "files": entries})


def verify(directory: str | Path) -> None:
    """Check every file of `directory` against its manifest.

    Raises:
        ModelError: the directory or its manifest is missing, or a file is missing, cut off or altered.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"there is no model directory `{directory}`")
    if not (directory / MANIFEST).is_file():
        raise ModelError(f"`{directory}` is not a finished maskimg model: it has no {MANIFEST}")
    listed = read_json(directory / MANIFEST).get("files")
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise ModelError(f"`{directory / MANIFEST}` is damaged: download or train the model again")
    for name, expected in listed.items():
        path = directory / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not path.is_file():
            raise ModelError(f"`{path}` is missing: download or train the model again")
        if path.stat().st_size != expected.get("size"):
            raise ModelError(f"`{path}` is incomplete (its size is not the one in the manifest): download it again")
        if _fingerprint(path) != expected:
            raise ModelError(f"`{path}` is damaged (its checksum is not the one in the manifest): download it again")
    for name in _files(directory):
        if name.endswith((".safetensors", ".json")) and name not in listed:
            raise ModelError(f"`{directory / name}` is not listed in the manifest: download or train the model again")


def write_module(directory: Path, config: dict[str, Any], module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """config.json and model.safetensors of one network.

    Args:
        dtype: narrows its floating-point tensors, but for a quantizer's: a rounded codebook gives other codes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    tensors = {}
    for name, tensor in module.state_dict().items():
        exact = not dtype or not tensor.is_floating_point() or name.startswith("quantizer.")
        narrow = tensor.dtype if exact else dtype
        tensors[name] = tensor.detach().to("cpu", narrow).contiguous()
    save_file(tensors, directory / WEIGHTS)


def read_config(directory: Path, config_type: type[Config]) -> Config:
    """config.json as a dataclass; lists become tuples. `architecture`, which names the dataclass, is none of its keys.

    Raises:
        ModelError: it is missing or holds keys that this version does not know.
    """
    values = read_json(directory / "config.json")
    values.pop("architecture", None)
    known = {field.name for field in dataclasses.fields(config_type)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ModelError(f"`{directory}/config.json` holds the unknown key `{unknown[0]}`: upgrade maskimg")
    try:
        return config_type(**{key: _tuples(value) for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ModelError(f"`{directory}/config.json` cannot be used ({error}): download the model again") from error


def read_weights(directory: Path, module: Module) -> Module:
    """Fill `module` from model.safetensors and return it.

    Raises:
        ModelError: the file is missing, is no safetensors file, or does not fit the module, or holds NaN or infinity.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise ModelError(f"`{path}` is missing: download or train the model again")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"`{path}` is not a readable safetensors file ({error}): download it again") from error
    expected = module.state_dict()
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))[0]
        raise ModelError(f"`{path}` does not fit its config.json: tensor `{odd}` is {_side(odd, tensors)}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"`{path}` does not fit its config.json: `{name}` is {tuple(tensor.shape)}, "
                f"expected {tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"`{path}` holds numbers that are not finite in `{name}`: train the model again")
    module.load_state_dict(tensors)  # converts narrow tensors to the module's own dtype
    return module


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Raises: ModelError where the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"`{path}` is missing: download or train the model again") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` is not a JSON object")
    return value


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(name: str | Path) -> Path:
    """A directory on disk, or the local snapshot of the hub repository `owner/name`, fetched if needed.

    Raises:
        ModelError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    text = str(name)
    if text.count("/") != 1 or path.is_absolute() or text.startswith("."):
        raise ModelError(f"there is no model directory `{name}`")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"`{name}` is neither a directory nor a reachable hub repository") from error
    except ImportError as error:  # of a package that a SOCKS proxy asks for
        raise ModelError(f"`{name}` cannot be fetched through the proxy that is set ({error})") from error


def push_to_hub(save: Callable[[Path], None], repository: str, **options) -> str:
    """Save to a temporary directory, upload it and return the repository's address."""
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        save(Path(temporary) / "model")
        address = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=Path(temporary) / "model", **options)
    return str(address)


def _side(name: str, found: dict[str, torch.Tensor]) -> str:
    return "not expected" if name in found else "missing"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _files(directory: Path) -> list[str]:
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return sorted(name for name in names if name != MANIFEST)


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": checksum(path)}
