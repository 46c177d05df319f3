"""How a generator is doing while it is trained: its loss on held-out grids, samples, and warnings in words."""

import copy
import dataclasses
from collections.abc import Callable

import torch

from maskimg import distributed
from maskimg.data.codes import CodeCache
from maskimg.evaluation.metrics import guessing_loss, losses_by_mask_ratio, monochrome_warning, token_accuracy
from maskimg.maskgit import MaskGit, Predictions
from maskimg.outputs import write_png
from maskimg.recipe import mark
from maskimg.sampler import Sampler
from maskimg.sampling import NotFinite
from maskimg.training.early import Best
from maskimg.training.loop.budget import Tenths
from maskimg.training.loop.errors import TrainingError
from maskimg.training.loop.run import Run
from maskimg.training.loop.session import Session
from maskimg.training.tracking.watch import health_warnings, unlearnt_warning
from vqgan.images import sheet, to_pil


@dataclasses.dataclass(frozen=True)
class Preview:
    """How samples are drawn while a generator is trained.

    Attributes:
        decode: codes (b, h, w) -> images (b, 3, H, W) in [-1, 1].
        sampler: the finished model's.
    """

    decode: Callable[[torch.Tensor], torch.Tensor]
    sampler: Sampler = Sampler()


class Evaluation:
    """Evaluates the averaged weights of a run at each tenth of its budget, and at its end; the first process alone.

    Args:
        preview: with it, samples.png is drawn each time.
        patience: end the run after so many evaluations without a better held-out loss, and keep its best weights; 0
            does neither.

    Raises:
        ValueError: there is patience, but nothing is held out.
    """

    def __init__(self, run: Run, cache: CodeCache, session: Session, preview: Preview | None, patience: int):
        self.run, self.cache, self.session, self.preview = run, cache, session, preview
        self.unseen = cache.part(held_out=True)
        self.tenths = Tenths(run.budget.progress(run.step, run.seconds))
        self.best = Best(run, patience) if patience else None

    def on_the_way(self, model: MaskGit, progress: float, rate: float) -> None:
        """Evaluate, and warn of what looks wrong.

        Args:
            rate: the learning rate that the training began with.
        """
        if not distributed.is_first():
            return
        run = self.run
        _, images = self._evaluate(model)
        if images is not None and self.preview and progress >= 0.5:  # before that they may be of one colour
            with self.session.autocast():
                codes = self.cache.part(held_out=False).codes[0, : len(images)]
                run.warn(monochrome_warning(images, self.preview.decode(codes.to(images.device))))
        for warning in health_warnings(run.directory, rate):
            run.warn(warning)

    def at_the_end(self, model: MaskGit) -> None:
        """Evaluate a run that was not interrupted, and give `model` the best weights, where there is patience.

        Raises:
            TrainingError: the weights can draw nothing.
        """
        run = self.run
        if run.interrupted:  # it is evaluated when it is done
            return
        if distributed.is_first():
            loss, images = self._evaluate(model)
            if self.preview and images is None:
                run.close()
                raise TrainingError(
                    "what was learnt is not finite, so it cannot be used: begin anew with another --out, at a lower "
                    "learning rate"
                )
            run.warn(unlearnt_warning(self.best.loss if self.best else loss, guessed_loss(self.cache)))
        if self.best:
            with distributed.first_goes_ahead():  # the others read what it has written
                self.best.fill(model)

    def _evaluate(self, model: MaskGit) -> tuple[float, torch.Tensor | None]:
        """The loss on held-out grids, and samples (32, 3, H, W) where any are wanted and can be drawn."""
        with self.session.autocast():
            loss = masked_loss(model, self.unseen)
            self.run.write_log(held_out_loss=loss)
            if self.best:
                self.best.consider(loss, model)
            return loss, self._draw(model, self.preview) if self.preview else None

    def _draw(self, model: MaskGit, preview: Preview) -> torch.Tensor | None:
        """Samples, and their sheet in the run's directory; None where the averaged weights can draw nothing."""
        try:
            images = draw_samples(model, preview.decode, preview.sampler, self.unseen)
        except NotFinite as error:  # whether the training can go on is for the guard of its steps to say
            self.run.warn(f"no samples can be drawn: {error}")
            return None
        with self.run.tolerating_write_errors():
            page = sheet([to_pil(image) for image in images], 8)
            write_png(page, mark("train-generator"), self.run.directory / "samples.png", force=True)
        self.run.picture("samples.png")
        return images


@torch.no_grad()
def masked_loss(model: MaskGit, grids: CodeCache, limit: int = 512) -> float:
    """Masked cross-entropy on grids, in nats per masked token, always with the same masks; NaN where there are none.

    Of held-out grids it is what the log calls `held_out_loss`.
    """
    if not len(grids.labels):
        return float("nan")
    model = copy.copy(model)  # without what training adds to the loss
    model.objective = dataclasses.replace(
        model.objective, label_smoothing=0.0, visible_weight=0.0, loss_weight="none",
        no_replace_prob=0.0, random_token_prob=0.0,
    )  # fmt: skip
    total = 0.0
    count = min(limit, grids.codes.shape[1])
    generator = torch.Generator().manual_seed(0)
    for chosen in torch.arange(count).split(128):
        codes = grids.codes[0, chosen].to(model.device)
        condition = grids.condition(chosen).to(model.device)
        total += model(codes, condition, only_train_generator=True, generator=generator).loss.item() * len(chosen)
    return total / count


def guessed_loss(cache: CodeCache) -> float:
    """Nats a token on the held-out grids, guessed by how often each code occurs in the training grids."""
    train, unseen = cache.part(held_out=False), cache.part(held_out=True)
    if not len(unseen.labels):
        return float("nan")
    return guessing_loss(unseen.codes[0, :512], train.codes[0, :100_000], cache.vocab_size)


@torch.no_grad()
def draw_samples(
    model: MaskGit,
    decode: Callable[[torch.Tensor], torch.Tensor],
    sampler: Sampler,
    cache: CodeCache | None = None,
    count: int = 32,
) -> torch.Tensor:
    """Samples (count, 3, H, W), always the same seeds: one label of the first field after the other; or, where there
    are captions or input pictures, those of pictures in `cache`.
    """
    condition = None
    if cache is not None and len(cache.labels) and (cache.words or cache.inputs):
        condition = cache.condition(torch.arange(count) % len(cache.labels)).to(model.device)
    elif model.net.label_sizes:
        condition = torch.tensor(model.net.label_sizes).repeat(count, 1)
        condition[:, 0] = torch.arange(count) % model.net.label_sizes[0]
        condition = condition.to(model.device)
    codes = model.generate(count, condition, sampler=sampler, seeds=torch.arange(count))
    return decode(codes)


def prediction_figures(model: MaskGit, seen: Predictions) -> dict[str, torch.Tensor]:
    """Loss by mask ratio, and token accuracy beside the band where a calibrated model's lies.

    The network is not run again, only its head, on as many tokens as make 2**24 logits.
    """
    few = max(1, -(-len(seen.codes) * model.mask_id // 2**24))
    accuracy = token_accuracy(model.to_logits(seen.features[::few]).float().softmax(-1), seen.codes[::few])
    return {
        **losses_by_mask_ratio(seen.losses, seen.masked),
        "accuracy": accuracy.measured,
        "accuracy_expected": accuracy.expected,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
    }
