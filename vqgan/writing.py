"""How files and directories are written: whole or not at all, and in nobody else's place.

Each is written under a temporary name beside its place, synced, and only then renamed. Temporary names are of one
form, `.NAME.maskimg-PROCESS-RANDOM.tmp`, and nothing of another form is ever removed. A directory replaces another only
where that holds nothing but what its own manifest lists, so that nobody's files can be lost; `vqgan.places` decides it.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from vqgan import files
from vqgan.places import InTheWay, Known, entries, require_movable, require_place, stamp

MARK, LONGEST = ".maskimg-", 120  # of NAME in a temporary name: file systems allow 255 bytes in all
LEFTOVER = re.compile(rf"\..+{re.escape(MARK)}(\d+)-([0-9a-f]{{12}})\.tmp", re.DOTALL)
LOCK = "lock"  # in a directory of working files
DAY = 24 * 3600
CHUNK = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
# What network disks and odd systems answer where they cannot do a thing that is not needed for a correct file: to sync
# a folder (some do not even open one), to change a mode, to take room beforehand.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODEV)
NO_FOLDER_SYNC = (*UNSUPPORTED, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)


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

    Where `path` is a link to a directory, that directory is replaced and the link stays.

    Raises:
        InTheWay: `path` holds what maskimg did not write there. If somebody puts it there while the body runs, what the
            body wrote is kept under another name, which the message tells.
        ModelError: what was written does not read back as written.
    """
    path, _ = require_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        files.write_manifest(temporary)
        _give_usual_modes(temporary)
        _sync(temporary)
        files.verify(temporary, everything=True)
        try:
            _, known = require_place(path)
        except InTheWay as error:
            kept = free_name(path, "new")
            temporary.rename(kept)
            raise InTheWay(f"{error}; what was to be written there is in `{kept}`") from error
        _replace(temporary, path, known)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files in `folder` that writers left there which have ended."""
    for leftover in folder.iterdir():
        if _is_stale(leftover) and stat.S_ISREG(leftover.lstat().st_mode):
            leftover.unlink(missing_ok=True)


def require_replaceable(path: str | Path) -> Path:
    """The directory that writing to `path` would make or replace: ask before any work begins.

    Raises:
        InTheWay: it cannot be written there, or it holds what maskimg did not write; the message names it.
    """
    place, _ = require_place(path)
    require_room(place)
    return place


def require_room(place: Path) -> None:
    """
    Raises:
        InTheWay: `place` cannot be created: its parent is not a folder, or the parent is not writable.
        OSError: the disk is full.
    """
    ground = next(parent for parent in place.parents if os.path.lexists(parent))
    if not ground.is_dir():
        raise InTheWay(f"`{place}` cannot be made, because `{ground}` is not a folder: choose another place")
    probe = _temporary(ground / place.name)
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InTheWay(f"`{ground}` cannot be written to ({error.strerror}): choose another place") from error


def amend_directory(path: str | Path, changes: Mapping[str, str]) -> None:
    """Give some text files of a finished directory new contents; everything else in it stays, whoever put it there.

    The directory is written anew beside its place, with hard links to all that stays, and then takes its place: a full
    disk or a kill leaves it whole. A changed file that was not as its manifest says, or not in it, is not in it
    afterwards, either: it holds somebody's own words, and a directory with such is not replaced.
    """
    path = require_amendable(path)
    listed = files.read_manifest(path)
    _remove_stale(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        known = _link_all(path, temporary, leave_out={*changes, files.MANIFEST})
        for name, text in changes.items():
            before = path / name
            own = not before.exists() or (name in listed and files.fingerprint(before) == listed[name])
            (temporary / name).write_text(text, encoding="utf-8")
            if own:
                listed[name] = files.fingerprint(temporary / name)
        files.write_json(temporary / files.MANIFEST, files.manifest_of(listed))
        for name in (*changes, files.MANIFEST, "."):
            _sync_one(temporary / name)
        files.verify(temporary)
        _replace(temporary, path, known)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_amendable(path: str | Path) -> Path:
    """The directory that `amend_directory(path)` would write anew: ask before any work begins.

    Raises:
        ModelError: it is no model directory, or nothing can be written beside it.
    """
    place = require_movable(path)
    if not place.is_dir():
        raise files.ModelError(f"there is no model directory `{path}`")
    files.read_manifest(place)
    require_room(place)
    return place


def make_way(path: Path, *, working: bool = False) -> None:
    """Before a working directory is made again: where it cannot be replaced it gets another name, and that is said.

    Args:
        working: its folder is known to be one of working files; else a lock in it shows that.

    Raises:
        InTheWay: it holds somebody else's files and is not in a directory of working files.
    """
    try:
        require_place(path)
    except InTheWay as error:
        if not (error.changed or working or (path.parent / LOCK).is_file()):
            raise
        print(f"{error.fault}: it is now `{set_aside(path).name}`, and is made again", file=sys.stderr)


def set_aside(path: Path) -> Path:
    """Give a file or directory another name, and return that."""
    kept = free_name(path, "aside")
    path.rename(kept)
    return kept


def remove_directory(path: Path) -> None:
    """Remove a directory that holds nothing but what its manifest lists; another one stays."""
    if path.is_symlink():
        return
    with contextlib.suppress(InTheWay):
        _remove(*require_place(path))


def free_name(path: Path, ending: str) -> Path:
    """`path`.new, `path`.new-2 and so on, for the ending `new`: the first that nothing has."""
    start, number = os.fsdecode(os.fsencode(path.name)[: 2 * LONGEST]), 1
    while os.path.lexists(name := path.with_name(f"{start}.{ending}" + (f"-{number}" if number > 1 else ""))):
        number += 1
    return name


def take_room(path: Path, size: int) -> None:
    """A file of `size` bytes whose room on the disk is taken: to map one that has none, and write, ends the process.

    Raises:
        OSError: there is no room.
    """
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # where a system has no such call, or a disk does not know it
            if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
                raise
            zeros = bytes(CHUNK)
            for start in range(0, size, CHUNK):
                file.write(zeros[: size - start])


def _link_all(source: Path, target: Path, *, leave_out: set[str]) -> Known:
    """Everything that is in `source`, in `target` as well, but for some files; returns what was there, with those."""
    known = {}
    for name, entry in entries(source):
        known |= {name: stamp(entry)}
        if name in leave_out:
            continue
        if entry.is_symlink():
            (target / name).symlink_to((source / name).readlink())
        elif entry.is_dir():
            (target / name).mkdir()
        else:
            try:
                os.link(entry.path, target / name)
            except OSError as error:
                if error.errno in FULL or not entry.is_file():
                    raise
                shutil.copy2(entry.path, target / name)  # a disk without hard links
    for name in [*known, "."]:
        if (source / name).is_dir() and not (source / name).is_symlink():
            _copy_mode_and_time(source / name, target / name)
    return known


def _copy_mode_and_time(source: Path, target: Path) -> None:
    with _odd_disks():
        shutil.copystat(source, target)


def _give_usual_modes(directory: Path) -> None:
    """Those of any new file, as the umask asks: safetensors writes files that only their owner can read."""
    usual = (directory / files.MANIFEST).stat().st_mode
    for written in directory.rglob("*"):
        if written.is_file() and written.stat().st_mode != usual:
            with _odd_disks():
                written.chmod(usual & 0o777)


@contextlib.contextmanager
def _odd_disks() -> Iterator[None]:
    """A disk that knows no modes does without them."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EPERM):
            raise


