"""Devices and number formats: chosen by name or by measuring, refused with a sentence."""

import os

import pytest
import torch
from helpers import random_codes, tiny_net
from tiny import NETWORK

from maskimg import hardware
from maskimg.hardware import autocast, can_compile, compile_blocks, compile_fault, pick_device, pick_dtype
from maskimg.networks.transformer import MaskedTransformer

CPU = torch.device("cpu")


def test_auto_finds_a_device_that_works():
    torch.ones(2, device=pick_device("auto")).sum()


@pytest.mark.parametrize("name", ["abacus", "cuda:99", ""])
def test_a_device_that_is_not_here_gets_a_sentence(name):
    with pytest.raises(ValueError, match="there is no device"):
        pick_device(name)


def test_a_format_is_taken_by_name_or_measured():
    assert pick_dtype("fp32", CPU) is torch.float32
    assert pick_dtype("bf16", CPU) is torch.bfloat16
    assert pick_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="dtype must be `auto`, `fp32` or `bf16`, got `fp8`"):
        pick_dtype("fp8", CPU)


def test_autocast_is_off_in_fp32():
    with autocast(CPU, torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_compiling_takes_the_blocks_and_nothing_else(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    monkeypatch.setattr("maskimg.hardware.compile_fault", lambda device: "")
    net = MaskedTransformer(NETWORK)
    assert compile_blocks(net, CPU)
    assert compiled == list(net.trunk.blocks)


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: pytest.fail("compiled all the same"))
    assert not compile_blocks(MaskedTransformer(NETWORK), CPU)


@pytest.mark.filterwarnings("ignore")  # torch's compiler has deprecations of its own
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'x.cpp:3:10: fatal error: omp.h: No such file or directory' >&2; exit 1", "omp.h: No such file"),
        ("echo 'ld: cannot find -lgomp' >&2; exit 1", "cannot find -lgomp"),
        ("kill -SEGV $$", "the C++ compiler here cannot be used ("),
        ("exec sleep 4", "did not end within 1 second"),
    ],
    ids=["no headers", "no library", "crashes", "never ends"],
)
def test_a_compiler_that_cannot_compile_is_found_out_and_named(script, said, tmp_path, monkeypatch):
    """`which g++` once sufficed, and every long run ended with an error of torch's."""
    for name in ("g++", "clang++"):
        (tmp_path / name).write_text(
            f'#!/bin/sh\ncase "$*" in *--version*) echo "g++ (GCC) 12.2.0"; exit 0;; esac\n{script}\n'
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(hardware, "TRIAL_SECONDS", 1.0 if "sleep" in script else 300.0)
    hardware._fault_in_trial.cache_clear()
    try:
        assert said in compile_fault(CPU)
        assert not can_compile(CPU) and not compile_blocks(MaskedTransformer(NETWORK), CPU)
    finally:
        hardware._fault_in_trial.cache_clear()
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # torch's compiler has deprecations of its own
def test_compiled_blocks_have_the_gradients_of_eager_ones():
    """torch 2.15 once compiled a backward pass to NaN, and a training run would have ended at its second step.

    bf16 has 8 bits, so norms of gradients agree to a few per cent. Without a C++ compiler both passes are eager.
    """
    codes, gradients = random_codes(2, NETWORK), []
    net = tiny_net(NETWORK, seed=0)
    for _ in range(2):
        net.zero_grad()
        with autocast(CPU, torch.bfloat16):
            loss = net(codes).float().square().mean()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        compile_blocks(net, CPU)
    torch.compiler.reset()
    assert gradients[1].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()
