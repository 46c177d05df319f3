"""The sampling loop: grids with MASK in, complete grids out. Knows no file, picture or tokenizer.

Generation, inpainting, outpainting and variation are the same loop; they differ only in which codes are MASK at
the start. A code that is given never changes. The orders: Chang et al. 2022, arXiv 2202.04200, section 3.1
(confidence); Besnier et al. 2025, arXiv 2503.17076 (halton); Lezama et al. 2022, arXiv 2209.04439 (critic);
Hayakawa et al. 2025, arXiv 2510.04525 (moment, which chooses first and then samples). Giving tokens back
(`revise`): Wang et al. 2025, "Remasking discrete diffusion models", arXiv 2503.00307, with fixed counts, capped.

Shapes: b images, h w tokens, n = h * w, v codes, m tokens drawn in a step.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange

from maskimg.conditions import Condition, as_condition
from maskimg.masking import mask_lowest, masked_counts
from maskimg.noise import gumbel, uniform
from maskimg.sampler import PATHS, Sampler

DRAW, CHOICE, REVISE = 0, 1, 2  # streams of noise
LARGEST = 2**26  # logits held at a time, 256 MB in fp32


class Step(NamedTuple):
    """After one step: complete codes, scores (higher = more certain) and which tokens will be masked again.

    Each (b, h, w). `codes` holds no MASK: a token that is masked again shows what was predicted there. `scores` are
    log-probabilities of the codes when they were drawn (0 for given ones); in the order `critic`, the critic's. NaN
    wherever a prediction was not finite, in this step or an earlier one.
    """

    codes: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor


class Model(Protocol):
    """What the loop asks of a model; `MaskGit` is one."""

    @property
    def mask_id(self) -> int: ...

    def prepare(self, condition: Any, b: int) -> Any:
        """Whatever about a condition does not change with the steps."""
        ...

    def features(
        self, codes: torch.Tensor, prepared: Any, guidance: float | Mapping[str, float], memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Codes (b, h, w), some MASK -> features (b, h, w, d), and what the next step is to remember."""
        ...

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v) in fp32."""
        ...

    def critic_logits(self, codes: torch.Tensor, condition: Any) -> torch.Tensor:
        """Complete codes (b, h, w) -> logits (b, h, w), high where a code is wrong."""
        ...


class Plan(NamedTuple):
    """How many tokens each step gives back and leaves masked: (steps, b) on the device; the largest numbers, as ints.

    Known before the loop begins, so that every shape in it is fixed and nothing in it waits for the device.
    """

    returned: torch.Tensor
    after: torch.Tensor
    most_masked: list[int]
    most_revealed: list[int]


def make_plan(unknown: torch.Tensor, sampler: Sampler, device: torch.device | str = "cpu") -> Plan:
    """The counts of every step for images with `unknown` (b,) tokens to draw."""
    unknown = unknown.cpu().long()
    after = masked_counts(unknown, sampler.steps, sampler.schedule, sampler.counts).T  # (steps, b)
    before = torch.cat((unknown[None], after[:-1]))
    # Of the tokens drawn so far a share is given back, but no more than stay masked after the step: ReMDM's limit on
    # it, sigma <= (1 - alpha_s) / alpha_t. So the last step gives nothing back, and a finished image is left as it is.
    returned = (sampler.revise * (unknown - before)).round().long().minimum(after)
    masked = before + returned
    return Plan(
        returned.to(device),
        after.to(device),
        masked.amax(1).tolist(),
        (masked - after).amax(1).tolist(),
    )


class First(NamedTuple):
    """What the first step predicts from grids that are all MASK: it depends on the condition only."""

    features: torch.Tensor
    memory: torch.Tensor | None


@torch.no_grad()
def first_features(model: Model, condition: Any, sampler: Sampler, codes: torch.Tensor) -> First:
    """For all-MASK `codes` (b, h, w): one forward pass for each distinct condition, not for each image."""
    b = len(codes)
    rows = torch.arange(b)
    if condition is None or isinstance(condition, torch.Tensor | Condition):
        different, rows = distinct(as_condition(condition), b)
        condition = different if isinstance(condition, Condition) else different.labels  # a model gets what it knows
    some = int(rows.max()) + 1
    features, memory = model.features(codes[:some], model.prepare(condition, some), _guidance(sampler, 0), None)
    rows = rows.to(codes.device)
    if memory is not None:  # of a guided model: conditional rows, then unconditional ones
        memory = torch.cat([half[rows] for half in memory.split(some)])
    return First(features[rows], memory)


def _guidance(sampler: Sampler, i: int) -> float | dict[str, float]:
    """Of step i: one number, unless single fields have their own."""
    return sampler.guidances_at(i) if sampler.field_guidance else sampler.guidance_at(i)


def distinct(condition: Condition, b: int) -> tuple[Condition, torch.Tensor]:
    """The different ones among b images' conditions, and which of them each image has, (b,)."""
    if not condition.tensors:
        return condition, torch.zeros(b, dtype=torch.int64)
    told = torch.cat([tensor.expand(b, *tensor.shape[1:]).flatten(1).double() for tensor in condition.tensors], dim=1)
    different, rows = told.unique(dim=0, return_inverse=True)
    first = torch.arange(b, device=rows.device).flip(0)  # of several equal ones the first is written last
    chosen = torch.zeros(len(different), dtype=torch.int64, device=rows.device).scatter(0, rows.flip(0), first)
    return condition.expand(b).rows(chosen), rows


