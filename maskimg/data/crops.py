"""Views of pictures: moved a little, or random resized crops; drawn once and encoded with the pictures.

Shapes: b pictures, H W pixels.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torchvision.transforms.v2 import functional

from maskimg.data.pictures import move
from maskimg.noise import uniform

MARGIN = 1.25  # how much larger than a crop the pictures are read, so that no crop is an enlargement
STREAM = 0xC20B  # of the noise: crops share it with nothing else


@dataclasses.dataclass(frozen=True)
class Versions:
    """How pictures are moved.

    Attributes:
        versions: how often each picture is encoded: once as it is, and then moved by up to a sixteenth of its side.
        flip: mirror every second version. Leave it off where left and right mean something, as in writing.
    """

    versions: int = 4
    flip: bool = False

    def __call__(self, pixels: torch.Tensor, batch: int, seed: int) -> Iterator[torch.Tensor]:
        """uint8 (b, 3, H, W), `versions` times; how they are moved depends on seed and number of the batch only."""
        generator = torch.Generator().manual_seed((seed << 32) + batch)
        for version in range(self.versions):
            moved = pixels if version == 0 else move(pixels, pixels.shape[-1] // 16, generator)
            yield moved.flip(-1) if self.flip and version % 2 else moved


@dataclasses.dataclass(frozen=True)
class Crops:
    """How pictures are cropped.

    Attributes:
        size: side of each crop in pixels.
        count: crops of each picture; the first is all of it, the others are squares of `size` pixels or more.
        flips: each crop mirrored as well. Leave it off where left and right mean something, as in writing.
    """

    size: int
    count: int
    flips: bool = False

    def __post_init__(self):
        if self.size < 1 or self.count < 1:
            raise ValueError(f"size and count of crops must be 1 or more, got {self.size} and {self.count}")

    @property
    def views(self) -> int:
        return self.count * (2 if self.flips else 1)

    @property
    def source_size(self) -> int:
        """The side at which pictures should be read."""
        return self.size if self.count == 1 else round(self.size * MARGIN)

    def __call__(self, pixels: torch.Tensor, places: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
        """uint8 (b, 3, H, W), `views` times cropped: (b, 3, size, size); what is cut depends on seed and place only.

        Args:
            places: (b,) numbers of the pictures, each with its own randomness.
        """
        side = pixels.shape[-1]
        if side < self.size:
            raise ValueError(f"crops of {self.size} pixels need pictures of as many, got {side}")
        for number in range(self.count):
            boxes = self._boxes(side, places, seed, number)
            cropped = torch.stack(
                [self._cut(picture, *box) for picture, box in zip(pixels, boxes.tolist(), strict=True)]
            )
            yield cropped
            if self.flips:
                yield cropped.flip(-1)

    def _boxes(self, side: int, places: torch.Tensor, seed: int, number: int) -> torch.Tensor:
        """Top, left and side of each crop (b, 3)."""
        if number == 0:
            return torch.tensor([0, 0, side]).expand(len(places), 3)
        u = uniform(places + (seed << 32), number, STREAM, 3)  # (b, 3)
        # Uniform in area, as torchvision's RandomResizedCrop.
        areas = self.size**2 + u[:, 0] * (side**2 - self.size**2)
        sides = areas.sqrt().round().clamp(self.size, side)
        corners = (u[:, 1:] * (side - sides + 1)[:, None]).floor()
        return torch.cat((corners, sides[:, None]), dim=1).long()

    def _cut(self, picture: torch.Tensor, top: int, left: int, side: int) -> torch.Tensor:
        return functional.resized_crop(picture, top, left, side, side, [self.size, self.size], antialias=True)
