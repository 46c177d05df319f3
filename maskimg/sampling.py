"""The sampling loop: grids with MASK in, complete grids out. Knows no file, picture or tokenizer.

Generation, inpainting, outpainting and variation are the same loop; they differ only in which codes are MASK at
the start. A code that is given never changes. It is the algorithm of Chang et al. 2022, arXiv 2202.04200, section 3.2;
other orders than the paper's, and giving tokens back (`revise`), are in `paper.orders`.

Shapes: b images, h w tokens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from maskimg.masking import mask_lowest
from maskimg.paper.counts import Counts, make_counts
from maskimg.paper.draws import Drawn, Iteration, Model, Noise, draw
from maskimg.paper.first import First, first_features
from maskimg.paper.orders import RANKINGS, choice_noise, give_back
from maskimg.sampler import BEFORE_DRAW, Sampler


class Step(NamedTuple):
    """After one step: complete codes, scores (higher = more certain) and which tokens will be masked again.

    Each (b, h, w). `codes` holds no MASK: a token that is masked again shows what was predicted there. `scores` are
    log-probabilities of the codes when they were drawn (0 for given ones); in the order `critic`, the critic's. They
    are not finite wherever a prediction was not, in this step or an earlier one. With `complete=False` codes that are
    masked again are MASK, and scores serve only to be checked by `check_finite`.
    """

    codes: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor


@torch.no_grad()
def sample_steps(
    model: Model,
    codes: torch.Tensor,
    condition: Any,
    sampler: Sampler,
    seeds: torch.Tensor,
    *,
    complete: bool = True,
    counts: Counts | None = None,
    first: First | None = None,
) -> Iterator[Step]:
    """Fill the MASK codes of `codes` (b, h, w), a few at a time; seeds (b,) int64, one per image.

    Args:
        complete: show in each step what is predicted for the tokens that stay masked; without it they stay MASK,
            which saves work and changes no result.
        counts, first: of these very codes, from `make_counts` and `first_features`, where they are at hand. With counts
            the loop waits for nothing on the device, so whoever gives them calls `check_finite` on the last scores.

    Raises:
        ValueError: before the last step is shown, if the model's predictions were not finite in any.
    """
    given, waits = codes != model.mask_id, counts is None
    counts = counts or make_counts((~given).sum((1, 2)), sampler, codes.device)
    noise, prepared = Noise(seeds.to(codes.device), codes.shape[1:]), model.prepare(condition, len(codes))
    rank, scores, memory = RANKINGS[sampler.order], torch.zeros(codes.shape, device=codes.device), None
    for i in range(counts.steps):
        now = Iteration(i, model, prepared, sampler, noise, counts)
        codes = give_back(now, codes, given) if i and sampler.revise else codes
        masked = codes == model.mask_id

        # 1. Predict every token, all positions at once.
        features, memory = first if first and not i else model.features(codes, prepared, now.guidance, memory)

        # 2. Sample a code at each masked token; only at those that will be kept, if the order is known before the draw.
        ranking = rank(now) if sampler.order in BEFORE_DRAW else None
        drawn = draw(now, features, codes, scores, masked, ranking)

        # 3. Mask schedule: so many tokens stay masked.
        count = counts.after[i]

        # 4. Mask the tokens that rank lowest. Without a critic a token once kept stays kept.
        ranking = rank(now, drawn) if ranking is None else ranking
        kept = given if sampler.order == "critic" and sampler.critic_revises else ~masked
        left = mask_lowest((ranking + choice_noise(now)).masked_fill(kept, torch.inf), count)
        codes = drawn.codes.masked_fill(left, model.mask_id)
        scores = drawn.scores + 0 * ranking  # NaN where a ranking was not finite
        step = completed(now, features, drawn, ranking, left) if complete else Step(codes, scores, left)
        if waits and now.is_last:
            check_finite(step.scores, features.dtype)
        yield step


def completed(now: Iteration, features: torch.Tensor, drawn: Drawn, ranking: torch.Tensor, left: torch.Tensor) -> Step:
    """A step as it is shown: with a code and a score for each token, also for those that are masked again."""
    if now.sampler.order in BEFORE_DRAW and not now.is_last:
        drawn = draw(now, features, drawn.codes, drawn.scores, left)
    scores = drawn.scores
    if now.sampler.order == "critic":
        believed = -now.model.critic_logits(drawn.codes, now.prepared).float() if now.is_last else ranking
        scores = believed + 0 * scores  # NaN where an earlier prediction was not finite
    return Step(drawn.codes, scores, left)


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
