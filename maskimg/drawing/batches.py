"""Many pictures, each of a label and a seed of its own: those of one label are drawn together."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from maskimg.drawing.request import Asked, as_prompt
from maskimg.pipeline import Pipeline, Result
from maskimg.sampler import Sampler


def draw_each(
    pipeline: Pipeline,
    labels: Sequence[Asked],
    seeds: Sequence[int],
    *,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    batch_size: int = 16,
) -> Iterator[tuple[list[int], Result]]:
    """A picture for each label and its seed -> the positions of those just drawn, and what was drawn."""
    alike: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        alike.setdefault(told(label), []).append(i)
    for positions in alike.values():
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            chosen = [seeds[i] for i in batch]
            yield batch, pipeline.draw(labels[batch[0]], seeds=chosen, sampler=sampler, best_of=best_of)


def told(asked: Asked) -> str:
    """The same for all that ask for the same, in whatever order they name the fields."""
    prompt = as_prompt(asked)
    if isinstance(prompt.label, Mapping):
        prompt = dataclasses.replace(prompt, label=dict(sorted(prompt.label.items())))
    return repr(prompt)
