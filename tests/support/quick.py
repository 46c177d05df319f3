"""Options of a training that takes seconds."""

import itertools

QUICK = [
    "--preset", "cpu", "--size", "16", "--versions", "2", "--tokenizer_training.classifier_steps", "30",
    "--tokenizer.channels", "[16,16]", "--tokenizer_budget.minutes", "null", "--tokenizer_budget.steps", "60",
    "--generator.dim", "64", "--generator.heads", "2", "--generator.depth", "2", "--generator.critic_depth", "1",
    "--generator_training.batch_size", "32", "--generator_budget.minutes", "null", "--generator_budget.steps", "60",
    "--critic_budget.minutes", "null", "--critic_budget.steps", "10",
]  # fmt: skip


def instead(options: list[str], *others: str) -> list[str]:
    """Pairs of option and value, `others` in place of those of the same option: one that is given twice is refused."""
    given = [*options, *others]
    pairs = dict(zip(given[::2], given[1::2], strict=True))
    return [*itertools.chain.from_iterable(pairs.items())]
