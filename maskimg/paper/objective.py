"""How a MaskGit is trained, as numbers, and what a training step does with codes and losses.

Chang et al. 2022, arXiv 2202.04200, section 3.1; the bound on the likelihood after Sahoo et al. 2024, arXiv 2406.07524.

Shapes: b images, h w tokens, n = h * w, v codes, d features, m masked tokens of a batch.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from maskimg.masking import Schedule, elbo_weights, random_ratio, schedule_named, training_counts
from maskimg.noise import Chance, Rng, rand, randint
from maskimg.paper.draws import draw_codes

CRITIC_TARGETS = ("wrong", "sampled")


@dataclasses.dataclass(frozen=True)
class Objective:
    """How a MaskGit is trained.

    Attributes:
        schedule: of training mask ratios: a name, or a function of r in [0, 1].
        no_replace_prob: share of masked positions that keep their code in the input (and are still predicted);
            not where the critic alone is trained.
        random_token_prob: share of masked positions that hold a random code in the input; likewise.
        self_cond_train_prob: share of training grids for which a self-conditioned model is given its own features of
            a first pass; for the others it is given a learned null.
        condition_drop: probability with which training forgets each part of the condition; see `drop_condition`.
        label_smoothing: of the generator's cross-entropy.
        loss_weight: `none`, the mean over masked tokens; `elbo`, the exact any-order bound in nats a token (see
            `masking.elbo_weights`); or a function of the schedule's r (b,) whose value weighs each grid.
        visible_weight: weight of the tokens that are not masked, relative to 1 for those that are.
        critic_loss_weight: of the critic's part in `Losses.loss`.
        critic_target: what the critic learns to find: codes that are `wrong` (not the picture's), or all that were
            `sampled` (as in the paper), right ones too.

    Raises:
        ValueError: a number is out of range or does not go with another.
    """

    schedule: str | Schedule = "arccos"
    no_replace_prob: float = 0.0
    random_token_prob: float = 0.0
    self_cond_train_prob: float = 0.75
    condition_drop: float = 0.1
    label_smoothing: float = 0.0
    loss_weight: str | Callable[[torch.Tensor], torch.Tensor] = "none"
    visible_weight: float = 0.0
    critic_loss_weight: float = 1.0
    critic_target: str = "wrong"

    def __post_init__(self):
        schedule_named(self.schedule)  # an unknown name fails here rather than in the first step
        for name in ("no_replace_prob", "random_token_prob"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or self.no_replace_prob + self.random_token_prob > 1:
                raise ValueError(f"{name} must be in [0, 1], and both together at most 1, got {value}")
        for name in ("self_cond_train_prob", "condition_drop", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if self.critic_target not in CRITIC_TARGETS:
            raise ValueError(f"critic_target must be one of {', '.join(CRITIC_TARGETS)}, got `{self.critic_target}`")
        if self.loss_weight not in ("none", "elbo") and not callable(self.loss_weight):
            raise ValueError(f"loss_weight must be `none`, `elbo` or a function of r, got `{self.loss_weight}`")
        if not 0 <= self.visible_weight <= 1 or (self.visible_weight and self.loss_weight != "none"):
            raise ValueError(
                "visible_weight must be in [0, 1], and 0 with another loss_weight than `none`, "
                f"got {self.visible_weight}"
            )

    def check_tokens(self, n: int) -> None:
        """Refuse an `elbo` whose schedule does not mask every number of n tokens.

        Raises:
            ValueError: it does not.
        """
        if self.loss_weight == "elbo":
            _elbo_weights(n, self.schedule)


_elbo_weights = lru_cache(maxsize=64)(elbo_weights)


def corrupted(codes: torch.Tensor, masked: torch.Tensor, mask_id: int, objective: Objective, rng: Rng) -> torch.Tensor:
    """What the network is shown: MASK at masked positions, but for a share kept and a share replaced at random."""
    shown = codes.masked_fill(masked, mask_id)
    if not objective.no_replace_prob and not objective.random_token_prob:
        return shown
    u = rand(rng, "keep", tuple(codes.shape)).to(codes.device)
    other = randint(rng, "code", 0, mask_id, tuple(codes.shape)).to(codes.device)
    kept = masked & (u < objective.no_replace_prob)
    replaced = masked & ~kept & (u < objective.no_replace_prob + objective.random_token_prob)
    return torch.where(kept, codes, torch.where(replaced, other, shown))


def generator_loss(
    objective: Objective,
    net: Any,
    features: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    r: torch.Tensor,
    free: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean, and the cross-entropy of each masked token, (m,) nats without gradient.

    Args:
        features: (b, h, w, d), from which `net` makes logits; its head is run at masked positions only, unless
            visible ones count too.
        r: (b,), which the schedule made the masks `masked` (b, h, w) of.
        free: (h, w) on the CPU, True where a token may be masked and is scored.
    """
    if objective.visible_weight:
        losses = net.cross_entropy(features.flatten(0, 2), codes.flatten(), objective.label_smoothing)
        weights = (torch.where(masked, 1.0, objective.visible_weight) * free.to(masked.device)).flatten()
        return (losses * weights).sum() / weights.sum(), losses.detach()[masked.flatten()]
    losses = _cross_entropy(net, features[masked], codes[masked], objective.label_smoothing)
    if objective.loss_weight == "elbo":
        n = int(free.sum())
        weights = _elbo_weights(n, objective.schedule)[masked.sum((1, 2)).cpu()]
        weights = weights.to(losses)[:, None, None].expand(codes.shape)
        return (losses * weights[masked]).sum() / (n * len(codes)), losses.detach()
    weighed = losses
    if callable(objective.loss_weight):
        weights = objective.loss_weight(r).to(losses)[:, None, None].expand(codes.shape)
        weighed = losses * weights[masked]
    return weighed.mean(), losses.detach()


def share_of_batch(objective: Objective, free: torch.Tensor, rng: Rng) -> float:
    """How much of the whole batch's loss the mean over a part's tokens stands for: 1 for all of it."""
    if not isinstance(rng, Chance) or rng.rows is None:
        return 1.0
    if objective.loss_weight == "elbo":
        return rng.share
    n, visible = int(free.sum()), objective.visible_weight
    counts = training_counts(random_ratio(rng.size, rng.whole), objective.schedule, n)
    weights = counts + visible * (n - counts)
    return (weights[rng.places].sum() / weights.sum()).item()


def drawn_codes(
    to_logits: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    masked: torch.Tensor,
    temperature: float,
    rng: Rng,
    *,
    vocab_size: int,
) -> torch.Tensor:
    """Features (b, h, w, d) -> codes (m,) of the masked tokens at `temperature`; 0 takes the most probable."""
    features = features[masked]
    m, more = len(features), _missing_rows(len(features))
    if isinstance(rng, Chance):
        u = rng.rand("draw", *masked.shape[1:])[masked.cpu()].to(features.device)
    else:
        u = torch.rand(m, generator=rng).to(features.device)
    features, u = F.pad(features, (0, 0, 0, more)), F.pad(u, (0, more), value=0.5)
    parts = features.split(max(1, 2**26 // vocab_size))  # a large codebook's logits of a batch are gigabytes
    drawn = []
    for part, chance in zip(parts, u.split(len(parts[0])), strict=True):
        logits = to_logits(part)
        if temperature < 1e-6:  # logits divided by so little would be infinite
            drawn.append(logits.argmax(-1))
        else:
            drawn.append(draw_codes((logits / temperature).softmax(-1), chance))
    return torch.cat(drawn)[:m]


def _cross_entropy(net: Any, features: torch.Tensor, codes: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Features (m, d) and the right codes (m,) -> (m,) nats."""
    more = _missing_rows(len(codes))
    return net.cross_entropy(F.pad(features, (0, 0, 0, more)), F.pad(codes, (0, more)), label_smoothing)[: len(codes)]


def _missing_rows(m: int) -> int:
    """How many rows of padding make m a multiple of 512: with another shape at every step a CPU's libraries keep tens
    of megabytes a step, up to 17 GB (torch 2.15). Few rows do no harm."""
    return -m % 512 if m > 512 else 0
