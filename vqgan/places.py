"""Where a directory may be written: in nobody's place, or in that of one which holds nothing of anybody else's."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from vqgan import files

# What file managers put into any folder they show. It goes with the folder.
CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini")
ENTRY = {"size", "sha256"}  # what a manifest says about each file
ADVICE = "choose another place, or move it away"

Stamp = tuple[int, int, int]  # kind and mode, size, and time of change
Known = dict[str, Stamp]  # what is in a directory, by its path there


class InTheWay(files.ModelError):
    """Something that is not maskimg's to replace is where a directory is to be written.

    Attributes:
        fault: what is in the way, without the advice what to do.
        changed: whether it is a file of maskimg's own that is not as it was written, and nothing else.
    """

    def __init__(self, message: str, fault: str = "", *, changed: bool = False):
        super().__init__(message)
        self.fault, self.changed = fault or message, changed


def require_place(path: str | Path) -> tuple[Path, Known]:
    """The directory that is replaced by writing to `path`, links followed, and what is in it.

    It may be replaced if it is absent or empty, or if all that is in it is listed in its own manifest and is as it was
    written.

    Raises:
        InTheWay: something else is there, or `path` is the working directory or holds it.
    """
    place = require_movable(path)
    if not place.exists():
        return place, {}
    if not place.is_dir():
        raise _in_the_way(f"`{path}` is {'a file' if place.is_file() else 'no folder'}")
    try:
        return place, _known(place, Path(path))
    except PermissionError as error:
        raise _in_the_way(f"`{error.filename}` cannot be read, so nobody knows what it holds") from error


def require_movable(path: str | Path) -> Path:
    """`path` with links followed.

    Raises:
        InTheWay: nothing can take its place, whatever it holds: it is a link to nothing, the working directory or above
            it, or where a disk is mounted.
    """
    path = Path(path)
    try:
        place, here = Path(os.path.realpath(path)), Path(os.path.realpath(os.curdir))
    except FileNotFoundError:
        raise _in_the_way("the folder that you are in was removed", "go to another one") from None
    if os.path.lexists(path) and not place.exists():
        raise _in_the_way(f"`{path}` is a link to nothing")
    if place == here or place in here.parents:
        fault = f"`{path}` is the folder that you are in, or one above it"
        raise _in_the_way(fault, "choose a new folder, such as `./model`")
    if place.is_dir() and os.path.ismount(place):
        fault = f"`{path}` is where a disk is mounted, which nothing can replace"
        raise _in_the_way(fault, f"choose a folder in it, such as `{path / 'model'}`")
    return place


def entries(directory: Path, below: str = "") -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Everything below `directory`, by its path there; links are not followed."""
    with os.scandir(directory) as found:
        inside = sorted(found, key=lambda entry: entry.name)
    for entry in inside:
        yield below + entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from entries(Path(entry.path), f"{below}{entry.name}/")


def stamp(entry: "os.DirEntry[str]") -> Stamp:
    """What changes when somebody changes a file; of a folder only that it is one."""
    about = entry.stat(follow_symlinks=False)
    return (about.st_mode, 0, 0) if stat.S_ISDIR(about.st_mode) else (about.st_mode, about.st_size, about.st_mtime_ns)


def _known(place: Path, path: Path) -> Known:
    """What is in the directory `place`, which a person calls `path`; all of it may go."""
    listed = _listed(place)
    expected = listed or {}
    own = set() if listed is None else {*listed, files.MANIFEST}
    folders = {parent.as_posix() for name in own for parent in Path(name).parents}
    known, sizes = {}, {}
    for name, entry in entries(place):
        about = entry.stat(follow_symlinks=False)
        regular, folder = stat.S_ISREG(about.st_mode), stat.S_ISDIR(about.st_mode)
        clutter = regular and entry.name in CLUTTER
        if not (clutter or (regular and name in own) or (folder and name in folders)):
            raise _in_the_way(f"`{path}` holds `{name}`, which maskimg did not write there")
        if not about.st_mode & stat.S_IWUSR:
            raise _in_the_way(f"`{path / name}` is protected against writing")
        known[name] = stamp(entry)
        if name in expected and regular:
            sizes[name] = about.st_size
    if not (place.stat().st_mode & stat.S_IWUSR and os.access(place, os.W_OK)):
        raise _in_the_way(f"`{path}` is protected against writing")

    # Sizes first: they cost nothing, while checksums read every byte.
    changed = next((name for name, size in sizes.items() if size != expected[name]["size"]), None) or next(
        (name for name in sizes if files.checksum(place / name) != expected[name]["sha256"]), None
    )
    if changed:
        fault = f"`{path / changed}` was changed since maskimg wrote it"
        raise InTheWay(f"{fault}: {ADVICE}", fault, changed=True)
    return known


def _listed(directory: Path) -> dict[str, dict] | None:
    """What the manifest of `directory` lists; None where it has none, or where that is another program's."""
    path = directory / files.MANIFEST
    try:
        found = files.read_json(path) if path.is_file() and not path.is_symlink() else {}
    except files.ModelError:
        return None
    listed = found.get("files")
    if set(found) != {"format", "files"} or not isinstance(listed, dict):
        return None
    return listed if all(isinstance(entry, dict) and set(entry) == ENTRY for entry in listed.values()) else None


def _in_the_way(fault: str, advice: str = ADVICE) -> InTheWay:
    return InTheWay(f"{fault}: {advice}", fault)
