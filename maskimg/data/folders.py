"""Pictures in a folder on disk: links are followed, and what cannot be read is counted.

A folder is read once, however many links lead to it: as what it is, if it lies below the folder that was given, else
as the first of its links.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskimg.data.sources import OURS, READ_ALREADY, Content, DataError, Entry, Found, LeftOut, is_clutter, line
from vqgan.images import is_picture

NO_TARGET = ("link to nothing", "links to nothing")
FORBIDDEN = ("folder that cannot be read", "folders that cannot be read")


@dataclasses.dataclass(frozen=True)
class Folder:
    path: Path
    stamp: str = ""

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def read(self, entries: list[Entry]) -> Iterator[tuple[int, Content]]:
        """Only where they are: whoever decodes them opens them, several at a time."""
        for i, entry in enumerate(entries):
            yield i, entry.place


def find_in_folder(folder: Path, leave_out: Sequence[Path] = ()) -> Found:
    """Every file below `folder`.

    Args:
        leave_out: folders that are not looked into, where they lie below it.

    Raises:
        DataError: the folder itself cannot be read.
    """
    files, folders, left_out = {}, [], LeftOut()
    # A link to what holds this folder would read the whole of it again, and all its neighbours.
    above = {_identity(parent) for parent in folder.resolve().parents}
    avoided, seen = {_identity(path) for path in leave_out} - {None}, set()
    todo: list[str] = [""]
    links: list[str] = []
    while todo or links:
        name = todo.pop() if todo else links.pop()
        place = folder / name
        identity = _identity(place)
        if name and identity in avoided:
            left_out.add(OURS, name)
            continue
        if identity in seen or (name and identity in above):
            left_out.add(READ_ALREADY, name)
            continue
        seen.add(identity)
        try:
            with os.scandir(place) as found:
                items = sorted(found, key=lambda item: item.name, reverse=True)
        except OSError as error:
            if not name:
                raise DataError(f"`{folder}` cannot be read ({line(error)})") from error
            if not is_clutter(f"{name}/"):
                left_out.add(FORBIDDEN, name)
            continue
        if name:
            folders.append(name)
        for item in items:
            below = f"{name}/{item.name}" if name else item.name
            if _is_folder(item):
                if not item.is_symlink():
                    todo.append(below)
                elif not is_clutter(f"{below}/"):
                    links.append(below)
                continue
            size = _size(Path(item.path))
            if size < 0 and not is_picture(item.name):  # one that is called like a picture is one that cannot be read
                if not is_clutter(below):
                    left_out.add(NO_TARGET, below)
                continue
            files[below] = Entry(below, size, Path(item.path))
        links.sort(reverse=True)

    def read(entry: Entry, most: int) -> bytes | None:
        try:
            if entry.size > most or not entry.place.is_file():
                return None
            return entry.place.read_bytes()
        except OSError as error:
            raise DataError(f"`{entry.place}` cannot be read ({line(error)})") from error

    def missing(name: str) -> Entry:
        """It may be there all the same, behind a link that was not followed."""
        return Entry(name, _size(folder / name), folder / name)

    return Found(Folder(folder), files, read, missing, left_out, folders)


def _is_folder(item: os.DirEntry) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link without end
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, whatever link leads to it; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
