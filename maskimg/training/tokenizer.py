"""Training the tokenizer: pictures in, codes and pictures out."""

import dataclasses
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from maskimg import distributed
from maskimg.data.pictures import Pictures, move
from maskimg.evaluation.charts import usage_chart
from maskimg.evaluation.evaluate import train_judge
from maskimg.evaluation.metrics import codebook_warning, monochrome_warning
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.noise import Chance, Rng, rand
from maskimg.outputs import write_png
from maskimg.recipe import mark
from maskimg.training.code_usage import CodeUsage
from maskimg.training.loop.ranges import MOST, require_ranges
from maskimg.training.loop.run import Budget, Ema, Run, batch_indices, data_identity, identity_of, learning_rate_scale
from maskimg.training.loop.update import Update
from maskimg.training.tracking.watch import look_back
from vqgan import Tokenizer, TokenizerConfig
from vqgan.discriminator import (
    LeCam,
    PatchDiscriminator,
    Watchdog,
    adversarial_loss,
    discriminator_loss,
    r1_penalty,
)
from vqgan.images import normalize, paired_sheet, to_pil
from vqgan.loss import (
    Lpips,
    Perceptual,
    random_perceptual,
    reconstruction_loss,
    resnet_perceptual,
    vgg_perceptual,
)


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """How a tokenizer is trained.

    Attributes:
        batch_size: pictures per step, over all processes.
        accumulation: parts that each process computes its share of them in, where memory is short. Pixel and
            adversarial losses stay the same; what looks at a batch as a whole (the scale of the perceptual loss, the
            spread of efsq's latents, a learned codebook's averages, LeCam's) then looks at a part.
        learning_rate, weight_decay: AdamW's.
        perceptual: whose features the perceptual loss compares: those of a `random` network, of a `classifier`
            trained first on the same labelled pictures (sharper where there are labels), or of networks whose weights
            are fetched once: `vgg`, `lpips` or `resnet50` (its logits, as MaskGIT has it).
        perceptual_weight: of that loss; 0 leaves it out.
        classifier_steps: how long that classifier is trained.
        adversarial_weight: of the patch discriminator; 0 leaves it out.
        adversarial_start: the share of training after which the discriminator joins.
        adversarial_warmup: the share of training in which its weight then grows from 0.
        discriminator_check: what keeps it from learning the pictures by heart: `none`, `lecam` or `r1`.
        flip: mirror half of the pictures (the tokenizer need not know which way round a picture is).
        shift: move each picture by up to so many pixels.
        ema_decay: of the averaged weights that are kept.
        seed: of weights, order and augmentation.
    """

    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    perceptual: str = "random"
    perceptual_weight: float = 0.5
    classifier_steps: int = 600
    adversarial_weight: float = 0.0
    adversarial_start: float = 0.5
    adversarial_warmup: float = 0.1
    discriminator_check: str = "lecam"
    flip: bool = True
    shift: int = 2
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self):
        if self.perceptual not in PERCEPTUAL:
            raise ValueError(f"perceptual must be one of {', '.join(PERCEPTUAL)}, got `{self.perceptual}`")
        if self.discriminator_check not in CHECKS:
            raise ValueError(
                f"discriminator_check must be one of {', '.join(CHECKS)}, got `{self.discriminator_check}`"
            )
        weights = ("learning_rate", "weight_decay", "perceptual_weight", "adversarial_weight")
        require_ranges(self, dict.fromkeys(("batch_size", "accumulation"), (1, MOST)))
        require_ranges(self, dict.fromkeys(("adversarial_start", "adversarial_warmup", "ema_decay"), (0, 1)))
        require_ranges(self, dict.fromkeys((*weights, "classifier_steps", "shift"), (0, MOST)))

    def adversarial_weight_at(self, progress: float) -> float:
        """At this share of training: 0 until the discriminator joins, then a ramp."""
        since = progress - self.adversarial_start
        if since < 0:
            return 0.0
        return self.adversarial_weight * min(1.0, (since + 1e-3) / max(self.adversarial_warmup, 1e-3))


PERCEPTUAL = ("random", "classifier", "vgg", "lpips", "resnet50")
CHECKS = ("none", "lecam", "r1")
R1_EVERY = 16  # steps: the penalty costs a second backward pass


