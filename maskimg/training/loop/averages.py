"""Averaged weights, which are what a training leaves behind."""

import torch
from torch import nn

from maskimg.distributed import whole


class Ema:
    """Exponential moving average of a module's weights, with a ramp so that short runs profit too.

    The ramp is the power-function average of exponent 8 (Karras et al. 2024, arXiv 2312.02696, section 3.1): weights
    count in proportion to step^8, that is over the last tenth of what has been trained, until `decay` is reached.

    Buffers are copied: a codebook that moves by averages is one already, and averaged again its restarted codes would
    lie between where they were and where they are.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.averaged = {name for name, _ in module.named_parameters()}
        self.shadow = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        weights, averages = [], []
        for name, tensor in module.state_dict().items():
            if name in self.averaged:
                weights.append(tensor)
                averages.append(self.shadow[name])
            else:
                self.shadow[name].copy_(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def copy_to(self, module: nn.Module) -> None:
        """Into a module that is not sharded; with sharded averages, every process has to call it."""
        module.load_state_dict({name: whole(tensor) for name, tensor in self.shadow.items()})
