"""What all stages of a training share and none of them learns from: device, number format, processes, records."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskimg import distributed
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.training.loop.alone import working_in
from maskimg.training.loop.errors import Stopped, TrainingError
from maskimg.training.loop.guards import SMALL_MEMORY, memory_ran_out
from maskimg.training.tracking.status import NAME, StatusFile


@dataclasses.dataclass(frozen=True)
class Session:
    """Under which circumstances a training runs.

    Attributes:
        device: auto, cpu, cuda or mps. dtype: auto, fp32 or bf16.
        shard: split the generator's weights and its optimizer over the processes of `torchrun` (FSDP2), for models that
            do not fit into the memory of one; else each process has them all (DDP).
        track: `tensorboard`, `trackio` or `wandb`, which receives figures and pictures beside the log.
        allow_data_change: continue a training that began with other pictures, too.
        progress: wraps an iteration that is not a training, such as `tqdm`.
        status: the file that tells how far the training is; if not given, each stage has one of its own.
    """

    device: str = "auto"
    dtype: str = "auto"
    shard: bool = False
    track: str | None = None
    allow_data_change: bool = False
    progress: Callable[..., Iterable[Any]] | None = None
    status: StatusFile | None = None

    @functools.cached_property
    def place(self) -> torch.device:
        return pick_device(self.device)

    @functools.cached_property
    def number_format(self) -> torch.dtype:
        return pick_dtype(self.dtype, self.place)

    def autocast(self) -> torch.autocast:
        """A context that computes in the number format."""
        return autocast(self.place, self.number_format)

    def distribute(self, module: nn.Module, blocks: Iterable[nn.Module] = ()) -> nn.Module:
        """What to call in place of `module`, so that all processes train it: sharded by `blocks`, or replicated."""
        return distributed.sharded(module, blocks) if self.shard else distributed.replicated(module)

    @contextlib.contextmanager
    def working_in(self, directory: Path) -> Iterator["Session"]:
        """Inside, no other process works in `directory`, and its status.json tells how far the training is, and in the
        end how it ended.

        Raises:
            InTheWay, TrainingError: as `alone.working_in`.
        """
        first = distributed.is_first()
        with working_in(directory, active=first):
            status = StatusFile(directory / NAME, active=first)
            status.write()
            try:
                yield dataclasses.replace(self, status=status)
            except (Stopped, KeyboardInterrupt) as stop:
                status.note(state="stopped", message=str(stop) if isinstance(stop, Stopped) else "")
                raise
            except Exception as error:
                status.note(state="failed", message=_sentence(error))
                raise
            status.note(state="done", share=1.0)

    def counted(self, stage: str) -> Callable[..., Iterable[Any]] | None:
        """`progress` for what a stage does besides training; the status tells it, too."""
        status = self.status
        if status is None or not status.active:
            return self.progress

        def count(items: Iterable[Any], *, total: int | None = None, desc: str, **options: Any) -> Iterator[Any]:
            if total is None:
                items = list(items)
                total = len(items)
            status.note(stage=stage, activity=desc, share=0.0, step=0, rate=None, seconds_left=None)
            shown = self.progress(items, total=total, desc=desc, **options) if self.progress else items
            for done, item in enumerate(shown, 1):
                yield item
                if status.due:
                    status.note(share=done / max(1, total))

        return count


def _sentence(error: Exception) -> str:
    """Why a training failed, for people; empty for a fault of our own, which only its traceback can tell."""
    if memory_ran_out(error) and not isinstance(error, TrainingError):
        return SMALL_MEMORY
    return str(error) if isinstance(error, ValueError | OSError | TrainingError) else ""
