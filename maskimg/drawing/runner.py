"""The one engine: an Edit and a Request become codes and pictures, step by step or at once.

Whatever draws pictures comes here. How the loops are run is nobody else's business: in batches or one by one, compiled,
as a CUDA graph, and with how many candidates.

Shapes: b pictures, h w tokens of the model's grid, H W tokens of the canvas.
"""

import copy
import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from maskimg import __version__
from maskimg.conditions import Condition
from maskimg.drawing.batches import in_batches
from maskimg.drawing.edits import Edit, generation
from maskimg.drawing.graphs import GraphedSampler
from maskimg.drawing.model import Model
from maskimg.drawing.request import Asked, Request, as_request
from maskimg.hardware import compile_blocks, compile_fault
from maskimg.maskgit import MaskGit
from maskimg.network import Network
from maskimg.noise import SEEDS
from maskimg.outputs import require_free, write_png
from maskimg.sampler import Sampler
from maskimg.sampling import Step
from maskimg.values import instance, whole_number
from vqgan import Tokenizer
from vqgan.colour import PictureWarning

TOGETHER = 16  # pictures of a compiled loop on a CPU, always: fewer take as long
CANDIDATES = 2**16  # the upper half of a seed numbers the candidates at a place, and counts the places in these


@dataclasses.dataclass(frozen=True)
class Result:
    """Finished pictures, the codes (b, H, W) they were decoded from, and the recipe that draws each again."""

    images: list[Image.Image]
    codes: torch.Tensor
    recipes: list[dict[str, Any]]

    def save(self, directory: str | Path, *, force: bool = False) -> list[Path]:
        """Write each picture, with its recipe inside, as DIRECTORY/SEED.png.

        Raises:
            ValueError: one of them would replace a file that maskimg did not make, and `force` does not allow that;
                nothing is written.
        """
        directory = Path(directory)
        paths = [directory / f"{recipe['seed']:06d}.png" for recipe in self.recipes]
        for path, recipe in zip(paths, self.recipes, strict=True):
            require_free(path, task=recipe["task"], force=force)
        for image, recipe, path in zip(self.images, self.recipes, paths, strict=True):
            write_png(image, recipe, path, force=force)
        return paths


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state after a step at one place of the grid.

    Attributes:
        share: of all steps that are done.
        step, steps: at this place, of this candidate.
        place, candidate: which of the edit's places, and of the candidates drawn there.
        part: (b, h, w) of the model's grid. Where `masked`, it holds what is predicted now, or MASK, as was asked.
        scores: (b, h, w) of `part`, higher = more certain.
        masked: (b, H, W) of the whole canvas, True = still to be drawn.
        codes: (b, H, W) of the whole canvas, finished where the grid has been; with MASK.
        chosen: `part` is final: the one candidate, or the best.
    """

    share: float
    step: int
    steps: int
    place: int
    candidate: int
    part: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor
    codes: torch.Tensor
    chosen: bool = False


class Runner(Model):
    """A model that draws.

    Attributes:
        compiled: the networks' blocks are compiled: seconds at the first picture, then two or three times as fast for
            many of one label. A CPU then draws sixteen at a time, and one costs as much. Rounding differs, and in bf16
            so does the picture of a seed; the recipe says which it was.
        graphs: record whole generations as CUDA graphs; switched off where that fails.
    """

    def __init__(self, tokenizer: Tokenizer, net: Network | MaskGit, *parts: Any, compile: bool = False, **about: Any):
        """The arguments of Model, and whether to compile.

        Raises:
            ValueError: as in Model; or compiling is not possible here.
        """
        super().__init__(tokenizer, net, *parts, **about)
        if compile:
            require_compiler(self.device)
        self.compiled = compile
        self.graphs = self.device.type == "cuda"
        self._graphed: GraphedSampler | None = None
        self._running: MaskGit | None = None

    @property
    def running(self) -> MaskGit:
        """The generator with its weights in the number format that pictures are drawn in.

        A copy where that is not fp32: weights converted at every step would take longer than a small model's steps,
        and `generator` must stay exact for `save_pretrained`.
        """
        if self._running is None:
            same = self.dtype == torch.float32
            self._running = self.generator if same else copy.deepcopy(self.generator).to(self.dtype)
            if self.compiled:
                compile_blocks(self._running, self.device)
        return self._running

    def draw(self, edit: Edit | None, request: Request) -> Result:
        """Draw what a request asks for, from what the edit begins with; `steps` does the same step by step.

        Args:
            edit: made by a function of `maskimg.drawing.edits`; None draws from nothing.

        Raises:
            WrongType: it is no Edit. ValueError: the request asks for what the model does not know or cannot do, or the
                edit leaves nothing to draw.
        """
        edit = self._checked(edit, request)
        if edit.note:
            warnings.warn(edit.note, PictureWarning, stacklevel=3)
        recipes = [self.recipe_for(request, seed, edit) for seed in request.seeds]
        *_, last = self._steps(edit, request, complete=False, every=False)
        return Result(edit.finish(self.decode(last.codes)), last.codes, recipes)

    def steps(self, edit: Edit | None, request: Request, *, complete: bool = False) -> Iterator[Progress]:
        """Draw, and yield after every step; the last Progress has the finished `codes`.

        Args:
            edit: as in `draw`.
            complete: show in each step what is predicted for tokens that stay masked; else they are MASK.

        Raises:
            As `draw`.
        """
        edit = self._checked(edit, request)
        return self._steps(edit, request, complete=complete, every=True)

    def recipe_for(self, asked: Asked, seed: int, edit: Edit | None = None) -> dict[str, Any]:
        """What is written into the PNG of one seed of a request, drawn from nothing if there is no edit.

        Raises:
            ValueError: as in `draw`.
        """
        request = as_request(asked)
        self.check_critic(request)
        recipe = {
            "version": __version__,
            "model": self.name,
            "model_sha256": self.about.get("manifest_sha256"),
            "task": edit.task if edit else "generate",
            **self.reader.in_recipe(request),
            "seed": whole_number("seed", seed, 0, SEEDS - 1),
            "sampler": self.sampler(request.sampler).numbers(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        recipe |= {"compiled": True} if self.compiled else {}
        recipe |= {"best_of": request.best_of} if request.best_of > 1 else {}
        return recipe | (edit.numbers if edit else {})

    def doubts(self, asked: Asked, codes: torch.Tensor) -> torch.Tensor:
        """The critic's opinion of complete codes (b, h, w): (b, h, w), high where a token looks wrong.

        Raises:
            ValueError: the model has no critic.
        """
        self.check_codes(codes, self.mask_id - 1)
        return self._doubts(self.reader.condition(asked), codes)

    def _checked(self, edit: Edit | None, request: Request) -> Edit:
        """The edit, or the one that begins with nothing; refused where it and the request cannot be drawn."""
        edit = generation(self) if edit is None else edit
        instance("edit", edit, Edit, "an Edit, as those that `maskimg.drawing.edits` makes, or None")
        instance("request", request, Request, "a Request")
        self.check_critic(request)
        if len(edit.codes) not in (1, len(request.seeds)):
            raise ValueError(f"expected one seed for each of {len(edit.codes)} grids, got {len(request.seeds)}")
        if not bool(edit.masked.any()):
            raise ValueError("there is nothing to draw: no token is masked")
        return edit

    def _steps(self, edit: Edit, request: Request, *, complete: bool, every: bool) -> Iterator[Progress]:
        """Place by place and candidate by candidate; without `every`, as few states as there are results."""
        (h, w), seeds, sampler = edit.grid, request.seeds, self.sampler(request.sampler)
        condition = self.reader.condition(request, len(seeds), edit.input_codes).to(self.device)
        codes = edit.codes.to(self.device).expand(len(seeds), -1, -1).clone()
        runs = itertools.count()
        for place, (top, left) in enumerate(edit.places):
            here = slice(None), slice(top, top + h), slice(left, left + w)
            found, last = [], None
            for candidate in range(request.best_of):
                # The first candidate at the first place is the plain picture of its seed.
                numbered = [seed + (candidate + CANDIDATES * place) * SEEDS for seed in seeds]
                run = next(runs)
                loop = self._loop(codes[here], condition, sampler, numbered, complete=complete, every=every)
                for i, step in loop:
                    masked = codes == edit.mask_id
                    masked[here] = step.masked
                    share = (run + i / sampler.steps) / (request.best_of * len(edit.places))
                    state = (i, sampler.steps, place, candidate, step.codes, step.scores, masked)
                    last = Progress(share, *state, codes)
                    yield last
                if last is not None:  # always: there is something to draw at every place
                    found.append(last.part)
            codes[here] = self._best(condition, found)
            if last is not None:
                yield dataclasses.replace(last, part=codes[here], codes=codes.clone(), chosen=True)

    def _loop(
        self,
        codes: torch.Tensor,
        condition: Condition,
        sampler: Sampler,
        seeds: Sequence[int],
        *,
        complete: bool,
        every: bool,
    ) -> Iterator[tuple[int, Step]]:
        """The sampling loop for grids (b, h, w) with MASK, as this machine runs it best -> steps and their numbers."""
        chosen = torch.tensor(seeds, device=self.device)
        empty = bool((codes == self.mask_id).all())
        if empty and not every and (last := self._replayed(condition, sampler, chosen)) is not None:
            yield sampler.steps, last
            return
        # On a CPU each image has a loop of its own, so that not even rounding depends on the others, or is one of as
        # many as ever, which comes to the same. On a GPU that would cost nearly all the speed.
        size = 1 if self.device.type == "cpu" else max(1, len(chosen))
        if self.compiled and self.device.type == "cpu" and empty:
            size = TOGETHER
        yield from enumerate(
            in_batches(self.running, codes, condition, sampler, chosen, size=size, complete=complete), start=1
        )

    def _replayed(self, condition: Condition, sampler: Sampler, seeds: torch.Tensor) -> Step | None:
        """All-MASK grids drawn by a CUDA graph; None where there can be none."""
        if not self.graphs:
            return None
        self._graphed = self._graphed or GraphedSampler(self.running)
        try:
            return self._graphed(condition, sampler, seeds)
        except RuntimeError as error:
            self.graphs = False
            warnings.warn(
                f"this GPU cannot record CUDA graphs, so each step is launched on its own ({error})", stacklevel=2
            )
            return None

    def _best(self, condition: Condition, candidates: list[torch.Tensor]) -> torch.Tensor:
        """Of several grids (b, h, w) for each image, those that the critic doubts least on the whole."""
        if len(candidates) == 1:
            return candidates[0]
        doubts = torch.stack([self._doubts(condition.rows(slice(0, 1)), codes).mean((1, 2)) for codes in candidates])
        return torch.stack(candidates)[doubts.argmin(0), torch.arange(doubts.shape[1], device=doubts.device)]

    def _doubts(self, condition: Condition, codes: torch.Tensor) -> torch.Tensor:
        """(b, h, w), one at a time, so that no picture's rank depends on the others; `condition` is of one image."""
        condition = condition.to(self.device)
        with torch.no_grad():
            each = [self.running.critic_logits(codes[i : i + 1], condition) for i in range(len(codes))]
        doubts = torch.cat(each).float()
        self.require_finite(doubts, "doubts")
        return doubts


def require_compiler(device: torch.device) -> None:
    """Raises ValueError where networks cannot be compiled for a device; the message says why."""
    if fault := compile_fault(device):
        raise ValueError(f"compiling is not possible here, because {fault}: leave it out")