def train_tokenizer(
    pictures: Pictures,
    config: TokenizerConfig,
    training: TokenizerTraining,
    budget: Budget,
    directory: str | Path,
    *,
    track: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_data_change: bool = False,
) -> tuple[Tokenizer, Run]:
    """Train on the pictures that are not held out; continues what `directory` holds, also with other pictures if
    `allow_data_change`.

    Returns the tokenizer with averaged weights, in eval mode, and the run (`run.stopped` says whether it was
    interrupted). Writes log.jsonl, checkpoints, reconstructions.png (held-out pictures above, theirs below) and
    codebook.png (how often each code was used lately).
    """
    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    pixels, unseen = pictures.part(held_out=False).pixels, pictures.part(held_out=True).pixels

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = Tokenizer(config).to(where)
        discriminator = PatchDiscriminator().to(where)
    lecam, watchdog, usage = LeCam().to(where), Watchdog(), CodeUsage(model.vocab_size).to(where)
    called = distributed.replicated(model)
    optimizer, opponent = _adamw(model, training), _adamw(discriminator, training)
    ema = Ema(model, training.ema_decay)

    run = Run(
        directory,
        budget,
        describe="tokenizer",
        identity={
            "tokenizer": dataclasses.asdict(config),
            "training": identity_of(training),
            "data": data_identity(pictures.fingerprint, pictures.held_out, pictures.fields),
        },
        defaults={"training": identity_of(TokenizerTraining())},
        batch_size=training.batch_size,
        track=track,
        allow_data_change=allow_data_change,
    )
    run.restore(
        model=model,
        ema=ema,
        optimizer=optimizer,
        discriminator=discriminator,
        opponent=opponent,
        lecam=lecam,
        watchdog=watchdog,
        usage=usage,
    )
    shown = int(10 * run.budget.progress(run.step, run.seconds))
    perceptual = distributed.as_first_has(_perceptual(pictures, training).to(where))
    update = Update(
        run,
        model,
        {"optimizer": optimizer},
        called=called if distributed.several() else None,
        exchanges=config.quantizer in ("vq", "lfq", "bsq"),  # their averages are of all processes' codes
        accumulation=training.accumulation,
    )
    update_opponent = Update(run, discriminator, {"opponent": opponent}, accumulation=training.accumulation, clip=None)

    model.train()
    for step, progress in run.steps():
        rate = training.learning_rate * learning_rate_scale(progress)
        update.set_rate(rate)
        update_opponent.set_rate(rate)
        chosen = batch_indices(training.seed, step, len(pixels), training.batch_size)
        chance = Chance(training.seed, step, training.batch_size)
        weight = 0.0 if watchdog.paused else training.adversarial_weight_at(progress)
        kept: list[Reconstructed] = []

        def loss_of(places: torch.Tensor, chosen=chosen, chance=chance, weight=weight, kept=kept) -> torch.Tensor:
            # A part of the batch, mirrored and moved at random.
            own = chance.of(places)
            images = normalize(augment(pixels[chosen[places]], training, own)).to(where)

            # Reconstruct, and compare pixels, edges and features.
            with autocast(where, number_format):
                reconstructions, codes, commitment = called(images)
                pixel_loss = reconstruction_loss(reconstructions, images)
                loss = pixel_loss + commitment
                if training.perceptual_weight:
                    loss = loss + training.perceptual_weight * perceptual(reconstructions, images)
                if weight:
                    loss = loss + weight * adversarial_loss(discriminator(reconstructions))
            kept.append(Reconstructed(images, reconstructions.detach(), codes, own.share * pixel_loss.detach()))
            return own.share * loss

        loss = update(loss_of, training.batch_size, chosen)
        ema.update(model, step)
        kept = kept[-update.accumulation :]  # those of the attempt that fitted into memory
        pixel_loss = distributed.total(torch.stack([part.pixel_loss for part in kept]).sum())
        figures: dict[str, torch.Tensor | float] = {
            "loss": loss,
            "pixel_loss": pixel_loss,
            "gradient_norm": update.norm,
        }

        # Let the discriminator catch up; it goes on learning while it is paused.
        if training.adversarial_weight:
            watchdog.look(pixel_loss.item())  # before it joins, too: that is what it is held against
        if training.adversarial_weight_at(progress):
            images = torch.cat([part.images for part in kept])
            restored = torch.cat([part.reconstructions for part in kept])

            def opponent_loss_of(places: torch.Tensor, step=step, images=images, restored=restored) -> torch.Tensor:
                own = (places - distributed.rank()) // distributed.world()  # where this process has them
                with autocast(where, number_format):
                    real, fake = discriminator(images[own]), discriminator(restored[own])
                    loss = discriminator_loss(real, fake)
                    if training.discriminator_check == "lecam":
                        loss = loss + 0.01 * lecam(real, fake)
                if training.discriminator_check == "r1" and step % R1_EVERY == 0:
                    loss = loss + R1_EVERY * r1_penalty(discriminator, images[own])
                return len(places) / training.batch_size * loss

            opponent_loss = update_opponent(opponent_loss_of, training.batch_size, chosen)
            figures |= {"discriminator_loss": opponent_loss, "discriminator_paused": float(watchdog.paused)}

        for part in kept:
            usage.add(part.codes)
        if run.logs_now:
            figures |= _use(usage)
        run.log(**figures)
        if int(10 * progress) > shown:
            shown = int(10 * progress)
            if progress >= 0.5:  # every training begins so
                run.warn(codebook_warning(usage.share, usage.entropy, model.vocab_size, counted=usage.counted))
                run.warn(monochrome_warning(kept[-1].reconstructions, kept[-1].images))
            if distributed.is_first():
                averaged = _averaged(model, ema)
                run.write_log(held_out_loss=held_out_loss(averaged, unseen), **_use(usage))
                if not training.adversarial_weight_at(
                    progress
                ):  # an opponent may well raise the error and the gradients
                    for warning in look_back(run.directory, training.learning_rate, loss="pixel_loss"):
                        run.warn(warning)
                _write_sheets(run, averaged, unseen, usage)

    model = _averaged(model, ema)
    if distributed.is_first() and not run.interrupted:
        run.write_log(held_out_loss=held_out_loss(model, unseen), **_use(usage))
        _write_sheets(run, model, unseen, usage)
    run.close()
    return model, run


