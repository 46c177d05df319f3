"""Several processes that train one model together, as `torchrun` starts them; alone, a process is the first of one.

    torchrun --nproc-per-node 8 -m maskimg train-generator ...

Every process holds the whole order of samples and takes its own places of each batch. The first alone writes, logs
and shows a progress bar. Small decisions (stop, save) are exchanged between CPUs, so that no GPU has to wait for them.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

PATIENCE = datetime.timedelta(hours=12)  # for a first process that decodes or encodes while the others wait
ALONE = "--shard needs several processes: start them with `torchrun --nproc-per-node N -m maskimg`"


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if several() else 0


def world() -> int:
    return dist.get_world_size() if several() else 1


def is_first() -> bool:
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """While active, the processes that torchrun started are one group, and only the first of them speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                silence = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            yield
            sys.stdout.flush()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first process runs the body, then the others do and find what it has written."""
    if several() and not is_first():
        dist.barrier()
    try:
        yield
    finally:
        if several() and is_first():
            dist.barrier()


def highest(*values: float) -> list[float]:
    """The largest that any process gave, of each value."""
    if not several():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def of_first(value: Any) -> Any:
    """What the first process has."""
    values = [value]
    if several():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def shared_out(work: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`work` of 0, 1, ... count - 1, each done by one process, several at a time; only the first gets the results."""
    for start in range(0, count, world()):
        mine = start + rank()
        done = work(mine) if mine < count else None
        if not several():
            yield done
            continue
        gathered = [None] * world()
        dist.gather_object(done, gathered if is_first() else None)
        if is_first():
            yield from gathered[: count - start]


def wait_for_all() -> None:
    if several():
        dist.barrier()


def as_first_has(module: nn.Module) -> nn.Module:
    """With the first process's numbers: what each has trained for itself may differ in a last bit."""
    if several():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)
    return module


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if several():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def add_gradients(module: nn.Module) -> None:
    """Replace each gradient by its sum over all processes."""
    if several():
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)


def replicated(module: nn.Module) -> nn.Module:
    """The module to call in training: its gradients become means over the processes."""
    return DistributedDataParallel(module) if several() else module


def sharded(module: nn.Module, blocks: Iterable[nn.Module]) -> nn.Module:
    """Split weights, gradients and optimizer state over the processes (FSDP2), block by block.

    Raises:
        ValueError: there is but one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not several():
        raise ValueError(ALONE)
    mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor's full contents; every process has to ask for them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: torch.Tensor, reference: Any) -> torch.Tensor:
    """A whole tensor, sharded as `reference` is."""
    if not isinstance(reference, DTensor):
        return tensor
    mesh = reference.device_mesh
    return cast(torch.Tensor, distribute_tensor(tensor.to(mesh.device_type), mesh, reference.placements))
