"""What loading costs beside a training step: codes from the mapped file, codes in memory, pictures from their array.

    python benchmarks/loading.py                          # the sizes of the preset `cpu`; a minute; prints a table
    python benchmarks/loading.py --results loading.md     # and writes it to results/loading.md
    python benchmarks/loading.py --small                  # toy sizes, seconds

A step is forward, backward, clipping and AdamW, in fp32 and without compilation; loading is all that happens before
it: drawing numbers of pictures and views, reading them, labels too, and moving them to the device. Every round times
each of them once, in changing order; shares are medians of the shares within a round. The mapped files have been
written just before and lie in the system's page cache, as they do from the second epoch on.

Shapes: b pictures a step, n pictures in all.
"""

import argparse
import dataclasses
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

from maskimg.data.codes import CodeCache, Grids
from maskimg.data.pictures import move
from maskimg.hardware import pick_device
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from vqgan import Tokenizer, TokenizerConfig
from vqgan.images import normalize

RESULTS = Path(__file__).parent / "results"
LIMIT = 0.05  # of a step: what loading may cost


@dataclasses.dataclass(frozen=True)
class Size:
    """As `maskimg train --preset cpu` has them for many labelled pictures."""

    pictures: int = 200_000
    views: int = 4
    side: int = 8
    codes: int = 1000
    width: int = 256
    depth: int = 6
    heads: int = 4
    batch: int = 64
    pixels: int = 32
    decoded: int = 20_000
    rounds: int = 8
    steps: int = 2


