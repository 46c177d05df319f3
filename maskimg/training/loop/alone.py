"""One training at a time: a lock on the directory of working files, and whether a directory is one."""

import contextlib
import errno
import importlib.util
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from maskimg.training.loop.errors import TrainingError
from vqgan.places import ADVICE, InTheWay
from vqgan.writing import LOCK, require_room

FCNTL = importlib.util.find_spec("fcntl") is not None  # Windows has no such locks
HELD = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # some network disks
# What shows that a directory is one of working files: its lock, or what older versions, the demo and `tune` leave.
SIGNS = (LOCK, "*/lock", "pictures/manifest.json", "begun.json", "tune.json")
HOLDER = re.compile(r"process \d+ on .*\n?")


@contextlib.contextmanager
def working_in(directory: Path, *, active: bool = True) -> Iterator[None]:
    """Inside, `directory` is there for working files, and no other process works in it.

    Args:
        active: not where another process of the same training holds the lock.

    Raises:
        InTheWay: it holds other files.
        TrainingError: another process works in it.
    """
    if active:
        require_working(directory)
        directory.mkdir(parents=True, exist_ok=True)
    with only_trainer(directory, active=active):
        yield


def require_working(directory: Path) -> None:
    """
    Raises:
        InTheWay: `directory` is there and not empty, but nothing shows that it is one of working files; or nothing can
            be written in it.
    """
    if os.path.lexists(directory):
        if not directory.is_dir():
            raise InTheWay(f"`{directory}` is a file, not a folder for working files: {ADVICE}")
        inside = sorted(entry.name for entry in directory.iterdir())
        if inside and not any(path.is_file() for sign in SIGNS for path in directory.glob(sign)):
            raise InTheWay(f"working files go into `{directory}`, which holds `{inside[0]}`: {ADVICE}")
        _require_own_lock(directory)
        if not directory.stat().st_mode & stat.S_IWUSR:
            raise InTheWay(f"working files go into `{directory}`, which is protected against writing: {ADVICE}")
    require_room(directory / LOCK)


@contextlib.contextmanager
def only_trainer(directory: Path, *, active: bool = True, says: bool = True) -> Iterator[None]:
    """Inside, no other process can train in `directory`; the lock goes with this process, however it ends.

    Args:
        active: not where another process of the same training holds the lock.
        says: where the disk knows no locks, say it; not for each stage of a training again.

    Raises:
        TrainingError: another one does.
    """
    if not active or not FCNTL:
        yield
        return
    import fcntl

    _require_own_lock(directory)
    with (directory / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                file.seek(0)
                raise TrainingError(
                    f"`{directory}` is being trained in by {file.read().strip() or 'another process'}: wait for it, "
                    "or choose another --out"
                ) from error
            if error.errno not in NO_LOCKS:
                raise
            if says:
                note = (
                    f"the disk of `{directory}` knows no locks ({error.strerror}), so a second training is not kept out"
                )
                print(f"note: {note}", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _require_own_lock(directory: Path) -> None:
    """A file of somebody else's that happens to be called so is not written over."""
    path = directory / LOCK
    if not os.path.lexists(path):
        return
    with contextlib.suppress(ValueError):  # no text at all
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1000:
            said = path.read_text(encoding="utf-8")
            if not said or HOLDER.fullmatch(said):
                return
    raise InTheWay(f"`{path}` is no lock of maskimg's: {ADVICE}")
