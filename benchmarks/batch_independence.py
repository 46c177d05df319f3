"""How far do samples depend on who else is in the batch? `MaskGit.generate` with the bundled model, 64 seeds.

    python benchmarks/batch_independence.py

64 grids drawn at once are compared with the same seeds 1 and 7 at a time, and shuffled. `Pipeline` on a CPU draws each
picture in a loop of its own, so that nothing here concerns it; this is for those who batch, and for GPUs.
"""

import torch

from maskimg.hardware import DTYPES, pick_device
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler

COUNT = 64
ORDERS = ("confidence", "halton", "random", "moment")


def main() -> None:
    device = pick_device()
    print(f"{device}, torch {torch.__version__}; share of codes that are the same as in one batch of {COUNT}")
    print("| dtype | order | 1 at a time | 7 at a time | shuffled |\n| --- | --- | --- | --- | --- |")
    for name, dtype in DTYPES.items():
        model = Pipeline.from_pretrained("emoji-64", dtype="fp32").generator.to(device, dtype)
        for order in ORDERS:
            sampler = Sampler(steps=12, order=order)
            seeds = torch.arange(COUNT)
            whole = model.generate(COUNT, sampler=sampler, seeds=seeds)
            shares = []
            for size in (1, 7):
                parts = [model.generate(len(part), sampler=sampler, seeds=part) for part in seeds.split(size)]
                shares.append((torch.cat(parts) == whole).float().mean().item())
            order_of = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
            mixed = model.generate(COUNT, sampler=sampler, seeds=seeds[order_of])
            shares.append((mixed == whole[order_of.to(device)]).float().mean().item())
            print(f"| {name} | {order} | {' | '.join(f'{share:.2%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