@torch.no_grad()
def sample_steps(
    model: Model,
    codes: torch.Tensor,
    condition: Any,
    sampler: Sampler,
    seeds: torch.Tensor,
    *,
    complete: bool = True,
    plan: Plan | None = None,
    first: First | None = None,
) -> Iterator[Step]:
    """Fill the MASK codes of `codes` (b, h, w), a few at a time; seeds (b,) int64, one per image.

    Args:
        complete: show in each step what is predicted for the tokens that stay masked; without it they stay MASK,
            which saves work and changes no result.
        plan, first: of these very codes, from `make_plan` and `first_features`, where they are at hand. With a plan
            the loop waits for nothing on the device, so whoever gives one calls `check_finite` on the last scores.

    Raises:
        ValueError: before the last step is shown, if the model's predictions were not finite in any.
    """
    b, h, w = codes.shape
    if not b:
        return
    given = codes != model.mask_id
    waits = plan is None
    plan = plan or make_plan((~given).sum((1, 2)), sampler, codes.device)
    noise = Noise(seeds.to(codes.device), (h, w))
    prepared = model.prepare(condition, b)
    scores, memory = torch.zeros(b, h, w, device=codes.device), None
    broken = torch.zeros_like(given)

    for i in range(sampler.steps):
        if not plan.most_masked[i]:
            return  # every image is complete: never spend a forward that reveals nothing
        last = i + 1 == sampler.steps or not plan.most_masked[i + 1]
        if i and sampler.revise:
            codes = _give_back(codes, given, plan.returned[i], noise.uniform(i, REVISE), model.mask_id)
        masked = codes == model.mask_id

        # 1. Predict every token, all positions at once.
        if i == 0 and first is not None:
            features, memory = first
        else:
            features, memory = model.features(codes, prepared, _guidance(sampler, i), memory)

        # 2. Mask schedule: so many tokens stay unknown.
        count = plan.after[i]

        # 3. Sample a code wherever one is missing; or only where it will be kept, if that is known beforehand.
        wanted, most = masked, plan.most_masked[i]
        if sampler.order in PATHS:
            left = mask_lowest(_path(sampler.order, noise, i).masked_fill(~masked, torch.inf), count)
            wanted, most = masked & ~left, plan.most_revealed[i]
        drawn = draw_at(model, features, wanted, most, noise, sampler, i, count)
        filled, scores = torch.where(wanted, drawn.codes, codes), torch.where(wanted, drawn.logs, scores)
        broken = broken | (wanted & ~drawn.logs.isfinite())

        # 4. Mask the least certain ones. Without a critic a token once kept stays kept.
        if sampler.order not in PATHS:
            ranking, kept = drawn.moments if sampler.order == "moment" else scores, ~masked
            if sampler.order == "critic" and (complete or not last):
                ranking = scores = -model.critic_logits(filled, prepared).float()
                broken = broken | ~scores.isfinite()
                kept = given if sampler.critic_revises else kept
            left = mask_lowest((ranking + _choice_noise(sampler, i, noise)).masked_fill(kept, torch.inf), count)
        codes = filled.masked_fill(left, model.mask_id)

        if complete and sampler.order in PATHS and not last:
            rest = draw_at(model, features, left, plan.most_masked[i], noise, sampler, i, count)
            filled, scores = torch.where(left, rest.codes, filled), torch.where(left, rest.logs, scores)
        scores = scores.masked_fill(broken, torch.nan)
        if last and waits:
            check_finite(scores, features.dtype)
        yield Step(filled if complete else codes, scores, left)


