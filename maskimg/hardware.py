"""Which device and which number format to compute in, decided by measuring rather than by name."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: the first CUDA GPU, else Apple's GPU, else the CPU.

    Raises:
        ValueError: the named device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device `{name}` here: use `auto` or `cpu`") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`fp32`, `bf16`, or `auto`: bf16 on CUDA and on CPUs where its matrix products really are faster.

    Raises:
        ValueError: another name.
    """
    if name == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and _cpu_bf16_is_faster())
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be `auto`, `fp32` or `bf16`, got `{name}`")
    return DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context that computes matrix products and convolutions in `dtype`."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextlib.contextmanager
def without_gradient() -> Iterator[None]:
    """A context like `torch.no_grad()`, after which the same weights can be learnt in the same autocast.

    Autocast keeps its copies of the weights. Up to torch 2.10 a copy that was made without gradient is used again
    where there should be one, and those weights are then never trained.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


def can_compile(device: torch.device) -> bool:
    return device.type != "mps" and bool(shutil.which("g++") or shutil.which("clang++"))


def compile_blocks(network: nn.Module, device: torch.device) -> bool:
    """Compile the repeated blocks of a network in place, where that can work; returns whether it was done.

    Compiling takes seconds to half a minute, and then saves about a third of a step on a CPU, in training and in
    sampling. It needs a C++ compiler there.
    """
    if not can_compile(device):
        return False
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing CUDA on every CPU
    # A block is compiled once for each number of rows; past the limit it would go on uncompiled, and round otherwise.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1:
            for child in module:
                if next(child.children(), None) is not None:  # a block, not a leaf such as an embedding
                    child.compile(dynamic=False)
    return True


@cache
def _cpu_bf16_is_faster() -> bool:
    """One matrix product each way, the best of three: 50 ms, large enough to be told apart on a busy machine."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - start)
        best[dtype] = min(times)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]
