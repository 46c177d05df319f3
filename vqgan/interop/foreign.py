"""Files of other projects -> tensors by name: safetensors, Google's flax msgpack, and pickles from a child process.

What kind a file is shows in its first bytes, never in its name. Networks are known to `vqgan.interop.layouts` alone.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vqgan.files import ModelError

Tensors = dict[str, torch.Tensor]

SECONDS = 900  # that a pickle may take; one of 1 GB takes a few
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
DTYPES |= {"int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8}


def read_tensors(path: Path, *, trust_pickle: bool = False) -> Tensors:
    """The tensors of a file by the names they have there; flax kernels are turned to PyTorch's order of axes.

    Raises:
        ModelError: the file cannot be read, or is a pickle and `trust_pickle` is not given.
    """
    if not path.is_file():
        raise ModelError(
            f"`{path}` is a directory: name the file in it" if path.is_dir() else f"there is no file `{path}`"
        )
    kind = sniff(path)
    if kind == "pickle" and not trust_pickle:
        raise ModelError(
            f"`{path}` is a pickle, and a pickle can run programs when it is opened: if you trust its source, add "
            "--trust-pickle (in Python, trust_pickle=True), and its tensors are read in a process of their own"
        )
    if kind == "pickle":
        return _unpickle(path)
    return _read_safetensors(path) if kind == "safetensors" else _read_msgpack(path)


def sniff(path: Path) -> str:
    """`safetensors`, `msgpack` or `pickle`, by the file's first bytes.

    Raises:
        ModelError: it is none of them.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"`{path}` is only a pointer of Git LFS: fetch the file itself with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelError(f"`{path}` is a web page, not a model: download the file itself")
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and len(start) > 1):
        return "pickle"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27:
        return "safetensors"
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return "msgpack"
    raise ModelError(f"`{path}` is neither safetensors nor a PyTorch checkpoint nor flax msgpack, or it is cut off")


def _read_safetensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"`{path}` is cut off or damaged ({error}): download it again") from error


def _unpickle(path: Path) -> Tensors:
    """Have `vqgan.interop.unpickle` write the tensors to a temporary folder, and read them there."""
    program = Path(__file__).with_name("unpickle.py")
    with tempfile.TemporaryDirectory(prefix="maskimg-") as folder:
        target = Path(folder) / "tensors.safetensors"
        # -P: a module beside the program must not stand in for one that it imports.
        command = [sys.executable, "-P", str(program), str(path.resolve()), str(target)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"`{path}` was given up after {SECONDS} seconds of reading") from error
        if done.returncode == 3:
            raise ModelError(f"`{path}` {done.stderr.strip().splitlines()[-1]}")
        if done.returncode != 0 or not target.is_file():
            raise ModelError(
                f"`{path}` made the process that read it fail (exit code {done.returncode}): do not use it"
            )
        return {name: tensor.clone() for name, tensor in _read_safetensors(target).items()}


def _read_msgpack(path: Path) -> Tensors:
    try:
        import msgpack
    except ImportError as error:
        raise ModelError("flax files need one more package: run `pip install 'maskimg[convert]'`") from error
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_value, raw=False)
    except (ValueError, TypeError, RuntimeError, msgpack.UnpackException) as error:
        raise ModelError(f"`{path}` is cut off or damaged, or no flax checkpoint: download it again") from error
    if isinstance(tree, dict) and isinstance(tree.get("params"), dict):
        tree = tree["params"]
    return {name: _torch_order(name, tensor) for name, tensor in _leaves(tree, "") if isinstance(tensor, torch.Tensor)}


def _flax_value(code: int, payload: bytes) -> Any:
    """Flax writes an array as extension 1: its shape, the name of its dtype, and its bytes."""
    import msgpack

    if code != 1:
        return None  # a lone number, such as the step
    shape, name, content = msgpack.unpackb(payload, raw=False)
    if name not in DTYPES:
        raise ValueError(f"dtype {name}")
    if not content:
        return torch.empty(shape, dtype=DTYPES[name])
    return torch.frombuffer(bytearray(content), dtype=DTYPES[name]).reshape(shape)


def _leaves(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def _torch_order(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Kernels (y, x, in, out) -> (out, in, y, x)."""
    return tensor.permute(3, 2, 0, 1) if name.endswith(".kernel") and tensor.ndim == 4 else tensor
