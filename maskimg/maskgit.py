"""MaskGit: the training objective of generator and critic, and the model that `sampling` draws from.

Chang et al. 2022, "MaskGIT: masked generative image transformer", arXiv 2202.04200, section 3.2; the critic after
Lezama et al. 2022, arXiv 2209.04439. Knows no file, picture or tokenizer.

Shapes: b images, h w tokens, v codes, f label fields.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.conditions import drop_condition, null_condition
from maskimg.masking import Schedule, random_mask, schedule_named
from maskimg.sampling import Sampler, sample
from maskimg.transformer import MaskedTransformer, TokenCritic


class Losses(NamedTuple):
    """`loss` is what to call backward() on; a part that was not computed is None."""

    loss: torch.Tensor
    generator_loss: torch.Tensor | None
    critic_loss: torch.Tensor | None


class MaskGit(nn.Module):
    """A network that predicts masked codes, optionally with a critic that tells which predictions are wrong.

    Args:
        net: codes (b, h, w) and condition (b, f) -> logits (b, h, w, v).
        mask_id: the code that stands for MASK; it must be `net.vocab_size`, outside the codebook.
        steps: default number of sampling steps.
        schedule: of training mask ratios, and the default one of `generate` (cosine where this is a function).
        no_replace_prob: share of masked positions that keep their code in the input (and are still predicted).
        random_token_prob: share of masked positions that hold a random code in the input.
        condition_drop: probability with which training forgets the condition.
        label_smoothing: of the generator's cross-entropy.
        token_critic: a network codes, condition -> logits (b, h, w), high where a code is wrong.
        self_token_critic: let one linear layer on the generator's own features be the critic.
        critic_loss_weight: of the critic's part in `Losses.loss`.
    """

    def __init__(
        self,
        net: MaskedTransformer,
        *,
        mask_id: int | None = None,
        steps: int = 18,
        schedule: str | Schedule = "arccos",
        no_replace_prob: float = 0.0,
        random_token_prob: float = 0.0,
        condition_drop: float = 0.1,
        label_smoothing: float = 0.0,
        token_critic: TokenCritic | None = None,
        self_token_critic: bool = False,
        critic_loss_weight: float = 1.0,
    ):
        super().__init__()
        if mask_id is not None and mask_id != net.vocab_size:
            raise ValueError(f"mask_id must be vocab_size = {net.vocab_size}, outside the codebook, got {mask_id}")
        if token_critic is not None and self_token_critic:
            raise ValueError("give either token_critic or self_token_critic, not both")
        for name, value in (("no_replace_prob", no_replace_prob), ("random_token_prob", random_token_prob)):
            if not 0 <= value <= 1 or no_replace_prob + random_token_prob > 1:
                raise ValueError(f"{name} must be in [0, 1], and both together at most 1, got {value}")
        schedule_named(schedule)  # an unknown name fails here rather than in the first step
        self.net, self.token_critic = net, token_critic
        self.self_critic = nn.Linear(net.config.dim, 1) if self_token_critic else None
        self.steps, self.schedule = steps, schedule
        self.no_replace_prob, self.random_token_prob = no_replace_prob, random_token_prob
        self.condition_drop, self.label_smoothing = condition_drop, label_smoothing
        self.critic_loss_weight = critic_loss_weight

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
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self,
        codes: torch.Tensor,
        condition: torch.Tensor | None = None,
        *,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Complete codes (b, h, w), or flat (b, n), and their condition (b, f) -> Losses.

        Args:
            only_train_generator: leave the critic out.
            only_train_critic: no gradient reaches the generator, also with the self critic.
            generator_sample_temperature: of the codes that the critic judges; uniform on [0, 1) if not given.
            generator: source of all randomness, on the CPU; torch's own if not given.

        Raises:
            ValueError: wrong shape, codes outside the codebook (MASK included), or flags that cannot be served.
        """
        codes = self._checked(codes, only_train_generator, only_train_critic)
        if condition is not None and self.training:
            condition = drop_condition(condition, self.net.label_sizes, self.condition_drop, generator)

        # Mask a random share of each grid.
        masked = random_mask(codes, self.schedule, generator)
        corrupted = self._corrupt(codes, masked, generator)

        # Predict the masked codes.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not only_train_critic):
            logits = self.net(corrupted, condition, at=masked).float()
            generator_loss = F.cross_entropy(logits, codes[masked], label_smoothing=self.label_smoothing)
        if only_train_generator or not self.has_critic:
            return Losses(generator_loss, generator_loss, None)

        # Fill them with draws, and let the critic say which codes are not the picture's own.
        temperature = generator_sample_temperature
        if temperature is None:
            temperature = torch.rand((), generator=generator).item()
        filled = codes.clone()
        filled[masked] = _draw(logits.detach(), temperature, generator)
        wrong = (filled != codes).float()
        critic_logits = self.critic_logits(filled, condition, detach=only_train_critic)
        critic_loss = F.binary_cross_entropy_with_logits(critic_logits.float(), wrong)
        if only_train_critic:
            return Losses(critic_loss, None, critic_loss)
        return Losses(generator_loss + self.critic_loss_weight * critic_loss, generator_loss, critic_loss)

    def logits(self, codes: torch.Tensor, condition: torch.Tensor | None = None, guidance: float = 1.0) -> torch.Tensor:
        """Logits (b, h, w, v) in fp32, moved away from the unconditional ones: u + guidance (c - u); 1 is off.

        Ho and Salimans 2022, "Classifier-free diffusion guidance", arXiv 2207.12598. One doubled batch, only if on.
        """
        if guidance == 1 or condition is None:
            return self.net(codes, condition).float()
        both = torch.cat((condition, null_condition(condition, self.net.label_sizes)))
        conditional, unconditional = self.net(codes.repeat(2, 1, 1), both).float().chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def critic_logits(
        self, codes: torch.Tensor, condition: torch.Tensor | None = None, *, detach: bool = False
    ) -> torch.Tensor:
        """Complete codes (b, h, w) -> logits (b, h, w), high where a code is wrong.

        Args:
            detach: let no gradient into the generator's trunk (it is shared with the self critic).

        Raises:
            ValueError: the model has no critic.
        """
        if self.token_critic is not None:
            return self.token_critic(codes, condition)
        if self.self_critic is None:
            raise ValueError("this model has no critic: choose another order, or train one")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
            features = self.net.trunk(codes, condition)
        return self.self_critic(features)[..., 0]

    def generate(
        self,
        batch_size: int,
        condition: torch.Tensor | None = None,
        *,
        codes: torch.Tensor | None = None,
        steps: int | None = None,
        seeds: torch.Tensor | None = None,
        sampler: Sampler | None = None,
    ) -> torch.Tensor:
        """Draw `batch_size` grids -> codes (b, h, w), none of them MASK.

        Args:
            codes: grids to complete, MASK where a code is missing; all MASK if not given.
            steps: of the sampler; ignored where a whole `sampler` is given.
            seeds: (b,), one per image; random if not given.
        """
        if codes is None:
            codes = torch.full((batch_size, *self.grid), self.mask_id, device=self.device)
        if seeds is None:
            seeds = torch.randint(0, 2**32, (batch_size,))
        if sampler is None:
            schedule = self.schedule if isinstance(self.schedule, str) else "cosine"
            order = "critic" if self.has_critic else "confidence"
            sampler = Sampler(steps=self.steps if steps is None else steps, schedule=schedule, order=order)
        return sample(self, codes, condition, sampler, seeds)

    def _checked(self, codes: torch.Tensor, only_generator: bool, only_critic: bool) -> torch.Tensor:
        h, w = self.grid
        if codes.ndim == 2 and codes.shape[1] == h * w:
            codes = rearrange(codes, "b (h w) -> b h w", h=h)
        if codes.ndim != 3 or tuple(codes.shape[1:]) != (h, w):
            raise ValueError(f"expected a code grid of {(h, w)}, got {tuple(codes.shape[1:])}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.mask_id:
            raise ValueError(
                f"expected codes in [0, {self.mask_id}), got {int(codes.min())} to {int(codes.max())}: "
                "training data holds complete grids, without MASK"
            )
        if only_generator and only_critic:
            raise ValueError("only_train_generator and only_train_critic exclude each other")
        if only_critic and not self.has_critic:
            raise ValueError("only_train_critic needs a critic: give token_critic or self_token_critic")
        return codes

    def _corrupt(self, codes: torch.Tensor, masked: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """What the network sees: MASK at masked positions, but for a share kept and a share replaced at random."""
        corrupted = codes.masked_fill(masked, self.mask_id)
        if not self.no_replace_prob and not self.random_token_prob:
            return corrupted
        u = torch.rand(codes.shape, generator=generator).to(codes.device)
        other = torch.randint(0, self.mask_id, codes.shape, generator=generator).to(codes.device)
        kept = masked & (u < self.no_replace_prob)
        replaced = masked & ~kept & (u < self.no_replace_prob + self.random_token_prob)
        return torch.where(kept, codes, torch.where(replaced, other, corrupted))


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator | None) -> torch.Tensor:
    """Logits (m, v) -> codes (m,) at `temperature`; 0 takes the most probable."""
    if temperature == 0:
        return logits.argmax(-1)
    noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    return (logits / temperature - noise.log()).argmax(-1)  # Gumbel-max: -log of an exponential is Gumbel