class Reconstructed(NamedTuple):
    """A part of a batch and what came back: images (b, 3, H, W) twice, codes (b, h, w), its summand of the loss ()."""

    images: torch.Tensor
    reconstructions: torch.Tensor
    codes: torch.Tensor
    pixel_loss: torch.Tensor


def augment(pixels: torch.Tensor, training: TokenizerTraining, generator: Rng) -> torch.Tensor:
    """uint8 (b, 3, H, W) -> the same, mirrored and moved at random."""
    if training.flip:
        mirrored = rand(generator, "mirror", (len(pixels),)) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    return move(pixels, training.shift, generator) if training.shift else pixels


@torch.no_grad()
def held_out_loss(model: Tokenizer, pixels: torch.Tensor, limit: int = 128) -> float:
    """The pixel loss on uint8 pictures (n, 3, H, W) that were not trained on; NaN where there are none."""
    if not len(pixels):
        return float("nan")
    device = next(model.parameters()).device
    losses = []
    for part in pixels[:limit].split(64):
        images = normalize(part).to(device)
        losses += [reconstruction_loss(model.decode(model.encode(images)), images).item()] * len(part)
    return statistics.fmean(losses)


def write_reconstructions(model: Tokenizer, pixels: torch.Tensor, path: Path, count: int = 32) -> None:
    """A sheet of up to `count` pictures, each with its reconstruction below; none without pictures."""
    if not len(pixels):
        return
    chosen = torch.linspace(0, len(pixels) - 1, min(count, len(pixels))).long()
    images = normalize(pixels[chosen]).to(next(model.parameters()).device)
    restored = model.decode(model.encode(images))
    pairs = [[to_pil(image), to_pil(back)] for image, back in zip(images, restored, strict=True)]
    write_png(paired_sheet(pairs, min(16, len(pairs))), mark("train-tokenizer"), path, force=True)


def _use(usage: CodeUsage) -> dict[str, float]:
    return {"codes_used": usage.share, "codes_entropy": usage.entropy}


def _write_sheets(run: Run, model: Tokenizer, unseen: torch.Tensor, usage: CodeUsage) -> None:
    with run.sparing():
        write_reconstructions(model, unseen, run.directory / "reconstructions.png")
        chart = usage_chart(usage.counts.tolist())
        write_png(chart, mark("train-tokenizer"), run.directory / "codebook.png", force=True)
    for name in ("reconstructions.png", "codebook.png"):
        run.picture(name)


def _perceptual(pictures: Pictures, training: TokenizerTraining) -> nn.Module:
    match training.perceptual:
        case "random":
            return random_perceptual()
        case "vgg":
            return vgg_perceptual()
        case "lpips":
            return Lpips()
        case "resnet50":
            return resnet_perceptual()
    if not pictures.fields:
        raise ValueError("a perceptual loss by `classifier` needs labelled pictures: use `random`")
    train = pictures.part(held_out=False)
    labelled = train.labels[:, 0] < len(next(iter(pictures.fields.values())))
    classes = len(next(iter(pictures.fields.values())))
    judge = train_judge(
        train.pixels[labelled],
        train.labels[labelled, 0],
        classes,
        training.classifier_steps,
        seed=training.seed + 1,
        progress=tqdm if distributed.is_first() else None,
    )
    return Perceptual(judge.classifier.stages)


def _averaged(model: Tokenizer, ema: Ema) -> Tokenizer:
    averaged = Tokenizer(model.config).to(next(model.parameters()).device)
    ema.copy_to(averaged)
    return averaged.eval()


def _adamw(module: nn.Module, training: TokenizerTraining) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=training.weight_decay
    )
