"""Trainings that torchrun starts several times: torchrun ... together.py DIRECTORY JOB...

Each JOB is stage:steps[:stop]. Stages are generator, sharded, scarce (the second process runs out of memory once),
tokenizer and critic. Every step is logged; what each process has stopped at lies in DIRECTORY/STAGE/stopped-RANK. The
stage encode has no steps; what each process has encoded lies in encoded-RANK.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from helpers import stirred, stopped_at, tiny_cache, tiny_net, tiny_pictures
from tiny import NETWORK, TOKENIZER

from maskimg import distributed
from maskimg.data import codes as coding
from maskimg.data.crops import Versions
from maskimg.maskgit import MaskGit
from maskimg.training.critic import train_critic
from maskimg.training.generator import train_generator
from maskimg.training.loop import run, update
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer
from vqgan import Tokenizer

ON_CPU: Any = {"session": Session("cpu", "fp32")}


def train(stage: str, directory: Path, steps: int, stop: int = 0) -> Run:
    """A training that does not depend on who takes part: no dropout, nothing that looks at a batch as a whole.

    It is stopped after `stop` steps, if given, as by a signal.
    """
    if stop:
        with stopped_at(stop - 1):
            return train(stage, directory, steps)
    run.LOG_EVERY = 1
    update.TRIAL = 6  # so that most steps exchange gradients as a long training does
    budget = Budget(steps=steps)
    if stage == "tokenizer":
        training = TokenizerTraining(
            batch_size=6, perceptual_weight=0.0, adversarial_weight=0.1, adversarial_start=0.2, discriminator_check="r1"
        )
        config = dataclasses.replace(TOKENIZER, quantizer="fsq")
        return train_tokenizer(tiny_pictures(), config, training, budget, directory, **ON_CPU)[1]
    training = GeneratorTraining(batch_size=7, learning_rate=1e-3, accumulation=2 if stage == "generator" else 1)
    if stage == "critic":
        model = MaskGit(tiny_net(NETWORK))
        return train_critic(tiny_cache(), model, NETWORK, training, budget, directory, **ON_CPU)[1]
    shard = stage == "sharded" and distributed.several()
    if stage == "scarce":
        with memory_runs_out(step=3, rank=1):
            return train_generator(tiny_cache(), NETWORK, training, budget, directory, **ON_CPU)[1]
    return train_generator(
        tiny_cache(), NETWORK, training, budget, directory, session=Session("cpu", "fp32", shard=shard)
    )[1]


def encode(directory: Path) -> None:
    """Twelve pictures in three batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = stirred(Tokenizer(TOKENIZER), size=0.05).eval()
    alone, sizes = coding._encoded, []

    def noted(tokenizer, pixels):
        sizes.append(len(pixels))
        return alone(tokenizer, pixels)

    batch, coding.BATCH, coding._encoded = coding.BATCH, 5, noted
    try:
        coding.encode_pictures(tokenizer, tiny_pictures(), directory / "codes", views=Versions(2, flip=True))
    finally:
        coding.BATCH, coding._encoded = batch, alone
    (directory / f"encoded-{distributed.rank()}").write_text(str(sizes))


@contextmanager
def memory_runs_out(step: int, rank: int) -> Iterator[None]:
    """While active, process `rank` has too little memory for its whole share of the batch of step `step`."""
    accumulated = Update._accumulated

    def limited(self, loss_of, size):
        def checked(places):
            loss = loss_of(places)
            if self.run.step == step and distributed.rank() == rank and self.accumulation == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return loss

        return accumulated(self, checked, size)

    Update._accumulated = limited
    try:
        yield
    finally:
        Update._accumulated = accumulated


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    with distributed.joined():
        for job in sys.argv[2:]:
            stage, steps, *stop = job.split(":")
            (directory / stage).mkdir(parents=True, exist_ok=True)
            (directory / stage / f"process-{distributed.rank()}").write_text(str(os.getpid()))
            if stage == "encode":
                encode(directory / stage)
                continue
            done = train(stage, directory / stage, int(steps), *map(int, stop))
            (directory / stage / f"stopped-{distributed.rank()}").write_text(str(done.step))
            print(f"{stage}: {done.step} steps")


if __name__ == "__main__":
    main()
