"""What a training is going to do, decided before it starts: sizes and budgets that suit the pictures."""

import dataclasses
import statistics

from maskimg.data.listing import Listing
from maskimg.data.sources import size_of
from maskimg.hardware import pick_device
from maskimg.sampler import Sampler
from maskimg.training.loop.budget import Budget
from maskimg.training.loop.ranges import MOST, require_ranges
from maskimg.training.settings import GeneratorTraining, TokenizerTraining
from vqgan import TokenizerConfig
from vqgan.images import ImageError

CHANNELS = {1: (64,), 2: (64, 96), 3: (48, 96, 192), 4: (48, 96, 192, 256)}  # by log2 of the stride


@dataclasses.dataclass(frozen=True)
class NetworkSize:
    """Sizes of the generator; vocabulary, grid and labels follow from the tokenizer and the pictures."""

    dim: int = 256
    depth: int = 6
    heads: int = 4
    registers: int = 1
    dropout: float = 0.0
    critic_depth: int = 2

    def __post_init__(self):
        require_ranges(self, dict.fromkeys(("dim", "depth", "heads"), (1, MOST)))
        require_ranges(self, {"registers": (0, MOST), "dropout": (0, 0.99), "critic_depth": (0, MOST)})
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise ValueError(f"dim / heads must be a multiple of 4, got {self.dim} / {self.heads}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a training run that is decided before it starts; a YAML file holds what differs.

    Attributes:
        size: side of the pictures in pixels.
        versions: how often each picture is encoded, each time moved a little.
        flip: mirror half of the pictures for the generator too; off where left and right mean something.
        patience: end the generator's training after so many of its ten evaluations without a better held-out loss,
            and keep its best weights; 0 does not.
        source: what pictures are drawn from: `grey`, `edges` or `lowres`, made from themselves, or a folder (or
            archive) of pictures of the same names. The finished model translates such pictures.
        source_tokenizer: directory of the tokenizer of the sources; if not given, one learns both kinds of pictures.
        words: what reads captions, where there are any: `pieces`, learnt along; `none`; or the name or directory of a
            T5 or CLIP text encoder.
        recipe: the finished model's sampler.
        tokenizer_training, generator_training, generator and the budgets: as in their own classes.
    """

    size: int = 32
    versions: int = 4
    flip: bool = False
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    tokenizer_budget: Budget = Budget(minutes=3)
    generator: NetworkSize = NetworkSize()
    generator_training: GeneratorTraining = GeneratorTraining()
    generator_budget: Budget = Budget(minutes=6.5)
    critic_budget: Budget = Budget(minutes=1)
    patience: int = 0
    source: str = ""
    source_tokenizer: str = ""
    words: str = "pieces"
    recipe: Sampler = Sampler()

    def __post_init__(self):
        require_ranges(self, {"patience": (0, MOST), "versions": (1, MOST), "size": (0, 512)})
        if self.size % self.tokenizer.stride:
            raise ValueError(
                f"size must be a multiple of the tokenizer's stride {self.tokenizer.stride}, got {self.size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // self.tokenizer.stride
        return side, side


PRESETS = {
    "cpu": Plan(size=32, generator_training=GeneratorTraining(batch_size=64)),  # more steps from the same minutes
    "gpu": Plan(
        size=64,
        tokenizer_budget=Budget(minutes=8),
        generator=NetworkSize(dim=512, depth=12, heads=8, dropout=0.1, critic_depth=3),
        generator_training=GeneratorTraining(batch_size=256, learning_rate=1e-3, ema_decay=0.9995),
        generator_budget=Budget(minutes=16),
        critic_budget=Budget(minutes=3),
    ),
}


def plan_for(
    count: int,
    usual_side: int,
    *,
    preset: str = "auto",
    labelled: bool = False,
    minutes: float | None = None,
    size: int = 0,
) -> Plan:
    """Sizes for `count` pictures of about `usual_side` pixels.

    Args:
        preset: `cpu` or `gpu`, or `auto` for the one this machine suits.
        minutes: of training in all, shared out as in the preset.
        size: side in pixels, a multiple of 8; 16, 32 or 64 as the pictures and the preset ask, if 0.
    """
    if preset == "auto":
        preset = "cpu" if pick_device().type == "cpu" else "gpu"
    plan = PRESETS[preset]
    side = size or min(plan.size, next((side for side in (16, 32, 64) if usual_side <= side), plan.size))
    if side % 8 or not 16 <= side <= 512:
        raise ValueError(f"size must be a multiple of 8 from 16 to 512, got {side}")

    # Quantizer and codes: benchmarks/results/README.md, "Reading `tokenizers.md`".
    # A grid of 8x8 tokens up to 64 pixels: fewer tokens learn faster and draw faster than anything else tried.
    halvings = min(4, max(1, (side // 8).bit_length() - 1))
    while side % 2**halvings:
        halvings -= 1
    tokenizer = TokenizerConfig(
        levels=(8, 8, 8, 8) if side >= 64 else (8, 5, 5, 5), channels=CHANNELS[halvings], decoder_blocks=2
    )
    network = plan.generator
    if count < 1000:
        network = dataclasses.replace(network, dim=192, heads=3, depth=4, critic_depth=1, dropout=0.1)
    tokenizer_training = dataclasses.replace(plan.tokenizer_training, shift=side // 16)
    if labelled:  # a classifier of these very pictures judges better than random features what must be kept
        tokenizer_training = dataclasses.replace(
            tokenizer_training, perceptual="classifier", perceptual_weight=0.3, classifier_steps=300
        )
    batch = max(8, min(plan.generator_training.batch_size, count // 2))
    plan = dataclasses.replace(
        plan,
        size=side,
        tokenizer=tokenizer,
        tokenizer_training=tokenizer_training,
        generator=network,
        generator_training=dataclasses.replace(plan.generator_training, batch_size=batch),
        recipe=Sampler(guidance=2.5 if labelled else 1.0),
    )
    if minutes is not None:
        whole = sum(
            budget.minutes or 0 for budget in (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)
        )
        plan = dataclasses.replace(
            plan,
            **{
                name: Budget(minutes=minutes * (getattr(plan, name).minutes or 0) / whole)
                for name in ("tokenizer_budget", "generator_budget", "critic_budget")
            },
        )
    return plan


def usual_side(listing: Listing) -> int:
    """The middle of about a hundred pictures' shorter sides, in pixels."""
    sides = []
    for _, content in listing.source.read(listing.entries[:: max(1, len(listing) // 100)]):
        try:
            sides.append(min(size_of(content)))
        except ImageError:
            continue  # unreadable files are reported when they are read
    return int(statistics.median(sides)) if sides else 64
