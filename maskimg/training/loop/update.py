"""From a loss to new weights: parts of a batch, gradients over all processes, clipping, guards, optimizers.

The loss of a part is its summand of the whole batch's loss, so that neither the number of parts nor that of processes
changes what is learnt, but for the rounding of sums.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskimg import distributed
from maskimg.training.loop import guards
from maskimg.training.loop.order import parts
from maskimg.training.loop.run import Run

CLIP = 1.0
TRIAL = 100  # steps in which memory may still turn out too small: for all masks, and for the extra work of a log line


class Update:
    """One module's updates.

    Args:
        module: whose gradients are clipped; the optimizers hold its parameters.
        called: what the losses call in its place where several processes train (`distributed.replicated`).
        exchanges: whether the processes exchange something in a forward pass of `called`, as sharded ones do; then they
            cannot try a step again that did not fit into the memory of one.
        accumulation: parts that each process splits its share of a batch into; doubled when memory runs out, by all
            processes at the same step.

    Attributes:
        norm: of the last step's gradient, before it was clipped.
    """

    def __init__(
        self,
        run: Run,
        module: nn.Module,
        optimizers: dict[str, torch.optim.Optimizer],
        *,
        called: nn.Module | None = None,
        exchanges: bool = False,
        accumulation: int = 1,
        clip: float | None = CLIP,
    ):
        self.run, self.module, self.optimizers, self.clip = run, module, optimizers, clip
        self.called, self.exchanges = called if distributed.several() else None, exchanges
        self.accumulation = accumulation
        self.norm = torch.zeros(())
        self._steps = 0  # made with so many parts

    def set_rate(self, rate: float) -> None:
        """The learning rate of all optimizers."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def __call__(
        self, loss_of: Callable[[torch.Tensor], torch.Tensor], size: int, samples: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Places in a batch (b,) -> their summand of the batch's loss: make a step, and return the batch's loss ().

        Args:
            size: samples in the whole batch; `samples`: which those are, for whoever looks for a bad one.

        Raises:
            TrainingError: too many steps were skipped, or memory is too small for a single sample.
        """
        loss = self._gradients(loss_of, size)
        self.norm = norm = self._clipped()
        about = {"loss": loss, "gradient_norm": norm, "learning_rate": self.rate, "samples": samples}
        finite = loss.isfinite() & norm.isfinite()
        if self._skips_on_device(loss.device):
            self._step_where(finite)
            self.run.nonfinite.watch(finite, self.run.step, about)
        elif finite:
            for optimizer in self.optimizers.values():
                optimizer.step()
        else:
            self.run.nonfinite.skip(self.run.step, about)
        return loss

    @property
    def rate(self) -> float:
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])

    @property
    def _on_trial(self) -> bool:
        """Whether gradients are exchanged only when every process has its own, so that all can try again."""
        return self.called is None or (self._steps < TRIAL and not self.exchanges)

    def _gradients(self, loss_of: Callable[[torch.Tensor], torch.Tensor], size: int) -> torch.Tensor:
        """Leave the whole batch's gradient in the parameters; returns its loss."""
        loss = self._attempt(loss_of, size)
        while self._on_trial and any(distributed.highest(loss is None)):
            self.accumulation, sentence = guards.more_parts(size, self.accumulation, self.run.stage)
            self._steps = 0
            self.run.warn(sentence)
            self.run.seed_torch()
            loss = self._attempt(loss_of, size)
        if loss is None:
            raise guards.too_large(size, self.accumulation, self.run.stage)
        if self._on_trial:
            distributed.add_gradients(self.module)
        self._steps += 1
        return distributed.total(loss)

    def _attempt(self, loss_of: Callable[[torch.Tensor], torch.Tensor], size: int) -> torch.Tensor | None:
        """`_accumulated`, or None where this process's memory was too small."""
        try:
            return self._accumulated(loss_of, size)
        except (RuntimeError, MemoryError) as error:
            if not guards.memory_ran_out(error):
                raise
        return None  # outside of `except`, which would hold on to all that the step had made

    def _accumulated(self, loss_of: Callable[[torch.Tensor], torch.Tensor], size: int) -> torch.Tensor:
        """The gradient of this process's share of a batch, in parts; returns the share's loss."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses = []
        mine = parts(size, distributed.rank(), distributed.world(), self.accumulation)
        for part in mine:
            with self._exchange(last=part is mine[-1]):
                loss = loss_of(part)
                # Means over the processes are sums of what each has.
                (loss if self._on_trial else loss * distributed.world()).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _exchange(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged while those of the last part are computed; on trial, not yet."""
        if isinstance(self.called, DistributedDataParallel) and (self._on_trial or not last):
            return self.called.no_sync()
        return contextlib.nullcontext()

    def _clipped(self) -> torch.Tensor:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        return distributed.whole(nn.utils.clip_grad_norm_(parameters, self.clip or torch.inf))

    def _skips_on_device(self, device: torch.device) -> bool:
        """Whether looking at a number would make the host wait, and the optimizers can do without."""
        fused = all(getattr(o, "_step_supports_amp_scaling", False) for o in self.optimizers.values())
        return device.type == "cuda" and fused

    def _step_where(self, finite: torch.Tensor) -> None:
        """A step that the fused kernels leave out where `finite` is not true, without asking the host."""
        for optimizer in self.optimizers.values():
            optimizer.found_inf = 1 - finite.float()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
