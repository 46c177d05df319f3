"""Edits: what the sampling loop starts from, and the way back to pixels.

Generation, inpainting, outpainting, variation and translation differ only in which codes are MASK at the start. A code
that is given never changes. Where a picture has more tokens than the model's grid, the grid slides over it, see
`maskimg.drawing.places`.

Shapes: b images, h w tokens of the canvas, which is at least as large as the model's grid.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from maskimg.drawing.hole import Hole, lay_out, make_hole, make_margins, tokens_along
from maskimg.drawing.model import Model
from maskimg.drawing.paint import Mask
from maskimg.drawing.places import plan_places
from maskimg.masking import mask_lowest
from maskimg.noise import uniform
from maskimg.recipe import recipe_in
from maskimg.values import real_number, whole_number
from vqgan.images import pad_square, to_pil
from vqgan.original import Original, original_of

VARY = 3  # the stream of noise that says which tokens a variation redraws; 0 to 2 are the sampling loop's


@dataclasses.dataclass(frozen=True)
class Edit:
    """What the loop starts from, and the way back to pixels.

    Attributes:
        task, numbers: what the recipe says about it: its name, and options by name.
        codes: (b, h, w), or (1, h, w) for all images, with MASK where something is to be drawn.
        grid: the model's.
        mask_id: MASK.
        hole: the way back for the pixels; None where the canvas is the picture.
        stages: masked tokens (1, h, w) that are drawn before any other, if there are such.
        box: the part (left, top, right, bottom) of the canvas that is the picture, where it is not all of it.
        input_codes: (1, h, w) of the picture that a translation starts from.
    """

    task: str
    numbers: dict[str, Any]
    codes: torch.Tensor
    grid: tuple[int, int]
    mask_id: int
    hole: Hole | None = None
    stages: tuple[torch.Tensor, ...] = ()
    box: tuple[int, int, int, int] | None = None
    input_codes: torch.Tensor | None = None

    @property
    def note(self) -> str:
        """What a person should know about the mask; mostly empty."""
        return self.hole.note if self.hole else ""

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


def generation(model: Model) -> Edit:
    """Nothing is given."""
    codes = torch.full((1, *model.grid), model.mask_id)
    return Edit("generate", {}, codes, model.grid, model.mask_id)


def completion(model: Model, codes: torch.Tensor) -> Edit:
    """Codes (b, h, w) of the model's grid, MASK where something is to be drawn; b is 1, or a grid for each seed.

    Raises:
        WrongType: they are no integers. ValueError: they are of another shape, or out of range.
    """
    model.check_codes(codes, model.mask_id)
    return Edit("complete", {"tokens_redrawn": int((codes == model.mask_id).sum())}, codes, model.grid, model.mask_id)


def inpainting(
    model: Model,
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
    hole = make_hole(image, mask, model.grid, model.stride, **options)
    codes = model.encode(hole.canvas)
    codes = codes.masked_fill(hole.tokens.to(codes.device), model.mask_id)
    numbers = {"tokens_redrawn": int(hole.tokens.sum())} | options
    return Edit("inpaint", numbers, codes, model.grid, model.mask_id, hole)


def outpainting(
    model: Model,
    image: Image.Image | Original,
    margins: tuple[int, int, int, int],
    window: int | None = None,
) -> Edit:
    """New margins (left, top, right, bottom; in tokens) around a picture; errors are those of `make_margins`.

    Args:
        window: as in `lay_out`; if not given, that of a file that was outpainted before, so that drawing on keeps its
            scale; of any other, the picture's shorter side.
    """
    stride, image = model.stride, original_of(image)
    window = window_for(image) if window is None else window
    hole = make_margins(image, margins, model.grid, stride, window)
    left, top, right, bottom = (int(margin) for margin in margins)
    h, w = hole.tokens.shape[1:]
    codes = torch.full((1, h, w), model.mask_id, device=model.device)
    inner = hole.canvas.crop((left * stride, top * stride, (w - right) * stride, (h - bottom) * stride))
    codes[:, top : h - bottom, left : w - right] = model.encode(inner)

    # The sides first, so that the corners, which are drawn with top and bottom, have something on two sides.
    sides = hole.tokens.clone()
    sides[:, :top], sides[:, h - bottom :] = False, False
    numbers = {"tokens_redrawn": int(hole.tokens.sum()), "margins": [left, top, right, bottom], "window": int(window)}
    return Edit("outpaint", numbers, codes, model.grid, model.mask_id, hole, (sides,))


def window_for(image: Original) -> int:
    """The window in which an outpainting sees a picture, if none is asked for."""
    recipe = recipe_in(image.text) or {}
    window = recipe.get("window") if recipe.get("task") == "outpaint" else None
    return window if isinstance(window, int) and 0 < window <= min(image.size) else min(image.size)


def variation(
    model: Model,
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
    grid, stride = model.grid, model.stride
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
    codes = model.encode(hole.canvas)
    codes = torch.where(redrawn.to(codes.device), model.mask_id, codes)
    numbers = {"tokens_redrawn": count, "strength": strength}
    return Edit("vary", numbers, codes, grid, model.mask_id, hole)


def translation(model: Model, image: Image.Image | Original) -> Edit:
    """Everything drawn anew, with `image` as the input picture.

    Raises:
        ValueError: the model was trained without input pictures.
    """
    square, box = pad_square(original_of(image).rgb, model.image_size)
    input_codes = model.encode_input(square)
    codes = torch.full((1, *model.grid), model.mask_id)
    numbers = {"tokens_redrawn": codes.numel(), "source": model.source_kind}
    return Edit("translate", numbers, codes, model.grid, model.mask_id, box=box, input_codes=input_codes)
