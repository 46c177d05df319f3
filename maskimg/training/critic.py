"""Training a token critic: which codes has the finished generator got wrong? (Lezama et al. 2022)"""

import dataclasses
from pathlib import Path

import torch

from maskimg import distributed
from maskimg.data.codes import CodeCache
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import TokenCritic, TransformerConfig
from maskimg.noise import Chance
from maskimg.sampler import Sampler
from maskimg.training.batches import Batches
from maskimg.training.generator import compile_for, make_optimizers, open_run
from maskimg.training.loop.averages import Ema
from maskimg.training.loop.budget import Budget, learning_rate_scale
from maskimg.training.loop.run import Run
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining


def train_critic(
    cache: CodeCache,
    generator: MaskGit,
    config: TransformerConfig,
    training: GeneratorTraining,
    budget: Budget,
    directory: str | Path,
    *,
    sampler: Sampler | None = None,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> tuple[TokenCritic, Run]:
    """Train a critic to find the codes that the finished `generator` got wrong; continues what `directory` holds.

    The generator is left as it is, but for its critic, which is the returned one. It is small enough for each process
    to have all of it, also where the session shards the generator.

    Args:
        sampler: how the finished model draws. What the critic judges is drawn at its token temperature, of a step at
            random where it changes with the steps; if not given, at one between 0 and 1.
    """
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        critic = TokenCritic(config).to(session.place)
    model = generator.to(session.place).requires_grad_(False)
    model.token_critic = critic
    model.objective = dataclasses.replace(model.objective, critic_target=training.critic_target)
    model.self_critic = None  # one critic takes the other's place
    called = distributed.replicated(model)
    optimizers = make_optimizers(critic, config, training, muon=training.muon)
    ema = Ema(critic, training.ema_decay)

    drawn_at = {"token_temperature": sampler.token_temperature if sampler else None}
    run = open_run(cache, config, training, budget, directory, session, stage="critic", more=drawn_at)
    run.restore(model=critic, ema=ema, **optimizers)
    if budget.long:
        compile_for(run, model, session)
    update = Update(run, critic, optimizers, called=called, accumulation=training.accumulation)
    batches = Batches(cache.part(held_out=False).resident(session.place), training, session.place)

    model.train()
    model.net.eval()  # what the critic judges must come from the generator as it will be used
    for step, progress in run.steps():
        update.set_rate(training.learning_rate * learning_rate_scale(progress))
        batch = batches(step)

        # Mask, fill with the generator's draws, and tell which codes are wrong.
        def loss_of(places: torch.Tensor, batch=batch) -> torch.Tensor:
            codes, condition, chance = batch.part(places)
            with session.autocast():
                return called(
                    codes,
                    condition,
                    only_train_critic=True,
                    generator_sample_temperature=drawing_temperature(sampler, chance),
                    generator=chance,
                ).loss

        loss = update(loss_of, training.batch_size, batch.chosen)
        ema.update(critic, step)
        run.log(loss=loss, gradient_norm=update.norm)

    averaged = TokenCritic(config).to(session.place)
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
