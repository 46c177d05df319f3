"""Which tokens are masked: schedules, exact counts, and painted pixels -> tokens.

A schedule gamma maps progress r in [0, 1] to the share of tokens still masked, falling from 1 to 0 (Chang et al.
2022, MaskGIT, arXiv 2202.04200, section 3.3). In training r is uniform, so a schedule is also a distribution of mask
ratios: gamma is its quantile function, read backwards. Counts are integers computed in float64 and rounded to
nearest: rounding up, as the paper prints it, leaves one token masked at the end, since cos(pi/2) is 6e-17.

Shapes: b images, h w tokens, n = h * w.
"""

import math
import re
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange

from maskimg.noise import Rng, rand

Schedule = Callable[[torch.Tensor], torch.Tensor]


def cosine(r: torch.Tensor) -> torch.Tensor:
    """MaskGIT's: few tokens first, many at the end."""
    return (math.pi / 2 * r).cos()


def linear(r: torch.Tensor) -> torch.Tensor:
    return 1 - r


def arccos(r: torch.Tensor) -> torch.Tensor:
    """Even at first, then a rush: the best all-rounder for training (Besnier and Chen 2023, arXiv 2310.14400)."""
    return r.acos() * (2 / math.pi)


def square(r: torch.Tensor) -> torch.Tensor:
    return 1 - r.square()


@cache
def beta(a: float, b: float) -> Schedule:
    """Mask ratios of a Beta(a, b) distribution; (12, 3) suits models that draw in few steps (AutoNAT)."""
    if a < 1 or b < 1:
        raise ValueError(f"beta needs two numbers of 1 or more, got {a} and {b}")
    ratios = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    return _quantiles(ratios, ratios ** (a - 1) * (1 - ratios) ** (b - 1))


@cache
def truncated_normal(mean: float, std: float, low: float = 0.0, high: float = 1.0) -> Schedule:
    """Mask ratios of a normal distribution cut to [low, high]; MAGE uses (0.55, 0.25, 0.5), MAR (1, 0.25, 0.7)."""
    if std <= 0 or not 0 <= low < high <= 1:
        raise ValueError(f"truncated_normal needs std > 0 and 0 <= low < high <= 1, got {std}, {low} and {high}")
    ratios = torch.linspace(low, high, 20_001, dtype=torch.float64)
    return _quantiles(ratios, (-0.5 * ((ratios - mean) / std) ** 2).exp())


def _quantiles(ratios: torch.Tensor, density: torch.Tensor) -> Schedule:
    """The schedule whose value at a uniform r has this density, by linear interpolation of its distribution."""
    share = torch.cat((density.new_zeros(1), torch.cumulative_trapezoid(density, ratios)))
    share = share / share[-1]

    def schedule(r: torch.Tensor) -> torch.Tensor:
        wanted = 1 - r.double()
        right = torch.searchsorted(share, wanted).clamp(1, len(share) - 1)
        step = (share[right] - share[right - 1]).clamp(min=1e-300)
        between = ((wanted - share[right - 1]) / step).clamp(0, 1)
        return ratios[right - 1] + between * (ratios[right] - ratios[right - 1])

    return schedule


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "arccos": arccos, "square": square}
FAMILIES: dict[str, Callable[..., Schedule]] = {"beta": beta, "truncated_normal": truncated_normal}


def schedule_named(schedule: str | Schedule) -> Schedule:
    """A schedule by name, such as `cosine` or `beta(12, 3)`; a callable is returned as it is.

    Raises:
        ValueError: there is no schedule of that name, or its numbers are out of range.
    """
    if callable(schedule):
        return schedule
    if schedule in SCHEDULES:
        return SCHEDULES[schedule]
    family = re.fullmatch(r"(\w+)\(([-+.,e\d\s]*)\)", schedule)
    if not family or family[1] not in FAMILIES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, `beta(a, b)`, `truncated_normal(mean, std, low, high)` "
            f"or a function, got `{schedule}`"
        )
    try:
        return FAMILIES[family[1]](*(float(number) for number in family[2].split(",")))
    except TypeError:
        raise ValueError(f"`{schedule}` has the wrong number of numbers in its brackets") from None


