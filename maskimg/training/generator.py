"""Training the generator, and after it the token critic, on cached codes."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from maskimg import distributed
from maskimg.conditions import Condition
from maskimg.data.codes import CodeCache
from maskimg.evaluation.metrics import guessing_loss, losses_by_mask_ratio, monochrome_warning, token_accuracy
from maskimg.hardware import autocast, compile_blocks, compile_fault, pick_device, pick_dtype
from maskimg.maskgit import CRITIC_TARGETS, MaskGit, Objective, Predictions
from maskimg.masking import schedule_named
from maskimg.networks.transformer import MaskedTransformer, TokenCritic, TransformerConfig
from maskimg.noise import Chance
from maskimg.outputs import write_png
from maskimg.recipe import mark
from maskimg.sampler import Sampler
from maskimg.sampling import NotFinite
from maskimg.training.early import Best
from maskimg.training.loop.order import Balanced
from maskimg.training.loop.ranges import MOST, require_ranges
from maskimg.training.loop.run import (
    Budget,
    Ema,
    Run,
    TrainingError,
    batch_indices,
    data_identity,
    identity_of,
    learning_rate_scale,
)
from maskimg.training.loop.update import Update
from maskimg.training.tracking.watch import look_back, unlearnt_warning
from vqgan.images import sheet, to_pil


@dataclasses.dataclass(frozen=True)
class GeneratorTraining:
    """How a generator or critic is trained.

    Attributes:
        batch_size: grids per step, over all processes.
        accumulation: parts that each process computes its share of them in, where memory is short; what is learnt
            stays the same.
        learning_rate: of both optimizers; Muon's is scaled to AdamW's size of step.
        muon: train hidden matrices with Muon (Jordan et al. 2024) where this torch has it and a step's batch is large
            enough to pay for it, else all with AdamW.
        weight_decay: of both.
        schedule: of mask ratios, such as `arccos` or `beta(12, 3)`.
        condition_drop: probability of forgetting each label field and sequence, for guidance.
        label_smoothing, loss_weight, visible_weight, no_replace_prob, random_token_prob, self_cond,
            self_cond_train_prob, self_token_critic, critic_loss_weight, critic_target: as in `MaskGit`.
        balance: how far rare classes of the first label field are favoured, from 0 (not) to 1 (all alike); each
            picture of a class is seen before any is seen again.
        ema_decay: of the averaged weights that are kept.
        seed: of weights, order and masks.
    """

    batch_size: int = 128
    accumulation: int = 1
    learning_rate: float = 2e-3
    muon: bool = True
    weight_decay: float = 0.05
    schedule: str = "arccos"
    condition_drop: float = 0.1
    label_smoothing: float = 0.0
    loss_weight: str = "none"
    visible_weight: float = 0.0
    no_replace_prob: float = 0.0
    random_token_prob: float = 0.0
    self_cond: bool = False
    self_cond_train_prob: float = 0.75
    self_token_critic: bool = False
    critic_loss_weight: float = 1.0
    critic_target: str = "wrong"
    balance: float = 0.5
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self):
        shares = ("condition_drop", "label_smoothing", "no_replace_prob", "random_token_prob", "self_cond_train_prob")
        weights = ("learning_rate", "weight_decay", "visible_weight", "critic_loss_weight")
        require_ranges(self, dict.fromkeys(("batch_size", "accumulation"), (1, MOST)))
        require_ranges(self, dict.fromkeys((*shares, "balance", "ema_decay"), (0, 1)))
        require_ranges(self, dict.fromkeys(weights, (0, MOST)))
        schedule_named(self.schedule)
        if self.critic_target not in CRITIC_TARGETS:
            raise ValueError(f"critic_target must be one of {', '.join(CRITIC_TARGETS)}, got `{self.critic_target}`")


def train_generator(
    cache: CodeCache,
    config: TransformerConfig,
    training: GeneratorTraining,
    budget: Budget,
    directory: str | Path,
    *,
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    sampler: Sampler | None = None,
    patience: int = 0,
    track: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    shard: bool = False,
    allow_data_change: bool = False,
) -> tuple[MaskGit, Run]:
    """Train on the grids that are not held out; continues what `directory` holds.

    Args:
        decode: codes (b, h, w) -> images; with it, samples.png is drawn ten times on the way.
        patience: stop after so many of the ten evaluations without a better held-out loss, and return the best
            averaged weights instead of the last; 0 trains to the end of the budget.
        shard: split weights and optimizer over the processes of `torchrun`, for models that do not fit into one's
            memory; else each has them all.
        allow_data_change: continue with other grids than before, too.

    Raises:
        ValueError: there is patience, but nothing is held out.

    Returns the model with averaged weights, in eval mode, and the run.
    """
    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    train, unseen = cache.part(held_out=False).resident(where), cache.part(held_out=True)
    if patience and not len(unseen.labels):
        raise ValueError("patience needs a held-out loss to go by, but no picture is held out: leave `--patience` out")

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = _maskgit(config, training).to(where)
    called = (
        distributed.sharded(model, cast(nn.ModuleList, model.net.trunk.blocks))
        if shard
        else distributed.replicated(model)
    )
    optimizers = _optimizers(model, config, training, muon=training.muon and not shard)
    ema = Ema(model, training.ema_decay)

    run = _run(directory, budget, "generator", config, training, cache, track, allow_data_change)
    run.restore(model=model, ema=ema, **optimizers)
    shown = int(10 * budget.progress(run.step, run.seconds))
    best = Best(run, patience) if patience else None
    if budget.long:
        _compile(model.net, where, run)
    update = _update(run, model, optimizers, called, training, exchanges=shard)
    batches = Batches(train, training, where)

    model.train()
    for step, progress in run.steps():
        update.set_rate(training.learning_rate * learning_rate_scale(progress))
        batch = batches(step)

        # Predict the masked tokens; on a step that is logged, look at the predictions too.
        figures: dict[str, torch.Tensor] = {}
        looks = run.logs_now and distributed.is_first() and not shard
        model.observer = _observer(model, figures) if looks else None

        def loss_of(places: torch.Tensor, batch=batch) -> torch.Tensor:
            codes, condition, chance = batch.part(places)
            with autocast(where, number_format):
                return called(codes, condition, generator=chance).loss

        loss = update(loss_of, training.batch_size, batch.chosen)
        ema.update(model, step)

        run.log(loss=loss, gradient_norm=update.norm, **figures)
        if int(10 * progress) > shown:
            shown = int(10 * progress)
            averaged = _averaged(config, training, ema, where)
            if distributed.is_first():
                with autocast(where, number_format):
                    judged = held_out_loss(averaged, unseen)
                    run.write_log(held_out_loss=judged)
                    if best:
                        best.look(judged, averaged)
                    if decode:
                        images = _show_samples(run, averaged, decode, sampler, unseen)
                        if images is not None and progress >= 0.5:  # before that they may be of one colour
                            run.warn(monochrome_warning(images, decode(train.codes[0, : len(images)])))
                for warning in look_back(run.directory, training.learning_rate):
                    run.warn(warning)

    averaged = _averaged(config, training, ema, where)
    if distributed.is_first() and not run.interrupted:  # an interrupted run is judged when it is done
        with autocast(where, number_format):
            judged = held_out_loss(averaged, unseen)
            run.write_log(held_out_loss=judged)
            if best:
                best.look(judged, averaged)
            if decode and _show_samples(run, averaged, decode, sampler, unseen) is None:
                run.close()
                raise TrainingError(
                    "what was learnt is not finite, so it cannot be used: begin anew with another --out, at a lower "
                    "learning rate"
                )
        run.warn(unlearnt_warning(best.loss if best else judged, guessed_loss(cache)))
    if best and not run.interrupted:
        with distributed.first_goes_ahead():  # the others read what it has written
            best.fill(averaged)
    run.close()
    return averaged, run


def train_critic(
    cache: CodeCache,
    generator: MaskGit,
    config: TransformerConfig,
    training: GeneratorTraining,
    budget: Budget,
    directory: str | Path,
    *,
    sampler: Sampler | None = None,
    track: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_data_change: bool = False,
) -> tuple[TokenCritic, Run]:
    """Train a critic to find the codes that the finished `generator` got wrong; continues what `directory` holds, also
    with other grids if `allow_data_change`.

    The generator is left as it is, but for its critic, which is the returned one.

    Args:
        sampler: how the finished model draws. What the critic judges is drawn at its token temperature, of a step at
            random where it changes with the steps; if not given, at one between 0 and 1.
    """
    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    train = cache.part(held_out=False).resident(where)

    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        critic = TokenCritic(config).to(where)
    model = generator.to(where).requires_grad_(False)
    model.token_critic = critic
    model.objective = dataclasses.replace(model.objective, critic_target=training.critic_target)
    model.self_critic = None  # one critic takes the other's place
    called = distributed.replicated(model)
    optimizers = _optimizers(critic, config, training, muon=training.muon)
    ema = Ema(critic, training.ema_decay)

    drawn_at = {"token_temperature": sampler.token_temperature if sampler else None}
    run = _run(directory, budget, "critic", config, training, cache, track, allow_data_change, drawn_at)
    run.restore(model=critic, ema=ema, **optimizers)
    if budget.long:
        _compile(model, where, run)
    update = _update(run, critic, optimizers, called, training)
    batches = Batches(train, training, where)

    model.train()
    model.net.eval()  # what the critic judges must come from the generator as it will be used
    for step, progress in run.steps():
        update.set_rate(training.learning_rate * learning_rate_scale(progress))
        batch = batches(step)

        # Mask, fill with the generator's draws, and tell which codes are wrong.
        def loss_of(places: torch.Tensor, batch=batch) -> torch.Tensor:
            codes, condition, chance = batch.part(places)
            with autocast(where, number_format):
                temperature = drawing_temperature(sampler, chance)
                return called(
                    codes,
                    condition,
                    only_train_critic=True,
                    generator_sample_temperature=temperature,
                    generator=chance,
                ).loss

        loss = update(loss_of, training.batch_size, batch.chosen)
        ema.update(critic, step)
        run.log(loss=loss, gradient_norm=update.norm)

    averaged = TokenCritic(config).to(where)
    ema.copy_to(averaged)
    model.token_critic = averaged
    model.requires_grad_(True).eval()
    run.close()
    return averaged, run


def drawing_temperature(sampler: Sampler | None, chance: Chance) -> float | None:
    """The token temperature of one of a sampler's steps, all equally likely, the same for the whole batch."""
    if sampler is None:
        return None
    return sampler.temperature_at(int(chance.of_step("temperature") * sampler.steps))


