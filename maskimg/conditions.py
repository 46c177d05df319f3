"""What a picture is to be: labels, words and another picture, as names and as the tensors that the networks take.

A label field that is not asked for holds its null value, one past its last name; a sequence that is not asked for is
absent, as padding is. Training drops fields and sequences at random, so the model knows what nothing is: guidance
compares a picture's condition with the null one, or with one that lacks a single field.

Shapes: b images, f label fields, s positions of a sequence, e features.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from maskimg.noise import Rng, rand
from maskimg.values import WrongType, shown, text

Label = str | Mapping[str, str] | None


class Context(NamedTuple):
    """A sequence for each of b images: word pieces or a picture's codes (b, s) int64, or features (b, s, e).

    `present` (b, s) is False where there is only padding.
    """

    values: torch.Tensor
    present: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """What each of b images is to be.

    Attributes:
        labels: (b, f) int64, or None where there are no label fields or all are null.
        fields: the label fields' names, for those who name one.
        contexts: sequences by the name of their source, such as `words` or `picture`.
        towards, share: (b, f) other labels and (b, 1) how far from `labels` to them, 0 to 1.
        negative: what guidance moves away from; the null condition if not given.
    """

    labels: torch.Tensor | None = None
    fields: tuple[str, ...] = ()
    contexts: Mapping[str, Context] = dataclasses.field(default_factory=dict)
    towards: torch.Tensor | None = None
    share: torch.Tensor | None = None
    negative: "Condition | None" = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Every tensor in it, in a fixed order."""
        own = [each for each in (self.labels, self.towards, self.share) if each is not None]
        sequences = [tensor for name in sorted(self.contexts) for tensor in self.contexts[name]]
        return own + sequences + (self.negative.tensors if self.negative else [])

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        """With every tensor changed."""

        def changed(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else change(tensor)

        return dataclasses.replace(
            self,
            labels=changed(self.labels),
            contexts={name: Context(*map(change, context)) for name, context in self.contexts.items()},
            towards=changed(self.towards),
            share=changed(self.share),
            negative=self.negative.map(change) if self.negative else None,
        )

    def to(self, device: torch.device | str) -> "Condition":
        return self.map(lambda tensor: tensor.to(device))

    def rows(self, chosen: torch.Tensor | slice) -> "Condition":
        """Only these images'."""
        return self.map(lambda tensor: tensor[chosen])

    def expand(self, b: int) -> "Condition":
        """One image's condition for all of b; that of b images stays as it is."""
        return self.map(lambda tensor: tensor.expand(b, *tensor.shape[1:]))

    def without(self, name: str, sizes: Sequence[int]) -> "Condition":
        """With one label field or sequence forgotten; `sizes` are the names of each label field.

        Raises:
            ValueError: there is nothing of that name.
        """
        if name in self.contexts:
            return dataclasses.replace(self, contexts={**self.contexts, name: _absent(self.contexts[name])})
        if name not in self.fields or self.labels is None:
            raise ValueError(f"there is no `{name}` in this condition, only {_listed([*self.fields, *self.contexts])}")
        column = torch.tensor([field == name for field in self.fields], device=self.labels.device)

        def forget(labels: torch.Tensor) -> torch.Tensor:
            return torch.where(column, null_labels(labels, sizes), labels)

        towards = None if self.towards is None else forget(self.towards)
        return dataclasses.replace(self, labels=forget(self.labels), towards=towards)

    def null(self, sizes: Sequence[int]) -> "Condition":
        """With everything forgotten."""
        return Condition(
            None if self.labels is None else null_labels(self.labels, sizes),
            self.fields,
            {name: _absent(context) for name, context in self.contexts.items()},
        )


def as_condition(given: "torch.Tensor | Condition | None") -> Condition:
    """Labels (b, f) alone, or nothing at all, as a Condition."""
    return given if isinstance(given, Condition) else Condition(labels=given)


def from_source(source: torch.Tensor, present: torch.Tensor | None = None, name: str = "picture") -> Condition:
    """A source sequence (b, s) and which of it is there, as `paired_batches` gives them; all of it if not given."""
    if present is None:
        present = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
    return Condition(contexts={name: Context(source, present)})


def null_labels(labels: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The all-null labels of the same shape (b, f)."""
    return torch.tensor(sizes, device=labels.device).expand_as(labels)


def drop_condition(condition: Condition, sizes: Sequence[int], probability: float, rng: Rng = None) -> Condition:
    """For training: each field and sequence of an image is lost with `probability`.

    Half of that is the loss of all of them together, as guidance by the whole condition needs it; in the other half
    each is lost on its own, as guidance by a single one needs it.
    """
    if not condition.tensors:
        return condition
    b = len(condition.tensors[0])
    labels, contexts = condition.labels, dict(condition.contexts)
    parts = (0 if labels is None else labels.shape[1]) + len(contexts)
    together = probability if parts == 1 else probability / 2
    alone = (probability - together) / (1 - together) if together < 1 else 0.0
    all_of_it = rand(rng, "labels", (b, 1)) < together
    if labels is not None:
        dropped = all_of_it | (rand(rng, "fields", tuple(labels.shape)) < alone)
        labels = torch.where(dropped.to(labels.device), null_labels(labels, sizes), labels)
    if contexts:
        dropped = all_of_it | (rand(rng, "contexts", (b, len(contexts))) < alone)
        for column, name in zip(dropped.unbind(1), sorted(contexts), strict=True):
            values, present = contexts[name]
            contexts[name] = Context(values, present & ~column[:, None].to(present.device))
    return dataclasses.replace(condition, labels=labels, contexts=contexts)


def _absent(context: Context) -> Context:
    return Context(context.values, torch.zeros_like(context.present))


@dataclasses.dataclass(frozen=True)
class LabelFields:
    """The label names of each field, such as {"class": ("bird", "bug"), "style": ("noto", "blob")}.

    Where they are `required`, no field may be left out: the model knows no null.
    """

    names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    required: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Names per field, the null value not counted."""
        return tuple(len(names) for names in self.names.values())

    def encode(self, label: Label, count: int = 1) -> torch.Tensor | None:
        """A label for each of `count` images -> condition (count, f), or None where there are no fields.

        Args:
            label: a name of the first field, `{field: name}` (the field "" is the first), or None for no condition.

        Raises:
            WrongType: it is no label. ValueError: there is no such field or name, and the message lists what there is;
                or a field is asked for twice.
        """
        asked = self.by_field(label)
        if not self.names:
            return None
        row = [self._index(field, asked.get(field)) for field in self.names]
        return torch.tensor([row]).expand(count, -1).contiguous()

    def by_field(self, label: Label) -> dict[str, str]:
        """A label as {field: name}, without the fields that are not asked for.

        Raises:
            WrongType: it is no label. ValueError: there is no such field, or one is asked for twice.
        """
        check_label("label", label)
        if not self.names:
            if label:
                raise ValueError(f"this model was trained without labels, so it cannot draw {shown(label)}")
            return {}
        first, found = next(iter(self.names)), {}
        for field, name in {"": label}.items() if isinstance(label, str) else dict(label or {}).items():
            if (field or first) not in self.names:
                raise ValueError(f"there is no label field {shown(field)}: choose from {_listed(self.names)}")
            if not name:
                continue
            if found.setdefault(field or first, name) != name:
                raise ValueError(
                    f"{first} is asked for twice, as {shown(found[first])} and {shown(name)}: give one of them"
                )
        return found

    def decode(self, condition: torch.Tensor | None) -> list[dict[str, str]]:
        """Condition (b, f) -> for each image, {field: name} of the fields that are not null."""
        if condition is None:
            return []
        fields = list(self.names.items())
        return [
            {field: names[int(i)] for (field, names), i in zip(fields, row, strict=True) if i < len(names)}
            for row in condition.tolist()
        ]

    def _index(self, field: str, name: str | None) -> int:
        names = list(self.names[field])
        if name is None or name == "":
            if self.required:
                raise ValueError(f"this model draws nothing without a {field}: give one, such as `{names[0]}`")
            return len(names)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"choose from {_listed(names)}"
            raise ValueError(f"there is no {field} {shown(name)}; {hint}")
        return names.index(name)


def check_label(name: str, label: Any) -> None:
    """Whether a value can be a label at all, for any model.

    Raises:
        WrongType: it is neither a string nor `{field: name}` nor None.
    """
    if label is None or isinstance(label, str):
        return
    if not isinstance(label, Mapping):
        several = isinstance(label, list | tuple | set)
        raise WrongType(
            f"{name} must be one name, {{field: name}} or None, got {shown(label)}"
            + (": draw the pictures of each label by a call of its own" if several else "")
        )
    for field, each in label.items():
        text(f"a field of {name}", field)
        if each is not None:
            text(f"{name} of the field {shown(field)}", each)


def _listed(names) -> str:
    shown = [f"`{name}`" for name in list(names)[:12]]
    rest = len(list(names)) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