def sample(
    model: Model,
    codes: torch.Tensor,
    condition: Any,
    sampler: Sampler,
    seeds: torch.Tensor,
) -> torch.Tensor:
    """Run `sample_steps` to its end: codes (b, h, w), some MASK -> complete codes (b, h, w).

    Raises:
        ValueError: the model's predictions are not finite.
    """
    first = None
    if len(codes) and bool((codes == model.mask_id).all()):
        first = first_features(model, condition, sampler, codes)
    for step in sample_steps(model, codes, condition, sampler, seeds, complete=False, first=first):
        codes = step.codes
    return codes


class NotFinite(ValueError):
    """Predictions that are not finite; the message says what to do."""


def check_finite(scores: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse what was drawn from predictions that are not finite, by the `scores` (b, h, w) of the last Step.

    Raises:
        NotFinite: they are not, computed in `dtype`.
    """
    if not bool(scores.isfinite().all()):
        plain = dtype == torch.float32
        raise NotFinite(
            f"the model's predictions are not finite in {'fp32' if plain else 'bf16'}: "
            + ("it has to be trained again" if plain else "try dtype `fp32`, or train it again")
        )


class Noise(NamedTuple):
    """The randomness of each image (b,) for a grid of (h, w) tokens."""

    seeds: torch.Tensor
    grid: tuple[int, int]

    def uniform(self, step: int, stream: int) -> torch.Tensor:
        """(b, h, w) on (0, 1), different for each step and stream."""
        h, w = self.grid
        return rearrange(uniform(self.seeds, step, stream, h * w), "b (h w) -> b h w", h=h)


class Drawn(NamedTuple):
    """What `draw_at` drew, each (b, h, w): codes, their log-probabilities, position scores; else 0."""

    codes: torch.Tensor
    logs: torch.Tensor
    moments: torch.Tensor


def draw_at(
    model: Model,
    features: torch.Tensor,
    at: torch.Tensor,
    most: int,
    noise: Noise,
    sampler: Sampler,
    i: int,
    after: torch.Tensor,
) -> Drawn:
    """Run the head and draw a code where `at` (b, h, w) is True, at most at `most` places of an image.

    `logs` are the model's own log-probabilities, before temperature and filters, so that a cold draw does not make
    every token look certain.

    In the order `moment` the places are chosen first, by `moments`, and codes are drawn for them: what confidence
    amounts to. With noise of size a on the scores log p(v) of codes drawn from q, which is p after temperature and
    filters, a place is kept with a probability proportional to p(v)^(1/a). So place and code together have one
    proportional to q(v) p(v)^(1/a): the code is drawn from that, and the place's moment is log sum_v q(v) p(v)^(1/a).
    Where a step reveals all that is left there is no choice, and codes are drawn from q.
    """
    b, h, w = at.shape
    flat, u = rearrange(at, "b h w -> b (h w)"), rearrange(noise.uniform(i, DRAW), "b h w -> b (h w)")
    features = rearrange(features, "b h w d -> b (h w) d")
    places = flat.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # (b, m); the rest is not `at`
    chooses = after[:, None, None] > 0

    parts: list[tuple[torch.Tensor, ...]] = []
    for part in places.split(max(1, LARGEST // (b * model.mask_id)), dim=1):
        logits = model.to_logits(features.take_along_dim(part[..., None], dim=1))  # (b, m, v)
        normaliser = logits.logsumexp(-1)
        sharp = logits
        if sampler.temperature_at(i) != 1:
            sharp = logits / sampler.temperature_at(i)
        sharp = filtered(sharp, sampler)
        moments = None
        if sampler.order == "moment":
            chosen = (logits - normaliser[..., None]) / max(sampler.choice_at(i), 0.01)
            sharp = sharp.log_softmax(-1) + torch.where(chooses, chosen, 0.0)
            moments = sharp.logsumexp(-1)
        codes = draw_codes(sharp.softmax(-1), u.gather(1, part))
        logs = logits.gather(-1, codes[..., None])[..., 0] - normaliser
        moments = logs if moments is None else moments
        parts.append((codes, logs, moments))

    def spread(values: list[torch.Tensor]) -> torch.Tensor:
        found = torch.cat(values, dim=1)
        whole = torch.zeros(b, h * w, dtype=found.dtype, device=at.device).scatter(1, places, found)
        return rearrange(whole, "b (h w) -> b h w", h=h)

    codes, logs, moments = (spread(list(values)) for values in zip(*parts, strict=True))
    return Drawn(codes, logs, moments)


def draw_codes(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: probs (..., v) fp32 and uniforms (...) on (0, 1) -> codes (...), none of probability 0.

    Never MASK either, not even from NaN; `check_finite` then says what is wrong.
    """
    cdf = probs.cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[..., -1])[..., None])[..., 0].clamp(max=probs.shape[-1] - 1)


