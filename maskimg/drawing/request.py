"""What a person asks for, and the Condition that the networks take."""

import dataclasses
import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from maskimg.conditions import Condition, Context, Label, LabelFields, check_label
from maskimg.data.codes import PICTURE
from maskimg.networks.words import NAME as WORDS
from maskimg.networks.words import Words
from maskimg.noise import SEEDS
from maskimg.sampler import Sampler
from maskimg.values import PromptWarning, WrongType, instance, real_number, shown, text, whole_number

MOST = 2**16  # pictures of one call, and candidates of a picture
Seeds = int | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What a person asks for: what the pictures show, how many there are, and how they are drawn.

    Attributes:
        label: a name of the first label field, `{field: name}`, or None for anything.
        prompt, negative: in words, what the pictures are to show, and what guidance moves away from.
        towards, share: another label, and how far from the first to it, 0 to 1.
        seeds: one for each picture, from 0 to 2**32 - 1; a number, a list, an array or a tensor (b,) is taken.
        sampler: numbers of the loop, the name of one of the model's presets, or None for the model's recipe.
        best_of: how many candidates of each picture are drawn; the one that the critic believes most is kept.

    Raises:
        WrongType: a value is of another type. ValueError: it is out of range, or a prompt is no text.
    """

    label: Label = None
    prompt: str | None = None
    negative: str | None = None
    towards: Label = None
    share: float = 0.5
    seeds: Sequence[int] = (0,)
    sampler: Sampler | str | None = None
    best_of: int = 1

    def __post_init__(self):
        check_label("label", self.label)
        check_label("towards", self.towards)
        for name in ("prompt", "negative"):
            if (words := getattr(self, name)) is not None:
                text(name, words)
        object.__setattr__(self, "share", real_number("share", self.share, 0, 1))
        object.__setattr__(self, "seeds", tuple(read_seeds(self.seeds)))
        instance("sampler", self.sampler, (Sampler, str, type(None)), "a Sampler, the name of a preset or None")
        object.__setattr__(self, "best_of", whole_number("best_of", self.best_of, 1))
        if self.best_of > MOST:
            raise ValueError(f"best_of must be at most {MOST}, got {shown(self.best_of)}")


Asked = Request | Label


def prompt(label: Label = None, text: str | None = None, negative: str | None = None, **others: Any) -> Request:
    """What `maskimg.Prompt` was, until the next version."""
    return Request(label, text, negative, **others)


class RequestReader:
    """Requests -> Conditions, for a model with these label fields and words.

    Attributes:
        sources: names of all sequences that the model draws from.
    """

    def __init__(self, labels: LabelFields, words: Words | None, sources: Sequence[str]):
        self.labels, self.words, self.sources = labels, words, sources

    def condition(self, asked: Asked, count: int = 1, input_codes: torch.Tensor | None = None) -> Condition:
        """The condition of `count` images that are all to show the same.

        Args:
            input_codes: (1, h, w) of the picture that a translation starts from.

        Raises:
            ValueError: it asks for what the model does not know; the message says what it does.
        """
        request = as_request(asked)
        labels, towards, share = self.labels.encode(request.label), None, None
        if request.towards:
            towards, share = self.labels.encode(request.towards), torch.tensor([[float(request.share)]])
        contexts = self._words(request.prompt) | self._picture(input_codes)
        negative = None
        if request.negative:
            negative = Condition(
                None if labels is None else self.labels.encode(None),
                tuple(self.labels.names),
                self._words(request.negative) | self._picture(input_codes),
            )
        return Condition(labels, tuple(self.labels.names), contexts, towards, share, negative).expand(count)

    def remarks(self, asked: Sequence[Asked]) -> list[str]:
        """What to know before these are drawn, a sentence each, and each once: words that the model never saw."""
        if self.words is None:
            return []
        requests = [as_request(each) for each in asked]
        captions = [request.prompt for request in requests if request.prompt is not None]
        captions += [request.negative for request in requests if request.negative and request.negative.strip()]
        captions = list(dict.fromkeys(captions))
        self.words.check(captions)
        return self.words.remarks(captions)

    def warn(self, asked: Sequence[Asked]) -> None:
        """The remarks as a PromptWarning each, to the caller of whoever calls this.

        Raises:
            ValueError: a prompt is longer than the model reads: that is said instead.
        """
        for remark in self.remarks(asked):
            warnings.warn(remark, PromptWarning, stacklevel=3)

    def in_recipe(self, asked: Asked) -> dict[str, Any]:
        """What a recipe says of it."""
        request = as_request(asked)
        found: dict[str, Any] = {"label": self._names(request.label)}
        if request.towards:
            found |= {"towards": self._names(request.towards), "share": request.share}
        return found | {name: words for name in ("prompt", "negative") if (words := getattr(request, name))}

    def check_fields(self, names: Sequence[str]) -> None:
        """Raises: ValueError where guidance is asked for a field or sequence that there is not."""
        known = [*self.labels.names, *self.sources]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"known fields: {', '.join(known) or 'none'}"
                raise ValueError(f"there is no field `{name}` for guidance; {hint}")

    def _names(self, label: Label) -> dict[str, str]:
        return (self.labels.decode(self.labels.encode(label)) or [{}])[0]

    def _words(self, prompt: str | None) -> dict[str, Context]:
        if self.words is None:
            if prompt:
                raise ValueError("this model was trained without captions: ask for a label instead of a prompt")
            return {}
        return {WORDS: self.words.encode([(prompt or "").strip()])}

    def _picture(self, codes: torch.Tensor | None) -> dict[str, Context]:
        if codes is None or PICTURE not in self.sources:
            return {}
        values = codes.flatten(1).cpu()
        return {PICTURE: Context(values, torch.ones_like(values, dtype=torch.bool))}


def as_request(asked: Asked) -> Request:
    """A label alone as a request for one picture."""
    return asked if isinstance(asked, Request) else Request(asked)


def make_request(
    label: Asked, *, seeds: Seeds | None = None, count: int | None = None, share: float | None = None, **given: Any
) -> Request:
    """What `Pipeline.generate` and others are given, in one.

    Args:
        label: of the request, or a whole Request; what is given beside it is added to that.
        seeds, count: as in `expand_seeds`.
        given: further fields of Request; None where they are left out.

    Raises:
        WrongType, ValueError: as Request; or something is given twice, or a share without another label.
    """
    request, usual = as_request(label), Request()
    changed = {name: value for name, value in given.items() if value is not None}
    for name in changed:
        if getattr(request, name) != getattr(usual, name):
            raise ValueError(f"{name} is given twice, in the Request and beside it: give one of them")
    if seeds is not None or count is not None:
        changed["seeds"] = expand_seeds(request.seeds[0] if seeds is None else seeds, count)
    if share is not None:
        changed["share"] = share
    request = dataclasses.replace(request, **changed)
    if share is not None and not request.towards:
        raise ValueError("share goes with towards: give another label, or leave share out")
    return request


def expand_seeds(seeds: Seeds, count: int | None = None) -> list[int]:
    """One seed and a count (1 if not given) -> consecutive seeds mod 2**32; a list of seeds stays as it is.

    Raises:
        WrongType: a seed or the count is no whole number. ValueError: one is out of range, or the count is another one
            than that of the seeds.
    """
    found = read_seeds(seeds)
    if count is None:
        return found
    if whole_number("count", count, 1) > MOST:
        raise ValueError(
            f"count must be at most {MOST} in one call, got {shown(count)}: draw the rest by further calls"
        )
    if _is_one(seeds):
        return [(found[0] + i) % SEEDS for i in range(int(count))]
    if count != len(found):
        raise ValueError(f"count is {count}, but there are {len(found)} seeds: leave count out, or give one seed")
    return found


def read_seeds(seeds: Seeds) -> list[int]:
    """One seed, or several as a list, an array or a tensor (b,) -> a list of whole numbers from 0 to 2**32 - 1.

    Raises:
        WrongType: one is no whole number. ValueError: one is out of range, or there is none.
    """
    if _is_one(seeds):
        return [whole_number("seeds", seeds, 0, SEEDS - 1)]
    several = getattr(seeds, "ndim", 1) == 1
    if not several or isinstance(seeds, Mapping) or not isinstance(seeds, Sequence | np.ndarray | torch.Tensor):
        raise WrongType(f"seeds must be a whole number or a list of them, got {shown(seeds)}")
    if not len(seeds):
        raise ValueError("give at least one seed")
    return [whole_number("each of the seeds", seed, 0, SEEDS - 1) for seed in seeds]


def _is_one(seeds: Any) -> bool:
    """Whether it is to be one seed; a string is no list of them."""
    return isinstance(seeds, str | bytes | int | float) or getattr(seeds, "ndim", None) == 0
