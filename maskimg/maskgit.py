"""MaskGit: the training objective of generator and critic, and the model that `sampling` draws from.

Chang et al. 2022, "MaskGIT: masked generative image transformer", arXiv 2202.04200, section 3.2; the critic after
Lezama et al. 2022, arXiv 2209.04439; self-conditioning after Chen et al. 2022, "Analog bits", arXiv 2208.04202. The
arguments are named as in x-transformers' NonAutoregressiveWrapper, whose place this can take. Knows no file, picture
or tokenizer.

Shapes: b images, h w tokens, n = h * w, v codes, d features, f label fields, m masked tokens of a batch.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition, as_condition, drop_condition
from maskimg.masking import Schedule, elbo_weights, random_mask, random_ratio, schedule_named, training_counts
from maskimg.network import Modulation, Network, joined, without_gradient
from maskimg.networks.wrapper import ForeignCritic, ForeignNet, make_sampler, refuse_positional
from maskimg.noise import Chance, Source, rand, randint
from maskimg.paper.draws import draw_codes
from maskimg.sampler import Sampler
from maskimg.sampling import sample
from maskimg.values import WrongType, shown, whole_number

Given = Condition | torch.Tensor | dict[str, Any] | None  # labels (b, f) alone, or what a foreign network takes
Guidance = float | Mapping[str, float]
CRITIC_TARGETS = ("wrong", "sampled")


class Losses(NamedTuple):
    """`loss` is what to call backward() on; a part that was not computed is None."""

    loss: torch.Tensor
    generator_loss: torch.Tensor | None
    critic_loss: torch.Tensor | None


class Prepared(NamedTuple):
    """A condition as the networks take it; computed once for all steps of a generation.

    `away` are what guidance has moved away from so far: the null or negative condition, by the name "", and the
    condition without a field, by the field's name.
    """

    condition: Given
    generator: Modulation | Given
    critic: Modulation | Given
    away: dict[str, Modulation]


class Predictions(NamedTuple):
    """What a training step knows of its masked tokens: features (m, d), losses (m,), right codes (m,), mask (b, h, w).

    Without gradients; the tokens are in raster order, one grid after the other.
    """

    features: torch.Tensor
    losses: torch.Tensor
    codes: torch.Tensor
    masked: torch.Tensor


class SelfConditioning(nn.Module):
    """Features (b, h, w, d) of an earlier look -> what is added to the codes' embeddings; a learned null before it."""

    def __init__(self, dim: int, embed_dim: int):
        super().__init__()
        self.null_embed = nn.Parameter(torch.randn(dim))
        self.to_self_cond = nn.Linear(dim, embed_dim, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.to_self_cond(features)

    def null(self, codes: torch.Tensor) -> torch.Tensor:
        """The null for each token of `codes` (b, h, w)."""
        return self.null_embed.expand(*codes.shape, -1)


class MaskGit(nn.Module):
    """A network that predicts masked codes, optionally with a critic that tells which predictions are wrong.

    Args:
        net: a Network, such as a MaskedTransformer; or any network that maps flat codes (b, n) to logits (b, n, v),
            such as x-transformers' TransformerWrapper, whose codes are then flat here too.
        mask_id: the code that stands for MASK; it follows the last code and is outside the codebook.
        grid: (h, w) of a foreign network whose codes are grids after all.
        steps: default number of sampling steps.
        self_cond: let the network see its own features of a first look (in training) or of the step before.
        self_cond_train_prob: share of training grids that get a first look; the others get a learned null.
        no_replace_prob: share of masked positions that keep their code in the input (and are still predicted);
            not where the critic alone is trained.
        random_token_prob: share of masked positions that hold a random code in the input; likewise.
        schedule: of training mask ratios, and the default one of `generate`: a name, or a function of r in [0, 1].
        can_mask_prev_unmasked: the default of `Sampler.critic_revises` in `generate`.
        token_critic: a network codes, condition -> logits, high where a code is wrong.
        self_token_critic: let one linear layer on the generator's own features be the critic.
        critic_loss_weight: of the critic's part in `Losses.loss`.
        critic_target: what the critic learns to find: codes that are `wrong` (not the picture's), or all that were
            `sampled` (as in the paper), right ones too.
        condition_drop: probability with which training forgets each part of the condition; see `drop_condition`.
        label_smoothing: of the generator's cross-entropy.
        loss_weight: `none`, the mean over masked tokens; `elbo`, the exact any-order bound in nats a token (see
            `masking.elbo_weights`); or a function of the schedule's r (b,) whose value weighs each grid.
        visible_weight: weight of the tokens that are not masked, relative to 1 for those that are.
        use_simple_mdlm_loss_weight: True is `loss_weight="elbo"`.

    Raises:
        ValueError: an option is out of range or does not go with another.
        TypeError: an option is not given by name.
    """

    def __init__(
        self,
        net: Network | nn.Module,
        *others: Any,
        mask_id: int | None = None,
        grid: tuple[int, int] | None = None,
        steps: int = 18,
        self_cond: bool = False,
        self_cond_train_prob: float = 0.75,
        no_replace_prob: float = 0.0,
        random_token_prob: float = 0.0,
        schedule: str | Schedule = "arccos",
        can_mask_prev_unmasked: bool = True,
        token_critic: nn.Module | None = None,
        self_token_critic: bool = False,
        critic_loss_weight: float = 1.0,
        critic_target: str = "wrong",
        condition_drop: float = 0.1,
        label_smoothing: float = 0.0,
        loss_weight: str | Callable[[torch.Tensor], torch.Tensor] = "none",
        visible_weight: float = 0.0,
        use_simple_mdlm_loss_weight: bool = False,
    ):
        super().__init__()
        refuse_positional("MaskGit", others)
        own = isinstance(net, Network)
        if own and mask_id not in (None, net.vocab_size):
            raise ValueError(f"mask_id must be vocab_size = {net.vocab_size}, outside the codebook, got {mask_id}")
        if own and grid not in (None, net.grid):
            raise ValueError(f"the network's own grid is {net.grid}, got {grid}")
        if token_critic is not None and self_token_critic:
            raise ValueError("give either token_critic or self_token_critic, not both")
        for name, value in (("no_replace_prob", no_replace_prob), ("random_token_prob", random_token_prob)):
            if not 0 <= value <= 1 or no_replace_prob + random_token_prob > 1:
                raise ValueError(f"{name} must be in [0, 1], and both together at most 1, got {value}")
        if not 0 <= self_cond_train_prob <= 1:
            raise ValueError(f"self_cond_train_prob must be in [0, 1], got {self_cond_train_prob}")
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        if critic_target not in CRITIC_TARGETS:
            raise ValueError(f"critic_target must be one of {', '.join(CRITIC_TARGETS)}, got `{critic_target}`")
        if use_simple_mdlm_loss_weight:
            if loss_weight not in ("none", "elbo"):
                raise ValueError("give either loss_weight or use_simple_mdlm_loss_weight, not both")
            loss_weight = "elbo"
        if loss_weight not in ("none", "elbo") and not callable(loss_weight):
            raise ValueError(f"loss_weight must be `none`, `elbo` or a function of r, got `{loss_weight}`")
        if not 0 <= visible_weight <= 1 or (visible_weight and loss_weight != "none"):
            raise ValueError(
                f"visible_weight must be in [0, 1], and 0 with another loss_weight than `none`, got {visible_weight}"
            )
        schedule_named(schedule)  # an unknown name fails here rather than in the first step

        self.net: Network | ForeignNet = net if own else ForeignNet(net, mask_id, grid)
        self.flat = not own and grid is None
        if isinstance(token_critic, nn.Module) and not own and not hasattr(token_critic, "trunk"):
            token_critic = ForeignCritic(token_critic)
        self.token_critic = token_critic
        self.self_critic = nn.Linear(self.net.dim, 1) if self_token_critic else None
        self.self_cond = SelfConditioning(self.net.dim, self.net.embed_dim) if self_cond else None
        self.steps, self.schedule = steps, schedule
        self.self_cond_train_prob = self_cond_train_prob
        self.no_replace_prob, self.random_token_prob = no_replace_prob, random_token_prob
        self.can_mask_prev_unmasked = can_mask_prev_unmasked
        self.condition_drop, self.label_smoothing = condition_drop, label_smoothing
        self.critic_loss_weight, self.critic_target = critic_loss_weight, critic_target
        self.loss_weight, self.visible_weight = loss_weight, visible_weight
        h, w = self.net.grid
        self.observer: Callable[[Predictions], None] | None = None  # told what each training step predicts
        self._elbo_weights = elbo_weights(h * w, schedule) if loss_weight == "elbo" else torch.zeros(0)

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
        *others: Any,
        fixed: torch.Tensor | None = None,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        generator: Source = None,
        **extras: Any,
    ) -> Losses:
        """Complete codes (b, h, w), or flat (b, n), and their condition -> Losses.

        Args:
            condition: labels (b, f) alone, or a Condition.
            fixed: (h, w) or (n,) bool, True for a prefix or other part of every grid that is never masked and never
                scored; `generate` is given its codes.
            only_train_generator: leave the critic out.
            only_train_critic: no gradient reaches the generator, also with the self critic.
            generator_sample_temperature: of the codes that the critic judges; uniform on [0, 1) if not given.
            generator: source of all randomness, on the CPU; torch's own if not given. With a Chance of a part of a
                batch, the losses are that part's summand of the whole batch's.
            extras: further arguments of a foreign network and its critic, such as `context` and `context_mask`.

        Raises:
            ValueError: wrong shape, codes on the CPU outside the codebook (MASK included), or flags that cannot be
                served.
            TypeError: an option is not given by name, as x-transformers takes them, or `condition` is none.
        """
        refuse_positional("MaskGit.forward", others, condition)
        codes = self._checked(codes, only_train_generator, only_train_critic)
        condition = self._with_extras(condition, extras)
        if isinstance(condition, Condition) and self.training:
            condition = drop_condition(condition, self.net.label_sizes, self.condition_drop, generator)
        free = self._free(fixed)

        # Mask a random share of each grid.
        masked, r = random_mask(codes, self.schedule, generator, None if fixed is None else ~free)
        if only_train_critic:  # what a critic judges must not have been drawn with the truth in sight
            corrupted = codes.masked_fill(masked, self.mask_id)
        else:
            corrupted = self._corrupt(codes, masked, generator)

        # Predict the masked codes.
        with without_gradient() if only_train_critic else contextlib.nullcontext():
            features = self._trunk(corrupted, condition, self._first_look(corrupted, condition, generator))
        generator_loss = None
        if not only_train_critic:
            share = self._share(free, generator)
            generator_loss = share * self._generator_loss(features, codes, masked, r, free)
        if generator_loss is not None and (only_train_generator or not self.has_critic):
            return Losses(generator_loss, generator_loss, None)

        # Fill them with draws, and let the critic say which codes are not the picture's own.
        temperature = generator_sample_temperature
        if temperature is None:
            own = isinstance(generator, Chance)
            temperature = generator.of_step("temperature") if own else torch.rand((), generator=generator).item()
        elif not temperature >= 0:  # also refuses NaN
            raise ValueError(f"generator_sample_temperature must be 0 or more, got {temperature}")
        filled = codes.masked_scatter(masked, self._draws(features.detach(), masked, temperature, generator))
        target = masked if self.critic_target == "sampled" else filled != codes
        critic_logits = self.critic_logits(filled, condition, detach=only_train_critic)
        weight = None if fixed is None else (free / free.float().mean()).to(target.device)
        critic_loss = F.binary_cross_entropy_with_logits(critic_logits.float(), target.float(), weight)
        if isinstance(generator, Chance):
            critic_loss = generator.share * critic_loss
        if generator_loss is None:
            return Losses(critic_loss, None, critic_loss)
        return Losses(generator_loss + self.critic_loss_weight * critic_loss, generator_loss, critic_loss)

    @without_gradient()
    def elbo(
        self,
        codes: torch.Tensor,
        condition: Given = None,
        *,
        draws: int = 8,
        generator: torch.Generator | None = None,
        **extras: Any,
    ) -> torch.Tensor:
        """An upper bound of each grid's negative log-likelihood: codes (b, h, w) -> (b,) nats.

        The mean over `draws` masks of (n / k) times the summed cross-entropy of k masked tokens, k stratified over
        1 to n. Nothing is augmented and no condition is dropped; divide by n ln 2 for bits a token.
        """
        codes = self._checked(codes, False, False)
        condition = self._with_extras(condition, extras)
        b, h, w = codes.shape
        total = torch.zeros(b, dtype=torch.float64, device=codes.device)
        for i in range(draws):
            u = (torch.rand(b, dtype=torch.float64, generator=generator) + i) / draws
            k = (u * h * w).long() + 1
            ranks = torch.rand(b, h * w, generator=generator).argsort(-1)
            masked = rearrange(ranks < k[:, None], "b (h w) -> b h w", h=h).to(codes.device)
            corrupted = codes.masked_fill(masked, self.mask_id)
            features = self._trunk(corrupted, condition, self._first_look(corrupted, condition, generator, always=True))
            losses = torch.zeros(codes.shape, device=codes.device)
            losses[masked] = self.net.cross_entropy(features[masked], codes[masked])
            total += losses.sum((1, 2)).double() * (h * w / k).to(codes.device)
        return total / draws

    # What the sampling loop asks for.

    def prepare(self, condition: Given, b: int) -> Prepared:
        """Whatever about a condition is the same at every step of a generation."""
        if not isinstance(self.net, Network) or isinstance(condition, dict):
            return Prepared(condition, condition, condition, {})
        trunk = self.net.trunk
        critic_trunk = getattr(self.token_critic, "trunk", trunk if self.self_critic is not None else None)
        critic = critic_trunk.modulation(condition, b) if critic_trunk is not None else condition
        return Prepared(condition, trunk.modulation(condition, b), critic, {})

    def features(
        self, codes: torch.Tensor, prepared: Prepared, guidance: Guidance = 1.0, memory: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Codes (b, h, w), some MASK -> features (b, h, w, d) for `to_logits`, and the memory for the next step.

        Guidance moves away from what the model would say without a condition: u + guidance (c - u); 1 is off (Ho and
        Salimans 2022, arXiv 2207.12598). That of a single field moves away from what it would say without that field,
        and what several fields do adds up (Brooks et al. 2023, arXiv 2211.09800). One larger batch, only if on. Since
        the head is linear, moving the features moves the logits by the same rule.

        Args:
            guidance: of the whole condition; or by field, the whole condition's by the name "".
            memory: of the step before, where the model is self-conditioned; None at the first step.
        """
        strengths = guidance if isinstance(guidance, Mapping) else {"": guidance}
        strengths = {name: strength for name, strength in strengths.items() if strength != 1}
        condition = prepared.generator
        if not isinstance(condition, Modulation) or not self._is_given(prepared.condition):
            strengths = {}
        elif strengths:
            cast(Network, self.net).check_guidance(*strengths.values())
            away = [self._away(prepared, name, len(codes)) for name in strengths]
            codes, condition = codes.repeat(1 + len(away), 1, 1), joined([condition, *away])
        if self.self_cond and memory is not None and len(memory) != len(codes):  # guidance was switched on or off
            memory = torch.cat((memory, self.self_cond.null(codes)))[: len(codes)]
        features = self._trunk(codes, condition, memory)
        memory = features if self.self_cond else None
        if not strengths:
            return features, memory
        conditional, *others = features.float().chunk(1 + len(strengths))
        moved = conditional
        for (name, strength), other in zip(strengths.items(), others, strict=True):
            if not name:
                moved = other + strength * (conditional - other)
            else:
                moved = moved + (strength - 1) * (conditional - other)
        return moved.to(features.dtype), memory

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
        *others: Any,
        codes: torch.Tensor | None = None,
        steps: int | None = None,
        seeds: torch.Tensor | None = None,
        sampler: Sampler | None = None,
        start_temperature: float | None = None,
        filter_thres: float | None = None,
        noise_level_scale: float | None = None,
        **extras: Any,
    ) -> torch.Tensor:
        """Draw `batch_size` grids -> codes (b, h, w), flat (b, n) where the network is; none of them MASK.

        Args:
            batch_size: None draws one, without the batch axis.
            codes: grids to complete, MASK where a code is missing; all MASK if not given.
            steps: of the loop, where no whole `sampler` is given.
            seeds: (b,), one per image; random if not given.
            start_temperature, filter_thres, noise_level_scale: as in x-transformers: a token temperature that falls
                from here to (almost) 0, the share of codes that is never drawn, and the noise on a critic's scores.
            extras: further arguments of a foreign network and its critic.

        Raises:
            ValueError: the sizes do not fit, an option is out of range, or the model's predictions are not finite.
            TypeError: an option is not given by name, as x-transformers takes them, or `condition` is none.
        """
        refuse_positional("MaskGit.generate", others, condition)
        h, w = self.grid
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, 1)
        if codes is not None and not isinstance(codes, torch.Tensor):
            raise WrongType(f"codes must be a tensor of grids to complete, got {shown(codes)}")
        if sampler is not None and not isinstance(sampler, Sampler):
            raise WrongType(f"sampler must be a Sampler, got {shown(sampler)}")
        numbers = {
            "steps": steps,
            "start_temperature": start_temperature,
            "filter_thres": filter_thres,
            "noise_level_scale": noise_level_scale,
        }
        named = next((name for name, value in numbers.items() if value is not None), None)
        if sampler is not None and named:
            raise ValueError(f"give either {named} or a whole sampler, which has that number already")
        if seeds is not None and (not isinstance(seeds, torch.Tensor) or seeds.dtype.is_floating_point):
            raise WrongType(f"seeds must be a tensor of whole numbers, got {shown(seeds)}")
        single = batch_size is None and (codes is None or tuple(codes.shape) in ((h, w), (h * w,)))
        if single and self.flat and codes is not None and codes.ndim == 2:
            single = False  # (1, n) is a batch of one where codes are flat
        if codes is None:
            codes = torch.full((batch_size or 1, h, w), self.mask_id, device=self.device)
        if codes.numel() % (h * w) or (codes.shape[-1] != h * w and tuple(codes.shape[-2:]) != (h, w)):
            raise ValueError(f"expected grids of {(h, w)} codes to complete, got {tuple(codes.shape)}")
        codes = codes.to(self.device).reshape(-1, h, w)
        if batch_size not in (None, len(codes)):
            raise ValueError(f"batch_size is {batch_size}, but there are {len(codes)} grids to complete")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= self.mask_id:
            raise ValueError(f"expected codes in [0, {self.mask_id}], MASK being {self.mask_id}")
        if seeds is None:
            seeds = torch.randint(0, 2**32, (len(codes),))
        if len(seeds) != len(codes):
            raise ValueError(f"expected a seed for each of {len(codes)} grids, got {len(seeds)}")
        if sampler is None:
            sampler = make_sampler(
                self.steps if steps is None else steps,
                self.schedule,
                tokens=h * w,
                vocab_size=self.mask_id,
                start_temperature=start_temperature,
                filter_thres=filter_thres,
                noise_level_scale=noise_level_scale,
                order="critic" if self.has_critic else "confidence",
                critic_revises=self.can_mask_prev_unmasked,
            )
        condition = self._with_extras(condition, extras)
        if isinstance(self.net, Network) and not isinstance(condition, dict):
            self.net.check_condition(condition, len(codes))
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with without_gradient():
                done = sample(self, codes, condition, sampler, seeds)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if self.flat:
            done = rearrange(done, "b h w -> b (h w)")
        return done[0] if single else done

    # Pieces.

    def _trunk(self, codes: torch.Tensor, condition: Given | Modulation, memory: torch.Tensor | None) -> torch.Tensor:
        """Features (b, h, w, d); `memory` (b, h, w, d) are those of an earlier look, None the null."""
        embeds = None
        if self.self_cond is not None:
            embeds = self.self_cond(self.self_cond.null(codes) if memory is None else memory)
        return self.net.trunk(codes, condition, embeds)

    def _first_look(
        self, codes: torch.Tensor, condition: Given, generator: Source, always: bool = False
    ) -> torch.Tensor | None:
        """What a self-conditioned model is told in training: its features of a first look, or (None) the null.

        The first look itself is told the null, exactly as the first step of a generation is.
        """
        if self.self_cond is None or not (always or self.self_cond_train_prob):
            return None
        with without_gradient():
            seen = self._trunk(codes, condition, None)
        if always:
            return seen
        looked = rand(generator, "look", (len(codes), 1, 1, 1)) < self.self_cond_train_prob
        return torch.where(looked.to(codes.device), seen, self.self_cond.null(codes).to(seen))

    def _free(self, fixed: torch.Tensor | None) -> torch.Tensor:
        """Which tokens of every grid may be masked and are scored, (h, w) bool on the CPU, where they are counted."""
        h, w = self.grid
        if fixed is None:
            return torch.ones(h, w, dtype=torch.bool)
        if fixed.numel() != h * w or fixed.dtype != torch.bool or bool(fixed.all()):
            raise ValueError(f"fixed must be {(h, w)} bool, and leave something to predict, got {tuple(fixed.shape)}")
        return ~fixed.reshape(h, w).cpu()

    def _is_given(self, condition: Given) -> bool:
        """Whether there is anything that guidance could move away from."""
        return isinstance(condition, torch.Tensor) or (isinstance(condition, Condition) and bool(condition.tensors))

    def _away(self, prepared: Prepared, name: str, b: int) -> Modulation:
        """What guidance moves away from: without the field `name`, or without anything."""
        if name not in prepared.away:
            condition = as_condition(cast(Condition | torch.Tensor | None, prepared.condition))
            if name:
                other = condition.without(name, self.net.label_sizes)
            else:
                other = condition.negative or condition.null(self.net.label_sizes)
            prepared.away[name] = cast(Network, self.net).trunk.modulation(other, b)
        return prepared.away[name]

    def _share(self, free: torch.Tensor, generator: Source) -> float:
        """How much of the whole batch's loss the mean over a part's tokens stands for: 1 for all of it."""
        if not isinstance(generator, Chance) or generator.rows is None:
            return 1.0
        if self.loss_weight == "elbo":
            return generator.share
        n, visible = int(free.sum()), self.visible_weight
        counts = training_counts(random_ratio(generator.size, generator.whole), self.schedule, n)
        weights = counts + visible * (n - counts)
        return (weights[generator.places].sum() / weights.sum()).item()

    def _generator_loss(
        self, features: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor, r: torch.Tensor, free: torch.Tensor
    ) -> torch.Tensor:
        if self.visible_weight:
            losses = self.net.cross_entropy(features.flatten(0, 2), codes.flatten(), self.label_smoothing)
            self._tell(features, losses[masked.flatten()], codes, masked)
            weights = (torch.where(masked, 1.0, self.visible_weight) * free.to(masked.device)).flatten()
            return (losses * weights).sum() / weights.sum()
        # The head is run at masked positions only.
        losses = self._cross_entropy(features[masked], codes[masked])
        self._tell(features, losses, codes, masked)
        if self.loss_weight == "elbo":
            n = int(free.sum())
            table = self._elbo_weights if n == free.numel() else elbo_weights(n, self.schedule)
            weights = table[masked.sum((1, 2)).cpu()].to(losses)[:, None, None].expand(codes.shape)
            return (losses * weights[masked]).sum() / (n * len(codes))
        if callable(self.loss_weight):
            weights = self.loss_weight(r).to(losses)[:, None, None].expand(codes.shape)
            losses = losses * weights[masked]
        return losses.mean()

    def _cross_entropy(self, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Features (m, d) and the right codes (m,) -> (m,) nats."""
        more = _missing_rows(len(codes))
        return self.net.cross_entropy(F.pad(features, (0, 0, 0, more)), F.pad(codes, (0, more)), self.label_smoothing)[
            : len(codes)
        ]

    def _tell(self, features: torch.Tensor, losses: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> None:
        if self.observer is not None:
            with without_gradient():
                self.observer(Predictions(features.detach()[masked], losses.detach(), codes[masked], masked))

    def _checked(self, codes: torch.Tensor, only_generator: bool, only_critic: bool) -> torch.Tensor:
        h, w = self.grid
        if codes.ndim == 2 and codes.shape[1] == h * w:
            codes = rearrange(codes, "b (h w) -> b h w", h=h)
        if codes.ndim != 3 or tuple(codes.shape[1:]) != (h, w):
            raise ValueError(f"expected a code grid of {(h, w)}, got {tuple(codes.shape[1:])}")
        # To look at a GPU's codes would make the host wait in every step; those of a cache are checked as it is read.
        here = codes.device.type == "cpu" and codes.numel()
        if here and not 0 <= int(codes.min()) <= int(codes.max()) < self.mask_id:
            raise ValueError(
                f"expected codes in [0, {self.mask_id}), got {int(codes.min())} to {int(codes.max())}: "
                "training data holds complete grids, without MASK"
            )
        if only_generator and only_critic:
            raise ValueError("only_train_generator and only_train_critic exclude each other")
        if only_critic and not self.has_critic:
            raise ValueError("only_train_critic needs a critic: give token_critic or self_token_critic")
        return codes

    def _with_extras(self, condition: Given, extras: dict[str, Any]) -> Condition | dict[str, Any] | None:
        own = isinstance(self.net, Network)
        if not own and isinstance(condition, torch.Tensor | Condition):
            raise ValueError("this network knows no labels: give what else it takes by name")
        extras = {**(condition if isinstance(condition, dict) else {}), **extras}
        if own and extras:
            raise ValueError(f"unknown arguments {', '.join(extras)}: this network takes codes and a condition")
        if own:
            return as_condition(cast(Condition | torch.Tensor | None, condition))
        return extras or None

    def _corrupt(self, codes: torch.Tensor, masked: torch.Tensor, generator: Source) -> torch.Tensor:
        """What the network sees: MASK at masked positions, but for a share kept and a share replaced at random."""
        corrupted = codes.masked_fill(masked, self.mask_id)
        if not self.no_replace_prob and not self.random_token_prob:
            return corrupted
        u = rand(generator, "keep", tuple(codes.shape)).to(codes.device)
        other = randint(generator, "code", 0, self.mask_id, tuple(codes.shape)).to(codes.device)
        kept = masked & (u < self.no_replace_prob)
        replaced = masked & ~kept & (u < self.no_replace_prob + self.random_token_prob)
        return torch.where(kept, codes, torch.where(replaced, other, corrupted))

    def _draws(
        self, features: torch.Tensor, masked: torch.Tensor, temperature: float, generator: Source
    ) -> torch.Tensor:
        """Features (b, h, w, d) -> codes (m,) of the masked tokens at `temperature`; 0 takes the most probable."""
        features = features[masked]
        m, more = len(features), _missing_rows(len(features))
        if isinstance(generator, Chance):
            u = generator.rand("draw", *masked.shape[1:])[masked.cpu()].to(features.device)
        else:
            u = torch.rand(m, generator=generator).to(features.device)
        features, u = F.pad(features, (0, 0, 0, more)), F.pad(u, (0, more), value=0.5)
        parts = features.split(max(1, 2**26 // self.mask_id))  # a large codebook's logits of a batch are gigabytes
        drawn = []
        for part, chance in zip(parts, u.split(len(parts[0])), strict=True):
            logits = self.to_logits(part)
            if temperature < 1e-6:  # logits divided by so little would be infinite
                drawn.append(logits.argmax(-1))
            else:
                drawn.append(draw_codes((logits / temperature).softmax(-1), chance))
        return torch.cat(drawn)[:m]


def _missing_rows(m: int) -> int:
    """How many rows of padding make m a multiple of 512: with another shape at every step a CPU's libraries keep tens
    of megabytes a step, up to 17 GB (torch 2.15). Few rows do no harm."""
    return -m % 512 if m > 512 else 0
