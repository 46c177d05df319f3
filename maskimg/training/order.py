"""Which samples a step trains on, and who takes which of them: a function of seed and position, and of nothing else.

There is no loader whose state could be lost: sample p of a run follows from the seed and p, the count of samples seen,
for any number of processes and parts.
"""

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one training step as a whole, the same whenever it is run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def batch_indices(seed: int, step: int, count: int, batch_size: int) -> torch.Tensor:
    """Which of `count` samples step `step` trains on: (batch_size,) int64, each once an epoch, reshuffled."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    indices = torch.empty_like(positions)
    for epoch in (positions // count).unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7_919 + epoch))
        here = positions // count == epoch
        indices[here] = order[positions[here] % count]
    return indices


def parts(size: int, rank: int, world: int, accumulation: int) -> list[torch.Tensor]:
    """The places in a batch of `size` that process `rank` of `world` takes, in `accumulation` parts.

    Their sizes differ by one at most.

    Raises:
        ValueError: there are too few samples to give each part one.
    """
    if accumulation < 1 or size < world * accumulation:
        raise ValueError(
            f"a batch of {size} cannot be split over {world} processes with {accumulation} parts each: "
            "use a larger batch_size, or a smaller accumulation"
        )
    return list(torch.arange(rank, size, world).tensor_split(accumulation))
