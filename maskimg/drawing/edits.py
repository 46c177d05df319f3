"""Inpainting, outpainting and variations: which codes of a picture are MASK, and where the model's grid is laid.

All three are the one sampling loop of `maskimg.sampling`; they differ in what is masked. Where a picture has more
tokens than the model's grid, the grid slides: it is laid where it completes as much as half of itself and sees what
lies beside that, again and again, until nothing is masked. A given code never changes.

Shapes: b images, h w tokens of the canvas, which is at least as large as the model's grid.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image

from maskimg.data.source_pictures import transform
from maskimg.drawing.hole import Hole, lay_out, make_hole, make_margins, tokens_along
from maskimg.drawing.paint import Mask
from maskimg.drawing.request import Asked
from maskimg.masking import mask_lowest
from maskimg.noise import SEEDS, uniform
from maskimg.recipe import recipe_in
from maskimg.sampler import Sampler
from maskimg.values import real_number, whole_number
from vqgan.images import pad_square, to_pil, to_tensor
from vqgan.original import Original, original_of

if TYPE_CHECKING:
    from maskimg.pipeline import Pipeline

VARY = 3  # the stream of noise that says which tokens a variation redraws; 0 to 2 are the sampling loop's
CANDIDATES = 2**16  # the upper half of a seed numbers the candidates at a place, and counts the places in these


@dataclasses.dataclass(frozen=True)
class Edit:
    """A drawing that begins with something given.

    Attributes:
        task, numbers: what the recipe says about it.
        codes: (b, h, w), or (1, h, w) for all images, with MASK where something is to be drawn.
        grid: the model's.
        mask_id: MASK.
        hole: the way back for the pixels; None where the canvas is the picture.
        stages: masked tokens (1, h, w) that are drawn before any other, if there are such.
        box: the part (left, top, right, bottom) of the canvas that is the picture, where it is not all of it.
    """

    task: str
    numbers: dict[str, Any]
    codes: torch.Tensor
    grid: tuple[int, int]
    mask_id: int
    hole: Hole | None = None
    stages: tuple[torch.Tensor, ...] = ()
    box: tuple[int, int, int, int] | None = None

    @property
    def masked(self) -> torch.Tensor:
        """(b, h, w) bool."""
        return self.codes == self.mask_id

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Where the model's grid is laid, one after the other: top and left token."""
        if self.codes.shape[1:] == self.grid:
            return [(0, 0)]
        masked = self.masked.any(0).cpu()
        found: list[tuple[int, int]] = []
        for stage in self.stages:
            found += plan_places(masked & stage[0], masked & ~stage[0], self.grid)
            masked = masked & ~stage[0]
        return found + plan_places(masked, torch.zeros_like(masked), self.grid)

    def finish(self, images: torch.Tensor) -> list[Image.Image]:
        """Decoded canvases (b, 3, H, W) -> pictures."""
        pictures = [to_pil(image) for image in images]
        if self.box:
            pictures = [picture.crop(self.box) for picture in pictures]
        return [self.hole.paste(picture) for picture in pictures] if self.hole else pictures


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state after a step at one place of the grid.

    Attributes:
        share: of all steps that are done.
        step, steps: at this place, of this candidate.
        place, candidate: which of the edit's places, and of the candidates drawn there.
        part: (b, h, w) of the model's grid, complete. scores: its scores, higher = more certain.
        masked: (b, h, w) of the whole canvas, True = still to be drawn.
        codes: (b, h, w) of the whole canvas, finished where the grid has been; with MASK.
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


def generation(pipeline: "Pipeline") -> Edit:
    """Nothing is given."""
    codes = torch.full((1, *pipeline.grid), pipeline.generator.mask_id)
    return Edit("generate", {}, codes, pipeline.grid, pipeline.generator.mask_id)


def inpainting(
    pipeline: "Pipeline",
    image: Image.Image | Original,
    mask: Mask,
    *,
    coverage: float = 0.0,
    grow: int = 1,
    feather: float = 0.5,
    window: int | None = None,
) -> Edit:
    """The painted part of a picture; options and errors are those of `make_hole`."""
    # Plain numbers, as the recipe is to hold them.
    options: dict[str, Any] = {
        "coverage": real_number("coverage", coverage),
        "grow": whole_number("grow", grow),
        "feather": real_number("feather", feather),
        "window": None if window is None else whole_number("window", window),
    }
    hole = make_hole(image, mask, pipeline.grid, pipeline.tokenizer.stride, **options)
    codes = pipeline.encode(hole.canvas)
    codes = codes.masked_fill(hole.tokens.to(codes.device), pipeline.generator.mask_id)
    numbers = {"tokens_redrawn": int(hole.tokens.sum())} | options
    return Edit("inpaint", numbers, codes, pipeline.grid, pipeline.generator.mask_id, hole)


