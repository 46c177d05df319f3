"""Counter-based randomness: an image's noise depends on its own seed, the step and the position, on nothing else.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer tensor arithmetic, so
every device gives the same bits, and batch size, order and earlier failures cannot change a picture. Training draws
from it too (`Chance`): there it is the split of a batch over processes and parts that must not matter.
"""

import dataclasses

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF

SEEDS = 2**32  # seeds are taken modulo this; a browser's numbers hold them exactly


def uniform(seeds: torch.Tensor, step: int, stream: int, count: int) -> torch.Tensor:
    """Seeds (b,) int64 -> (b, count) float32, uniform on the open interval (0, 1).

    Args:
        seeds: 64 bits: the lower half is the image's seed, the upper half numbers its candidates (`best_of`).
        step, stream: which step of the loop and which of its draws; different ones are independent.
    """
    # 23 bits and a half: exact in float32, and never 0 or 1.
    return ((_words(seeds, step, stream, count) >> 9).float() + 0.5) / 2**23


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """Uniforms on (0, 1) -> standard Gumbel noise."""
    return -(-u.log()).log()


# What training draws; a purpose's place is its stream, so new ones go to the end.
PURPOSES = ("sample", "version", "mirror", "move", "labels", "fields", "ratio", "order", "keep", "code", "self_cond")
PURPOSES += ("temperature", "draw", "contexts", "caption")


@dataclasses.dataclass(frozen=True, eq=False)
class Chance:
    """The random numbers of a training step, each sample's keyed by seed, step and its place in the whole batch.

    Attributes:
        size: samples in the whole batch of the step.
        rows: (b,) int64, the places in it of those at hand; all of them if not given.
    """

    seed: int
    step: int
    size: int
    rows: torch.Tensor | None = None

    @property
    def places(self) -> torch.Tensor:
        return torch.arange(self.size) if self.rows is None else self.rows

    @property
    def whole(self) -> "Chance":
        """That of the whole batch."""
        return dataclasses.replace(self, rows=None)

    @property
    def share(self) -> float:
        """How much of the whole batch is at hand."""
        return len(self.places) / self.size

    def of(self, rows: torch.Tensor) -> "Chance":
        """That of a part of the batch."""
        return dataclasses.replace(self, rows=rows)

    def rand(self, purpose: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform on (0, 1), (b, *shape), of 23 bits in float32 and 52 in float64."""
        count = torch.Size(shape).numel()
        key = self.places | (torch.tensor(self.seed % SEEDS) << 32)
        stream = PURPOSES.index(purpose)
        if dtype == torch.float32:
            return uniform(key, self.step, stream, count).view(-1, *shape)
        high, low = _words(key, self.step, stream, 2 * count).chunk(2, dim=1)
        return (((high >> 6 << 26 | low >> 6).double() + 0.5) / 2**52).view(-1, *shape)

    def randint(self, purpose: str, low: int, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers in [low, high), (b, *shape) int64."""
        return low + (self.rand(purpose, *shape, dtype=torch.float64) * (high - low)).long()

    def of_step(self, purpose: str) -> float:
        """One number for the whole batch."""
        return self.of(torch.zeros(1, dtype=torch.int64)).rand(purpose).item()


Rng = torch.Generator | Chance | None  # where randomness comes from in training; None is torch's own


def rand(rng: Rng, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uniforms (b, ...) on the CPU from a torch.Generator, torch's own (None), or a Chance."""
    if isinstance(rng, Chance):
        return rng.rand(purpose, *shape[1:], dtype=dtype)
    return torch.rand(shape, dtype=dtype, generator=rng)


def randint(rng: Rng, purpose: str, low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Whole numbers (b, ...) in [low, high), on the CPU."""
    if isinstance(rng, Chance):
        return rng.randint(purpose, low, high, *shape[1:])
    return torch.randint(low, high, shape, generator=rng)


def _words(seeds: torch.Tensor, step: int, stream: int, count: int) -> torch.Tensor:
    """Seeds (b,) -> (b, count) int64 of 32 random bits each."""
    blocks = torch.arange(-(-count // 4), device=seeds.device)
    shape = (len(seeds), len(blocks))
    counter = [
        blocks.expand(shape),
        torch.full(shape, step, device=seeds.device),
        torch.full(shape, stream, device=seeds.device),
        torch.zeros(shape, dtype=torch.int64, device=seeds.device),
    ]
    words = torch.stack(philox(counter, (seeds[:, None] & _LOW, seeds[:, None] >> 32 & _LOW)), dim=-1)
    return words.flatten(1)[:, :count]


def philox(counter: list[torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """Ten rounds of Philox4x32 on four int64 tensors of 32-bit words and a key of two -> four tensors of words."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words fits 64 bits; wrapping int64 arithmetic keeps every bit of it.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & _LOW) ^ b ^ k0,
            second & _LOW,
            (first >> 32 & _LOW) ^ d ^ k1,
            first & _LOW,
        )
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW, k1 + _KEY_STEPS[1] & _LOW
    return [a, b, c, d]
