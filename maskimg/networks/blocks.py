"""What transformers here are built of: blocks with self-attention and, where there are sources, cross-attention.

Pre-norm blocks with 2-D rotary positions (Su et al. 2021, arXiv 2104.09864, one half of each head for rows and one
for columns), normalised queries and keys (Henry et al. 2020, arXiv 2010.04245), squared-ReLU feed-forward (So et
al. 2021, arXiv 2109.08668), and adaptive normalisation whose one projection all blocks share (AdaLN-single, Chen et
al. 2023, arXiv 2310.00426).

Shapes: b images, n tokens, s positions of a source, d features.
"""

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from maskimg.network import Looked, Rotation


class Block(nn.Module):
    """Attention, a look at each source, and feed-forward. (b, n, d) -> (b, n, d)."""

    def __init__(self, dim: int, heads: int, dropout: float, sources: int = 0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.modulation = nn.Parameter(torch.zeros(6, 1, 1, dim))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)
        self.looks = nn.ModuleList(CrossAttention(dim, heads) for _ in range(sources))
        nn.init.zeros_(self.to_out.weight)  # every block starts as the identity
        nn.init.zeros_(self.down.weight)

    def forward(
        self,
        x: torch.Tensor,
        shared: torch.Tensor,
        rotation: Rotation,
        looked: tuple[Looked, ...] = (),
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            shared: scales, shifts and gates (b, 6, 1, d), those of all blocks.
            looked: what there is to look at, one for each source.
            present: (b, n) bool, False for tokens that nobody may attend to; all are there if not given.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = shared.transpose(0, 1) + self.modulation  # (b, 1, d) each

        update = self.attend(torch.addcmul(shift1, rms_norm(x), 1 + scale1), rotation, present)
        x = torch.addcmul(x, F.dropout(update, self.dropout, self.training), 1 + gate1)

        for look, source in zip(self.looks, looked, strict=True):
            x = x + F.dropout(look(rms_norm(x), source), self.dropout, self.training)

        hidden = F.relu(self.up(torch.addcmul(shift2, rms_norm(x), 1 + scale2)), inplace=True)
        update = self.down(hidden * hidden if torch.is_grad_enabled() else hidden.square_())
        return torch.addcmul(x, F.dropout(update, self.dropout, self.training), 1 + gate2)

    def attend(self, x: torch.Tensor, rotation: Rotation, present: torch.Tensor | None) -> torch.Tensor:
        qkv = rearrange(self.to_qkv(x), "b n (qkv head d) -> b n qkv head d", qkv=3, head=self.heads)
        q, k, v = qkv.unbind(2)
        q, k = rotate(rms_norm(q), rotation), rotate(rms_norm(k), rotation)  # while their memory is in order
        q, k, v = (rearrange(part, "b n head d -> b head n d") for part in (q, k, v))
        return self.to_out(rearrange(attention(q, k, v, present), "b head n d -> b n (head d)"))


class CrossAttention(nn.Module):
    """Tokens (b, n, d) look at a source's keys and values -> what they find there (b, n, d)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: torch.Tensor, source: Looked) -> torch.Tensor:
        q = rms_norm(rearrange(self.to_q(x), "b n (head d) -> b n head d", head=self.heads))
        if source.rotation is not None:
            q = rotate(q, source.rotation)
        found = attention(rearrange(q, "b n head d -> b head n d"), source.keys, source.values, source.present)
        return self.to_out(rearrange(found, "b head n d -> b n (head d)"))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """Queries (b, head, n, d), keys and values (b, head, s, d) -> (b, head, n, d).

    Keys that are not `present` (b, s) have no weight at all, and no gradient; one at least has to be.
    """
    visible = None if present is None else present[:, None, None]
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and q.device.type == "cpu" and q.shape[2] <= (128 if q.dtype == torch.float32 else 512):
        # The fused kernel's backward pass on a CPU takes two to six times as long as these products (torch 2.15).
        return cast(torch.Tensor, _Products.apply(q, k, v, visible))
    return F.scaled_dot_product_attention(q, k, v, visible)


class _Products(torch.autograd.Function):
    """Attention as matrix products, with a backward pass that writes the keys' gradient in the order of the keys:
    that of `q @ k.transpose(-1, -2)` lies across them, and whatever follows takes twice as long."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None
    ) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # softmax sums in fp32 anyway; a copy of all scores costs more
            q = q * q.shape[-1] ** -0.5
            scores = q @ k.transpose(-1, -2)
            if visible is not None:
                scores = scores.masked_fill(~visible, -torch.inf)
            weights = scores.softmax(-1)
            ctx.save_for_backward(q, k, v, weights)
            return weights @ v

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors  # q is scaled
        (out,) = gradients
        with torch.autocast("cpu", enabled=False):
            of_weights = out @ v.transpose(-1, -2)
            scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            return (
                scores @ k * q.shape[-1] ** -0.5,
                scores.transpose(-1, -2) @ q,
                weights.transpose(-1, -2) @ out,
                None,
            )


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Root-mean-square normalisation over the last axis, without a gain.

    Written out because torch's own is several times slower on CPUs (2.15). The sum inside is in fp32 whatever the
    dtype; asking for an fp32 norm of bf16 would copy all of x.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6)
    return x * (x.shape[-1] ** 0.5 / norm)


@cache
def rotary(
    h: int, w: int, dim: int, registers: int, device: torch.device, over: tuple[int, int] | None = None
) -> Rotation:
    """Cosines and signed sines (registers + h * w, dim) of a grid's rotary positions; registers are not rotated.

    Args:
        over: the grid (h', w') that this one lies over, whose positions it is to share; its own if not given.
    """
    over = over or (h, w)
    with torch.inference_mode(False):  # what is kept must also serve a caller who trains
        frequencies = 100.0 ** -torch.linspace(0, 1, dim // 4, device=device)
        rows, columns = (  # of each token's centre; those of a grid over itself are 0, 1, 2...
            ((torch.arange(own, device=device) + 0.5) * (other / own) - 0.5)[:, None] * frequencies
            for own, other in zip((h, w), over, strict=True)
        )
        angles = torch.cat((rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)), dim=-1)
        angles = rearrange(angles, "h w d -> (h w) d")
        angles = torch.cat((angles.new_zeros(registers, dim // 2), angles))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate (b, n, head, d) by the angles of `rotary`; the two halves of d are the two coordinates of each plane.

    (left, right) -> (left cos - right sin, right cos + left sin), in three passes over whole rows: on a CPU four times
    as fast as over halves. Queries and keys separately: for both in one tensor, torch 2.15 compiles a backward pass
    that gives NaN.
    """
    cos, sin = (part.to(x.dtype)[:, None] for part in rotation)
    return (x * cos).addcmul_(_halves_exchanged(x), sin)


def _halves_exchanged(x: torch.Tensor) -> torch.Tensor:
    """(..., d) -> (..., d), the right half first. `roll` is the faster one, but it compiles to a loop over numbers."""
    if torch.compiler.is_compiling():
        return x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x.roll(x.shape[-1] // 2, dims=-1)