def _sync(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        _sync_one(path)


def _replace(temporary: Path, path: Path, known: Known) -> None:
    """Put `temporary` in the place of `path`, which holds what is `known`, and remove that."""
    if not os.path.lexists(path):
        temporary.rename(path)
    elif _exchange(temporary, path):
        _remove(temporary, known, of=path)
    else:
        # Without an exchange it takes two renames; should the second fail, the first is undone. A kill between them
        # leaves the old directory under a name that is not a temporary one, so that nothing removes it.
        retired = free_name(path, "old")
        path.rename(retired)
        try:
            temporary.rename(path)
        except BaseException:
            retired.rename(path)
            raise
        _remove(retired, known, of=path)
    _sync_one(path.parent)


def _remove(directory: Path, known: Known, *, of: Path | None = None) -> None:
    """Remove a directory that was at `of`, unless something came into it after it was looked at."""
    newcomers = [name for name, entry in entries(directory) if known.get(name) != stamp(entry)]
    if not newcomers:
        shutil.rmtree(directory, ignore_errors=True)
    elif of is not None:
        kept = free_name(of, "old")
        directory.rename(kept)
        warnings.warn(f"`{of / newcomers[0]}` came while `{of}` was replaced: it is in `{kept}`", stacklevel=2)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, where the system can (Linux: renameat2 with RENAME_EXCHANGE)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sync_one(path: Path) -> None:
    folder = path.is_dir()
    tolerated = NO_FOLDER_SYNC if folder else UNSUPPORTED
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if folder and error.errno in tolerated:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in tolerated:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # which file it was
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses, and that says who does."""
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST])
    return path.with_name(f".{name}{MARK}{os.getpid()}-{_machine()}{secrets.token_hex(4)}.tmp")


def _machine() -> str:
    """Four digits for this machine: nobody here can tell whether a process of another one, on the same disk, lives."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]


def _remove_stale(path: Path) -> None:
    """Delete what writers of `path` that were killed have left beside it."""
    start = _temporary(path).name.rpartition(MARK)[0] + MARK
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(start) and _is_stale(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_stale(path: Path) -> bool:
    """Whether this is a temporary name of ours whose writer has ended."""
    ours = LEFTOVER.fullmatch(path.name)
    if not ours:
        return False
    try:
        old = time.time() - path.lstat().st_mtime > DAY
        return old or (ours[2].startswith(_machine()) and not _alive(int(ours[1])))
    except FileNotFoundError:  # it went this very moment
        return False


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it is there, but not ours
    return True