def outpainting(
    pipeline: "Pipeline",
    image: Image.Image | Original,
    margins: tuple[int, int, int, int],
    window: int | None = None,
) -> Edit:
    """New margins (left, top, right, bottom; in tokens) around a picture; errors are those of `make_margins`.

    Args:
        window: as in `lay_out`; if not given, that of a file that was outpainted before, so that drawing on keeps its
            scale; of any other, the picture's shorter side.
    """
    stride, image = pipeline.tokenizer.stride, original_of(image)
    window = window_for(image) if window is None else window
    hole = make_margins(image, margins, pipeline.grid, stride, window)
    left, top, right, bottom = (int(margin) for margin in margins)
    h, w = hole.tokens.shape[1:]
    codes = torch.full((1, h, w), pipeline.generator.mask_id, device=pipeline.device)
    inner = hole.canvas.crop((left * stride, top * stride, (w - right) * stride, (h - bottom) * stride))
    codes[:, top : h - bottom, left : w - right] = pipeline.encode(inner)

    # The sides first, so that the corners, which are drawn with top and bottom, have something on two sides.
    sides = hole.tokens.clone()
    sides[:, :top], sides[:, h - bottom :] = False, False
    numbers = {"tokens_redrawn": int(hole.tokens.sum()), "margins": [left, top, right, bottom], "window": int(window)}
    return Edit("outpaint", numbers, codes, pipeline.grid, pipeline.generator.mask_id, hole, (sides,))


def window_for(image: Original) -> int:
    """The window in which an outpainting sees a picture, if none is asked for."""
    recipe = recipe_in(image.text) or {}
    window = recipe.get("window") if recipe.get("task") == "outpaint" else None
    return window if isinstance(window, int) and 0 < window <= min(image.size) else min(image.size)


