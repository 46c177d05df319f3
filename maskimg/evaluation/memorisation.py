"""Does a generator repeat its training pictures? The nearest training grid of samples, beside that of unseen pictures.

Shapes: b samples, k versions of n training pictures, h w tokens.
"""

import dataclasses
from typing import NamedTuple

import torch
from einops import rearrange
from PIL import Image

from vqgan.images import paired_sheet, to_pil

COPY = 0.9  # share of equal tokens from which a sample counts as a copy where nothing is held out
RARE = 0.95  # else: nearer than so large a share of the held-out pictures


class Nearest(NamedTuple):
    """Of each of b grids the training grid that shares most tokens: which one, and the share (b,)."""

    shares: torch.Tensor
    index: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Memorisation:
    """How near samples are to training grids.

    Attributes:
        samples: how many were drawn.
        shared, most: of their tokens, what they share with the nearest training grid: the mean, and the highest.
        unseen: how many held-out pictures were compared in the same way; 0 where nothing is held out.
        unseen_shared, unseen_most: as above; what a picture shares that cannot have been memorised.
        near: how many samples are nearer than 95 % of the held-out pictures (without those: share 90 % or more).
    """

    samples: int
    shared: float
    most: float
    unseen: int
    unseen_shared: float
    unseen_most: float
    near: int

    @property
    def alarming(self) -> bool:
        """Whether more samples are near than chance explains: 1 in 20 would be, within three standard deviations."""
        if not self.unseen:
            return self.near > 0
        chance = 1 - RARE
        return self.near > self.samples * chance + 3 * (self.samples * chance * RARE) ** 0.5

    @property
    def sentence(self) -> str:
        """The same in words, for a model's card."""
        shared, most = _percent(self.shared), _percent(self.most)
        ours = f"{self.samples} samples share {shared} of their tokens (at most {most}) with the"
        if not self.unseen:
            verdict = f"{self.near} of them share {_percent(COPY)} or more" if self.near else "none of them is a copy"
            return f"{ours} nearest training picture; {verdict} (nothing was held out to compare with)"
        theirs = f"held-out pictures {_percent(self.unseen_shared)} (at most {_percent(self.unseen_most)})"
        verdict = "some may be copies, see nearest.png" if self.alarming else "no sign of memorisation"
        return f"{ours} nearest training picture, {theirs}; {self.near} are nearer than 95 % of those: {verdict}"


def nearest_grids(codes: torch.Tensor, references: torch.Tensor) -> Nearest:
    """Codes (b, h, w) and training grids (n, h, w) -> for each the nearest; of equally near ones the first."""
    if not len(references):
        raise ValueError("there are no training grids to compare with")
    few = max(1, 2**22 // codes[0].numel() // len(codes)) if len(codes) else 1  # 4 MiB of comparisons at a time
    shares = torch.full((len(codes),), -1.0)
    index = torch.zeros(len(codes), dtype=torch.int64)
    for start in range(0, len(references), few):
        equal = codes[:, None] == references[None, start : start + few]
        here, where = rearrange(equal, "b n h w -> b n (h w)").float().mean(-1).max(-1)
        nearer = here > shares
        shares = torch.where(nearer, here, shares)
        index = torch.where(nearer, where + start, index)
    return Nearest(shares, index)


def compare(samples: torch.Tensor, unseen: torch.Tensor, training: torch.Tensor) -> tuple[Memorisation, Nearest]:
    """Codes of samples (b, h, w), of held-out pictures (m, h, w) and of training ones (k, n, h, w)."""
    references = rearrange(training, "k n h w -> (k n) h w")
    found = nearest_grids(samples, references)
    baseline = nearest_grids(unseen, references).shares
    limit = torch.quantile(baseline, RARE).item() if len(baseline) else COPY
    near = found.shares > limit if len(baseline) else found.shares >= COPY
    report = Memorisation(
        samples=len(samples),
        shared=found.shares.mean().item(),
        most=found.shares.max().item(),
        unseen=len(baseline),
        unseen_shared=baseline.mean().item() if len(baseline) else 0.0,
        unseen_most=baseline.max().item() if len(baseline) else 0.0,
        near=int(near.sum()),
    )
    return report, Nearest(found.shares, found.index % training.shape[1])


def nearest_sheet(samples: torch.Tensor, pictures: torch.Tensor, shares: torch.Tensor) -> Image.Image:
    """Images (b, 3, H, W) twice -> samples above their nearest training pictures, those that share most first."""
    order = shares.argsort(descending=True, stable=True).tolist()
    return paired_sheet([[to_pil(samples[i]), to_pil(pictures[i])] for i in order], min(8, len(order)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
