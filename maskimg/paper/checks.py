"""What a MaskGit is given, checked where it comes in.

Shapes: b images, h w tokens, n = h * w.
"""

from typing import Any

import torch
from einops import rearrange

from maskimg.values import WrongType, shown, whole_number


def complete_grids(codes: torch.Tensor, grid: tuple[int, int], mask_id: int) -> torch.Tensor:
    """Complete codes to train on, (b, h, w) or flat (b, n) -> (b, h, w).

    Raises:
        ValueError: wrong shape, or codes on the CPU outside the codebook.
    """
    h, w = grid
    if codes.ndim == 2 and codes.shape[1] == h * w:
        codes = rearrange(codes, "b (h w) -> b h w", h=h)
    if codes.ndim != 3 or tuple(codes.shape[1:]) != (h, w):
        raise ValueError(f"expected a code grid of {(h, w)}, got {tuple(codes.shape[1:])}")
    # To look at a GPU's codes would make the host wait in every step; those of a cache are checked as it is read.
    here = codes.device.type == "cpu" and codes.numel()
    if here and not 0 <= int(codes.min()) <= int(codes.max()) < mask_id:
        raise ValueError(
            f"expected codes in [0, {mask_id}), got {int(codes.min())} to {int(codes.max())}: "
            "training data holds complete grids, without MASK"
        )
    return codes


def free_tokens(fixed: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
    """Which tokens of every grid may be masked and are scored, (h, w) bool on the CPU, where they are counted.

    Args:
        fixed: (h, w) or (n,) bool, True where they are not.

    Raises:
        ValueError: `fixed` is something else, or leaves nothing.
    """
    h, w = grid
    if fixed is None:
        return torch.ones(h, w, dtype=torch.bool)
    if fixed.numel() != h * w or fixed.dtype != torch.bool or bool(fixed.all()):
        raise ValueError(f"fixed must be {(h, w)} bool, and leave something to predict, got {tuple(fixed.shape)}")
    return ~fixed.reshape(h, w).cpu()


def grids_to_complete(batch_size: Any, codes: Any, grid: tuple[int, int], mask_id: int) -> tuple[torch.Tensor, bool]:
    """What a generation starts from, (b, h, w), and whether it is a single grid, given or asked for without a batch.

    Args:
        codes: (b, h, w), (h, w), (b, n) or (n,), some MASK; all are MASK if not given.

    Raises:
        ValueError: the sizes do not fit, or there are no such codes.
    """
    h, w = grid
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, 1)
    if codes is None:
        return torch.full((batch_size or 1, h, w), mask_id), batch_size is None
    if not isinstance(codes, torch.Tensor):
        raise WrongType(f"codes must be a tensor of grids to complete, got {shown(codes)}")
    if codes.numel() % (h * w) or (codes.shape[-1] != h * w and tuple(codes.shape[-2:]) != (h, w)):
        raise ValueError(f"expected grids of {(h, w)} codes to complete, got {tuple(codes.shape)}")
    single = batch_size is None and tuple(codes.shape) in ((h, w), (h * w,))
    codes = codes.reshape(-1, h, w)
    if batch_size not in (None, len(codes)):
        raise ValueError(f"batch_size is {batch_size}, but there are {len(codes)} grids to complete")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= mask_id:
        raise ValueError(f"expected codes in [0, {mask_id}], MASK being {mask_id}")
    return codes, single


def seeds_of(seeds: Any, b: int) -> torch.Tensor:
    """A seed for each of b images, (b,); random if not given.

    Raises:
        WrongType: they are no tensor of whole numbers. ValueError: there are more or fewer.
    """
    if seeds is None:
        return torch.randint(0, 2**32, (b,))
    if not isinstance(seeds, torch.Tensor) or seeds.dtype.is_floating_point:
        raise WrongType(f"seeds must be a tensor of whole numbers, got {shown(seeds)}")
    if len(seeds) != b:
        raise ValueError(f"expected a seed for each of {b} grids, got {len(seeds)}")
    return seeds
