"""What is in a model directory: safetensors, JSON and a manifest, and how it is read and verified.

No pickle is ever opened. Loading checks size and SHA-256 of every file that it reads, because safetensors itself
notices a truncated file but not a flipped bit. What people put beside these files, or write into the model's card, does
not keep it from being loaded. `vqgan.writing` puts such directories in their place.
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
FORMAT = 1  # of a manifest
SHOWN = (".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif")  # files that only people look at

Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config")


class ModelError(ValueError):
    """A model directory that cannot be used; the message says why and what to do."""


def write_manifest(directory: Path) -> None:
    """manifest.json: size and SHA-256 of every other file below `directory`."""
    write_json(directory / MANIFEST, manifest_of({name: fingerprint(directory / name) for name in _files(directory)}))


def manifest_of(entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What manifest.json holds, from the fingerprint of each file."""
    return {"format": FORMAT, "files": entries}


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """The fingerprint of each file that the manifest of `directory` lists.

    Raises:
        ModelError: it has no manifest, or one that is damaged or not of maskimg.
    """
    if not (directory / MANIFEST).is_file():
        raise ModelError(f"`{directory}` is not a finished maskimg model: it has no {MANIFEST}")
    listed = read_json(directory / MANIFEST).get("files")
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise ModelError(f"`{directory / MANIFEST}` is damaged: download or train the model again")
    return listed


def verify(directory: str | Path, *, everything: bool = False) -> None:
    """Check the files of `directory` that are read against its manifest.

    Its card and the card's pictures may be changed or missing, and other files and folders may lie beside its own.

    Args:
        everything: check the card and its pictures, too.

    Raises:
        ModelError: the directory or its manifest is missing, or a file is missing, cut off or altered; or a file that
            the manifest does not list lies where weights or a configuration are read from.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"there is no model directory `{directory}`")
    listed = read_manifest(directory)
    for name, expected in listed.items():
        path = directory / name
        if not everything and name.lower().endswith(SHOWN):
            continue
        if ".." in Path(name).parts or Path(name).is_absolute() or not path.is_file():
            raise ModelError(f"`{path}` is missing: download or train the model again")
        if path.stat().st_size != expected.get("size"):
            raise ModelError(f"`{path}` is incomplete (its size is not the one in the manifest): download it again")
        if fingerprint(path) != expected:
            raise ModelError(f"`{path}` is damaged (its checksum is not the one in the manifest): download it again")
    for folder in {(directory / name).parent for name in listed} | {directory}:
        # At the top a person may well keep JSON of their own: what is read there always has one name, which is listed.
        read = (".safetensors",) if folder == directory else (".safetensors", ".json")
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = path.relative_to(directory).as_posix()
            if path.name.endswith(read) and name not in listed and path.is_file():
                raise ModelError(f"`{path}` is not listed in the manifest: move it away, or train the model again")


def is_whole(directory: Path) -> bool:
    """Whether `verify` finds nothing wrong."""
    try:
        verify(directory)
    except ModelError:
        return False
    return True


def has_part(directory: Path, part: str) -> bool:
    """Whether the folder `part` of a verified directory belongs to it, as the manifest says.

    Raises:
        ModelError: it does not, and yet it holds weights that would be taken for the model's.
    """
    if any(name.startswith(f"{part}/") for name in read_manifest(directory)):
        return True
    if (directory / part / WEIGHTS).is_file():
        raise ModelError(
            f"`{directory / part / WEIGHTS}` is not listed in the manifest: move it away, or train the model again"
        )
    return False


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
    path.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """As JSON that UTF-8 can hold, also where a name is none: half a character is escaped, and read back as it was."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


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


def fingerprint(path: Path) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"size": path.stat().st_size, "sha256": checksum(path)}


def is_file(name: str | Path) -> bool:
    """Whether a name is that of a file; also of what can be none."""
    try:
        return isinstance(name, str | Path) and Path(name).expanduser().is_file()
    except (ValueError, OSError, RuntimeError):
        return False


def locate(name: str | Path) -> Path:
    """A directory on disk, or the local snapshot of the hub repository `owner/name`, fetched if needed.

    Raises:
        ModelError: there is neither.
    """
    if not isinstance(name, str | Path):
        raise ModelError(f"there is no model directory `{str(name)[:60]}`: give a path or a name")
    text = str(name)
    try:
        path = Path(name).expanduser()
        if text.strip() and path.is_dir():
            return path
    except (ValueError, OSError, RuntimeError):  # no system has such a name
        raise ModelError(
            f"there is no model directory `{ascii(text[:60])[1:-1]}`: it cannot be the name of one"
        ) from None
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
