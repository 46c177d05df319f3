"""How files and directories are written: whole or not at all.

Each is written under a temporary name beside its place, synced, and only then renamed. Temporary names are of one
form, `.NAME.maskimg-PROCESS-RANDOM.tmp`, and nothing of another form is ever removed.
"""

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from vqgan.files import verify, write_manifest

MARK, LONGEST = ".maskimg-", 120  # of NAME in a temporary name: file systems allow 255 bytes in all
LEFTOVER = re.compile(rf"\..+{re.escape(MARK)}(\d+)-[0-9a-f]{{8}}\.tmp", re.DOTALL)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write one file to; on success it replaces `path`, else it disappears.

    A link stays, and what it points at is replaced. An older file's permissions hold for the new one.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync_one(temporary)
        with contextlib.suppress(OSError):  # it is new, or its disk knows no permissions
            shutil.copymode(path, temporary)
        temporary.replace(path)
        _sync_one(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # there only where that failed, as on a full disk


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; on success it replaces `path`, on failure it disappears.

    Raises:
        ModelError: what was written does not read back as written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = _temporary(path)
    temporary.mkdir(mode=0o700)
    try:
        temporary.chmod(0o755)
        yield temporary
        for written in temporary.rglob("*"):
            written.chmod(
                0o755 if written.is_dir() else 0o644
            )  # safetensors writes files that only their owner can read
        write_manifest(temporary)
        _sync(temporary)
        verify(temporary)
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files in `folder` that writers left there which have ended."""
    for leftover in folder.iterdir():
        ours = LEFTOVER.fullmatch(leftover.name)
        if ours and not _alive(int(ours[1])) and stat.S_ISREG(leftover.lstat().st_mode):
            leftover.unlink()


def take_room(path: Path, size: int) -> None:
    """A file of `size` bytes whose room on the disk is taken: to map one that has none, and write, ends the process.

    Raises:
        OSError: there is no room.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _sync_one(path)


def _replace(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`; what was there is left at `temporary`, if anything."""
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        # Without an exchange it takes two renames; should the second fail, the first is undone.
        retired = _temporary(path)
        path.rename(retired)
        try:
            temporary.rename(path)
        except BaseException:
            retired.rename(path)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    _sync_one(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, where the system can (Linux: renameat2 with RENAME_EXCHANGE)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # which file it was
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses, and that says who does."""
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST])
    return path.with_name(f".{name}{MARK}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _remove_stale(path: Path) -> None:
    """Delete what writers of `path` that were killed have left beside it."""
    start = _temporary(path).name.rpartition(MARK)[0] + MARK
    for leftover in path.parent.iterdir():
        writer = leftover.name.removeprefix(start).split("-")[0]
        ours = leftover.name.startswith(start) and leftover.name.endswith(".tmp")
        if ours and writer.isdigit() and not _alive(int(writer)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is there, but not ours
    return True