SMALL = Size(pictures=2000, views=2, width=32, depth=1, heads=2, batch=8, decoded=200, rounds=3, steps=1)


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to load, and the step that uses what it loads."""

    name: str
    load: Callable[[], tuple[torch.Tensor, ...]]
    step: Callable[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description="What loading costs beside a training step.")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", help="file in benchmarks/results to write")
    given = parser.parse_args()
    device, size = pick_device(given.device), SMALL if given.small else Size()
    with tempfile.TemporaryDirectory() as temporary:
        ways = make_ways(size, Path(temporary), device)
        shares = measure(ways, size, device)
    text = table(ways, shares, size, device)
    print(text)
    if given.results:
        (RESULTS / given.results).write_text(text + "\n", encoding="utf-8")


def make_ways(size: Size, folder: Path, device: torch.device) -> list[Way]:
    generator = torch.Generator().manual_seed(0)
    mapped = write_codes(size, folder)
    memory = dataclasses.replace(mapped, codes=mapped.codes[:])
    train = generator_step(size, device)
    ways = [
        Way("codes, mapped file", lambda: load_codes(mapped, size, generator, device), train),
        Way("codes, int64 in memory", lambda: load_codes(memory, size, generator, device), train),
    ]
    if device.type == "cuda":
        resident = mapped.resident(device)
        ways.append(Way("codes, on the GPU", lambda: load_codes(resident, size, generator, device), train))
    pixels = write_pixels(size, folder)
    ways.append(Way("pictures", lambda: load_pictures(pixels, size, generator, device), tokenizer_step(size, device)))
    return ways


def load_codes(
    cache: CodeCache, size: Size, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.randint(size.pictures, (size.batch,), generator=generator)
    view = torch.randint(size.views, (size.batch,), generator=generator)
    return cache.codes[view, chosen].to(device), cache.labels[chosen].to(device)


def load_pictures(
    pixels: torch.Tensor, size: Size, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor]:
    """As the tokenizer is trained: moved a little, half of them mirrored."""
    chosen = torch.randint(size.decoded, (size.batch,), generator=generator)
    moved = move(pixels[chosen], size.pixels // 16, generator)
    mirrored = torch.rand(size.batch, generator=generator) < 0.5
    return (normalize(torch.where(mirrored[:, None, None, None], moved.flip(-1), moved).to(device)),)


def generator_step(size: Size, device: torch.device) -> Callable[..., None]:
    config = TransformerConfig(
        size.codes, (size.side, size.side), (10,), dim=size.width, depth=size.depth, heads=size.heads
    )
    model = MaskGit(MaskedTransformer(config)).to(device).train()
    return step_of(model, lambda codes, labels: model(codes, labels).loss)


def tokenizer_step(size: Size, device: torch.device) -> Callable[..., None]:
    """Squared error alone: the losses that are left out would only make loading look cheaper."""
    tokenizer = Tokenizer(TokenizerConfig(channels=(64, 96), decoder_blocks=2)).to(device).train()
    return step_of(tokenizer, lambda images: (tokenizer(images)[0] - images).square().mean())


def step_of(module: nn.Module, loss_of: Callable[..., torch.Tensor]) -> Callable[..., None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def step(*batch: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(*batch).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def measure(ways: list[Way], size: Size, device: torch.device) -> list[list[tuple[float, float]]]:
    """(seconds of loading, seconds of stepping) of each way in each round, after one that is not counted."""
    found: list[list[tuple[float, float]]] = [[] for _ in ways]
    order = list(range(len(ways)))
    for turn in range(size.rounds + 1):
        random.Random(turn).shuffle(order)
        for i in order:
            loading = stepping = 0.0
            for _ in range(size.steps):
                started = now(device)
                batch = ways[i].load()
                loaded = now(device)
                ways[i].step(*batch)
                loading, stepping = loading + loaded - started, stepping + now(device) - loaded
            if turn:
                found[i].append((loading / size.steps, stepping / size.steps))
    return found


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def write_codes(size: Size, folder: Path) -> CodeCache:
    """Random codes in a mapped file, as `encode_pictures` leaves them."""
    shape = (size.views, size.pictures, size.side, size.side)
    stored = np.memmap(folder / "codes", np.uint16, "w+", shape=shape)
    stored[:] = np.random.default_rng(0).integers(size.codes, size=shape, dtype=np.uint16)
    stored.flush()
    again = np.memmap(folder / "codes", np.uint16, "c", shape=shape)
    labels = torch.arange(size.pictures)[:, None] % 10
    fields = {"class": [str(i) for i in range(10)]}
    unseen = torch.zeros(size.pictures, dtype=torch.bool)
    return CodeCache(Grids(torch.from_numpy(again)), labels, fields, unseen, [], size.codes, "")


def write_pixels(size: Size, folder: Path) -> torch.Tensor:
    shape = (size.decoded, 3, size.pixels, size.pixels)
    stored = np.memmap(folder / "pixels", np.uint8, "w+", shape=shape)
    stored[:] = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    stored.flush()
    return torch.from_numpy(np.memmap(folder / "pixels", np.uint8, "c", shape=shape))


def table(ways: list[Way], found: list[list[tuple[float, float]]], size: Size, device: torch.device) -> str:
    kind = "a GPU" if device.type == "cuda" else f"{device.type.upper()}, {torch.get_num_threads()} threads"
    lines = [
        "# What loading costs beside a training step",
        "",
        f"`python benchmarks/loading.py`, {date.today()}, {kind} of {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{size.rounds} rounds of {size.steps} steps, interleaved.",
        f"Codes: {size.views} views of {size.pictures:,} pictures, {size.side}x{size.side} tokens; generator "
        f"{size.depth} x {size.width}, {size.batch} grids a step. Pictures: {size.decoded:,} of {size.pixels} pixels, "
        f"tokenizer of the preset `cpu`, {size.batch} a step.",
        "",
        f"| | loading, ms | step, ms | share, median (worst round) | {LIMIT:.0%} of a step of, ms |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, rounds in zip(ways, found, strict=True):
        shares = [loading / (loading + stepping) for loading, stepping in rounds]
        loading, stepping = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        lines.append(
            f"| {way.name} | {loading:.2f} | {stepping:.1f} | {statistics.median(shares):.2%} ({max(shares):.2%}) | "
            f"{loading * (1 - LIMIT) / LIMIT:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
