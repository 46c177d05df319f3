"""What pictures are read from: a source lists its files once and hands their contents out later.

`folders`, `archives` and `libraries` have one source each.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from vqgan.colour import to_rgb8
from vqgan.images import MAX_PIXELS, ImageError, load_image, open_header

TABLE = "labels.csv"
SIDES = (".txt", ".caption", ".cls", ".json")  # what may lie beside a picture: captions, its class, or both
LARGEST_SIDE, LARGEST_TABLE = 2**20, 2**30  # bytes that are read of a text beside a picture, and of a table
# Why something is left out, in words for one and for several.
READ_ALREADY = ("link to a folder that is read already", "links to folders that are read already")
OURS = ("folder that maskimg wrote", "folders that maskimg wrote")
SHOWN = 3  # names of what is left out, for each reason
# What file managers, NAS and systems keep beside pictures: thumbnails of them, and some that were thrown away.
CLUTTER = ("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found", "__macosx")
CLUTTER += ("system volume information",)
CLUTTER_STARTS = (".", "synofile_thumb_", "synophoto_thumb_", "synovideo_")
CLUTTER_FILES = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "zbthumbnail.info")

Content = Path | bytes | Image.Image | ImageError


class DataError(ValueError):
    """Pictures that cannot be trained on; the message says why and what to do."""


class Entry(NamedTuple):
    """One picture of a source.

    Attributes:
        name: where it lies in the source, parts joined by `/`, as text that JSON can hold.
        size: in bytes, -1 where it is not there.
        place: what the source itself finds it by.
        folder: the outermost folder it lies in, empty if none.
    """

    name: str
    size: int
    place: Any
    folder: str = ""


class Source(Protocol):
    """Hands out the contents of entries.

    Attributes:
        where: as the person gave it, for messages.
        name: its last part, for the model card.
        stamp: changes with what it holds, where names and sizes do not tell; else empty.
    """

    @property
    def where(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    def read(self, entries: list[Entry]) -> Iterator[tuple[int, Content]]:
        """(position in `entries`, content) of each, in the order that is cheapest to read."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """Every file of a folder or archive, of whatever kind.

    Attributes:
        files: by their names, which are as the source has them.
        folders: names of those that are known to be there, for one that is called like a picture.
        prefixed: whether each name begins with that of its shard.
        shards: whether they are webdataset's, where `000.mask.png` belongs to the sample `000` and is not its picture.
        marks: suffixes of a text beside `000.png` that show the same of what was not said to be a shard.
        read: the content of one, of at most so many bytes; None if it is longer.
        missing: an entry that cannot be read, or whose file was not listed, of a name.
        left_out: why files were not found, and their names.
    """

    source: Source
    files: dict[str, Entry]
    read: Callable[[Entry, int], bytes | None]
    missing: Callable[[str], Entry]
    left_out: "LeftOut"
    folders: list[str] = dataclasses.field(default_factory=list)
    prefixed: bool = False
    shards: bool = False
    marks: tuple[str, ...] = (".cls",)

    def inner(self, name: str) -> str:
        """A file's name in its own archive."""
        return name.partition("/")[2] if self.prefixed else name


class LeftOut:
    """What is not read: names, by the reason, which is a pair of words for one and for several."""

    def __init__(self):
        self.names: dict[tuple[str, str], list[str]] = {}

    def add(self, reason: tuple[str, str], name: str) -> None:
        self.names.setdefault(reason, []).append(text(name))

    def sentences(self) -> list[str]:
        """A line for each reason."""
        lines = []
        for (one, many), names in self.names.items():
            shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            lines.append(f"left out: {len(names):,} {one if len(names) == 1 else many} ({shown})")
        return lines


def is_clutter(name: str) -> bool:
    """Whether a file is hidden, or lies among what a file manager or a NAS keeps for itself."""
    *folders, last = name.casefold().split("/")
    return (
        any(part in CLUTTER or part.startswith(CLUTTER_STARTS) for part in folders)
        or last.startswith(CLUTTER_STARTS)
        or last in CLUTTER_FILES
    )


def open_content(content: Content, name: str, *, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """8-bit sRGB, upright; `max_pixels` and `side` are those of `load_image`.

    Raises:
        ImageError: it cannot be read; the message begins with `name`.
    """
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, Image.Image):
        return to_rgb8(content)
    if isinstance(content, Path):
        return load_image(content, max_pixels=max_pixels, side=side)
    try:
        return load_image(BytesIO(content), max_pixels=max_pixels, side=side)
    except ImageError as error:
        raise ImageError(str(error).replace("the picture", f"`{name}`", 1)) from error


def size_of(content: Content) -> tuple[int, int]:
    """Width and height as the header has them; nothing is decoded.

    Raises:
        ImageError: there is no such header.
    """
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, Image.Image):
        return content.size
    if isinstance(content, Path) and not content.is_file():
        raise ImageError(f"`{content}` is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that `load_image` refuses
            with open_header(BytesIO(content) if isinstance(content, bytes) else content) as image:
                return image.size
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ImageError(line(error)) from error


def text(name: str) -> str:
    """A name as text that JSON can hold, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def line(error: Exception) -> str:
    """An error as part of a sentence."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
