"""Whole generations as CUDA graphs: at small batches a GPU spends most of its time being told what to do next.

Every shape in the sampling loop is known before it begins and nothing in it waits for the device, so the loop, all
its steps together, is recorded once and then replayed with other labels and seeds.

Shapes: b images, h w tokens, f label fields.
"""

from typing import Any, NamedTuple

import torch

from maskimg.conditions import Condition, as_condition
from maskimg.maskgit import MaskGit
from maskimg.sampler import Sampler
from maskimg.sampling import Step, check_finite, make_counts, sample_steps

KEPT = 6  # recordings; each holds the memory of its own intermediate results


class Recording(NamedTuple):
    """A graph with its inputs and the last Step, tensors that stay in place."""

    graph: Any
    condition: Condition
    seeds: torch.Tensor
    last: Step


class GraphedSampler:
    """Draws from all-MASK grids on a CUDA device; one recording for each batch size and Sampler."""

    def __init__(self, model: MaskGit):
        self.model = model
        self.recordings: dict[tuple[int, Sampler, tuple], Recording] = {}

    @torch.no_grad()
    def __call__(self, condition: Condition | torch.Tensor | None, sampler: Sampler, seeds: torch.Tensor) -> Step:
        """The condition of b images, or their labels (b, f) alone, and seeds (b,) -> the last Step of their loop.

        Raises:
            RuntimeError: this device or driver cannot record the loop.
            ValueError: the model's predictions are not finite.
        """
        condition = as_condition(condition)
        key = (len(seeds), sampler, tuple(tensor.shape for tensor in condition.tensors))
        if key not in self.recordings:
            if len(self.recordings) >= KEPT:
                del self.recordings[next(iter(self.recordings))]  # the oldest
            self.recordings[key] = self._record(condition, sampler, seeds)
        recording = self.recordings[key]
        recording.seeds.copy_(seeds)
        for kept, new in zip(recording.condition.tensors, condition.tensors, strict=True):
            kept.copy_(new)
        recording.graph.replay()
        check_finite(recording.last.scores, next(self.model.parameters()).dtype)
        return Step(*(tensor.clone() for tensor in recording.last))

    def _record(self, condition: Condition, sampler: Sampler, seeds: torch.Tensor) -> Recording:
        condition = condition.map(torch.clone)
        seeds = seeds.clone()
        h, w = self.model.grid
        masked = torch.full((len(seeds), h, w), self.model.mask_id, device=seeds.device)
        counts = make_counts(torch.full((len(seeds),), h * w), sampler, seeds.device)

        def draw() -> Step:
            *_, last = sample_steps(self.model, masked, condition, sampler, seeds, complete=False, counts=counts)
            return last

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries and caches set themselves up before the recording
            for _ in range(2):
                draw()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            last = draw()
        return Recording(graph, condition, seeds, last)
