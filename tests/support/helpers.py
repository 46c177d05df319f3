"""Small things that several test files build: networks with weights far from zero, pictures and codes in memory."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from tiny import LABELS, NETWORK
from torch import nn

from maskimg.data.codes import CodeCache
from maskimg.data.pictures import Pictures
from maskimg.maskgit import MaskGit, Objective
from maskimg.network import Network
from maskimg.networks.transformer import MaskedTransformer, TokenCritic, TransformerConfig
from maskimg.training.loop.run import Run

PLAIN = TransformerConfig(vocab_size=12, grid=(4, 4), dim=16, depth=1, heads=2)

Module = TypeVar("Module", bound=nn.Module)


def stirred(module: Module, seed: int = 0, size: float = 0.3) -> Module:
    """`module` with noise on every weight: untrained blocks are the identity, which would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


def tiny_net(config: TransformerConfig = PLAIN, seed: int = 0) -> MaskedTransformer:
    """A generator's network whose weights depend on `seed` only."""
    return _built(MaskedTransformer, config, seed)


def maskgit(net: Network, **options: Any) -> MaskGit:
    """A MaskGit around `net`; options of its Objective may be given by their own names."""
    names = {field.name for field in dataclasses.fields(Objective)}
    objective = Objective(**{name: value for name, value in options.items() if name in names})
    return MaskGit(net, objective=objective, **{name: value for name, value in options.items() if name not in names})


def tiny_critic(config: TransformerConfig = PLAIN, seed: int = 1) -> TokenCritic:
    return _built(TokenCritic, config, seed)


def random_codes(b: int, config: TransformerConfig = PLAIN, seed: int = 0) -> torch.Tensor:
    """Complete grids (b, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (b, *config.grid), generator=generator)


def tiny_pictures(count: int = 12, size: int = 16, *, held_out: int = 2, seed: int = 0) -> Pictures:
    """`count` pictures of two smooth colours each, the last `held_out` of them held out, with the LABELS of `tiny`."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (2, count, 3, 1, 1), generator=generator)
    ramp = torch.linspace(0, 1, size)
    pixels = (colours[0] + (colours[1] - colours[0]) * ramp).expand(count, 3, size, size).to(torch.uint8).contiguous()
    labels = torch.stack([torch.arange(count) % len(names) for names in LABELS.values()], dim=1)
    names = [f"{i:03d}.png" for i in range(count)]
    fields = {field: list(values) for field, values in LABELS.items()}
    return Pictures(pixels, labels, fields, torch.arange(count) >= count - held_out, names, f"made of {seed}")


def tiny_cache(count: int = 24, *, held_out: int = 4, labels: bool = True, seed: int = 0) -> CodeCache:
    """Two versions of `count` grids for the NETWORK of `tiny`; their codes follow from their first label."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % NETWORK.label_sizes[0]
    patterns = torch.randint(0, NETWORK.vocab_size, (NETWORK.label_sizes[0], *NETWORK.grid), generator=generator)
    columns = torch.stack((kinds, torch.arange(count) % NETWORK.label_sizes[1]), dim=1)
    return CodeCache(
        patterns[kinds].expand(2, -1, -1, -1).clone(),
        columns if labels else torch.zeros(count, 0, dtype=torch.int64),
        {field: list(names) for field, names in LABELS.items()} if labels else {},
        torch.arange(count) >= count - held_out,
        [f"{i:03d}.png" for i in range(count)],
        NETWORK.vocab_size,
        f"made of {seed}",
    )


def differing(left: nn.Module, right: nn.Module) -> list[str]:
    """Names of the tensors in which two modules differ by as much as a bit."""
    others = right.state_dict()
    return [name for name, tensor in left.state_dict().items() if not torch.equal(tensor, others[name])]


@contextmanager
def stopped_at(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """While active, a training loop gets a signal at the beginning of step `step`."""
    seed = Run.seed_torch

    def seed_and_stop(run: Run) -> None:
        if run.step == step:
            os.kill(os.getpid(), number)
        seed(run)

    Run.seed_torch = seed_and_stop
    try:
        yield
    finally:
        Run.seed_torch = seed


def _built(kind: type[Module], config: TransformerConfig, seed: int) -> Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return stirred(kind(config), seed).eval()
