"""A folder that is drawn into: by one run at a time, which may be several processes, and with one recipe."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from maskimg import distributed
from maskimg.outputs import require_folder
from vqgan import files
from vqgan.writing import atomic_file, remove_leftovers

LOCK, ABOUT = ".lock", "run.json"
OPENING = b'{\n  "format": 1,\n  "recipe": {'  # of run.json: by it one that was cut off is known
LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # a disk, often a network's, without locks


def require_drawable(folder: Path, *, but: Iterable[Path] = ()) -> None:
    """Whether a run may draw into `folder`, as far as that can be said before there is a recipe.

    Args:
        but: other files that the run will write, which must not have the name of one of its own.

    Raises:
        ValueError: the folder cannot be written to, or its lock or note is somebody else's.
    """
    require_folder(folder)
    for path in but:
        within = Path(os.path.realpath(path)).parent == Path(os.path.realpath(folder))
        if within and (re.fullmatch(r"\d{6,}\.png", path.name.lower()) or path.name.lower() in (LOCK, ABOUT)):
            raise ValueError(f"`{path}` is the name of a file that is drawn into `{folder}`: choose another")
    lock = folder / LOCK
    if os.path.lexists(lock):
        there = lock.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise ValueError(f"`{lock}` is not the empty file that maskimg locks a folder by: choose another folder")
    if os.path.lexists(folder / ABOUT) and not _is_note(folder / ABOUT):
        raise ValueError(f"`{folder / ABOUT}` was not written by maskimg: choose another folder")


@contextlib.contextmanager
def claimed(folder: Path, recipe: dict[str, Any]) -> Iterator[None]:
    """While active, no other run can draw into `folder`; what killed runs left half-written is gone.

    The lock is the system's: it ends with the processes that hold it, however they end.

    Raises:
        ValueError: another run is drawing into it, or it holds pictures of another recipe.
    """
    require_drawable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        fault = distributed.of_first(_claim(folder, lock, recipe) if distributed.is_first() else None)
        if fault:
            raise fault if distributed.is_first() else SystemExit(2)  # which one process says is enough
        # Held by every process of this run, so that one that outlives the others still keeps the next run out.
        if not _locked(lock, exclusive=False):
            raise _taken(folder)
        yield


def note(folder: Path, recipe: dict[str, Any]) -> None:
    """Write run.json: what the pictures in `folder` have in common, whether or not all are there."""
    _write(folder, {"format": 1, "recipe": recipe})


def note_complete(folder: Path, paths: list[Path]) -> None:
    """Note in run.json that all pictures are there, with one checksum over the checksums of all."""
    lines = "".join(f"{files.checksum(path)}  {path.name}\n" for path in sorted(paths))
    about = files.read_json(folder / ABOUT)
    _write(folder, about | {"complete": {"pictures": len(paths), "sha256": hashlib.sha256(lines.encode()).hexdigest()}})


def recipe_of(folder: Path) -> Any:
    """What the pictures in `folder` have in common, as run.json has it.

    None where that is missing or damaged: each picture still carries its own.
    """
    try:
        return files.read_json(folder / ABOUT).get("recipe")
    except files.ModelError:
        return None


def _claim(folder: Path, lock: IO[str], recipe: dict[str, Any]) -> Exception | None:
    """What the first process does for all -> why it cannot be done, for the others to hear."""
    try:
        if not _locked(lock, exclusive=True):
            return _taken(folder)
        found = recipe_of(folder)
        if found is not None and found != recipe:
            odd = next(key for key in {**recipe, **found} if recipe.get(key) != found.get(key))
            differs, way = f"its {odd.replace('_', ' ')} is another", ""
            if odd == "compiled":
                differs, way = f"they are {'' if found.get(odd) else 'not '}compiled", "leave --compile out, or "
            return ValueError(f"`{folder}` holds pictures of another recipe ({differs}): {way}choose another folder")
        remove_leftovers(folder)
        return None if _locked(lock, exclusive=False) else _taken(folder)  # from now on the others may join
    except OSError as error:
        return error


def _write(folder: Path, about: dict[str, Any]) -> None:
    with atomic_file(folder / ABOUT) as temporary:
        files.write_json(temporary, about)


def _is_note(path: Path) -> bool:
    """Whether it is a run.json of ours, perhaps one that was cut off or damaged."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except ValueError:
        return content.startswith(OPENING) or OPENING.startswith(content)
    return isinstance(found, dict) and found.get("format") == 1 and found.keys() <= {"format", "recipe", "complete"}


def _taken(folder: Path) -> ValueError:
    return ValueError(f"another run is drawing into `{folder}`: wait until it is done, or choose another folder")


def _locked(lock: IO[str], *, exclusive: bool) -> bool:
    """Whether the lock could be had; True where the system (Windows) or the disk has none of this kind."""
    if os.name == "nt":
        return True
    import fcntl

    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        if exclusive:  # asked for once, by the first process
            words = f"note: the disk of `{lock.name}` has no locks: do not start a second run into that folder"
            tqdm.write(words, file=sys.stderr)
    return True
