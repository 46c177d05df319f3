"""A pickle's tensors -> a safetensors file. A program that `vqgan.interop.foreign` starts in a process of its own.

A pickle can name any function to be called while it is read. PyTorch's `weights_only` allows none but those that make
tensors; that this process can do nothing but write one file to a temporary folder, with a limit on memory, is a second
wall. It imports nothing of this project, so that it starts quickly.

    python unpickle.py SOURCE TARGET     exit code 0, or 3 and one sentence on stderr
"""

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

# Where the networks' tensors lie in the dictionaries that training programs save; the averaged ones come first.
INNER = ("ema", "state_dict", "model_state_dict", "model", "params")
GIBIBYTE = 2**30


class Refused(Exception):
    """The message ends a sentence that begins with the file's name."""


def main(arguments: list[str]) -> int:
    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        write_tensors(source, target)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 3
    return 0


def write_tensors(source: Path, target: Path) -> None:
    """Read the pickle `source` and write its tensors to the safetensors file `target`."""
    from safetensors.torch import save_file

    tensors = tensors_of(load(source))
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target)


def load(source: Path) -> Any:
    import torch

    limit_memory(3 * source.stat().st_size + 2 * GIBIBYTE)
    try:
        # The arguments of the training program, in LlamaGen's files; a Namespace only holds what it is given.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(reason(str(error))) from error
    except MemoryError as error:
        raise Refused("asks for far more memory than its size explains: it is damaged, or meant to do harm") from error
    except Exception as error:
        raise Refused(f"is cut off or damaged ({' '.join(str(error).split())[:120]}): download it again") from error


def tensors_of(value: Any) -> dict[str, Any]:
    """The tensors by name of a state dict, or of the first one among INNER that a training program's file holds."""
    import torch

    for _ in range(2):  # LlamaGen's `ema` and others hold the tensors directly, a few files one step deeper
        inner = [value[key] for key in INNER if isinstance(value, dict) and isinstance(value.get(key), dict)]
        value = inner[0] if inner else value
    if not isinstance(value, dict):
        raise Refused(f"holds a {type(value).__name__}, not the tensors of a network by name")
    tensors = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise Refused("holds no tensors by name")
    return tensors


def reason(message: str) -> str:
    """What PyTorch says about an object it would not make -> our words, which name it where PyTorch does."""
    for mark in ("GLOBAL ", "global "):
        if mark in message:
            name = message.split(mark, 1)[1].split()[0].strip("`'.,")
            return f"holds `{name}`, which is no tensor and was not opened: save its state dict alone, if you trust it"
    if "Unsupported operand" in message:
        return "holds instructions that no PyTorch checkpoint has, and was not opened"
    return "holds something other than tensors, or is cut off, and was not opened"


def limit_memory(extra: int) -> None:
    """Let this process have `extra` bytes more than it has; only Linux tells how much that is."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + extra
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
