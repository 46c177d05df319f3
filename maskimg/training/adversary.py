"""The tokenizer's adversary: a discriminator that learns to tell reconstructions from pictures (Esser et al. 2021).

Shapes: b images, H W pixels, h w tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from maskimg import distributed
from maskimg.training.loop.budget import learning_rate_scale
from maskimg.training.loop.run import Run
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import TokenizerTraining
from vqgan.discriminator import LeCam, PatchDiscriminator, Watchdog, adversarial_loss, discriminator_loss, r1_penalty

R1_EVERY = 16  # steps: the penalty costs a second backward pass
LECAM_WEIGHT = 0.01


class Reconstructed(NamedTuple):
    """A part of a batch and what came back: images (b, 3, H, W) twice, codes (b, h, w), its summand of the loss ()."""

    images: torch.Tensor
    reconstructions: torch.Tensor
    codes: torch.Tensor
    pixel_loss: torch.Tensor


class Adversary:
    """The discriminator, its optimizer, its weight in the tokenizer's loss, and what keeps it in check.

    It joins after a share of the training, gently. Where it harms the reconstructions a watchdog pauses it: the
    tokenizer no longer hears of it, while it goes on learning.
    """

    def __init__(self, training: TokenizerTraining, session: Session):
        self.training, self.session = training, session
        self.discriminator = PatchDiscriminator().to(session.place)
        self.lecam, self.watchdog = LeCam().to(session.place), Watchdog()
        self.optimizer = adamw(self.discriminator, training)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, by the names of its files."""
        return {
            "discriminator": self.discriminator,
            "opponent": self.optimizer,
            "lecam": self.lecam,
            "watchdog": self.watchdog,
        }

    def join(self, run: Run) -> None:
        """Learn in the steps of this run."""
        optimizers = {"opponent": self.optimizer}
        self.update = Update(run, self.discriminator, optimizers, accumulation=self.training.accumulation, clip=None)

    def weight_at(self, progress: float) -> float:
        """Of its loss in the tokenizer's: 0 before it joins and while it is paused."""
        return 0.0 if self.watchdog.paused else self.training.adversarial_weight_at(progress)

    def loss(self, reconstructions: torch.Tensor) -> torch.Tensor:
        """How far the discriminator sees through reconstructions (b, 3, H, W), for the tokenizer to lower."""
        return adversarial_loss(self.discriminator(reconstructions))

    def learn(
        self,
        parts: Sequence[Reconstructed],
        progress: float,
        pixel_loss: torch.Tensor,
        chosen: torch.Tensor,
    ) -> dict[str, torch.Tensor | float]:
        """Let it catch up with a batch that the tokenizer has learnt from; returns figures for the log.

        Args:
            pixel_loss: the batch's; chosen: (batch_size,) its samples.
        """
        training = self.training
        if training.adversarial_weight:
            self.watchdog.notice(pixel_loss.item())  # before it joins, too: that is what it is held against
        if not training.adversarial_weight_at(progress):
            return {}
        images = torch.cat([part.images for part in parts])
        restored = torch.cat([part.reconstructions for part in parts])
        step = self.update.run.step

        def loss_of(places: torch.Tensor) -> torch.Tensor:
            own = (places - distributed.rank()) // distributed.world()  # where this process has them
            with self.session.autocast():
                real, fake = self.discriminator(images[own]), self.discriminator(restored[own])
                loss = discriminator_loss(real, fake)
                if training.discriminator_check == "lecam":
                    loss = loss + LECAM_WEIGHT * self.lecam(real, fake)
            if training.discriminator_check == "r1" and step % R1_EVERY == 0:
                loss = loss + R1_EVERY * r1_penalty(self.discriminator, images[own])
            return len(places) / training.batch_size * loss

        self.update.set_rate(training.learning_rate * learning_rate_scale(progress))
        loss = self.update(loss_of, training.batch_size, chosen)
        return {"discriminator_loss": loss, "discriminator_paused": float(self.watchdog.paused)}


def adamw(module: nn.Module, training: TokenizerTraining) -> torch.optim.Optimizer:
    """The optimizer of the tokenizer, and of its adversary."""
    return torch.optim.AdamW(
        module.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=training.weight_decay
    )
