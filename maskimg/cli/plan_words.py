"""The options of a training plan in words.

The plan's classes say in their docstrings what each number is to the code; here it is what the option does for the
person at the terminal. A test holds the two lists equal.
"""

from argparse import Action
from collections.abc import Iterable

# Headings of `--help-all`, by the name of the part of the plan.
GROUPS = {
    "Plan": "Pictures, sources and captions",
    "tokenizer": "The tokenizer's network",
    "tokenizer_training": "Training of the tokenizer",
    "tokenizer_budget": "Training time of the tokenizer",
    "generator": "The networks of generator and critic",
    "generator_training": "Training of generator and critic",
    "generator_budget": "Training time of the generator",
    "critic_budget": "Training time of the critic",
    "recipe": "The sampler of the finished model",
}
STEPS = "number of steps after which training ends; no limit by default"
MINUTES = "minutes after which training ends; whichever limit comes first counts"

WORDS = {
    "print_config": "print the plan as YAML and exit",
    "size": "side in pixels; by default that of the pictures and the preset",
    "versions": "how often each picture is encoded, shifted a little each time",
    "flip": "also train on mirrored pictures; off by default",
    "patience": "early stopping after this many evaluations without a better held-out loss; 0, the default, is off",
    "source": (
        "learn to translate from grey, edges or lowres versions of the pictures, or from a folder of input pictures"
    ),
    "source_tokenizer": "tokenizer directory for the input pictures; by default one tokenizer learns both kinds",
    "words": (
        "reader of captions: pieces (learnt from them, the default), none, or the name of a frozen T5 or CLIP encoder"
    ),
    "tokenizer": "YAML file with the options of this group",
    "tokenizer.quantizer": "efsq, fsq, vq, lfq, bsq or simvq",
    "tokenizer.levels": "levels of each latent channel of efsq and fsq; the codebook size is their product",
    "tokenizer.codebook_size": "codebook size of the other quantizers; a power of two for lfq and bsq",
    "tokenizer.codebook_dim": "latent channels of vq and simvq",
    "tokenizer.cosine": "let vq compare directions instead of distances",
    "tokenizer.rotation": "let vq and simvq use the rotation trick instead of straight-through gradients",
    "tokenizer.channels": "network width after each halving of the resolution; their number sets the stride, 2 to 32",
    "tokenizer.encoder_blocks": "residual blocks of the encoder at each resolution",
    "tokenizer.decoder_blocks": "residual blocks of the decoder at each resolution",
    "tokenizer.attention": "attention blocks at the lowest resolution, in encoder and decoder each",
    "tokenizer_training": "YAML file with the options of this group",
    "tokenizer_training.batch_size": "pictures in a step, over all processes",
    "tokenizer_training.accumulation": (
        "parts into which each process splits its share of a batch, where memory is short; losses that look at a "
        "batch as a whole then look at a part"
    ),
    "tokenizer_training.learning_rate": "learning rate of AdamW",
    "tokenizer_training.weight_decay": "weight decay of AdamW",
    "tokenizer_training.perceptual": (
        "features of the perceptual loss: a random network, a classifier trained first on the same labelled "
        "pictures, or vgg, lpips or resnet50, whose weights are downloaded once"
    ),
    "tokenizer_training.perceptual_weight": "weight of the perceptual loss; 0 turns it off",
    "tokenizer_training.classifier_steps": "training steps of that classifier",
    "tokenizer_training.adversarial_weight": "weight of the patch discriminator; 0 turns it off",
    "tokenizer_training.adversarial_start": "share of the training after which the discriminator joins",
    "tokenizer_training.adversarial_warmup": "share of the training over which its weight then rises from 0",
    "tokenizer_training.discriminator_check": (
        "regularisation against memorisation by the discriminator: none, lecam or r1"
    ),
    "tokenizer_training.flip": "also train the tokenizer on mirrored pictures",
    "tokenizer_training.shift": "shift each picture at random by up to this many pixels",
    "tokenizer_training.ema_decay": "decay of the moving average of the weights",
    "tokenizer_training.seed": "seed of weights, order and augmentation",
    "tokenizer_budget": "YAML file with the options of this group",
    "tokenizer_budget.steps": STEPS,
    "tokenizer_budget.minutes": MINUTES,
    "generator": "YAML file with the options of this group",
    "generator.dim": "width of the transformer",
    "generator.depth": "number of blocks of the generator",
    "generator.heads": "number of attention heads; the width of each must be a multiple of 4",
    "generator.registers": "number of register tokens, which all tokens can attend to",
    "generator.dropout": "dropout probability",
    "generator.critic_depth": "number of blocks of the critic; 0 trains none",
    "generator_training": "YAML file with the options of this group",
    "generator_training.batch_size": "grids of codes in a step, over all processes",
    "generator_training.accumulation": (
        "parts into which each process splits its share of a batch, where memory is short; has no influence on "
        "what is learnt"
    ),
    "generator_training.learning_rate": "learning rate, of Muon scaled to the step size of AdamW",
    "generator_training.muon": (
        "train the hidden matrices with Muon if the batch is large enough to pay for it; the rest is trained with AdamW"
    ),
    "generator_training.weight_decay": "weight decay of both optimizers",
    "generator_training.schedule": "distribution of mask ratios, such as arccos or beta(12, 3)",
    "generator_training.condition_drop": "probability of dropping each label field and caption, which guidance needs",
    "generator_training.label_smoothing": "label smoothing of the cross-entropy, 0 to 1",
    "generator_training.loss_weight": (
        "weight of a grid by its mask ratio: none, or elbo for the exact likelihood bound"
    ),
    "generator_training.visible_weight": "weight of the loss on tokens that are not masked",
    "generator_training.no_replace_prob": "probability that a masked token still shows its code",
    "generator_training.random_token_prob": "probability that a masked token shows a random code",
    "generator_training.self_cond": "self-conditioning: feed the network its previous prediction",
    "generator_training.self_cond_train_prob": "probability of self-conditioning in a training step",
    "generator_training.self_token_critic": "let the generator be its own critic",
    "generator_training.critic_loss_weight": "weight of the critic's loss with a self critic",
    "generator_training.critic_target": "what the critic learns to find: wrong codes, or all sampled ones",
    "generator_training.balance": (
        "how far rare classes of the first label field are favoured, 0 (not at all) to 1 (equally)"
    ),
    "generator_training.ema_decay": "decay of the moving average of the weights",
    "generator_training.seed": "seed of weights, order and masks",
    "generator_budget": "YAML file with the options of this group",
    "generator_budget.steps": STEPS,
    "generator_budget.minutes": MINUTES,
    "critic_budget": "YAML file with the options of this group",
    "critic_budget.steps": STEPS,
    "critic_budget.minutes": MINUTES,
    "recipe": "YAML file with the options of this group",
    "recipe.steps": "steps of the sampling loop; each costs twice as much with guidance",
    "recipe.schedule": "mask schedule: cosine, linear, arccos, square or beta(a, b)",
    "recipe.counts": "how many tokens each step reveals; replaces steps and schedule",
    "recipe.order": (
        "which tokens are kept first: the most probable (confidence), evenly spread ones (halton), any (random), "
        "those the critic believes (critic), or those that will be most probable, chosen before sampling (moment)"
    ),
    "recipe.critic_revises": "let the critic mask tokens that were already kept",
    "recipe.token_temperature": "sampling temperature, a number or a list over the steps; lower is safer and plainer",
    "recipe.choice_temperature": (
        "randomness in the choice of tokens to keep: a number, which fades to 0 over the steps, or a list over "
        "the steps"
    ),
    "recipe.guidance": "guidance scale, a number or a list over the steps; 1 is off",
    "recipe.field_guidance": 'extra guidance by single label fields, such as [["style", 2.0]]',
    "recipe.guidance_schedule": "guidance over the steps: constant, linear or power-cosine",
    "recipe.guidance_power": "exponent of the power-cosine schedule",
    "recipe.guidance_start": "share of revealed tokens at which guidance starts",
    "recipe.guidance_end": "share of revealed tokens at which guidance ends",
    "recipe.top_k": "sample only from the k most probable codes; 0, the default, is off",
    "recipe.top_p": "sample only from the most probable codes that sum to this much; 1, the default, is off",
    "recipe.revise": "share of the drawn tokens that each step draws again",
}


def reword(actions: Iterable[Action]) -> None:
    """Give the plan's options among a parser's actions their words."""
    for action in actions:
        if action.dest in WORDS:
            action.help = WORDS[action.dest]