def filtered(logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """Logits (..., v) with those outside top_k and top_p at -inf; of equal ones the lowest codes are kept."""
    if 0 < sampler.top_k < logits.shape[-1]:
        least = logits.topk(sampler.top_k, dim=-1).values[..., -1:]
        above, equal = logits > least, logits == least
        wanted = sampler.top_k - above.sum(-1, keepdim=True)
        logits = logits.masked_fill(~above & ~(equal & (equal.cumsum(-1) <= wanted)), -torch.inf)
    if sampler.top_p < 1:
        ordered = logits.sort(dim=-1, descending=True, stable=True)
        probs = ordered.values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= sampler.top_p  # the first one always stays
        logits = logits.masked_fill(outside.gather(-1, ordered.indices.argsort(-1)), -torch.inf)
    return logits


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


def _path(order: str, noise: Noise, i: int) -> torch.Tensor:
    """Scores (b, h, w), higher = revealed sooner, of an order that is known beforehand."""
    if order == "random":
        return noise.uniform(i, CHOICE)
    # Each image walks the same path from its own starting point.
    h, w = noise.grid
    start = (uniform(noise.seeds, 0, CHOICE, 1) * h * w).long()[..., None]  # (b, 1, 1)
    return -((_halton_places(h, w, start.device) + start) % (h * w)).float()


def _choice_noise(sampler: Sampler, i: int, noise: Noise) -> torch.Tensor | float:
    """Gumbel noise on the scores: of unit size in the order `moment`, whose scores are scaled instead."""
    if sampler.order == "moment":
        return gumbel(noise.uniform(i, CHOICE)) if sampler.choice_at(i) else 0.0
    return sampler.choice_at(i) * gumbel(noise.uniform(i, CHOICE)) if sampler.choice_at(i) else 0.0


def _give_back(
    codes: torch.Tensor, given: torch.Tensor, counts: torch.Tensor, chance: torch.Tensor, mask_id: int
) -> torch.Tensor:
    """Mask `counts` (b,) of the codes that were drawn, those of the smallest `chance` (b, h, w)."""
    drawn = (codes != mask_id) & ~given
    return codes.masked_fill(mask_lowest(chance.masked_fill(~drawn, torch.inf), counts), mask_id)
