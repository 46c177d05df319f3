"""Checkpoints that are whole or not there.

Each is a directory of safetensors, state.json and a manifest, written beside its place, read back, and only then
renamed; older ones go when it stands. The newest is the one of the highest step whose manifest verifies: there is no
pointer that could be wrong.
"""

import errno
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from maskimg.distributed import split_like, whole
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.errors import TrainingError
from vqgan import files, writing

Part = nn.Module | torch.optim.Optimizer | Ema
Tensors = dict[str, torch.Tensor]
FORMAT = 2  # 1: without the position in samples and the skipped steps
STEP = re.compile(r"step-\d{9}")
KEPT = 2  # while training: should the newest be damaged later on, there is another


class Checkpoints:
    """Those of one run, in `directory`/step-000012000 and so on."""

    def __init__(self, directory: Path):
        self.directory = directory

    def newest(self) -> Path | None:
        """The newest whole one; of damaged ones it is said which file is damaged."""
        for path in reversed(self._all()):
            try:
                files.verify(path)
                return path
            except files.ModelError as error:
                print(f"skipping a checkpoint: {error}", file=sys.stderr)
        return None

    def write(self, step: int, parts: dict[str, Tensors], state: dict[str, Any], *, keep: int = KEPT) -> None:
        """Write, read back, put in place, and only then drop all but the newest `keep`.

        Raises:
            TrainingError: it could not be written; those before it are left.
        """
        target = self.directory / f"step-{step:09d}"
        try:
            writing.make_way(target, working=True)
            with writing.atomic_directory(target) as temporary:
                for name, tensors in parts.items():
                    _write(temporary / f"{name}.safetensors", tensors)
                files.write_json(temporary / "state.json", {"format": FORMAT, "step": step, **state})
        except (OSError, SafetensorError, files.ModelError) as error:
            raise TrainingError(
                f"the checkpoint `{target}` could not be written ({error}); the one before it is kept: make room or "
                "repair the disk, then run the same command again"
            ) from error
        for path in self._all()[:-keep]:
            writing.remove_directory(path)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step-*") if STEP.fullmatch(path.name))


def read_state(directory: Path) -> dict[str, Any]:
    """state.json of a checkpoint of any format so far.

    Raises:
        ModelError: it is unreadable, or a newer maskimg's.
    """
    path = directory / "state.json"
    state = files.read_json(path)
    if not isinstance(state.get("format"), int) or state["format"] > FORMAT:
        raise files.ModelError(f"`{path}` has the format {state.get('format')}, a newer maskimg's: upgrade maskimg")
    missing = [key for key in ("step", "seconds", "identity") if key not in state]
    if missing:
        raise files.ModelError(f"`{path}` holds no `{missing[0]}`: remove this checkpoint to use the one before it")
    return {"skipped": [], **state}


def tensors_of(part: Part) -> Tensors:
    """Everything that a module, an optimizer or averages must get back; every process has to ask for sharded ones."""
    if isinstance(part, Ema):
        tensors = part.shadow
    elif isinstance(part, nn.Module):
        tensors = part.state_dict()
    else:
        state = part.state_dict()["state"]
        tensors = {f"{i}.{key}": torch.as_tensor(value) for i, values in state.items() for key, value in values.items()}
    return {name: whole(tensor.detach()).cpu().contiguous().clone() for name, tensor in tensors.items()}


def fill(part: Part, path: Path) -> None:
    """Give a module, an optimizer or averages back what `tensors_of` took from it.

    Raises:
        ModelError: the file is missing, or does not hold all of it.
    """
    if not path.is_file():
        raise files.ModelError(f"`{path}` is missing, so the run cannot be continued exactly: remove this checkpoint")
    tensors = load_file(path)
    if isinstance(part, torch.optim.Optimizer):
        _fill_optimizer(part, tensors, path)
        return
    places = part.shadow if isinstance(part, Ema) else part.state_dict()
    _require_same(path, set(tensors), set(places))
    with torch.no_grad():
        for name, place in places.items():
            if place.shape != tensors[name].shape:
                raise files.ModelError(
                    f"`{path}` holds `{name}` of {tuple(tensors[name].shape)}, expected {tuple(place.shape)}"
                )
            place.copy_(split_like(tensors[name], place))


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, path: Path) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    keys = {key for values in state.values() for key in values}
    for index, values in state.items():
        if index >= len(parameters):
            raise files.ModelError(f"`{path}` holds a state for {index + 1} weights, expected {len(parameters)}")
        _require_same(path, {f"{index}.{key}" for key in values}, {f"{index}.{key}" for key in keys})
        for key, tensor in values.items():
            if tensor.shape == parameters[index].shape:
                values[key] = split_like(tensor, parameters[index])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _require_same(path: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        odd = sorted(found ^ expected)[0]
        side = "not expected" if odd in found else "missing"
        raise files.ModelError(f"`{path}` does not fit this run: `{odd}` is {side}")


def _write(path: Path, tensors: Tensors) -> None:
    """One file, compared with what it should hold: a manifest of a file that was written wrong would agree with it."""
    save_file(tensors, path)
    written = load_file(path)
    for name, tensor in tensors.items():
        if not torch.equal(_bytes(tensor), _bytes(written[name])):
            raise OSError(errno.EIO, f"`{name}` reads back otherwise than it was written", str(path))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
