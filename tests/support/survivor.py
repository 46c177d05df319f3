"""A training that a test can kill: python survivor.py STAGE DIRECTORY STEPS [die-at STEP | die-in-save N] [parts]

Run as a child process of its own. `STAGE` is tokenizer, generator or critic.
"""

import os
import signal
import sys
from typing import Any

import torch
from helpers import tiny_cache, tiny_net, tiny_pictures
from tiny import NETWORK, TOKENIZER

from maskimg.maskgit import MaskGit
from maskimg.training.critic import train_critic
from maskimg.training.generator import train_generator
from maskimg.training.loop import checkpoints, run
from maskimg.training.loop.run import Budget
from maskimg.training.loop.session import Session
from maskimg.training.loop.update import Update
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from maskimg.training.tokenizer import train_tokenizer

ON_CPU: Any = {"session": Session("cpu", "fp32")}


def train(stage: str, directory: str, steps: int, *, accumulation: int = 2, batch_size: int = 8) -> None:
    budget = Budget(steps=steps)
    if stage == "tokenizer":
        training = TokenizerTraining(
            batch_size=batch_size, accumulation=accumulation, perceptual_weight=0.0, adversarial_weight=0.1
        )
        train_tokenizer(tiny_pictures(24), TOKENIZER, training, budget, directory, **ON_CPU)
        return
    training = GeneratorTraining(batch_size=batch_size, accumulation=accumulation)
    if stage == "generator":
        train_generator(tiny_cache(), NETWORK, training, budget, directory, **ON_CPU)
    else:
        train_critic(tiny_cache(), MaskGit(tiny_net(NETWORK)), NETWORK, training, budget, directory, **ON_CPU)


def die_in_step(step: int, after_parts: int) -> None:
    """SIGKILL this process in `step`, once so many parts of its batch have been accumulated."""
    gradients = Update._accumulated

    def dying(self, loss_of, size):
        done = 0

        def counted(places):
            nonlocal done
            if self.run.step == step and done == after_parts:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return loss_of(places)

        return gradients(self, counted, size)

    Update._accumulated = dying


def die_in_save(number: int, files_written: int) -> None:
    """SIGKILL this process in its `number`-th save, when so many files have been written."""
    saves, write, written = 0, checkpoints._write, 0
    whole = checkpoints.Checkpoints.write

    def counting(self, *args, **kwargs):
        nonlocal saves, written
        saves, written = saves + 1, 0
        return whole(self, *args, **kwargs)

    def dying(path, tensors):
        nonlocal written
        if saves == number and written == files_written:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        write(path, tensors)

    checkpoints.Checkpoints.write, checkpoints._write = counting, dying


def main() -> None:
    stage, directory, steps, how, when, detail = sys.argv[1:7]
    torch.set_num_threads(1)
    run.CHECKPOINT_SECONDS = 0.0  # after every step
    if how == "step":
        die_in_step(int(when), int(detail))
    elif how == "save":
        die_in_save(int(when), int(detail))
    train(stage, directory, int(steps))


if __name__ == "__main__":
    main()