@torch.no_grad()
def held_out_loss(model: MaskGit, unseen: CodeCache, limit: int = 512) -> float:
    """Masked cross-entropy, in nats per masked token, on grids that were not trained on, always with the same masks."""
    if not len(unseen.labels):
        return float("nan")
    model = copy.copy(model)  # without what training adds to the loss
    model.objective = dataclasses.replace(
        model.objective, label_smoothing=0.0, visible_weight=0.0, loss_weight="none",
        no_replace_prob=0.0, random_token_prob=0.0,
    )  # fmt: skip
    total = 0.0
    count = min(limit, unseen.codes.shape[1])
    generator = torch.Generator().manual_seed(0)
    for chosen in torch.arange(count).split(128):
        codes = unseen.codes[0, chosen].to(model.device)
        condition = unseen.condition(chosen).to(model.device)
        total += model(codes, condition, only_train_generator=True, generator=generator).loss.item() * len(chosen)
    return total / count


def guessed_loss(cache: CodeCache) -> float:
    """Nats a token on the grids of `held_out_loss`, guessed by how often each code occurs in the training grids."""
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
    are captions or sources, those of pictures in `cache`.
    """
    condition = None
    if cache is not None and len(cache.labels) and (cache.words or cache.source):
        condition = cache.condition(torch.arange(count) % len(cache.labels)).to(model.device)
    elif model.net.label_sizes:
        condition = torch.tensor(model.net.label_sizes).repeat(count, 1)
        condition[:, 0] = torch.arange(count) % model.net.label_sizes[0]
        condition = condition.to(model.device)
    codes = model.generate(count, condition, sampler=sampler, seeds=torch.arange(count))
    return decode(codes)


def _show_samples(
    run: Run,
    model: MaskGit,
    decode: Callable[[torch.Tensor], torch.Tensor],
    sampler: Sampler | None,
    unseen: CodeCache,
) -> torch.Tensor | None:
    """`draw_samples`, and their sheet in the run's directory; None where the averaged weights can draw nothing."""
    try:
        images = draw_samples(model, decode, sampler or Sampler(), unseen)
    except NotFinite as error:  # whether the training can go on is for the guard of its steps to say
        run.warn(f"no samples can be drawn: {error}")
        return None
    with run.sparing():
        page = sheet([to_pil(image) for image in images], 8)
        write_png(page, mark("train-generator"), run.directory / "samples.png", force=True)
    run.picture("samples.png")
    return images


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


