"""What a person asks for, and the Condition that the networks take."""

import dataclasses
import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from maskimg.conditions import Condition, Context, Label, LabelFields, check_label
from maskimg.data.codes import PICTURE
from maskimg.networks.words import NAME as WORDS
from maskimg.networks.words import Words
from maskimg.values import PromptWarning, instance, real_number, text


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What pictures are to show.

    Attributes:
        label: a name of the first label field, `{field: name}`, or None.
        text: a caption.
        negative: a caption of what they are not to be like: guidance moves away from it.
        towards, share: another label, and how far from the first to it, 0 to 1.
        source: codes (1, h, w) of a picture to translate.

    Raises:
        WrongType: a value is of another type. ValueError: the share is out of range, or a caption is no text.
    """

    label: Label = None
    text: str | None = None
    negative: str | None = None
    towards: Label = None
    share: float = 0.5
    source: torch.Tensor | None = None

    def __post_init__(self):
        check_label("label", self.label)
        check_label("towards", self.towards)
        for name, caption in (("prompt", self.text), ("negative", self.negative)):
            if caption is not None:
                text(name, caption)
        object.__setattr__(self, "share", real_number("share", self.share, 0, 1))
        if self.source is not None:
            instance("source", self.source, torch.Tensor, "codes (1, h, w)")


Asked = Prompt | Label


class PromptReader:
    """Prompts -> Conditions, for a model with these label fields and words.

    Attributes:
        sources: names of all sequences that the model draws from.
    """

    def __init__(self, labels: LabelFields, words: Words | None, sources: Sequence[str]):
        self.labels, self.words, self.sources = labels, words, sources

    def condition(self, asked: Asked, count: int = 1) -> Condition:
        """The condition of `count` images that are all to show the same.

        Raises:
            ValueError: it asks for what the model does not know; the message says what it does.
        """
        prompt = as_prompt(asked)
        labels, towards, share = self.labels.encode(prompt.label), None, None
        if prompt.towards:
            towards, share = self.labels.encode(prompt.towards), torch.tensor([[float(prompt.share)]])
        contexts = self._words(prompt.text) | self._picture(prompt.source)
        negative = None
        if prompt.negative:
            negative = Condition(
                None if labels is None else self.labels.encode(None),
                tuple(self.labels.names),
                self._words(prompt.negative) | self._picture(prompt.source),
            )
        return Condition(labels, tuple(self.labels.names), contexts, towards, share, negative).expand(count)

    def remarks(self, asked: Sequence[Asked]) -> list[str]:
        """What to know before these are drawn, a sentence each, and each once: words that the model never saw."""
        if self.words is None:
            return []
        prompts = [as_prompt(each) for each in asked]
        captions = [prompt.text for prompt in prompts if prompt.text is not None]
        captions += [prompt.negative for prompt in prompts if prompt.negative and prompt.negative.strip()]
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

    def told(self, asked: Asked) -> dict[str, Any]:
        """What a recipe says of it."""
        prompt = as_prompt(asked)
        told: dict[str, Any] = {"label": self._names(prompt.label)}
        if prompt.towards:
            told |= {"towards": self._names(prompt.towards), "share": prompt.share}
        texts = {"prompt": prompt.text, "negative": prompt.negative}
        return told | {name: text for name, text in texts.items() if text}

    def check_fields(self, names: Sequence[str]) -> None:
        """Raises: ValueError where guidance is asked for a field or sequence that there is not."""
        known = [*self.labels.names, *self.sources]
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"there is {', '.join(known) or 'none'}"
                raise ValueError(f"there is no field `{name}` to be guided by; {hint}")

    def _names(self, label: Label) -> dict[str, str]:
        return (self.labels.decode(self.labels.encode(label)) or [{}])[0]

    def _words(self, text: str | None) -> dict[str, Context]:
        if self.words is None:
            if text:
                raise ValueError("this model was trained without captions: ask for a label instead of a prompt")
            return {}
        return {WORDS: self.words.encode([(text or "").strip()])}

    def _picture(self, codes: torch.Tensor | None) -> dict[str, Context]:
        if PICTURE not in self.sources:
            if codes is not None:
                raise ValueError("this model was trained without source pictures, so it cannot translate one")
            return {}
        if codes is None:
            return {}
        values = codes.flatten(1).cpu()
        return {PICTURE: Context(values, torch.ones_like(values, dtype=torch.bool))}


def as_prompt(asked: Asked) -> Prompt:
    """A label alone as a prompt."""
    return asked if isinstance(asked, Prompt) else Prompt(label=asked)


def with_rest(
    label: Asked, prompt: str | None, negative: str | None, towards: Label = None, share: float | None = None
) -> Prompt:
    """What `Pipeline.generate` and others are given, in one.

    Raises:
        WrongType, ValueError: as `Prompt`; or something is given twice, or a share without another label.
    """
    asked = as_prompt(label)
    given: dict[str, Any] = {"text": prompt, "negative": negative, "towards": towards, "share": share}
    changed = {name: value for name, value in given.items() if value is not None}
    for name in changed.keys() - {"share"}:
        if getattr(asked, name) is not None:
            word = "prompt" if name == "text" else name
            raise ValueError(f"{word} is given twice, in the Prompt and beside it: give one of them")
    asked = dataclasses.replace(asked, **changed)
    if share is not None and not asked.towards:
        raise ValueError("share goes with towards: give another label, or leave share out")
    return asked
