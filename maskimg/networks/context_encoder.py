"""Reading a source: a sequence of word pieces, features or codes -> what every block's cross-attention looks at.

Computed once per generation, since it changes with no step.

Shapes: b images, s positions of a source, d features, e features of a frozen encoder.
"""

import dataclasses
import math

import torch
from einops import rearrange
from torch import nn

from maskimg.conditions import Context
from maskimg.networks.blocks import Block, Looked, rms_norm, rotary, rotate


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A sequence that pictures are drawn from.

    Attributes:
        name: by which a Condition calls it, such as `words` or `picture`.
        vocab_size: number of different values; 0 where they are features.
        features: width e of a frozen encoder's features; 0 where they are numbers.
        grid: positions (h, w); (1, s) for what is no picture.
        over: it is a picture of the same scene, whose positions lie over the grid that is drawn.
        depth: blocks that read it before it is looked at.
    """

    name: str
    vocab_size: int = 0
    features: int = 0
    grid: tuple[int, int] = (1, 32)
    over: bool = False
    depth: int = 2

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        if (self.vocab_size > 0) == (self.features > 0) or min(self.grid) < 1 or self.depth < 0:
            raise ValueError(f"a source has either a vocabulary or features, and positions, got {self}")

    @property
    def length(self) -> int:
        return math.prod(self.grid)


class Reader(nn.Module):
    """A source (b, s) -> a Looked for each of `depth` blocks; nothing to read is a learned null, always present."""

    def __init__(
        self, config: SourceConfig, *, dim: int, heads: int, depth: int, dropout: float, grid: tuple[int, int]
    ):
        super().__init__()
        self.config, self.heads, self.grid = config, heads, grid
        self.embed = nn.Linear(config.features, dim) if config.features else nn.Embedding(config.vocab_size, dim)
        if isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=0.02)
        self.null = nn.Parameter(0.02 * torch.randn(dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(config.depth))
        self.to_kv = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=False) for _ in range(depth))

    def forward(self, source: Context | None, b: int, registers: int) -> list[Looked]:
        """
        Args:
            source: of at most `config.length` positions; None for nothing.
            registers: tokens before the grid that is drawn, for the rotation of its queries.
        """
        device, dtype = self.null.device, self.null.dtype
        x, present = self.null.expand(b, 1, -1), torch.ones(b, 1, dtype=torch.bool, device=device)
        if source is not None:
            values = source.values.to(dtype) if self.config.features else source.values
            x = torch.cat((x, self.embed(values).to(dtype)), dim=1)  # (b, 1 + s, d)
            present = torch.cat((present, source.present), dim=1)
        h, w = self.config.grid
        dim = x.shape[-1] // self.heads
        own = rotary(h, w, dim, 1, device)
        own = own[0][: x.shape[1]], own[1][: x.shape[1]]
        unchanged = x.new_zeros(1, 6, 1, x.shape[-1])
        for block in self.blocks:
            x = block(x, unchanged, own, present=present)
        x = rms_norm(x)

        of_keys = of_queries = None
        if self.config.over:
            of_keys = rotary(h, w, dim, 1, device, self.grid)
            of_keys = of_keys[0][: x.shape[1]], of_keys[1][: x.shape[1]]
            of_queries = rotary(*self.grid, dim, registers, device)
        looked = []
        for to_kv in self.to_kv:
            keys, values = rearrange(to_kv(x), "b s (kv head d) -> kv b s head d", kv=2, head=self.heads)
            keys = rms_norm(keys) if of_keys is None else rotate(rms_norm(keys), of_keys)
            keys, values = (rearrange(part, "b s head d -> b head s d") for part in (keys, values))
            looked.append(Looked(keys, values, present, of_queries))
        return looked
