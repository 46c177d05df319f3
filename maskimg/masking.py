"""Which tokens are masked: schedules, exact counts, and painted pixels -> tokens.

A schedule gamma maps progress r in [0, 1] to the share of tokens still masked, falling from 1 to 0 (Chang et al.
2022, MaskGIT, arXiv 2202.04200, section 3.3). Counts are integers computed in float64 and rounded to nearest: rounding
up, as the paper prints it, leaves one token masked at the end, since cos(pi/2) is 6e-17.

Shapes: b images, h w tokens, n = h * w.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange

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


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "arccos": arccos, "square": square}


def schedule_named(schedule: str | Schedule) -> Schedule:
    """A schedule by name; a callable is returned as it is.

    Raises:
        ValueError: there is no schedule of that name.
    """
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)} or a function, got `{schedule}`")
    return SCHEDULES[schedule]


def random_mask(
    codes: torch.Tensor, schedule: str | Schedule, generator: torch.Generator | None = None
) -> torch.Tensor:
    """For training: codes (b, h, w) -> masked (b, h, w) bool, exactly ceil(max(1, gamma(r) n)) True in each image.

    r is uniform on [0, 1) and the positions are a uniform subset, both drawn on the CPU from `generator`.
    """
    b, h, w = codes.shape
    r = torch.rand(b, dtype=torch.float64, generator=generator)
    counts = (schedule_named(schedule)(r) * h * w).clamp(1, h * w).ceil().long()
    ranks = torch.rand(b, h * w, generator=generator).argsort(-1)  # a uniform permutation in each row
    return rearrange(ranks < counts[:, None], "b (h w) -> b h w", h=h).to(codes.device)


def masked_counts(unknown: torch.Tensor, steps: int, schedule: str | Schedule) -> torch.Tensor:
    """How many tokens stay masked after each step: unknown (b,) -> (b, steps) int64, on the CPU.

    Rounded to nearest, then lowered where needed so that every step reveals at least one token of an image that has
    any left; the last column is 0. An image's row depends on its own number of unknown tokens only.
    """
    unknown = unknown.cpu().long()
    r = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    counts = (unknown[:, None] * schedule_named(schedule)(r)).round().long()
    counts[:, 0], counts[:, -1] = unknown, 0
    index = torch.arange(steps + 1)
    counts = (counts + index).cummin(dim=1).values - index  # each at least one less than the one before
    return counts[:, 1:].clamp(min=0)


def mask_lowest(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Scores (b, h, w), counts (b,) -> bool (b, h, w), True at each image's `counts` lowest; ties by position."""
    flat = rearrange(scores, "b h w -> b (h w)")
    ranks = flat.argsort(dim=-1, stable=True).argsort(dim=-1)
    return rearrange(ranks < counts[:, None], "b (h w) -> b h w", h=scores.shape[1])


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
