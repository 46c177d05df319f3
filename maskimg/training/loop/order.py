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


class Balanced:
    """Which samples a step trains on where rare classes are favoured: step, batch size -> (batch_size,) int64.

    Class c, of n_c samples, has a share of each epoch in proportion to n_c^(1 - balance), to the next whole number; and
    each of its samples is seen before any is seen again. Also a function of seed and step: the order of an epoch is
    kept only because it is the same for many steps.

    Args:
        classes: (n,) int64, of each sample.
        balance: from 0, as many as there are, to 1, all classes alike.

    Raises:
        ValueError: `balance` is out of range.
    """

    def __init__(self, classes: torch.Tensor, balance: float, seed: int):
        if not 0 <= balance <= 1:  # also refuses NaN
            raise ValueError(f"balance must be between 0 and 1, got {balance}")
        self.count, self.seed = len(classes), seed
        sizes = classes.bincount()
        self.members = classes.argsort(stable=True).split(sizes.tolist())
        weights = torch.where(sizes > 0, sizes.double() ** (1 - balance), 0.0)
        exact = self.count * weights / weights.sum()
        self.quotas = exact.floor().long()
        missing = self.count - int(self.quotas.sum())
        self.quotas[(self.quotas - exact).argsort(stable=True)[:missing]] += 1  # the largest remainders
        self._kept: tuple[int, torch.Tensor] = (-1, classes)

    def __call__(self, step: int, batch_size: int) -> torch.Tensor:
        positions = torch.arange(step * batch_size, (step + 1) * batch_size)
        indices = torch.empty_like(positions)
        for epoch in (positions // self.count).unique().tolist():
            here = positions // self.count == epoch
            indices[here] = self._epoch(epoch)[positions[here] % self.count]
        return indices

    def _epoch(self, epoch: int) -> torch.Tensor:
        """An epoch's samples (n,), in order; not all of a common class are among them, but a rare one's repeatedly."""
        if self._kept[0] != epoch:
            shuffled = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed * 7_919 + epoch))
            turns = torch.arange(len(self.quotas)).repeat_interleave(self.quotas)[shuffled]  # whose turn it is
            order = torch.empty_like(turns)
            order[turns.argsort(stable=True)] = torch.cat([self._next(c, epoch) for c in range(len(self.quotas))])
            self._kept = (epoch, order)
        return self._kept[1]

    def _next(self, c: int, epoch: int) -> torch.Tensor:
        """The samples of class c in an epoch: where the epoch before ended, its samples shuffled time after time."""
        quota, members = int(self.quotas[c]), self.members[c]
        if not quota:
            return members[:0]
        begin, end = epoch * quota, (epoch + 1) * quota
        rounds = range(begin // len(members), -(-end // len(members)))
        seeds = [((self.seed * 7_919 + each) * 1_000_003 + c + 1) % 2**63 for each in rounds]
        shuffled = [torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return members[torch.cat(shuffled)[begin - rounds.start * len(members) :][:quota]]


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
