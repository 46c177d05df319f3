"""Training the tokenizer: pictures in, codes and pictures out."""

import dataclasses
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from maskimg.evaluate import train_judge
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.pictures import Pictures, move
from maskimg.training.run import Budget, Ema, Run, batch_indices, learning_rate_scale, step_generator
from vqgan import Tokenizer, TokenizerConfig
from vqgan.images import normalize, paired_sheet, to_pil
from vqgan.loss import (
    PatchDiscriminator,
    Perceptual,
    adversarial_loss,
    discriminator_loss,
    random_perceptual,
    reconstruction_loss,
)


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """How a tokenizer is trained.

    Attributes:
        batch_size: pictures per step.
        learning_rate, weight_decay: AdamW's.
        perceptual: whose features the perceptual loss compares: those of a `random` network, or of a `classifier`
            trained first on the same labelled pictures (sharper where there are labels).
        perceptual_weight: of that loss; 0 leaves it out.
        classifier_steps: how long that classifier is trained.
        adversarial_weight: of the patch discriminator; 0 leaves it out.
        adversarial_start: the share of training after which the discriminator joins.
        flip: mirror half of the pictures (the tokenizer need not know which way round a picture is).
        shift: move each picture by up to so many pixels.
        ema_decay: of the averaged weights that are kept.
        seed: of weights, order and augmentation.
    """

    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    perceptual: str = "random"
    perceptual_weight: float = 0.5
    classifier_steps: int = 600
    adversarial_weight: float = 0.0
    adversarial_start: float = 0.5
    flip: bool = True
    shift: int = 2
    ema_decay: float = 0.999
    seed: int = 0


def train_tokenizer(
    pictures: Pictures,
    config: TokenizerConfig,
    training: TokenizerTraining,
    budget: Budget,
    directory: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> tuple[Tokenizer, Run]:
    """Train on the pictures that are not held out; continues what `directory` holds.

    Returns the tokenizer with averaged weights, in eval mode, and the run (`run.stopped` says whether it was
    interrupted). Writes log.jsonl, checkpoints and reconstructions.png (held-out pictures above, theirs below).
    """
    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    pixels, unseen = pictures.part(held_out=False).pixels, pictures.part(held_out=True).pixels

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = Tokenizer(config).to(where)
        discriminator = PatchDiscriminator().to(where)
    optimizer = _adamw(model, training)
    opponent = _adamw(discriminator, training)
    ema = Ema(model, training.ema_decay)

    identity = {"tokenizer": dataclasses.asdict(config), "training": dataclasses.asdict(training)}
    run = Run(directory, budget, describe="tokenizer", identity={**identity, "data": pictures.fingerprint})
    run.restore(model=model, ema=ema, optimizer=optimizer, discriminator=discriminator, opponent=opponent)
    shown = int(10 * run.budget.progress(run.step, run.seconds))
    perceptual = _perceptual(pictures, training).to(where)

    model.train()
    for step, progress in run.steps():
        scale = learning_rate_scale(progress)
        for group in (*optimizer.param_groups, *opponent.param_groups):
            group["lr"] = training.learning_rate * scale

        # A batch, mirrored and moved at random.
        generator = step_generator(training.seed, step)
        indices = batch_indices(training.seed, step, len(pixels), training.batch_size)
        images = normalize(augment(pixels[indices], training, generator)).to(where)

        # Reconstruct, and compare pixels, edges and features.
        with autocast(where, number_format):
            reconstructions, codes, commitment = model(images)
            loss = reconstruction_loss(reconstructions, images) + commitment
            if training.perceptual_weight:
                loss = loss + training.perceptual_weight * perceptual(reconstructions, images)
            adversarial = training.adversarial_weight > 0 and progress >= training.adversarial_start
            if adversarial:
                loss = loss + training.adversarial_weight * adversarial_loss(discriminator(reconstructions))

        run.require_finite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step)

        # Let the discriminator catch up.
        if adversarial:
            with autocast(where, number_format):
                opponent_loss = discriminator_loss(discriminator(images), discriminator(reconstructions.detach()))
            opponent.zero_grad(set_to_none=True)
            opponent_loss.backward()
            opponent.step()

        run.log(loss=loss, codes_in_batch=codes.unique().numel())
        if int(10 * progress) > shown:
            shown = int(10 * progress)
            write_reconstructions(_averaged(model, ema), unseen, run.directory / "reconstructions.png")

    model = _averaged(model, ema)
    write_reconstructions(model, unseen, run.directory / "reconstructions.png")
    return model, run


def augment(pixels: torch.Tensor, training: TokenizerTraining, generator: torch.Generator) -> torch.Tensor:
    """uint8 (b, 3, H, W) -> the same, mirrored and moved at random."""
    if training.flip:
        mirrored = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    return move(pixels, training.shift, generator) if training.shift else pixels


def write_reconstructions(model: Tokenizer, pixels: torch.Tensor, path: Path, count: int = 32) -> None:
    """A sheet of up to `count` pictures, each with its reconstruction below; none without pictures."""
    if not len(pixels):
        return
    chosen = torch.linspace(0, len(pixels) - 1, min(count, len(pixels))).long()
    images = normalize(pixels[chosen]).to(next(model.parameters()).device)
    restored = model.decode(model.encode(images))
    pairs = [[to_pil(image), to_pil(back)] for image, back in zip(images, restored, strict=True)]
    paired_sheet(pairs, min(16, len(pairs))).save(path)


def _perceptual(pictures: Pictures, training: TokenizerTraining) -> Perceptual:
    if training.perceptual == "random":
        return random_perceptual()
    if training.perceptual != "classifier":
        raise ValueError(f"perceptual must be `random` or `classifier`, got `{training.perceptual}`")
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
        progress=tqdm,
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
