"""Training the tokenizer: pictures in, codes and pictures out."""

import dataclasses
import statistics
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from maskimg import distributed
from maskimg.data.pictures import Pictures, move
from maskimg.evaluation.charts import usage_chart
from maskimg.evaluation.judge import train_judge
from maskimg.evaluation.metrics import codebook_warning, monochrome_warning
from maskimg.noise import Chance, Rng, rand
from maskimg.outputs import write_png
from maskimg.recipe import mark
from maskimg.training.adversary import Adversary, Reconstructed, adamw
from maskimg.training.code_usage import CodeUsage
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.budget import Budget, Tenths, learning_rate_scale
from maskimg.training.loop.order import batch_indices
from maskimg.training.loop.run import Run, data_identity, identity_of
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import TokenizerTraining
from maskimg.training.tracking.watch import health_warnings
from vqgan import Tokenizer, TokenizerConfig
from vqgan.images import normalize, paired_sheet, to_pil
from vqgan.loss import (
    Lpips,
    Perceptual,
    random_perceptual,
    reconstruction_loss,
    resnet_perceptual,
    vgg_perceptual,
)


def train_tokenizer(
    pictures: Pictures,
    config: TokenizerConfig,
    training: TokenizerTraining,
    budget: Budget,
    directory: str | Path,
    *,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> tuple[Tokenizer, Run]:
    """Train on the pictures that are not held out; continues what `directory` holds.

    Returns the tokenizer with averaged weights, in eval mode, and the run (`run.stopped` says whether it was
    interrupted). Writes log.jsonl, checkpoints, reconstructions.png (held-out pictures above, theirs below) and
    codebook.png (how often each code was used lately).
    """
    pixels, unseen = pictures.part(held_out=False).pixels, pictures.part(held_out=True).pixels
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = Tokenizer(config).to(session.place)
        adversary = Adversary(training, session)
    usage, ema = CodeUsage(model.vocab_size).to(session.place), Ema(model, training.ema_decay)
    called, optimizers = distributed.replicated(model), {"optimizer": adamw(model, training)}

    run = _open_run(pictures, config, training, budget, directory, session)
    run.restore(model=model, ema=ema, usage=usage, **optimizers, **adversary.state)
    tenths = Tenths(budget.progress(run.step, run.seconds))
    perceptual = distributed.as_first_has(_perceptual(pictures, training, session).to(session.place))
    compare = Comparison(called, perceptual, adversary, training, session)
    exchanges = config.quantizer in ("vq", "lfq", "bsq")  # their averages are of all processes' codes
    update = Update(run, model, optimizers, called=called, exchanges=exchanges, accumulation=training.accumulation)
    adversary.join(run)
    batches = PictureBatches(pixels, training, session.place)

    model.train()
    for step, progress in run.steps():
        update.set_rate(training.learning_rate * learning_rate_scale(progress))
        batch, weight = batches(step), adversary.weight_at(progress)
        parts: list[Reconstructed] = []

        # Reconstruct a part of the batch, and compare it with its pictures.
        def loss_of(places: torch.Tensor, batch=batch, weight=weight, parts=parts) -> torch.Tensor:
            images, share = batch.part(places)
            loss, part = compare(images, weight)
            parts.append(part._replace(pixel_loss=share * part.pixel_loss))
            return share * loss

        loss = update(loss_of, training.batch_size, batch.chosen)
        ema.update(model, step)

        # Let the adversary catch up, with the parts of the attempt that fitted into memory.
        parts = parts[-update.accumulation :]
        pixel_loss = distributed.total(torch.stack([part.pixel_loss for part in parts]).sum())
        figures = adversary.learn(parts, progress, pixel_loss, batch.chosen)
        for part in parts:
            usage.add(part.codes)
        if run.logs_now:
            figures |= _use(usage)
        run.log(loss=loss, pixel_loss=pixel_loss, gradient_norm=update.norm, **figures)
        if tenths.passed(progress):
            _evaluate_on_the_way(run, _averaged(model, ema), unseen, usage, parts[-1], training)

    model = _averaged(model, ema)
    if not run.interrupted:  # an interrupted run is evaluated when it is done
        _evaluate(run, model, unseen, usage)
    run.close()
    return model, run


def _open_run(
    pictures: Pictures,
    config: TokenizerConfig,
    training: TokenizerTraining,
    budget: Budget,
    directory: str | Path,
    session: Session,
) -> Run:
    return Run(
        directory,
        budget,
        stage="tokenizer",
        identity={
            "tokenizer": dataclasses.asdict(config),
            "training": identity_of(training),
            "data": data_identity(pictures.fingerprint, pictures.held_out, pictures.fields),
        },
        defaults={"training": identity_of(TokenizerTraining())},
        batch_size=training.batch_size,
        session=session,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The tokenizer's loss: how far reconstructions are from their pictures, in pixels, edges and features."""

    called: nn.Module
    perceptual: nn.Module
    adversary: Adversary
    training: TokenizerTraining
    session: Session

    def __call__(self, images: torch.Tensor, weight: float) -> tuple[torch.Tensor, Reconstructed]:
        """Images (b, 3, H, W) -> their loss (), and what came back.

        Args:
            weight: of the adversary.
        """
        with self.session.autocast():
            reconstructions, codes, commitment = self.called(images)
            pixel_loss = reconstruction_loss(reconstructions, images)
            loss = pixel_loss + commitment
            if self.training.perceptual_weight:
                loss = loss + self.training.perceptual_weight * self.perceptual(reconstructions, images)
            if weight:
                loss = loss + weight * self.adversary.loss(reconstructions)
        return loss, Reconstructed(images, reconstructions.detach(), codes, pixel_loss.detach())


class PictureBatches:
    """Step -> the pictures that all processes train on together, of uint8 pixels (n, 3, H, W)."""

    def __init__(self, pixels: torch.Tensor, training: TokenizerTraining, device: torch.device):
        self.pixels, self.training, self.device = pixels, training, device

    def __call__(self, step: int) -> "PictureBatch":
        training = self.training
        chosen = batch_indices(training.seed, step, len(self.pixels), training.batch_size)
        return PictureBatch(self, chosen, Chance(training.seed, step, training.batch_size))


@dataclasses.dataclass(frozen=True)
class PictureBatch:
    """Which pictures a step trains on: `chosen` (b,), each with its own chance."""

    batches: PictureBatches
    chosen: torch.Tensor
    chance: Chance

    def part(self, places: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Places (p,) in the batch -> images (p, 3, H, W), mirrored and moved at random, and their share of it."""
        own = self.chance.of(places)
        pixels = augment(self.batches.pixels[self.chosen[places]], self.batches.training, own)
        return normalize(pixels).to(self.batches.device), own.share


def augment(pixels: torch.Tensor, training: TokenizerTraining, generator: Rng) -> torch.Tensor:
    """uint8 (b, 3, H, W) -> the same, mirrored and moved at random."""
    if training.flip:
        mirrored = rand(generator, "mirror", (len(pixels),)) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    return move(pixels, training.shift, generator) if training.shift else pixels


def _evaluate(run: Run, model: Tokenizer, unseen: torch.Tensor, usage: CodeUsage) -> None:
    """Log the loss on held-out pictures and the use of the codebook, and draw the sheets of both."""
    if not distributed.is_first():
        return
    run.write_log(held_out_loss=reconstruction_error(model, unseen), **_use(usage))
    with run.tolerating_write_errors():
        write_reconstructions(model, unseen, run.directory / "reconstructions.png")
        chart = usage_chart(usage.counts.tolist())
        write_png(chart, mark("train-tokenizer"), run.directory / "codebook.png", force=True)
    for name in ("reconstructions.png", "codebook.png"):
        run.picture(name)


def _evaluate_on_the_way(
    run: Run, model: Tokenizer, unseen: torch.Tensor, usage: CodeUsage, last: Reconstructed, training: TokenizerTraining
) -> None:
    """`_evaluate`, and warn of what looks wrong."""
    progress = run.budget.progress(run.step, run.seconds)
    if progress >= 0.5:  # every training begins with few codes and grey pictures
        run.warn(codebook_warning(usage.share, usage.entropy, model.vocab_size, counted=usage.counted))
        run.warn(monochrome_warning(last.reconstructions, last.images))
    _evaluate(run, model, unseen, usage)
    # An adversary may well raise the error and the gradients.
    if distributed.is_first() and not training.adversarial_weight_at(progress):
        for warning in health_warnings(run.directory, training.learning_rate, loss="pixel_loss"):
            run.warn(warning)


@torch.no_grad()
def reconstruction_error(model: Tokenizer, pixels: torch.Tensor, limit: int = 128) -> float:
    """The pixel loss on uint8 pictures (n, 3, H, W), such as held-out ones; NaN where there are none."""
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


def _perceptual(pictures: Pictures, training: TokenizerTraining, session: Session) -> nn.Module:
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
        progress=dataclasses.replace(session, progress=tqdm).counted("tokenizer") if distributed.is_first() else None,
    )
    return Perceptual(judge.classifier.stages)


def _averaged(model: Tokenizer, ema: Ema) -> Tokenizer:
    averaged = Tokenizer(model.config).to(next(model.parameters()).device)
    ema.copy_to(averaged)
    return averaged.eval()
