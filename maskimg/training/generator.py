"""Training the generator on cached codes."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from maskimg import distributed
from maskimg.data.codes import CodeCache
from maskimg.hardware import compile_blocks, compile_fault
from maskimg.maskgit import MaskGit, Objective
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.training.batches import Batches
from maskimg.training.evaluations import Evaluation, Preview, prediction_figures
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.budget import Budget, learning_rate_scale
from maskimg.training.loop.run import Run, data_identity, identity_of
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining


def train_generator(
    cache: CodeCache,
    config: TransformerConfig,
    training: GeneratorTraining,
    budget: Budget,
    directory: str | Path,
    *,
    preview: Preview | None = None,
    patience: int = 0,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> tuple[MaskGit, Run]:
    """Train on the grids that are not held out; continues what `directory` holds.

    Args:
        preview: with it, samples.png is drawn ten times on the way.
        patience: stop after so many of the ten evaluations without a better held-out loss, and return the best
            averaged weights instead of the last; 0 trains to the end of the budget.

    Raises:
        ValueError: there is patience, but nothing is held out.

    Returns the model with averaged weights, in eval mode, and the run.
    """
    if patience and not cache.held_out.any():
        raise ValueError("patience needs a held-out loss to go by, but no picture is held out: leave `--patience` out")
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = make_maskgit(config, training).to(session.place)
    called = session.distribute(model, cast(nn.ModuleList, model.net.trunk.blocks))
    optimizers = make_optimizers(model, config, training, muon=training.muon and not session.shard)
    ema = Ema(model, training.ema_decay)

    run = open_run(cache, config, training, budget, directory, session, stage="generator")
    run.restore(model=model, ema=ema, **optimizers)
    evaluation = Evaluation(run, cache, session, preview, patience)
    if budget.long:
        compile_for(run, model.net, session)
    update = Update(run, model, optimizers, called=called, exchanges=session.shard, accumulation=training.accumulation)
    batches = Batches(cache.part(held_out=False).resident(session.place), training, session.place)

    def averaged() -> MaskGit:
        found = make_maskgit(config, training).to(session.place)
        ema.copy_to(found)
        return found.eval()

    model.train()
    for step, progress in run.steps():
        update.set_rate(training.learning_rate * learning_rate_scale(progress))
        batch = batches(step)

        # Predict the masked tokens; on a step that is logged, measure the predictions too.
        figures: dict[str, torch.Tensor] = {}
        measured = run.logs_now and distributed.is_first() and not session.shard
        model.observer = (lambda seen, f=figures: f.update(prediction_figures(model, seen))) if measured else None

        def loss_of(places: torch.Tensor, batch=batch) -> torch.Tensor:
            codes, condition, chance = batch.part(places)
            with session.autocast():
                return called(codes, condition, generator=chance).loss

        loss = update(loss_of, training.batch_size, batch.chosen)
        ema.update(model, step)
        run.log(loss=loss, gradient_norm=update.norm, **figures)
        if evaluation.tenths.passed(progress):
            evaluation.on_the_way(averaged(), progress, training.learning_rate)

    finished = averaged()
    evaluation.at_the_end(finished)
    run.close()
    return finished, run


def open_run(
    cache: CodeCache,
    config: TransformerConfig,
    training: GeneratorTraining,
    budget: Budget,
    directory: str | Path,
    session: Session,
    *,
    stage: str,
    more: dict[str, Any] | None = None,
) -> Run:
    """The run of a generator or a critic.

    Args:
        more: part of its identity; an older run without that is taken to have had the same.
    """
    return Run(
        directory,
        budget,
        stage=stage,
        identity={
            stage: dataclasses.asdict(config),
            "training": identity_of(training),
            "data": data_identity(cache.fingerprint, cache.held_out, cache.fields),
            **(more or {}),
        },
        defaults={"training": identity_of(GeneratorTraining()), stage: {"sources": []}, **(more or {})},
        batch_size=training.batch_size,
        session=session,
    )


def make_maskgit(config: TransformerConfig, training: GeneratorTraining) -> MaskGit:
    """An untrained network with the objective that it is trained by."""
    names = [field.name for field in dataclasses.fields(Objective)]
    return MaskGit(
        MaskedTransformer(config),
        objective=Objective(**{name: getattr(training, name) for name in names}),
        self_cond=training.self_cond,
        self_token_critic=training.self_token_critic,
    )


def make_optimizers(
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


def compile_for(run: Run, network: nn.Module, session: Session) -> None:
    """Compiled is only faster: where that cannot be done, now or at a later step, training goes on without it."""
    device = session.place
    if compile_blocks(network, device):
        torch._dynamo.config.suppress_errors = True
    elif distributed.is_first() and device.type != "mps":
        run.say(f"going on without compiling, a third slower: {compile_fault(device)}")
