"""What several test files share: a folder of drawn pictures, and a browser."""

import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[..., list[Path]]:
    """`draw_pictures(folder, count=12, size=32, classes=SHAPES, seed=0)`: see `_draw_pictures`."""
    return _draw_pictures


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium: the one that MASKIMG_CHROMIUM names, else the first on PATH."""
    named = os.environ.get("MASKIMG_CHROMIUM")
    if named:
        if not shutil.which(named):
            pytest.fail(f"MASKIMG_CHROMIUM is `{named}`, which is not a program that can be run")
        return named

    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on PATH: install one, or name it with MASKIMG_CHROMIUM")


def _draw_pictures(
    folder: Path, *, count: int = 12, size: int = 32, classes: Sequence[str] = SHAPES, seed: int = 0
) -> list[Path]:
    """Draw `count` PNGs of size x size pixels, dealt in turn to one subfolder for each class -> their paths.

    The same arguments draw the same pictures. Without classes they lie in the folder itself.
    """
    chance = random.Random(seed)
    paths = []
    for index in range(count):
        name = classes[index % len(classes)] if classes else chance.choice(SHAPES)
        path = (folder / name if classes else folder) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw_shape(name, size, chance).save(path)
        paths.append(path)
    return paths


def _draw_shape(name: str, size: int, chance: random.Random) -> Image.Image:
    # A dark colour on a light one, so that every shape can be seen.
    ground = tuple(chance.randrange(160, 256) for _ in range(3))
    colour = tuple(chance.randrange(0, 128) for _ in range(3))
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)

    radius = chance.uniform(0.2, 0.35) * size
    x, y = (chance.uniform(radius, size - 1 - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        draw.ellipse(box, fill=colour)
    elif name == "square":
        draw.rectangle(box, fill=colour)
    elif name == "triangle":
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        raise ValueError(f"expected a shape of {SHAPES}, got `{name}`")
    return image
