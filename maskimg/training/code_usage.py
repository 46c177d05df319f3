"""How a codebook is used while it is trained."""

import torch
from torch import nn


class CodeUsage(nn.Module):
    """Counts the codes of the last batches: at least 20 times as many tokens as there are codes, where so many came.

    A part of a run's state, so that figures go on after a stop.
    """

    now: torch.Tensor
    before: torch.Tensor

    def __init__(self, vocab_size: int):
        super().__init__()
        self.register_buffer("now", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("before", torch.zeros(vocab_size, dtype=torch.int64))

    def add(self, codes: torch.Tensor) -> None:
        """Codes of any shape; nothing here makes the host wait for the device."""
        full = self.now.sum() >= 20 * len(self.now)
        self.before.copy_(torch.where(full, self.now, self.before))
        self.now.mul_(~full)
        codes = codes.flatten()
        self.now.scatter_add_(0, codes, torch.ones_like(codes))

    @property
    def counts(self) -> torch.Tensor:
        """How often each code occurred: (v,) int64."""
        return self.now + self.before

    @property
    def counted(self) -> int:
        """Tokens that the figures are of."""
        return int(self.counts.sum())

    @property
    def share(self) -> float:
        """Of the codebook, what occurred."""
        return (self.counts > 0).float().mean().item()

    @property
    def entropy(self) -> float:
        """Of the codes' use, in bits; log2 of their number where all are used alike."""
        shares = self.counts.double()
        shares = shares[shares > 0] / shares.sum()
        return -(shares * shares.log2()).sum().item()
