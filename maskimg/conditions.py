"""Labels: names <-> the condition tensor (b, f) int64, one column per label field.

A field that is not asked for holds its null value, one past its last name. Training drops fields at random, so the
model knows the null values: guidance compares a picture's condition with the all-null one.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import torch

from maskimg.noise import Source, rand

Label = str | Mapping[str, str] | None


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
            ValueError: there is no such field or name; the message lists what there is.
        """
        if not self.names:
            if label:
                raise ValueError(f"this model was trained without labels, so it cannot draw `{label}`")
            return None
        asked = {"": label} if isinstance(label, str) else dict(label or {})
        if "" in asked:
            asked[next(iter(self.names))] = asked.pop("")
        for field in asked.keys() - self.names.keys():
            raise ValueError(f"there is no label field `{field}`; there is {_listed(self.names)}")
        row = [self._index(field, asked.get(field)) for field in self.names]
        return torch.tensor([row]).expand(count, -1).contiguous()

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
            hint = f"did you mean `{close[0]}`?" if close else f"there is {_listed(names)}"
            raise ValueError(f"there is no {field} `{name}`; {hint}")
        return names.index(name)


def null_condition(condition: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The all-null condition of the same shape (b, f)."""
    return torch.tensor(sizes, device=condition.device).expand_as(condition)


def drop_condition(
    condition: torch.Tensor, sizes: Sequence[int], probability: float, generator: Source = None
) -> torch.Tensor:
    """For training: with `probability` a row (b, f) loses all its fields, and each field is also lost on its own."""
    rows = rand(generator, "labels", (len(condition), 1)) < probability
    fields = rand(generator, "fields", tuple(condition.shape)) < probability
    dropped = (rows | fields).to(condition.device)
    return torch.where(dropped, null_condition(condition, sizes), condition)


def _listed(names) -> str:
    shown = [f"`{name}`" for name in list(names)[:12]]
    rest = len(list(names)) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
