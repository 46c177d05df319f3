"""Which device and which number format to compute in, decided by measuring rather than by name."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIAL_SECONDS = 300.0  # after which a compiler is given up; a busy machine may need two minutes for the first time
TRIAL = """
import sys, torch
torch.compile(lambda x: x * int(sys.argv[2]) + 1, dynamic=False)(torch.ones(8, device=sys.argv[1]))
"""


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


def can_compile(device: torch.device) -> bool:
    return not compile_fault(device)


def compile_fault(device: torch.device) -> str:
    """Why compiling cannot work on a device, in words for a person; empty where it can.

    Where there is a compiler it is tried, once in a process: a few seconds, of which whatever is compiled next saves
    most. Ask only where something is going to be compiled.
    """
    if device.type == "mps":
        return "torch does not compile for this device"
    if not (shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler (g++ or clang++)"
    return _fault_in_trial(device.type)


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
def _fault_in_trial(kind: str) -> str:
    """What comes of compiling a tiny function for a kind of device.

    There are compilers without headers, wrappers that fail or never end, and folders for the results that belong to
    somebody else. In a process of its own: torch waits for its compiler for ever, and what torch 2.10 compiles after it
    has compiled in another thread ends the process.
    """
    factor = time.time_ns() % 1_000_003  # what was compiled before, when all was well, does not count
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            command = [sys.executable, "-P", "-c", TRIAL, kind, str(factor)]
            trial = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
            try:
                code = trial.wait(TRIAL_SECONDS)
            finally:  # with its compilers, also where this process is interrupted
                _end(trial)
            said.seek(0)
            fault = _first_complaint(said.read()) if code else ""
    except subprocess.TimeoutExpired:
        fault = f"the compiler did not end within {TRIAL_SECONDS:.0f} seconds"
    except OSError as error:
        fault = str(error)
    return f"the C++ compiler here cannot be used ({fault})" if fault else ""


def _end(process: subprocess.Popen) -> None:
    """End a process that leads a session of its own, and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


def _first_complaint(text: str) -> str:
    """The line of a compiler's output that says what is wrong, else the first one."""
    lines = [line.strip() for line in text.partition("Output:\n")[2].splitlines() or text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it says nothing")[:200]


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
