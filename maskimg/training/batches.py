"""Which grids of codes a step of the generator or the critic trains on, and the chance that each of them has."""

import dataclasses

import torch

from maskimg.conditions import Condition
from maskimg.data.codes import CodeCache
from maskimg.noise import Chance
from maskimg.training.loop.order import Balanced, batch_indices
from maskimg.training.settings import GeneratorTraining


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

    batches: Batches
    chosen: torch.Tensor
    version: torch.Tensor
    chance: Chance

    def part(self, places: torch.Tensor) -> tuple[torch.Tensor, Condition, Chance]:
        """Places (p,) in the batch -> codes (p, h, w), their condition and their chance."""
        train, device = self.batches.train, self.batches.device
        chosen, version, chance = self.chosen[places], self.version[places], self.chance.of(places)
        condition = train.condition(chosen, version, chance).to(device)
        return train.codes[version, chosen].to(device), condition, chance
