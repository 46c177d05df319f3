"""x-transformers' NonAutoregressiveWrapper by its own names, around a MaskGit.

What differs is what is wrong there: the loss is never negative, a picture's own codes are never called wrong, MASK is
never drawn, `only_train_critic` leaves the generator alone, and samples do not collapse onto the commonest code.

Shapes: b sequences, n codes (or h w = n), v codes.
"""

from typing import Any

import torch
from einops import rearrange
from torch import nn

from maskimg.conditions import Condition
from maskimg.maskgit import Losses, MaskGit
from maskimg.masking import Schedule
from maskimg.network import Network
from maskimg.networks.wrapper import ForeignCritic, ForeignNet
from maskimg.noise import Rng
from maskimg.paper.objective import Objective
from maskimg.sampler import Sampler


class NonAutoregressiveWrapper(nn.Module):
    """A drop-in for x-transformers' class of this name; `.model` is the MaskGit that does the work.

    Its parameters are many because they are the original's, and their defaults are the original's but for
    `can_mask_prev_unmasked`, and for those of `generate`.

    Args:
        net: any network that maps flat codes (b, n) to logits (b, n, v or v + 1), such as x-transformers'
            TransformerWrapper; or a Network of ours.
        mask_id: the code that stands for MASK; it follows the last code. The network's last token if not given.
        grid: (h, w) of a network of flat codes, if `generate` is to return grids (b, h, w).
        steps: default number of sampling steps.
        self_cond: let the network see its own features of a first pass (in training) or of the step before.
        self_cond_train_prob, no_replace_prob, random_token_prob, critic_loss_weight: as in `Objective`.
        schedule: of training mask ratios and of `generate`: `linear`, `cosine`, another name that `Objective` takes, or
            a function of r in [0, 1].
        can_mask_prev_unmasked: let a critic also mask a code that was kept before. The original does not by default,
            and then its critic can revise nothing.
        token_critic: a network (b, n) -> (b, n, 1), high where a code is wrong; or a TokenCritic of ours.
        self_token_critic: let one linear layer on the generator's own features be the critic.
        use_simple_mdlm_loss_weight: the exact bound on the likelihood (`Objective.loss_weight` = `elbo`), which is what
            the original's weight, whose sign is wrong, was meant to be; else the mean over masked tokens.

    Raises:
        ValueError: an option is out of range or does not go with another, or the sizes do not fit the network's.
    """

    def __init__(
        self,
        net: Network | nn.Module,
        *,
        mask_id: int | None = None,
        grid: tuple[int, int] | None = None,
        steps: int = 18,
        self_cond: bool = False,
        self_cond_train_prob: float = 0.75,
        no_replace_prob: float = 0.15,
        random_token_prob: float = 0.1,
        schedule: str | Schedule = "linear",
        can_mask_prev_unmasked: bool = True,
        token_critic: nn.Module | None = None,
        self_token_critic: bool = False,
        critic_loss_weight: float = 1.0,
        use_simple_mdlm_loss_weight: bool = True,
    ):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        own = isinstance(net, Network)
        if own and mask_id not in (None, net.vocab_size):
            raise ValueError(f"mask_id must be vocab_size = {net.vocab_size}, outside the codebook, got {mask_id}")
        if own and grid not in (None, net.grid):
            raise ValueError(f"the network's own grid is {net.grid}, got {grid}")
        if isinstance(token_critic, nn.Module) and not hasattr(token_critic, "trunk"):
            token_critic = token_critic if own else ForeignCritic(token_critic)
        self.flat = not own and grid is None
        self.steps, self.can_mask_prev_unmasked = steps, can_mask_prev_unmasked
        objective = Objective(
            schedule=schedule,
            no_replace_prob=no_replace_prob,
            random_token_prob=random_token_prob,
            self_cond_train_prob=self_cond_train_prob,
            loss_weight="elbo" if use_simple_mdlm_loss_weight else "none",
            critic_loss_weight=critic_loss_weight,
        )
        known: Any = net if own else ForeignNet(net, mask_id, grid)
        self.model = MaskGit(
            known,
            objective=objective,
            self_cond=self_cond,
            token_critic=token_critic,
            self_token_critic=self_token_critic,
        )

    @property
    def mask_id(self) -> int:
        return self.model.mask_id

    def forward(
        self,
        x: torch.Tensor,
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        *,
        condition: Condition | torch.Tensor | None = None,
        generator: Rng = None,
        **extras: Any,
    ) -> Losses:
        """Complete codes x (b, n), or (b, h, w), none of them MASK -> Losses.

        Args:
            only_train_generator: leave the critic out.
            only_train_critic: no gradient reaches the generator, also with the self critic.
            generator_sample_temperature: of the codes that the critic judges; uniform on [0, 1) if not given.
            condition: labels or a Condition, for a network of ours.
            generator: of all randomness, on the CPU; torch's own if not given.
            extras: what else a network of another library, and its critic, take, such as `context` and
                `context_mask`. The original's critic is not given them.

        Raises:
            ValueError: wrong shape, codes outside the codebook, or flags or arguments that cannot be served.
        """
        return self.model(
            x,
            self._condition(condition, extras),
            only_train_generator=only_train_generator,
            only_train_critic=only_train_critic,
            generator_sample_temperature=generator_sample_temperature,
            generator=generator,
        )

    def generate(
        self,
        batch_size: int | None = None,
        start_temperature: float | None = None,
        filter_thres: float | None = None,
        noise_level_scale: float | None = None,
        *,
        condition: Condition | torch.Tensor | None = None,
        codes: torch.Tensor | None = None,
        seeds: torch.Tensor | None = None,
        sampler: Sampler | None = None,
        **extras: Any,
    ) -> torch.Tensor:
        """Draw `batch_size` sequences -> codes (b, n), or grids (b, h, w) where the network has a grid; never MASK.

        Its parameters are the original's four, and what a MaskGit takes. Without the first three numbers, every token
        is drawn at temperature 1 among all codes: the original's defaults, 1, 0.7 and 1, collapse onto few codes.

        Args:
            batch_size: None draws one, without the batch axis.
            start_temperature: of tokens, from where it falls step by step, in the last one to (almost) 0.
            filter_thres: share of the codes, in [0, 1], that is never drawn: the least probable ones.
            noise_level_scale: of the noise on a critic's scores, or on the confidences, which fades to 0.
            condition: labels or a Condition, for a network of ours.
            codes: sequences to complete, MASK where a code is missing.
            seeds: (b,), one per sequence; random if not given.
            sampler: all numbers of the loop, instead of `steps`, `schedule` and the three numbers.
            extras: as in `forward`.

        Raises:
            ValueError: the sizes do not fit, a number is out of range, or the model's predictions are not finite.
        """
        numbers = {
            "start_temperature": start_temperature,
            "filter_thres": filter_thres,
            "noise_level_scale": noise_level_scale,
        }
        named = next((name for name, number in numbers.items() if number is not None), None)
        if sampler is not None and named:
            raise ValueError(f"give either {named} or a whole sampler, which has that number already")
        if sampler is None:
            sampler = self.model.make_sampler(steps=self.steps, critic_revises=self.can_mask_prev_unmasked, **numbers)
        if self.flat and codes is not None and codes.ndim == 2 and batch_size is None:
            batch_size = len(codes)  # (1, n) is a batch of one, not one grid
        drawn = self.model.generate(
            batch_size, self._condition(condition, extras), codes=codes, sampler=sampler, seeds=seeds
        )
        return rearrange(drawn, "... h w -> ... (h w)") if self.flat else drawn

    def _condition(self, condition: Any, extras: dict[str, Any]) -> Any:
        """What the MaskGit takes: a condition where the network is ours, else the further arguments."""
        if isinstance(self.model.net, Network):
            if extras:
                raise ValueError(f"unknown arguments {', '.join(extras)}: this network takes codes and a condition")
            return condition
        if condition is not None:
            raise ValueError("this network knows no labels: give what else it takes by name")
        return extras or None
