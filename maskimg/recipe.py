"""The recipe inside a file: everything that is needed to draw a picture again, and the sign that maskimg made it.

A file that no sampler drew holds a mark instead. A PNG holds either as text under `maskimg`, a JSON file under the key
`maskimg`, an array (.npz) in the comment of its archive, and a text file in its first line. To tell whose a picture is,
only the text in front of its pixels is read, so that one that was cut off, or that is larger than what may be opened,
still says it.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from maskimg import __version__
from vqgan.images import read_image

KEY = "maskimg"
MAX_TEXT = 65536  # bytes of a recipe or mark
MAX_JSON = 64_000_000  # bytes of a JSON file; ours are far smaller
PNG, ZIP, LINE = b"\x89PNG\r\n\x1a\n", b"PK", b"# {"
# An iTXt chunk that is not compressed and names no language.
PNG_TEXT = KEY.encode() + bytes(5)


def mark(task: str) -> dict[str, Any]:
    """What a file of ours that no sampler drew says of itself."""
    return {"task": task, "version": __version__}


def mark_in(path: Path) -> dict[str, Any] | None:
    """The recipe or mark in a file, or None where there is none; {} in a PNG of ours in which it is cut off or damaged.

    What cannot be read is not taken for ours either.
    """
    try:
        return _found(path)
    except OSError:
        return None


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold, whatever bytes the names in it have: what is no text becomes an escape of JSON's."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def marked(figures: dict[str, Any], task: str) -> dict[str, Any]:
    """Figures under their mark."""
    return {KEY: mark(task), **figures}


def png_text(recipe: dict[str, Any]) -> PngInfo:
    """The recipe as PNG text: JSON under `maskimg`, and a line for people under `parameters`; of a mark, only JSON."""
    text = PngInfo()
    text.add_itxt(KEY, to_json(recipe))
    if "sampler" in recipe:
        text.add_itxt("parameters", caption(recipe).encode("utf-8", "backslashreplace").decode())
    return text


def caption(recipe: Mapping[str, Any]) -> str:
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


def _found(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(ZIP):
        return _checked(_parsed(_comment(path)))
    if start.startswith(LINE):
        with path.open("rb") as file:
            return _checked(_parsed(file.readline(MAX_TEXT)[2:]))
    if start.startswith(b"{"):
        return _checked(_parsed(path.read_bytes())) if path.stat().st_size <= MAX_JSON else None
    return _mark_in_png(path)


def _mark_in_png(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        # The signature may be damaged: what counts is a chunk of ours.
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind in (b"IDAT", b"IEND"):
                return None
            content = file.read(min(length, MAX_TEXT + len(PNG_TEXT))) if kind == b"iTXt" else b""
            if content.startswith(PNG_TEXT) and len(content) == length:
                whole = file.read(4) == zlib.crc32(kind + content).to_bytes(4, "big")
                return _valid(_parsed(content[len(PNG_TEXT) :])) if whole else {}
            if content.startswith(PNG_TEXT):
                return {} if len(content) < MAX_TEXT else None  # cut off, or longer than ours are
            file.seek(length - len(content) + 4, 1)
    return None


def _comment(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment
    except zipfile.BadZipFile:
        return b""


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # also where it is no UTF-8
        return None


def _checked(content: Any) -> dict[str, Any] | None:
    return _valid(content.get(KEY)) if isinstance(content, dict) else None


def _valid(found: Any) -> dict[str, Any] | None:
    """Recipes and marks have these two in common; `{"maskimg": 0.3}` in somebody's own table has not."""
    named = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("task", "version"))
    return found if named else None
