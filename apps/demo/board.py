"""The pictures of a run as they are while it lasts, and what is known of each token.

Shapes: b images, h w tokens of the model's grid, H W tokens of the canvas.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from maskimg.drawing import edits
from maskimg.drawing.edits import Edit
from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg_apps.demo import tokens
from vqgan.images import to_pil

VIEWS = ("Tokens", "Confidence", "Critic")


class Board:
    """The pictures of a run as they are while it lasts: at the model's scale, the grid's place decoded."""

    def __init__(self, edit: Edit, stride: int, b: int):
        self.stride, self.places, self.grid = stride, edit.places, edit.grid
        self.masked = edit.masked.cpu().numpy()  # at the beginning
        # Not the hole itself: a reel would keep the picture at its full size.
        self.canvases = [edit.hole.canvas.copy() for _ in range(b)] if edit.hole else None
        self.cells = edit.hole.tokens[0].cpu().numpy() if edit.hole else self.masked[0]
        H, W = edit.codes.shape[1:]
        self.seen = edit.hole.box if edit.hole else edit.box or (0, 0, W * stride, H * stride)
        left, top, right, bottom = (side / stride for side in self.seen)
        self.box: tokens.Box = (left, top, right, bottom)
        self.settled: list[tuple[int, torch.Tensor]] = []  # places that are done and not on the canvases yet

    def before(self) -> list[Image.Image] | None:
        """What is seen (b) before anything is drawn; None where that is nothing."""
        return [canvas.crop(self.seen) for canvas in self.canvases] if self.canvases else None

    def settle(self, place: int, part: torch.Tensor) -> None:
        """Codes (b, h, w) that stay at their place; decoded when they are seen next."""
        self.settled.append((place, part))

    def pictures(self, pipeline: Pipeline, place: int, part: torch.Tensor) -> list[Image.Image]:
        """Complete codes (b, h, w) at a place -> what is seen of the pictures (b)."""
        if self.canvases is None:
            return [to_pil(image).crop(self.seen) for image in pipeline.decode(part)]
        for there, codes in self.settled:
            self._paste(pipeline, self.canvases, there, codes)
        self.settled = []
        canvases = [canvas.copy() for canvas in self.canvases]
        self._paste(pipeline, canvases, place, part)
        return [canvas.crop(self.seen) for canvas in canvases]

    def spread(self, place: int, scores: torch.Tensor) -> list[np.ndarray]:
        """Scores (b, h, w) of the model's grid -> of the whole canvas, NaN outside it and where codes were given."""
        whole = np.full((len(scores), *self.masked.shape[1:]), np.nan, np.float32)
        (top, left), (h, w) = self.places[place], self.grid
        whole[:, top : top + h, left : left + w] = scores.float().cpu().numpy()
        return list(np.where(self.masked[: len(scores)], whole, np.nan))

    def _paste(self, pipeline: Pipeline, canvases: list[Image.Image], place: int, part: torch.Tensor) -> None:
        (top, left), (h, w) = self.places[place], self.grid
        cells = self.cells[top : top + h, left : left + w]
        size = w * self.stride, h * self.stride
        cover = Image.fromarray((cells * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        for canvas, image in zip(canvases, pipeline.decode(part), strict=True):
            canvas.paste(to_pil(image), (left * self.stride, top * self.stride), cover)


def layers_of(
    pipeline: Pipeline,
    request: Request,
    board: Board,
    place: int,
    part: torch.Tensor,
    scores: torch.Tensor,
    views: Sequence[str],
) -> dict[str, list[np.ndarray]]:
    """What the views of scores show of complete codes (b, h, w)."""
    found, by_critic = {}, pipeline.sampler(request.sampler).order == "critic"
    if "Confidence" in views and not by_critic:  # whose scores are the critic's
        found["confidence"] = board.spread(place, scores.float().exp())
    if pipeline.generator.has_critic and ("Critic" in views or by_critic):
        found["critic"] = board.spread(place, (-pipeline.doubts(request, part.to(pipeline.device))).sigmoid())
    return found


def completed(
    pipeline: Pipeline, request: Request, part: torch.Tensor, scores: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, h, w) with what the network would draw now where they are MASK, and the scores of all."""
    masked = part == pipeline.mask_id
    if not masked.any():
        return part, scores
    at_once = dataclasses.replace(pipeline.sampler(request.sampler), order="confidence", steps=1, counts=())
    once = dataclasses.replace(request, seeds=request.seeds[: len(part)], sampler=at_once, best_of=1)
    *_, last = pipeline.steps(edits.completion(pipeline, part), once)
    return last.part, torch.where(masked, last.scores.to(scores.device), scores)


def nearest(pipeline: Pipeline, part: torch.Tensor) -> torch.Tensor:
    """Codes (b, h, w) with the nearest drawn code where they are MASK: lies under the hatching, and costs no pass."""
    _, h, w = part.shape
    cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).to(part.device, torch.float32)  # (n, 2)
    filled = []
    for codes in part.flatten(1):
        known = codes != pipeline.mask_id
        drawn = codes[known] if known.any() else torch.zeros_like(codes)
        places = cells[known] if known.any() else cells
        filled.append(drawn[torch.cdist(cells, places).argmin(1)])
    return torch.stack(filled).view(-1, h, w)
