"""How the networks are trained: the numbers, with their ranges, that a person may set and that a run keeps to."""

import dataclasses

from maskimg.maskgit import CRITIC_TARGETS
from maskimg.masking import schedule_named
from maskimg.training.loop.ranges import MOST, require_ranges

PERCEPTUAL = ("random", "classifier", "vgg", "lpips", "resnet50")
CHECKS = ("none", "lecam", "r1")


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """How a tokenizer is trained.

    Attributes:
        batch_size: pictures per step, over all processes.
        accumulation: parts that each process computes its share of them in, where memory is short. Pixel and
            adversarial losses stay the same; what looks at a batch as a whole (the scale of the perceptual loss, the
            spread of efsq's latents, a learned codebook's averages, LeCam's) then looks at a part.
        learning_rate, weight_decay: AdamW's.
        perceptual: whose features the perceptual loss compares: those of a `random` network, of a `classifier`
            trained first on the same labelled pictures (sharper where there are labels), or of networks whose weights
            are fetched once: `vgg`, `lpips` or `resnet50` (its logits, as MaskGIT has it).
        perceptual_weight: of that loss; 0 leaves it out.
        classifier_steps: how long that classifier is trained.
        adversarial_weight: of the patch discriminator; 0 leaves it out.
        adversarial_start: the share of training after which the discriminator joins.
        adversarial_warmup: the share of training in which its weight then grows from 0.
        discriminator_check: what keeps it from learning the pictures by heart: `none`, `lecam` or `r1`.
        flip: mirror half of the pictures (the tokenizer need not know which way round a picture is).
        shift: move each picture by up to so many pixels.
        ema_decay: of the averaged weights that are kept.
        seed: of weights, order and augmentation.
    """

    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    perceptual: str = "random"
    perceptual_weight: float = 0.5
    classifier_steps: int = 600
    adversarial_weight: float = 0.0
    adversarial_start: float = 0.5
    adversarial_warmup: float = 0.1
    discriminator_check: str = "lecam"
    flip: bool = True
    shift: int = 2
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self):
        if self.perceptual not in PERCEPTUAL:
            raise ValueError(f"perceptual must be one of {', '.join(PERCEPTUAL)}, got `{self.perceptual}`")
        if self.discriminator_check not in CHECKS:
            raise ValueError(
                f"discriminator_check must be one of {', '.join(CHECKS)}, got `{self.discriminator_check}`"
            )
        weights = ("learning_rate", "weight_decay", "perceptual_weight", "adversarial_weight")
        require_ranges(self, dict.fromkeys(("batch_size", "accumulation"), (1, MOST)))
        require_ranges(self, dict.fromkeys(("adversarial_start", "adversarial_warmup", "ema_decay"), (0, 1)))
        require_ranges(self, dict.fromkeys((*weights, "classifier_steps", "shift"), (0, MOST)))

    def adversarial_weight_at(self, progress: float) -> float:
        """At this share of training: 0 until the discriminator joins, then a ramp."""
        since = progress - self.adversarial_start
        if since < 0:
            return 0.0
        return self.adversarial_weight * min(1.0, (since + 1e-3) / max(self.adversarial_warmup, 1e-3))


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
