"""Counter-based randomness: an image's noise depends on its own seed, the step and the position, on nothing else.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in integer tensor arithmetic, so
every device gives the same bits, and batch size, order and earlier failures cannot change a picture.
"""

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF

SEEDS = 2**32  # seeds are taken modulo this; a browser's numbers hold them exactly


def uniform(seeds: torch.Tensor, step: int, stream: int, count: int) -> torch.Tensor:
    """Seeds (b,) int64 -> (b, count) float32, uniform on the open interval (0, 1).

    Args:
        seeds: 64 bits: the lower half is the image's seed, the upper half numbers its candidates (`best_of`).
        step, stream: which step of the loop and which of its draws; different ones are independent.
    """
    blocks = torch.arange(-(-count // 4), device=seeds.device)
    shape = (len(seeds), len(blocks))
    counter = [
        blocks.expand(shape),
        torch.full(shape, step, device=seeds.device),
        torch.full(shape, stream, device=seeds.device),
        torch.zeros(shape, dtype=torch.int64, device=seeds.device),
    ]
    words = torch.stack(philox(counter, (seeds[:, None] & _LOW, seeds[:, None] >> 32 & _LOW)), dim=-1)
    words = words.flatten(1)[:, :count]
    # 23 bits and a half: exact in float32, and never 0 or 1.
    return ((words >> 9).float() + 0.5) / 2**23


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """Uniforms on (0, 1) -> standard Gumbel noise."""
    return -(-u.log()).log()


def philox(counter: list[torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """Ten rounds of Philox4x32 on four int64 tensors of 32-bit words and a key of two -> four tensors of words."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words fits 64 bits; wrapping int64 arithmetic keeps every bit of it.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & _LOW) ^ b ^ k0,
            second & _LOW,
            (first >> 32 & _LOW) ^ d ^ k1,
            first & _LOW,
        )
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW, k1 + _KEY_STEPS[1] & _LOW
    return [a, b, c, d]
