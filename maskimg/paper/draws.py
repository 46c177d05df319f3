"""Drawing codes from what a network predicts, with the noise of each image's own seed.

Shapes: b images, h w tokens, n = h * w, v codes, d features, m tokens drawn in a step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange

from maskimg.noise import uniform
from maskimg.paper.counts import Counts
from maskimg.sampler import Sampler

DRAW, CHOICE, REVISE = 0, 1, 2  # streams of noise
LARGEST = 2**26  # logits held at a time, 256 MB in fp32


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


class Noise(NamedTuple):
    """The randomness of each image (b,) for a grid of (h, w) tokens."""

    seeds: torch.Tensor
    grid: tuple[int, ...]

    def uniform(self, step: int, stream: int) -> torch.Tensor:
        """(b, h, w) on (0, 1), different for each step and stream."""
        h, w = self.grid
        return rearrange(uniform(self.seeds, step, stream, h * w), "b (h w) -> b h w", h=h)


class Iteration(NamedTuple):
    """Step i of the loop, and what is the same in all of them."""

    i: int
    model: Model
    prepared: Any
    sampler: Sampler
    noise: Noise
    counts: Counts

    @property
    def is_last(self) -> bool:
        return self.i + 1 == self.counts.steps

    @property
    def guidance(self) -> float | dict[str, float]:
        return guidance_at(self.sampler, self.i)


def guidance_at(sampler: Sampler, i: int) -> float | dict[str, float]:
    """Of step i: one number, unless single fields have their own."""
    return sampler.guidances_at(i) if sampler.field_guidance else sampler.guidance_at(i)


class Drawn(NamedTuple):
    """Grids after a draw, each (b, h, w).

    Attributes:
        codes: no MASK among them.
        scores: log-probabilities of the codes when they were drawn, 0 for given ones; once not finite, never again.
        moments: what the order `moment` chooses by, 0 where nothing was drawn.
    """

    codes: torch.Tensor
    scores: torch.Tensor
    moments: torch.Tensor


def draw(
    now: Iteration,
    features: torch.Tensor,
    codes: torch.Tensor,
    scores: torch.Tensor,
    at: torch.Tensor,
    ranking: torch.Tensor | None = None,
) -> Drawn:
    """Run the head and draw a code where `at` (b, h, w) is True; `codes` and `scores` stay as they are elsewhere.

    The scores are the model's own log-probabilities, before temperature and filters, so that a cold draw does not make
    every token look certain.

    Args:
        ranking: (b, h, w) of an order that is known before the draw: then only the tokens that rank highest are drawn,
            as many as the step keeps. The others, which it masks again, hold code 0.
    """
    b, h, w = at.shape
    if ranking is None:
        most, priority = now.counts.most_masked[now.i], at.byte()
    else:
        most, priority = now.counts.most_revealed[now.i], ranking.masked_fill(~at, -torch.inf)
    # Sorted as `mask_lowest` does, so that of equally ranked tokens both choose the same ones.
    places = rearrange(priority, "b h w -> b (h w)").argsort(dim=1, stable=True)[:, -most:]  # (b, m)
    features = rearrange(features, "b h w d -> b (h w) d")
    u = rearrange(now.noise.uniform(now.i, DRAW), "b h w -> b (h w)")

    parts = []
    for part in places.split(max(1, LARGEST // (b * now.model.mask_id)), dim=1):
        logits = now.model.to_logits(features.take_along_dim(part[..., None], dim=1))  # (b, m, v)
        parts.append(_draw_from(logits, u.gather(1, part), now))

    def spread(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
        found = torch.cat(values, dim=1)
        whole = torch.zeros(b, h * w, dtype=found.dtype, device=at.device).scatter(1, places, found)
        return rearrange(whole, "b (h w) -> b h w", h=h)

    drawn, logs, moments = (spread(values) for values in zip(*parts, strict=True))
    # 0 times a number that is not finite is NaN: a prediction that was not finite is never forgotten.
    return Drawn(torch.where(at, drawn, codes), torch.where(at, logs + 0 * scores, scores), moments)


def _draw_from(
    logits: torch.Tensor, u: torch.Tensor, now: Iteration
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (b, m, v) and uniforms (b, m) -> codes, log-probabilities and moments, (b, m) each.

    In the order `moment` tokens are chosen first, by their moments, and codes are drawn for them: what confidence
    amounts to. With noise of size a on the scores log p(v) of codes drawn from q, which is p after temperature and
    filters, a token is kept with a probability proportional to p(v)^(1/a). So token and code together have one
    proportional to q(v) p(v)^(1/a): the code is drawn from that, and the token's moment is log sum_v q(v) p(v)^(1/a).
    Where a step reveals all that is left there is no choice, and codes are drawn from q.
    """
    sampler, temperature = now.sampler, now.sampler.temperature_at(now.i)
    normaliser = logits.logsumexp(-1)
    sharp = filtered(logits if temperature == 1 else logits / temperature, sampler)
    moments = None
    if sampler.order == "moment":
        chooses = now.counts.after[now.i][:, None, None] > 0
        chosen = (logits - normaliser[..., None]) / max(sampler.choice_at(now.i), 0.01)
        sharp = sharp.log_softmax(-1) + torch.where(chooses, chosen, 0.0)
        moments = sharp.logsumexp(-1)
    codes = draw_codes(sharp.softmax(-1), u)
    logs = logits.gather(-1, codes[..., None])[..., 0] - normaliser
    return codes, logs, logs if moments is None else moments


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
