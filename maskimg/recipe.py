"""The recipe inside a PNG: everything that is needed to draw the picture again."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from maskimg.marks import KEY, MAX_TEXT, PNG, to_json
from maskimg.outputs import require_ours
from vqgan.images import read_image
from vqgan.writing import atomic_file


def write_png(image: Image.Image, recipe: dict[str, Any], path: Path, *, force: bool = False) -> None:
    """Write a PNG with its recipe (or mark) inside, whole or not at all.

    Raises:
        ValueError: it would replace a file that maskimg did not make, and `force` does not allow that.
    """
    require_ours(path, force=force)
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_text(recipe))


def png_text(recipe: dict[str, Any]) -> PngInfo:
    """The recipe as PNG text: JSON under `maskimg`, and a line for people under `parameters`; of a mark, only JSON."""
    text = PngInfo()
    text.add_itxt(KEY, to_json(recipe))
    if "sampler" in recipe:
        text.add_itxt("parameters", describe(recipe).encode("utf-8", "backslashreplace").decode())
    return text


def describe(recipe: Mapping[str, Any]) -> str:
    """A recipe in one line."""
    label = ", ".join(f"{field}: {name}" for field, name in recipe["label"].items()) or "no label"
    sampler = recipe["sampler"]
    return (
        f"{label}; seed {recipe['seed']}, {sampler['steps']} steps, {sampler['order']} order, "
        f"guidance {sampler['guidance']}, model {recipe['model']}"
    )


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe in a PNG, or None where there is none (or one too long or too odd to be ours).

    Raises:
        ImageError: the file is not a readable picture.
    """
    return recipe_in(read_image(path).info)


def recipe_in(text: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The same of the text that was written into a PNG."""
    found = text.get(KEY)
    if not isinstance(found, str) or len(found) > MAX_TEXT:
        return None
    try:
        recipe = json.loads(found)
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None


def is_whole(path: Path) -> bool:
    """Whether each part of a PNG still has the checksum it was written with: Pillow looks at no checksum of pixels."""
    data = path.read_bytes()
    place, kind = len(PNG), b""
    while place + 12 <= len(data):  # length, kind, content, checksum
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if data[end : end + 4] != zlib.crc32(data[place + 4 : end]).to_bytes(4, "big"):
            return False
        place = end + 4
    return data.startswith(PNG) and place == len(data) and kind == b"IEND"