def variation(
    pipeline: "Pipeline",
    image: Image.Image | Original,
    strength: float,
    seeds: Sequence[int],
    mask: Mask | None = None,
) -> Edit:
    """A share of a picture's tokens, others for each seed; with more strength the same ones and more.

    Args:
        strength: the share, above 0 and at most 1.
        mask: only what is painted here; the pixels of all other tokens stay. Without a mask the whole picture is
            decoded, at the model's size.

    Raises:
        ImageError: a file cannot be read. ValueError: the strength is out of range, nothing is painted, or the sizes
            differ.
    """
    strength = real_number("strength", strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    grid, stride = pipeline.grid, pipeline.tokenizer.stride
    if mask is None:
        canvas, box = lay_out(original_of(image).rgb, grid, stride, None)
        rows = tokens_along(box[3] - box[1], box[1], box[3], stride)
        columns = tokens_along(box[2] - box[0], box[0], box[2], stride)
        tokens = torch.zeros(1, *grid, dtype=torch.bool)
        tokens[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        hole = Hole(original_of(canvas.crop(box)), canvas, box, tokens, rows, columns)
    else:
        hole = make_hole(image, mask, grid, stride, grow=0)

    # So many of the tokens in reach, those with the lowest numbers.
    count = max(1, round(strength * int(hole.tokens.sum())))
    chance = uniform(torch.tensor(seeds), 0, VARY, grid[0] * grid[1]).view(-1, *grid)
    redrawn = mask_lowest(chance.masked_fill(~hole.tokens, torch.inf), torch.full((len(seeds),), count))
    codes = pipeline.encode(hole.canvas)
    codes = torch.where(redrawn.to(codes.device), pipeline.generator.mask_id, codes)
    numbers = {"tokens_redrawn": count, "strength": strength}
    return Edit("vary", numbers, codes, grid, pipeline.generator.mask_id, hole)


def translation(pipeline: "Pipeline", image: Image.Image | Original) -> tuple[Edit, torch.Tensor]:
    """Everything drawn anew, from the codes (1, h, w) of `image`, which are returned too; for a Prompt's `source`.

    Raises:
        ValueError: the model was trained without sources.
    """
    if not pipeline.source_kind:
        raise ValueError("this model was trained without source pictures, so it cannot translate one")
    square, box = pad_square(original_of(image).rgb, pipeline.image_size)
    source = transform(pipeline.source_kind, to_tensor(square)[None]).to(pipeline.device)
    codes = torch.full((1, *pipeline.grid), pipeline.generator.mask_id)
    numbers = {"tokens_redrawn": codes.numel(), "source": pipeline.source_kind}
    edit = Edit("translate", numbers, codes, pipeline.grid, pipeline.generator.mask_id, box=box)
    return edit, pipeline.source_tokenizer.encode(source)


def draw_steps(
    pipeline: "Pipeline",
    edit: Edit,
    label: Asked,
    seeds: Sequence[int],
    *,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    complete: bool = True,
) -> Iterator[Progress]:
    """Draw what an edit asks for and yield after every step; the last has the finished `codes`.

    Args:
        complete: show what is predicted for tokens that stay masked, as in `Pipeline.steps`.

    Raises:
        ValueError: as in `Pipeline.generate`.
    """
    pipeline.check_candidates(best_of)
    if not bool(edit.masked.any()):
        raise ValueError("there is nothing to draw: no token is masked")
    h, w = edit.grid
    codes = edit.codes.to(pipeline.device).expand(len(seeds), -1, -1).clone()
    runs = best_of * len(edit.places)
    for place, (top, left) in enumerate(edit.places):
        here = slice(None), slice(top, top + h), slice(left, left + w)
        found, last = [], None
        for candidate in range(best_of):
            numbered = [seed + (candidate + CANDIDATES * place) * SEEDS for seed in seeds]
            options: dict[str, Any] = {"seeds": numbered, "sampler": sampler, "complete": complete}
            for preview in pipeline.steps(label, codes=codes[here], **options):
                masked = codes == edit.mask_id
                masked[here] = preview.masked
                share = (place * best_of + candidate + preview.step / preview.steps) / runs
                state = (preview.step, preview.steps, place, candidate, preview.codes, preview.scores, masked)
                last = Progress(share, *state, codes)
                yield last
            if last is not None:  # always: there is something to draw at every place
                found.append(last.part)
        codes[here] = found[0] if best_of == 1 else pipeline.most_believed(label, found)
        if last is not None:
            yield dataclasses.replace(last, part=codes[here], codes=codes.clone(), chosen=True)


def plan_places(masked: torch.Tensor, later: torch.Tensor, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Where to lay a grid of (h, w) tokens, one after the other, until no token of `masked` (H, W) is left.

    Each place completes as much as it can, but at most half of the grid where that is possible, and cuts no masked
    token off from a neighbour that is there already. No place reaches into `later` (H, W): what is drawn afterwards.
    """
    h, w = grid
    masked = masked.clone()
    allowed = _sums(later, h, w) == 0
    half, places = h * w // 2, []
    while bool(masked.any()):
        count = _sums(masked, h, w)
        over = count > half
        # In this order: at most half, nothing cut off, as many as possible (or, above half, as few).
        cost = over * 2**40 + _cut(masked, h, w) * 2**20 + torch.where(over, count, -count)
        cost = cost.masked_fill(~allowed | (count == 0), 2**60)
        top, left = divmod(int(cost.argmin()), cost.shape[1])
        places.append((top, left))
        masked[top : top + h, left : left + w] = False
    return places


def _sums(cells: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """How many of `cells` (H, W) each place of an h x w grid covers: (H - h + 1, W - w + 1) int64."""
    corner = F.pad(cells.long(), (1, 0, 1, 0)).cumsum(0).cumsum(1)
    return corner[h:, w:] - corner[:-h, w:] - corner[h:, :-w] + corner[:-h, :-w]


def _cut(masked: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """At each place of the grid, how many masked tokens at its edge have a known neighbour just outside it."""
    H, W = masked.shape
    total = torch.zeros(H - h + 1, W - w + 1, dtype=torch.int64)
    for turned, rows, columns in ((masked, h, w), (masked.T, w, h)):
        here = total if turned is masked else total.T
        # Above the first row of the grid, and below its last.
        above, below = turned[1:] & ~turned[:-1], turned[:-1] & ~turned[1:]
        here[1:] += _sums(above, 1, columns)[: len(here) - 1]
        here[:-1] += _sums(below, 1, columns)[rows - 1 :]
    return total
