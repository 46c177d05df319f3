"""Speed of a model on this machine, as pictures a second and as a share of its own matrix-product rate.

    make bench                        # the bundled model
    python benchmarks/speed.py MODEL  # another one

Medians of five interleaved rounds. Machines are shared and noisy: compare the ratios, not the absolute figures.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from maskimg.hardware import autocast, pick_device
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler

ROUNDS, BATCH = 5, 16


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of the generator's usual shape."""
    left, right = torch.randn(1024, 384, device=device, dtype=dtype), torch.randn(384, 1536, device=device, dtype=dtype)
    return 2 * 1024 * 384 * 1536 / seconds(lambda: left @ right)


def seconds(work: Callable[[], object], least: float = 0.3) -> float:
    """Time of one call, from as many as fit into `least` seconds."""
    work()
    started, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < least:
        work()
        calls += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return spent / calls


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "emoji-64"
    device = pick_device()
    pipelines = {dtype: Pipeline.from_pretrained(name, dtype=dtype) for dtype in ("fp32", "bf16")}
    first = pipelines["fp32"]
    net = first.generator.net
    h, w = first.grid
    # Twice the weights of every matrix a token passes, and attention's two products.
    matrices = sum(p.numel() for n, p in net.named_parameters() if ".blocks." in n and p.ndim == 2)
    flops = (
        2 * h * w * (matrices + net.vocab_size * net.config.dim) + 4 * net.config.depth * (h * w) ** 2 * net.config.dim
    )
    images = torch.rand(BATCH, 3, first.image_size, first.image_size, device=device) * 2 - 1
    codes = first.tokenizer.encode(images)

    jobs: dict[str, tuple[Callable[[], object], float]] = {}
    for dtype, pipeline in pipelines.items():

        def forward(p: Pipeline = pipeline) -> object:
            with torch.no_grad(), autocast(p.device, p.dtype):
                return p.generator.net(codes)

        jobs[f"{dtype} generator forward, batch {BATCH}"] = (forward, BATCH * flops)
        jobs[f"{dtype} encode"] = (lambda p=pipeline: p.tokenizer.encode(images), 0)
        jobs[f"{dtype} decode"] = (lambda p=pipeline: p.decode(codes), 0)
        for steps in (8, 12):
            sampler = Sampler(steps=steps, guidance=2.0)
            jobs[f"{dtype} sample, {steps} steps, guided"] = (
                lambda p=pipeline, s=sampler: p.generate(seeds=list(range(BATCH)), sampler=s),
                BATCH * 2 * steps * flops if first.labels.names else BATCH * steps * flops,
            )

    times: dict[str, list[float]] = {job: [] for job in jobs}
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(ROUNDS):
        for dtype, format in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            rates[dtype].append(matrix_rate(device, format))
        for job, (work, _) in jobs.items():
            times[job].append(seconds(work))

    print(f"{name} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    for dtype, measured in rates.items():
        print(f"{dtype} matrix products: {statistics.median(measured) / 1e9:.0f} GFLOP/s")
    print(f"{'':<36}{'pictures/s':>12}{'of the rate':>13}")
    for job, (_, work) in jobs.items():
        each = statistics.median(times[job])
        share = f"{work / each / statistics.median(rates[job[:4]]):.0%}" if work else ""
        print(f"{job:<36}{BATCH / each:>12.1f}{share:>13}")


if __name__ == "__main__":
    main()