def random_mask(
    codes: torch.Tensor, schedule: str | Schedule, rng: Rng = None, fixed: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For training: codes (b, h, w) -> masked (b, h, w) bool, and the schedule's r (b,) that it came from.

    Exactly ceil(max(1, gamma(r) n)) are True in each image. r is uniform on [0, 1) and the positions are a uniform
    subset, both drawn on the CPU from `rng`.

    Args:
        fixed: (h, w) bool on the CPU, True where nothing is ever masked; n counts the others.
    """
    b, h, w = codes.shape
    r = random_ratio(b, rng)
    chance = rand(rng, "order", (b, h * w))
    if fixed is None:
        counts = training_counts(r, schedule, h * w)
        ranks = chance.argsort(dim=-1, stable=True)  # a uniform permutation in each row
    else:
        counts = training_counts(r, schedule, int((~fixed).sum()))
        last = chance.masked_fill(fixed.flatten(), torch.inf)
        ranks = last.argsort(dim=-1, stable=True).argsort(dim=-1)
    return rearrange(ranks < counts[:, None], "b (h w) -> b h w", h=h).to(codes.device), r


def random_ratio(b: int, rng: Rng = None) -> torch.Tensor:
    """The schedule's r (b,) float64, uniform."""
    return rand(rng, "ratio", (b,), torch.float64)


def training_counts(r: torch.Tensor, schedule: str | Schedule, n: int) -> torch.Tensor:
    """How many of n tokens training masks at r (b,): (b,) int64, at least one."""
    return (schedule_named(schedule)(r) * n).clamp(1, n).ceil().long()


def elbo_weights(n: int, schedule: str | Schedule) -> torch.Tensor:
    """What a row's summed cross-entropy is multiplied with, by its number of masked tokens: (n + 1,) float64.

    w_k = 1 / (k P(k)), where P(k) is the probability that `random_mask` masks k tokens: with it, the expected loss is
    the any-order evidence bound sum_k C_k / k (C_k: expected summed cross-entropy of k random positions), exactly and
    whatever the schedule. For many tokens it tends to MDLM's continuous weight -gamma'/gamma (Sahoo et al. 2024,
    arXiv 2406.07524), which diverges with counts that are never 0. Entry 0 is 0.

    Raises:
        ValueError: the schedule never masks some number of tokens, so that no weight can make up for it.
    """
    gamma = schedule_named(schedule)
    shares = torch.arange(n + 1, dtype=torch.float64) / n
    low, high = torch.zeros(n + 1, dtype=torch.float64), torch.ones(n + 1, dtype=torch.float64)
    for _ in range(60):  # bisection: where gamma falls to each share
        middle = (low + high) / 2
        above = gamma(middle) > shares
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    high[0], high[n] = 1, 0  # at least one token is masked; all of them for any share above (n - 1) / n
    probability = high[:-1] - high[1:]
    if (probability < 1e-9).any():
        never = int((probability < 1e-9).nonzero()[0]) + 1
        raise ValueError(f"this schedule (almost) never masks {never} of {n} tokens: choose another for `elbo`")
    weights = 1 / (torch.arange(1, n + 1) * probability)
    return torch.cat((weights.new_zeros(1), weights))


def masked_counts(
    unknown: torch.Tensor, steps: int, schedule: str | Schedule, revealed: tuple[float, ...] = ()
) -> torch.Tensor:
    """How many tokens stay masked after each step: unknown (b,) -> (b, steps) int64, on the CPU.

    Rounded to nearest, then lowered where needed so that every step reveals at least one token of an image that has
    any left; the last column is 0. An image's row depends on its own number of unknown tokens only.

    Args:
        revealed: explicit counts, one per step, instead of a schedule; scaled to what is unknown in each image.
    """
    unknown = unknown.cpu().long()
    if revealed:
        given = torch.tensor((0, *revealed), dtype=torch.float64).cumsum(0)
        shares = 1 - given / given[-1]
    else:
        shares = schedule_named(schedule)(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    counts = (unknown[:, None] * shares).round().long()
    counts[:, 0], counts[:, -1] = unknown, 0
    index = torch.arange(steps + 1)
    counts = (counts + index).cummin(dim=1).values - index  # each at least one less than the one before
    return counts[:, 1:].clamp(min=0)


def mask_lowest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Scores (b, h, w), counts (b,) -> bool (b, h, w), True at each image's `counts` lowest; ties by position."""
    order = scores.flatten(1).argsort(dim=-1, stable=True)
    lowest = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return torch.zeros_like(lowest).scatter(1, order, lowest).view_as(scores)


def token_mask(painted: torch.Tensor, stride: int, *, coverage: float = 0.0, grow: int = 1) -> torch.Tensor:
    """Painted pixels (b, H, W) bool -> tokens to redraw (b, h, w) bool.

    Args:
        stride: pixels per token side; H and W must be divisible by it.
        coverage: a token counts as painted when more than this share of its pixels is; 0 means any pixel. (A mask
            resized and thresholded, as elsewhere, loses thin strokes completely.)
        grow: rings of tokens added around the painted ones, so that seams are redrawn too.

    Raises:
        ValueError: the size is not divisible by the stride, or a number is out of range.
    """
    if painted.ndim != 3 or painted.shape[1] % stride or painted.shape[2] % stride:
        raise ValueError(f"expected a mask (b, H, W) with sides divisible by {stride}, got {tuple(painted.shape)}")
    if not 0 <= coverage < 1 or grow < 0:
        raise ValueError(f"coverage must be in [0, 1) and grow 0 or more, got {coverage} and {grow}")
    share = F.avg_pool2d(painted[:, None].float(), stride)
    tokens = (share > coverage).float()
    if grow:
        tokens = F.max_pool2d(tokens, 2 * grow + 1, stride=1, padding=grow)
    return tokens[:, 0] > 0
