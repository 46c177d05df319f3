"""Where the model's grid is laid on a canvas that has more tokens, one place after the other.

Shapes: H W tokens of the canvas, h w of the model's grid.
"""

import torch
import torch.nn.functional as F


def plan_places(masked: torch.Tensor, later: torch.Tensor, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Where to lay a grid of (h, w) tokens, one after the other, until no token of `masked` (H, W) is left.

    Each place completes as much as it can, but at most half of the grid where that is possible, and cuts no masked
    token off from a neighbour that is there already. No place reaches into `later` (H, W): what is drawn afterwards.
    """
    h, w = grid
    masked = masked.clone()
    allowed = _sums(later, h, w) == 0
    half, places = h * w // 2, []
    while bool(masked.any()):
        count = _sums(masked, h, w)
        over = count > half
        # In this order: at most half, nothing cut off, as many as possible (or, above half, as few).
        cost = over * 2**40 + _cut(masked, h, w) * 2**20 + torch.where(over, count, -count)
        cost = cost.masked_fill(~allowed | (count == 0), 2**60)
        top, left = divmod(int(cost.argmin()), cost.shape[1])
        places.append((top, left))
        masked[top : top + h, left : left + w] = False
    return places


def _sums(cells: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """How many of `cells` (H, W) each place of an h x w grid covers: (H - h + 1, W - w + 1) int64."""
    corner = F.pad(cells.long(), (1, 0, 1, 0)).cumsum(0).cumsum(1)
    return corner[h:, w:] - corner[:-h, w:] - corner[h:, :-w] + corner[:-h, :-w]


def _cut(masked: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """At each place of the grid, how many masked tokens at its edge have a known neighbour just outside it."""
    H, W = masked.shape
    total = torch.zeros(H - h + 1, W - w + 1, dtype=torch.int64)
    for turned, rows, columns in ((masked, h, w), (masked.T, w, h)):
        here = total if turned is masked else total.T
        # Above the first row of the grid, and below its last.
        above, below = turned[1:] & ~turned[:-1], turned[:-1] & ~turned[1:]
        here[1:] += _sums(above, 1, columns)[: len(here) - 1]
        here[:-1] += _sums(below, 1, columns)[rows - 1 :]
    return total
