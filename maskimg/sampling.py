"""The sampling loop: grids with MASK in, complete grids out. Knows no file, picture or tokenizer.

Generation, inpainting, outpainting and variation are the same loop; they differ only in which codes are MASK at
the start. A code that is given never changes. Chang et al. 2022, arXiv 2202.04200, section 3.1 (confidence order);
Besnier et al. 2025, "Halton scheduler for masked generative image transformer", arXiv 2503.17076 (halton);
Lezama et al. 2022, arXiv 2209.04439 (critic).

Shapes: b images, h w tokens, n = h * w, v codes.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple, Protocol

import torch
from einops import rearrange

from maskimg.masking import SCHEDULES, mask_lowest, masked_counts, schedule_named
from maskimg.noise import SEEDS, gumbel, uniform

ORDERS = ("confidence", "halton", "random", "critic")
DRAW, CHOICE = 0, 1  # streams of noise


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The numbers of the loop; a model carries its own as its recipe.

    Attributes:
        steps: forward passes (twice as costly where guidance is on).
        schedule: how fast masked tokens become fewer.
        order: which tokens are kept first: the most probable (`confidence`), evenly spread ones (`halton`), any
            (`random`), or those the critic believes; only `critic` may revise a token that was kept before.
        token_temperature: of the draw; lower is safer and plainer.
        choice_temperature: of Gumbel noise on the scores, fading to none; for `confidence` and `critic`.
        guidance: towards the label: u + guidance (c - u); 1 is off.
        guidance_start: no guidance until this share of the tokens is revealed.
        top_k, top_p: draw among the k most probable codes, or the fewest that hold probability p; 0 and 1 are off.
    """

    steps: int = 12
    schedule: str = "cosine"
    order: str = "halton"
    token_temperature: float = 1.0
    choice_temperature: float = 1.0
    guidance: float = 1.0
    guidance_start: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        limits = {
            "steps": (self.steps, 1, 1024),
            "token_temperature": (self.token_temperature, 0.01, 10),
            "choice_temperature": (self.choice_temperature, 0, 100),
            "guidance": (self.guidance, 0, 20),
            "guidance_start": (self.guidance_start, 0, 1),
            "top_k": (self.top_k, 0, 2**20),
            "top_p": (self.top_p, 0.001, 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{name} must be between {low} and {high}, got {value}")
        if self.steps != int(self.steps) or self.top_k != int(self.top_k):
            raise ValueError(f"steps and top_k must be whole numbers, got {self.steps} and {self.top_k}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got `{self.order}`")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got `{self.schedule}`")


class Step(NamedTuple):
    """After one step: complete codes, scores (higher = more certain) and which tokens will be masked again.

    Each (b, h, w); `codes` holds no MASK.
    """

    codes: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor


class Model(Protocol):
    """What the loop asks of a model; `MaskGit` is one."""

    @property
    def mask_id(self) -> int: ...

    def logits(self, codes: torch.Tensor, condition: torch.Tensor | None, guidance: float) -> torch.Tensor:
        """Codes (b, h, w), some MASK -> logits (b, h, w, v) in fp32."""
        ...

    def critic_logits(self, codes: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Complete codes (b, h, w) -> logits (b, h, w), high where a code is wrong."""
        ...


@torch.no_grad()
def sample_steps(
    model: Model,
    codes: torch.Tensor,
    condition: torch.Tensor | None,
    sampler: Sampler,
    seeds: torch.Tensor,
) -> Iterator[Step]:
    """Fill the MASK codes of `codes` (b, h, w), a few at a time; seeds (b,) int64, one per image."""
    b, h, w = codes.shape
    seeds = seeds.to(codes.device) % SEEDS
    given = codes != model.mask_id
    unknown = (~given).sum(dim=(1, 2)).cpu()
    counts = masked_counts(unknown, sampler.steps, sampler.schedule)  # (b, steps), on the CPU

    for i in range(sampler.steps):
        if not (counts[:, i - 1] if i else unknown).any():
            return  # every image is complete: never spend a forward that reveals nothing
        r = (i + 1) / sampler.steps
        mask = codes == model.mask_id

        # 1. Predict every token, all positions at once.
        logits = model.logits(codes, condition, _guidance(sampler, i))
        probs = _filtered(logits / sampler.token_temperature, sampler).softmax(-1)

        # 2. Sample a code wherever one is missing.
        u = rearrange(uniform(seeds, i, DRAW, h * w), "b (h w) -> b h w", h=h)
        codes = torch.where(mask, draw(probs, u), codes)

        # 3. Mask schedule: so many tokens stay unknown.
        count = counts[:, i].to(codes.device)

        # 4. Mask the least certain ones. Without a critic a token once kept stays kept.
        scores, noisy = _scores(model, codes, condition, probs, sampler, seeds, i)
        kept = given if sampler.order == "critic" else ~mask
        if noisy:
            noise = rearrange(gumbel(uniform(seeds, i, CHOICE, h * w)), "b (h w) -> b h w", h=h)
            choice = scores + sampler.choice_temperature * (1 - r) * noise
        else:
            choice = scores
        mask = mask_lowest(choice.masked_fill(kept, torch.inf), count)

        yield Step(codes, scores, mask)
        codes = codes.masked_fill(mask, model.mask_id)


def sample(
    model: Model, codes: torch.Tensor, condition: torch.Tensor | None, sampler: Sampler, seeds: torch.Tensor
) -> torch.Tensor:
    """Run `sample_steps` to its end: codes (b, h, w), some MASK -> complete codes (b, h, w)."""
    for step in sample_steps(model, codes, condition, sampler, seeds):
        codes = step.codes
    return codes


def draw(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: probs (..., v) fp32 and uniforms (...) on (0, 1) -> codes (...), none of probability 0."""
    cdf = probs.cumsum(-1)
    return (cdf < (u * cdf[..., -1])[..., None]).sum(-1)


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


def _guidance(sampler: Sampler, i: int) -> float:
    revealed = 1 - float(schedule_named(sampler.schedule)(torch.tensor(i / sampler.steps, dtype=torch.float64)))
    return sampler.guidance if revealed >= sampler.guidance_start else 1.0


def _filtered(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Logits (..., v) with those outside top_k and top_p at -inf."""
    if 0 < sampler.top_k < logits.shape[-1]:
        least = logits.topk(sampler.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampler.top_p < 1:
        ordered = logits.sort(dim=-1, descending=True)
        probs = ordered.values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= sampler.top_p  # the first one always stays
        logits = logits.masked_fill(outside.gather(-1, ordered.indices.argsort(-1)), -torch.inf)
    return logits


def _scores(
    model: Model,
    codes: torch.Tensor,
    condition: torch.Tensor | None,
    probs: torch.Tensor,
    sampler: Sampler,
    seeds: torch.Tensor,
    i: int,
) -> tuple[torch.Tensor, bool]:
    """Scores (b, h, w), higher = kept sooner, and whether choice noise is added to them."""
    b, h, w = codes.shape
    if sampler.order == "critic":
        return -model.critic_logits(codes, condition).float(), True
    if sampler.order == "confidence":
        return probs.gather(-1, codes[..., None])[..., 0].log(), True
    if sampler.order == "random":
        flat = uniform(seeds, i, CHOICE, h * w)
    else:
        # Each image walks the same path from its own starting point.
        start = (uniform(seeds, 0, CHOICE, 1) * h * w).long()  # (b, 1)
        place = halton_order(h, w).argsort().to(codes.device)  # when each cell is visited
        flat = -((place + start) % (h * w)).float()
    return rearrange(flat, "b (h w) -> b h w", h=h), False
