"""How many tokens each step of the sampling loop masks, known before the loop begins.

So every shape in the loop is fixed and nothing in it waits for the device.

Shapes: b images.
"""

from typing import NamedTuple

import torch

from maskimg.masking import masked_counts
from maskimg.sampler import Sampler


class Counts(NamedTuple):
    """The number of tokens that each step gives back and leaves masked, for each image and at most.

    Attributes:
        returned, after: (steps, b) on the device.
        most_masked, most_revealed: the largest number of an image, as ints, a step each.
        steps: after this many, every image is complete; 0 if there is nothing to draw.
    """

    returned: torch.Tensor
    after: torch.Tensor
    most_masked: list[int]
    most_revealed: list[int]
    steps: int


def make_counts(unknown: torch.Tensor, sampler: Sampler, device: torch.device | str = "cpu") -> Counts:
    """The counts of every step for images with `unknown` (b,) tokens to draw."""
    unknown = unknown.cpu().long()
    after = masked_counts(unknown, sampler.steps, sampler.schedule, sampler.counts).T  # (steps, b)
    before = torch.cat((unknown[None], after[:-1]))
    # Of the tokens drawn so far a share is given back, but no more than stay masked after the step: ReMDM's limit on
    # it, sigma <= (1 - alpha_s) / alpha_t. So the last step gives nothing back, and a finished image is left alone.
    returned = (sampler.revise * (unknown - before)).round().long().minimum(after)
    masked = before + returned
    most_masked, most_revealed = (
        [max(of_step, default=0) for of_step in counts.tolist()] for counts in (masked, masked - after)
    )
    # A step that no image needs is not run: a forward pass that reveals nothing is wasted.
    steps = sum(most > 0 for most in most_masked)
    return Counts(returned.to(device), after.to(device), most_masked, most_revealed, steps)