def _observer(model: MaskGit, figures: dict[str, torch.Tensor]) -> Callable[[Predictions], None]:
    return lambda seen: figures.update(prediction_figures(model, seen))


def _compile(network: nn.Module, device: torch.device, run: Run) -> None:
    """Compiled is only faster: where that cannot be done, now or at a later step, training goes on without it."""
    if compile_blocks(network, device):
        torch._dynamo.config.suppress_errors = True
    elif distributed.is_first() and device.type != "mps":
        run.say(f"going on without compiling, a third slower: {compile_fault(device)}")


def _maskgit(config: TransformerConfig, training: GeneratorTraining) -> MaskGit:
    names = [field.name for field in dataclasses.fields(Objective)]
    return MaskGit(
        MaskedTransformer(config),
        objective=Objective(**{name: getattr(training, name) for name in names}),
        self_cond=training.self_cond,
        self_token_critic=training.self_token_critic,
    )


class Batches:
    """Step -> the grids that all processes train on together, each drawn with its own chance."""

    def __init__(self, train: CodeCache, training: GeneratorTraining, device: torch.device):
        self.train, self.training, self.device = train, training, device
        self.balanced = None
        if train.fields and training.balance:
            self.balanced = Balanced(train.labels[:, 0], training.balance, training.seed)

    def __call__(self, step: int) -> "Batch":
        chance = Chance(self.training.seed, step, self.training.batch_size)
        versions, count = self.train.codes.shape[:2]
        if self.balanced:
            chosen = self.balanced(step, self.training.batch_size)
        else:
            chosen = batch_indices(self.training.seed, step, count, self.training.batch_size)
        return Batch(self, chosen, chance.randint("version", 0, versions), chance)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Which grids a step trains on: `chosen` (b,) of which `version` (b,)."""

    source: Batches
    chosen: torch.Tensor
    version: torch.Tensor
    chance: Chance

    def part(self, places: torch.Tensor) -> tuple[torch.Tensor, Condition, Chance]:
        """Places (p,) in the batch -> codes (p, h, w), their condition and their chance."""
        train, device = self.source.train, self.source.device
        chosen, version, chance = self.chosen[places], self.version[places], self.chance.of(places)
        condition = train.condition(chosen, version, chance).to(device)
        return train.codes[version, chosen].to(device), condition, chance


def _optimizers(
    module: nn.Module, config: TransformerConfig, training: GeneratorTraining, *, muon: bool
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, heads, biases and modulations.

    Muon's five iterations cost about 280 d^3 operations a block, a step on t tokens 72 d^2 t: a quarter of the step at
    16 tokens a feature, and more than it is worth with fewer.
    """
    pays = training.batch_size * config.grid[0] * config.grid[1] >= 16 * config.dim
    kind = getattr(torch.optim, "Muon", None) if muon and pays else None
    hidden = [p for name, p in module.named_parameters() if ".blocks." in name and p.ndim == 2]
    chosen = {id(p) for p in hidden} if kind else set()
    rest = [p for p in module.parameters() if id(p) not in chosen]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            rest,
            lr=training.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=training.weight_decay,
            fused=rest[0].device.type in ("cpu", "cuda"),  # one pass over memory instead of a dozen
        )
    }
    if kind:
        optimizers["muon"] = kind(
            hidden, lr=training.learning_rate, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def _update(
    run: Run,
    module: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    called: nn.Module,
    training: GeneratorTraining,
    *,
    exchanges: bool = False,
) -> Update:
    return Update(
        run,
        module,
        optimizers,
        called=called if distributed.several() else None,
        exchanges=exchanges,
        accumulation=training.accumulation,
    )


def _run(
    directory: str | Path,
    budget: Budget,
    describe: str,
    config: TransformerConfig,
    training: GeneratorTraining,
    cache: CodeCache,
    track: str | None,
    allow_data_change: bool,
    more: dict[str, Any] | None = None,
) -> Run:
    """A Run whose identity is what follows, and `more`: an older run without that is taken to have had the same."""
    return Run(
        directory,
        budget,
        describe=describe,
        identity={
            describe: dataclasses.asdict(config),
            "training": identity_of(training),
            "data": data_identity(cache.fingerprint, cache.held_out, cache.fields),
            **(more or {}),
        },
        defaults={"training": identity_of(GeneratorTraining()), describe: {"sources": []}, **(more or {})},
        batch_size=training.batch_size,
        track=track,
        allow_data_change=allow_data_change,
    )


def _averaged(config: TransformerConfig, training: GeneratorTraining, ema: Ema, device: torch.device) -> MaskGit:
    averaged = _maskgit(config, training).to(device)
    ema.copy_to(averaged)
    return averaged.eval()
