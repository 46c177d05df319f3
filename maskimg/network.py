"""The face of a generator's network: what MaskGit asks for, whatever architecture stands behind it.

`MaskedTransformer` is our own; `GoogleMaskGit` and `HaltonMaskGit` run other people's weights. Networks without this
face can be wrapped (`maskimg.foreign`), but not written to files.

Shapes: b images, h w tokens, v codes, d features, f label fields, m tokens of a batch.
"""

from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn


class Config(Protocol):
    """The sizes that every network's configuration tells; a frozen dataclass, and config.json holds its fields.

    Attributes:
        vocab_size: number of codes v; MASK is v itself.
        grid: tokens (h, w).
        label_sizes: names per label field; empty for an unconditional model.
        dim: features d.
    """

    __dataclass_fields__: ClassVar[dict]

    @property
    def vocab_size(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def label_sizes(self) -> tuple[int, ...]: ...

    @property
    def dim(self) -> int: ...


class Modulation(NamedTuple):
    """What a condition does to a network (b, ...): whatever the trunk makes of it. It changes with no step."""

    shared: torch.Tensor


class Network(nn.Module):
    """Codes (b, h, w), some MASK, and condition (b, f) -> logits (b, h, w, v).

    A network has a `trunk`, codes (b, h, w), condition and sum_embeds (b, h, w, d) or None -> features (b, h, w, d),
    which takes the condition as it is, as None for all null, or as its own `modulation(condition, b)`.

    Attributes:
        architecture: its name in config.json; our own has none there.
        has_null: it was trained without labels, too. Only then can it draw anything, or be guided.
    """

    architecture: ClassVar[str]
    config_type: ClassVar[type]
    has_null: bool = True
    trunk: Any

    def __init__(self, config: Config, trunk: nn.Module):
        super().__init__()
        self.config: Any = config
        self.trunk = trunk

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def embed_dim(self) -> int:
        return self.config.dim

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return self.config.label_sizes

    def forward(
        self, codes: torch.Tensor, condition: torch.Tensor | None = None, *, at: torch.Tensor | None = None
    ) -> torch.Tensor:
        """With `at` (b, h, w) bool, only the logits of the m True positions, (m, v): the head is not run elsewhere."""
        x = self.trunk(codes, condition)
        return self.to_logits(x if at is None else x[at])

    def to_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Features (..., d) -> logits (..., v); linear in the features. MASK has no logit."""
        raise NotImplementedError

    def cross_entropy(self, features: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Features (m, d) and the right codes (m,) -> (m,) nats in fp32."""
        return cross_entropy(self.to_logits(features), codes, label_smoothing)

    def check_guidance(self, *guidance: float) -> None:
        """Refuse guidance other than 1 where there is nothing to be guided away from.

        Raises:
            ValueError: the network was never trained without a label.
        """
        for each in guidance:
            if each != 1 and not self.has_null:
                raise ValueError(
                    "this model was never trained without a label, so it cannot be guided away from that: "
                    f"guidance must be 1, got {each}"
                )

    def check_condition(self, condition: torch.Tensor | None, b: int) -> None:
        """Refuse what is no condition for `b` images.

        Raises:
            ValueError: its shape is not (b, f), or a label is out of range or missing where the model needs one.
        """
        if condition is None:
            if not self.has_null:
                raise ValueError("this model was never trained without a label, so it cannot draw anything: give one")
            return
        if tuple(condition.shape) not in ((1, len(self.label_sizes)), (b, len(self.label_sizes))):
            raise ValueError(f"expected a condition of ({b}, {len(self.label_sizes)}), got {tuple(condition.shape)}")
        for column, size in zip(condition.unbind(1), self.label_sizes, strict=True):
            highest = size if self.has_null else size - 1
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) <= highest:
                raise ValueError(f"expected labels in [0, {highest}], got {int(column.min())} to {int(column.max())}")


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Logits (m, v) and the right codes (m,) -> (m,) nats in fp32."""
    return F.cross_entropy(logits.float(), codes, reduction="none", label_smoothing=label_smoothing)
