"""Trainings that torchrun starts several times: torchrun ... together.py DIRECTORY JOB...

Each JOB is stage:steps[:stop]. Stages are generator, sharded, tokenizer and critic. Every step is logged; what each
process has stopped at lies in DIRECTORY/STAGE/stopped-RANK.
"""

import dataclasses
import os
import sys
from pathlib import Path

import torch
from helpers import stopped_at, tiny_cache, tiny_net, tiny_pictures
from tiny import NETWORK, TOKENIZER

from maskimg.maskgit import MaskGit
from maskimg.training import ranks, run
from maskimg.training.generator import GeneratorTraining, train_critic, train_generator
from maskimg.training.run import Budget, Run
from maskimg.training.tokenizer import TokenizerTraining, train_tokenizer

ON_CPU = {"device": "cpu", "dtype": "fp32"}


def train(stage: str, directory: Path, steps: int, stop: int = 0) -> Run:
    """A training that does not depend on who takes part: no dropout, nothing that looks at a batch as a whole.

    It is stopped after `stop` steps, if given, as by a signal.
    """
    if stop:
        with stopped_at(stop - 1):
            return train(stage, directory, steps)
    run.LOG_EVERY = 1
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
    shard = stage == "sharded" and ranks.several()
    return train_generator(tiny_cache(), NETWORK, training, budget, directory, shard=shard, **ON_CPU)[1]


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    with ranks.joined():
        for job in sys.argv[2:]:
            stage, steps, *stop = job.split(":")
            (directory / stage).mkdir(parents=True, exist_ok=True)
            (directory / stage / f"process-{ranks.rank()}").write_text(str(os.getpid()))
            done = train(stage, directory / stage, int(steps), *map(int, stop))
            (directory / stage / f"stopped-{ranks.rank()}").write_text(str(done.step))
            print(f"{stage}: {done.step} steps")


if __name__ == "__main__":
    main()
