"""MaskGit: the training objective of generator and critic, and the model that `sampling` draws from.

Chang et al. 2022, "MaskGIT: masked generative image transformer", arXiv 2202.04200, section 3.1; the critic after
Lezama et al. 2022, arXiv 2209.04439. The names of x-transformers are in `interop.nonautoregressive`. Knows no file,
picture or tokenizer.

Shapes: b images, h w tokens, n = h * w, v codes, d features, f label fields, m masked tokens of a batch.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition, as_condition, drop_condition
from maskimg.masking import random_mask
from maskimg.network import Network, joined, without_gradient
from maskimg.noise import Chance, Rng, rand
from maskimg.paper import checks, dialect
from maskimg.paper.guidance import Guidance, Prepared, away_from, guided, strengths_of
from maskimg.paper.objective import CRITIC_TARGETS as CRITIC_TARGETS
from maskimg.paper.objective import Objective, corrupted, drawn_codes, generator_loss, share_of_batch
from maskimg.paper.self_conditioning import SelfConditioning
from maskimg.sampler import Sampler
from maskimg.sampling import sample
from maskimg.values import WrongType, shown

Given = Condition | torch.Tensor | Mapping[str, Any] | None  # labels (b, f) alone, or what a wrapped network takes
FACE = ("trunk", "to_logits", "cross_entropy", "vocab_size", "grid")


class Losses(NamedTuple):
    """`loss` is what to call backward() on; a part that was not computed is None."""

    loss: torch.Tensor
    generator_loss: torch.Tensor | None
    critic_loss: torch.Tensor | None


class Predictions(NamedTuple):
    """What a training step knows of its masked tokens: features (m, d), losses (m,), right codes (m,), mask (b, h, w).

    Without gradients; the tokens are in raster order, one grid after the other.
    """

    features: torch.Tensor
    losses: torch.Tensor
    codes: torch.Tensor
    masked: torch.Tensor


class MaskGit(nn.Module):
    """A network that predicts masked codes, optionally with a critic that finds the predictions that are wrong.

    Args:
        net: a Network, such as a MaskedTransformer. Networks of other libraries: `NonAutoregressiveWrapper`.
        objective: how it is trained.
        sampler: what `generate` draws with if it is given none: 18 steps of the training's schedule if this is not
            given either, in the order `critic` where there is one, else `confidence`.
        self_cond: let the network see its own features, of a first pass (in training) or of the step before.
        token_critic: a network codes, condition -> logits, high where a code is wrong.
        self_token_critic: let one linear layer on the generator's own features be the critic.
        earlier: the names of the version before, such as `no_replace_prob`, with a DeprecationWarning.

    Raises:
        ValueError: an option does not go with another.
        TypeError: the network is none that this class knows how to ask, or there is no such option.
    """

    def __init__(
        self,
        net: Network,
        *,
        objective: Objective | None = None,
        sampler: Sampler | None = None,
        self_cond: bool = False,
        token_critic: nn.Module | None = None,
        self_token_critic: bool = False,
        **earlier: Any,
    ):
        super().__init__()
        if not all(hasattr(net, name) for name in FACE):
            raise TypeError(
                f"MaskGit takes a Network, such as a MaskedTransformer, got a {type(net).__name__}: "
                "give a network of another library to NonAutoregressiveWrapper"
            )
        dialect.warn_of_earlier("MaskGit", earlier, dialect.CONSTRUCTED)
        for name, own in (("mask_id", net.vocab_size), ("grid", net.grid)):
            if earlier.get(name) not in (None, own):
                raise ValueError(f"the network's own {name} is {own}, got {earlier[name]}")
        if token_critic is not None and self_token_critic:
            raise ValueError("give either token_critic or self_token_critic, not both")
        objective = dialect.earlier_objective(objective or Objective(), earlier)
        objective.check_tokens(net.grid[0] * net.grid[1])

        self.net = net
        self.token_critic = token_critic
        self.self_critic = nn.Linear(net.dim, 1) if self_token_critic else None
        self.self_cond = SelfConditioning(net.dim, net.embed_dim) if self_cond else None
        self.objective = objective
        self.sampler = sampler
        if "steps" in earlier or "can_mask_prev_unmasked" in earlier:
            steps, revises = earlier.get("steps", 18), earlier.get("can_mask_prev_unmasked", True)
            self.sampler = self.make_sampler(steps=steps, critic_revises=revises)
        self.observer: Callable[[Predictions], None] | None = None  # is given what each training step predicts

    @property
    def mask_id(self) -> int:
        return self.net.vocab_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.net.grid

    @property
    def has_critic(self) -> bool:
        return self.token_critic is not None or self.self_critic is not None

    @property
    def heads(self) -> nn.ModuleDict:
        """The small parts that belong to neither network: `self_cond` and `self_critic`, where there are any."""
        parts = {"self_cond": self.self_cond, "self_critic": self.self_critic}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # Training.

    def forward(
        self,
        codes: torch.Tensor,
        condition: Given = None,
        *,
        fixed: torch.Tensor | None = None,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        generator: Rng = None,
    ) -> Losses:
        """Complete codes (b, h, w), or flat (b, n), and their condition -> Losses.

        Args:
            condition: labels (b, f) alone, or a Condition.
            fixed: (h, w) or (n,) bool, True for a prefix or other part of every grid that is never masked and never
                scored; `generate` is given its codes.
            only_train_generator: leave the critic out.
            only_train_critic: no gradient reaches the generator, also with the self critic.
            generator_sample_temperature: of the codes that the critic judges; uniform on [0, 1) if not given.
            generator: of all randomness, on the CPU; torch's own if not given. With a Chance of a part of a batch, the
                losses are that part's summand of the whole batch's.

        Raises:
            ValueError: wrong shape, codes on the CPU outside the codebook (MASK included), or flags that cannot be
                served.
            TypeError: `condition` is none.
        """
        codes = checks.complete_grids(codes, self.grid, self.mask_id)
        self._check_flags(only_train_generator, only_train_critic)
        condition, rng, free = self._condition(condition), generator, checks.free_tokens(fixed, self.grid)
        if isinstance(condition, Condition) and self.training:
            condition = drop_condition(condition, self.net.label_sizes, self.objective.condition_drop, rng)

        # Mask a random share of each grid.
        masked, r = random_mask(codes, self.objective.schedule, rng, None if fixed is None else ~free)
        if only_train_critic:  # what a critic judges must not have been drawn with the truth in sight
            visible = codes.masked_fill(masked, self.mask_id)
        else:
            visible = corrupted(codes, masked, self.mask_id, self.objective, rng)

        # Predict the masked codes.
        with without_gradient() if only_train_critic else contextlib.nullcontext():
            features = self._trunk(visible, condition, self._first_pass(visible, condition, rng))
        loss = None
        if not only_train_critic:
            loss, losses = generator_loss(self.objective, self.net, features, codes, masked, r, free)
            loss = share_of_batch(self.objective, free, rng) * loss
            self._observe(features, losses, codes, masked)
        if loss is not None and (only_train_generator or not self.has_critic):
            return Losses(loss, loss, None)

        # Fill them with draws, and let the critic say which codes are not the picture's own.
        temperature = _drawing_temperature(generator_sample_temperature, rng)
        filled = codes.masked_scatter(masked, self._draws(features.detach(), masked, temperature, rng))
        target = masked if self.objective.critic_target == "sampled" else filled != codes
        critic_logits = self.critic_logits(filled, condition, detach=only_train_critic)
        weight = None if fixed is None else (free / free.float().mean()).to(target.device)
        critic_loss = F.binary_cross_entropy_with_logits(critic_logits.float(), target.float(), weight)
        if isinstance(rng, Chance):
            critic_loss = rng.share * critic_loss
        if loss is None:
            return Losses(critic_loss, None, critic_loss)
        return Losses(loss + self.objective.critic_loss_weight * critic_loss, loss, critic_loss)

    @without_gradient()
    def elbo(
        self,
        codes: torch.Tensor,
        condition: Given = None,
        *,
        draws: int = 8,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """An upper bound of each grid's negative log-likelihood: codes (b, h, w) -> (b,) nats.

        The mean over `draws` masks of (n / k) times the summed cross-entropy of k masked tokens, k stratified over
        1 to n. Nothing is augmented and no condition is dropped; divide by n ln 2 for bits a token.
        """
        codes = checks.complete_grids(codes, self.grid, self.mask_id)
        condition = self._condition(condition)
        b, h, w = codes.shape
        total = torch.zeros(b, dtype=torch.float64, device=codes.device)
        for i in range(draws):
            u = (torch.rand(b, dtype=torch.float64, generator=generator) + i) / draws
            k = (u * h * w).long() + 1
            ranks = torch.rand(b, h * w, generator=generator).argsort(-1)
            masked = rearrange(ranks < k[:, None], "b (h w) -> b h w", h=h).to(codes.device)
            visible = codes.masked_fill(masked, self.mask_id)
            features = self._trunk(visible, condition, self._first_pass(visible, condition, generator, always=True))
            losses = torch.zeros(codes.shape, device=codes.device)
            losses[masked] = self.net.cross_entropy(features[masked], codes[masked])
            total += losses.sum((1, 2)).double() * (h * w / k).to(codes.device)
        return total / draws

    # What the sampling loop asks for.

    def prepare(self, condition: Given, b: int) -> Prepared:
        """Whatever about a condition is the same at every step of a generation."""
        condition, trunk = self._condition(condition), self.net.trunk
        critic_trunk = getattr(self.token_critic, "trunk", trunk if self.self_critic is not None else None)
        critic = critic_trunk.modulation(condition, b) if critic_trunk is not None else condition
        return Prepared(condition, trunk.modulation(condition, b), critic, {})

    def features(
        self, codes: torch.Tensor, prepared: Prepared, guidance: Guidance = 1.0, memory: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Codes (b, h, w), some MASK -> features (b, h, w, d) for `to_logits`, and the memory for the next step.

        Where guidance is on, one larger batch holds the condition and whatever is moved away from; see `guided`.

        Args:
            guidance: of the whole condition; or by field, the whole condition's by the name ""; 1 is off.
            memory: of the step before, where the model is self-conditioned; None at the first step.
        """
        strengths, condition = strengths_of(guidance, prepared), prepared.generator
        if strengths:
            self.net.check_guidance(*strengths.values())
            away = [away_from(self.net, prepared, name, len(codes)) for name in strengths]
            codes, condition = codes.repeat(1 + len(away), 1, 1), joined([condition, *away])
        if self.self_cond and memory is not None and len(memory) != len(codes):  # guidance was switched on or off
            memory = torch.cat((memory, self.self_cond.null(codes)))[: len(codes)]
        features = self._trunk(codes, condition, memory)
        memory = features if self.self_cond else None
        return (guided(features, strengths) if strengths else features), memory

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v) in fp32."""
        return self.net.to_logits(features).float()

    def logits(self, codes: torch.Tensor, condition: Given = None, guidance: Guidance = 1.0) -> torch.Tensor:
        """Codes (b, h, w), some MASK -> logits (b, h, w, v) in fp32, guided as in `features`."""
        return self.to_logits(self.features(codes, self.prepare(condition, len(codes)), guidance)[0])

    def critic_logits(
        self, codes: torch.Tensor, condition: Given | Prepared = None, *, detach: bool = False
    ) -> torch.Tensor:
        """Complete codes (b, h, w) -> logits (b, h, w), high where a code is wrong.

        Args:
            detach: let no gradient into the generator's trunk (it is shared with the self critic).

        Raises:
            ValueError: the model has no critic.
        """
        given = condition.critic if isinstance(condition, Prepared) else condition
        if self.token_critic is not None:
            return self.token_critic(codes, given)
        if self.self_critic is None:
            raise ValueError("this model has no critic: choose another order, or train one")
        with without_gradient() if detach else contextlib.nullcontext():
            features = self._trunk(codes, given, None)
        return self.self_critic(features)[..., 0]

    def generate(
        self,
        batch_size: int | None = None,
        condition: Given = None,
        *,
        codes: torch.Tensor | None = None,
        sampler: Sampler | None = None,
        seeds: torch.Tensor | None = None,
        **earlier: Any,
    ) -> torch.Tensor:
        """Draw `batch_size` grids -> codes (b, h, w), none of them MASK.

        Args:
            batch_size: None draws one, without the batch axis.
            codes: grids (b, h, w) or (b, n) to complete, MASK where a code is missing; all MASK if not given.
            sampler: the numbers of the loop; the model's own if not given.
            seeds: (b,), one per image; random if not given.
            earlier: the names of the version before, such as `steps`, with a DeprecationWarning.

        Raises:
            ValueError: the sizes do not fit, an option is out of range, or the model's predictions are not finite.
            TypeError: `condition` is none, or there is no such option.
        """
        dialect.warn_of_earlier("MaskGit.generate", earlier, dialect.GENERATED)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise WrongType(f"sampler must be a Sampler, got {shown(sampler)}")
        if sampler is not None and earlier:
            raise ValueError(f"give either {next(iter(earlier))} or a whole sampler, which has that number already")
        if sampler is None:
            sampler = self.make_sampler(**earlier) if earlier or self.sampler is None else self.sampler
        codes, single = checks.grids_to_complete(batch_size, codes, self.grid, self.mask_id)
        codes, seeds = codes.to(self.device), checks.seeds_of(seeds, len(codes))
        given: Any = self._condition(condition)
        self.net.check_condition(given, len(codes))
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with without_gradient():
                done = sample(self, codes, given, sampler, seeds)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return done[0] if single else done

    def make_sampler(self, *, steps: int = 18, **numbers: Any) -> Sampler:
        """The sampler of a model that was given none; `numbers` as `paper.dialect.make_sampler` takes them."""
        h, w = self.grid
        defaults = {"order": "critic" if self.has_critic else "confidence", "tokens": h * w, "vocab_size": self.mask_id}
        return dialect.make_sampler(steps, self.objective.schedule, **{**defaults, **numbers})

    # Pieces.

    def _trunk(self, codes: torch.Tensor, condition: Any, memory: torch.Tensor | None) -> torch.Tensor:
        """Features (b, h, w, d); `memory` (b, h, w, d) are those of an earlier pass, None the null."""
        embeds = None
        if self.self_cond is not None:
            embeds = self.self_cond(self.self_cond.null(codes) if memory is None else memory)
        return self.net.trunk(codes, condition, embeds)

    def _first_pass(self, codes: torch.Tensor, condition: Any, rng: Rng, always: bool = False) -> torch.Tensor | None:
        """What a self-conditioned model is given in training: its features of a first pass, or (None) the null.

        The first pass itself is given the null, exactly as the first step of a generation is.
        """
        if self.self_cond is None or not (always or self.objective.self_cond_train_prob):
            return None
        with without_gradient():
            features = self._trunk(codes, condition, None)
        if always:
            return features
        chosen = rand(rng, "self_cond", (len(codes), 1, 1, 1)) < self.objective.self_cond_train_prob
        return torch.where(chosen.to(codes.device), features, self.self_cond.null(codes).to(features))

    def _observe(self, features: torch.Tensor, losses: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> None:
        if self.observer is not None:
            with without_gradient():
                self.observer(Predictions(features.detach()[masked], losses, codes[masked], masked))

    def _draws(self, features: torch.Tensor, masked: torch.Tensor, temperature: float, rng: Rng) -> torch.Tensor:
        """Features (b, h, w, d) -> codes (m,) of the masked tokens at `temperature`."""
        return drawn_codes(self.to_logits, features, masked, temperature, rng, vocab_size=self.mask_id)

    def _check_flags(self, only_generator: bool, only_critic: bool) -> None:
        if only_generator and only_critic:
            raise ValueError("only_train_generator and only_train_critic exclude each other")
        if only_critic and not self.has_critic:
            raise ValueError("only_train_critic needs a critic: give token_critic or self_token_critic")

    def _condition(self, given: Given) -> Condition | Mapping[str, Any]:
        """Labels alone, or nothing, as a Condition; what a wrapped network takes stays as it is."""
        if isinstance(given, Mapping) and not isinstance(self.net, Network):
            return given
        if not (given is None or isinstance(given, Condition | torch.Tensor)):
            raise TypeError(
                f"the condition must be a tensor of labels (b, f), a Condition or None, got a {type(given).__name__}"
            )
        return as_condition(given)


def _drawing_temperature(given: float | None, rng: Rng) -> float:
    """That of the codes that the critic judges: as given, or between 0 and 1 by chance, the same for a whole batch."""
    if given is None:
        return rng.of_step("temperature") if isinstance(rng, Chance) else torch.rand((), generator=rng).item()
    if not given >= 0:  # also refuses NaN
        raise ValueError(f"generator_sample_temperature must be 0 or more, got {given}")
    return given
