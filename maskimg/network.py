"""The face of a generator's network: what MaskGit asks for, whatever architecture stands behind it.

`MaskedTransformer` is our own; `GoogleMaskGit` and `HaltonMaskGit` run other people's weights. Networks without this
face can be wrapped (`maskimg.networks.wrapper`), but not written to files.

Shapes: b images, h w tokens, v codes, d features, f label fields, m tokens of a batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from maskimg.conditions import Condition, Context, as_condition

Rotation = tuple[torch.Tensor, torch.Tensor]


class Looked(NamedTuple):
    """What a block's cross-attention looks at in one source: keys and values (b, head, s, d), which are present (b, s).

    `rotation` is that of the queries, where a source lies over the grid as a picture does; None where it does not.
    """

    keys: torch.Tensor
    values: torch.Tensor
    present: torch.Tensor
    rotation: Rotation | None


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
    """What a condition does to a network: whatever the trunk makes of it. It changes with no step.

    Attributes:
        shared: (b, ...).
        looked: for each source, what each block looks at.
    """

    shared: torch.Tensor
    looked: tuple[list[Looked], ...] = ()


def joined(parts: Sequence[Modulation]) -> Modulation:
    """Several batches' modulations as one batch's; sources are padded to the longest."""
    looked = []
    for of_source in zip(*(part.looked for part in parts), strict=True):
        looked.append([_joined_looked(of_block) for of_block in zip(*of_source, strict=True)])
    return Modulation(torch.cat([part.shared for part in parts]), tuple(looked))


def _joined_looked(parts: Sequence[Looked]) -> Looked:
    longest = max(part.present.shape[1] for part in parts)
    missing = [longest - part.present.shape[1] for part in parts]
    return Looked(
        torch.cat([F.pad(part.keys, (0, 0, 0, more)) for part, more in zip(parts, missing, strict=True)]),
        torch.cat([F.pad(part.values, (0, 0, 0, more)) for part, more in zip(parts, missing, strict=True)]),
        torch.cat([F.pad(part.present, (0, more)) for part, more in zip(parts, missing, strict=True)]),
        parts[0].rotation,
    )


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

    @property
    def sources(self) -> tuple[Any, ...]:
        """The SourceConfigs of the sequences that it draws from."""
        return getattr(self.config, "sources", ())

    def forward(
        self, codes: torch.Tensor, condition: Condition | torch.Tensor | None = None, *, at: torch.Tensor | None = None
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

    def check_condition(self, given: Condition | torch.Tensor | None, b: int) -> None:
        """Refuse what is no condition for `b` images.

        Raises:
            ValueError: a shape does not fit, a label or value is out of range, there is no such source, or nothing is
                given where the model needs something.
        """
        condition = as_condition(given)
        if condition.labels is None and not self.has_null:
            raise ValueError("this model was never trained without a label, so it cannot draw anything: give one")
        for labels in (condition.labels, condition.towards):
            if labels is not None:
                self._check_labels(labels, b)
        known = {source.name: source for source in self.sources}
        for name, context in condition.contexts.items():
            if name not in known:
                raise ValueError(f"this model does not attend to `{name}`, only to {', '.join(known) or 'labels'}")
            _check_context(known[name], context, b)
        if condition.negative is not None:
            self.check_condition(condition.negative, b)

    def _check_labels(self, labels: torch.Tensor, b: int) -> None:
        f = len(self.label_sizes)
        if tuple(labels.shape) not in ((1, f), (b, f)):
            raise ValueError(f"expected a condition of ({b}, {f}), got {tuple(labels.shape)}")
        for column, size in zip(labels.unbind(1), self.label_sizes, strict=True):
            highest = size if self.has_null else size - 1
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) <= highest:
                raise ValueError(f"expected labels in [0, {highest}], got {int(column.min())} to {int(column.max())}")


def _check_context(source: Any, context: Context, b: int) -> None:
    values, present = context
    rows, s = present.shape
    width = (source.features,) if source.features else ()
    if rows not in (1, b) or s > source.length or tuple(values.shape) != (rows, s, *width):
        raise ValueError(
            f"expected a `{source.name}` of ({b}, {source.length} or fewer{', ' + str(width[0]) if width else ''}), "
            f"got {tuple(values.shape)} and {tuple(present.shape)}"
        )
    if values.numel() and source.vocab_size and not 0 <= int(values.min()) <= int(values.max()) < source.vocab_size:
        raise ValueError(
            f"expected `{source.name}` in [0, {source.vocab_size}), got {int(values.min())} to {int(values.max())}"
        )


def cross_entropy(logits: torch.Tensor, codes: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Logits (m, v) and the right codes (m,) -> (m,) nats in fp32."""
    return F.cross_entropy(logits.float(), codes, reduction="none", label_smoothing=label_smoothing)


@contextlib.contextmanager
def without_gradient() -> Iterator[None]:
    """A context like `torch.no_grad()`, after which the same weights can be learnt in the same autocast.

    Autocast keeps its copies of the weights. Up to torch 2.10 a copy that was made without gradient is used again
    where there should be one, and those weights are then never trained.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()
