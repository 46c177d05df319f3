"""Which tokens a step keeps: a ranking function for each order of the Sampler.

A new order is a function here, an entry of RANKINGS, and its name in `sampler.ORDERS`; in `sampler.BEFORE_DRAW` too, if
it does not look at what was drawn: it is then asked before the draw, and codes are drawn only where they will be kept.

Chang et al. 2022, arXiv 2202.04200, section 3.2 (confidence); Besnier et al. 2025, arXiv 2503.17076 (halton); Lezama et
al. 2022, arXiv 2209.04439 (critic); Hayakawa et al. 2025, arXiv 2510.04525 (moment).

Shapes: b images, h w tokens.
"""

from collections.abc import Callable
from functools import cache

import torch
from einops import rearrange

from maskimg.masking import mask_lowest
from maskimg.noise import gumbel, uniform
from maskimg.paper.draws import CHOICE, REVISE, Drawn, Iteration
from maskimg.sampler import BEFORE_DRAW


def confidence(now: Iteration, drawn: Drawn) -> torch.Tensor:
    """How probable each code was when it was drawn."""
    return drawn.scores


def moment(now: Iteration, drawn: Drawn) -> torch.Tensor:
    """The moment of each token, log sum_v q(v) p(v)^(1/a): how likely a code drawn there is to be kept; see `draws`."""
    return drawn.moments


def critic(now: Iteration, drawn: Drawn) -> torch.Tensor:
    """How much the critic believes each code. The last step masks nothing, so there it is not asked."""
    if now.is_last:
        return drawn.scores
    return -now.model.critic_logits(drawn.codes, now.prepared).float()


def random(now: Iteration, drawn: Drawn | None = None) -> torch.Tensor:
    """A random rank for each token."""
    return now.noise.uniform(now.i, CHOICE)


def halton(now: Iteration, drawn: Drawn | None = None) -> torch.Tensor:
    """Evenly spread tokens first; each image walks the same path from its own starting point."""
    h, w = now.noise.grid
    start = (uniform(now.noise.seeds, 0, CHOICE, 1) * h * w).long()[..., None]  # (b, 1, 1)
    return -((_halton_places(h, w, start.device) + start) % (h * w)).float()


# Iteration and what was drawn in it, None in orders that are known before -> (b, h, w), the lowest are masked again.
RANKINGS: dict[str, Callable[..., torch.Tensor]] = {
    "confidence": confidence,
    "halton": halton,
    "random": random,
    "critic": critic,
    "moment": moment,
}


def choice_noise(now: Iteration) -> torch.Tensor | float:
    """Gumbel noise on a ranking that looks at what was drawn; of unit size on moments, which are scaled instead."""
    size = now.sampler.choice_at(now.i)
    if now.sampler.order in BEFORE_DRAW or not size:
        return 0.0
    noise = gumbel(now.noise.uniform(now.i, CHOICE))
    return noise if now.sampler.order == "moment" else size * noise


def give_back(now: Iteration, codes: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Mask some of the codes that were drawn, at random, as many as the counts of this step say.

    Wang et al. 2025, "Remasking discrete diffusion models", arXiv 2503.00307, with counts that are fixed and capped.
    """
    drawn = (codes != now.model.mask_id) & ~given
    chance = now.noise.uniform(now.i, REVISE).masked_fill(~drawn, torch.inf)
    return codes.masked_fill(mask_lowest(chance, now.counts.returned[now.i]), now.model.mask_id)


@cache
def halton_order(h: int, w: int) -> torch.Tensor:
    """The cells of a grid, evenly spread: a permutation (h * w,) of raster positions.

    Cell (floor(h x), floor(w y)) of each point of the Halton sequence in bases 2 and 3, first visits only.
    """
    order: dict[int, None] = {}
    k = 0
    while len(order) < h * w:
        order.setdefault(int(h * _radical_inverse(k, 2)) * w + int(w * _radical_inverse(k, 3)))
        k += 1
    return torch.tensor(list(order))


def _radical_inverse(k: int, base: int) -> float:
    """The digits of k in `base`, mirrored at the point."""
    value, share = 0.0, 1.0
    while k:
        share /= base
        k, digit = divmod(k, base)
        value += share * digit
    return value


@cache
def _halton_places(h: int, w: int, device: torch.device) -> torch.Tensor:
    """When each cell (h, w) is visited."""
    with torch.inference_mode(False):
        return rearrange(halton_order(h, w).argsort().to(device), "(h w) -> h w", h=h)
