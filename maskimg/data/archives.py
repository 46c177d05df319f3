"""Pictures in zip and tar archives, read in place, and in webdataset's shards.

Nothing is unpacked to disk, so a name such as `../../x.png` inside an archive is a name and nothing else. Links are
read as the file of the same archive that they point at.
"""

import contextlib
import dataclasses
import itertools
import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskimg.data.sources import (
    LARGEST_SIDE,
    LARGEST_TABLE,
    READ_ALREADY,
    SIDES,
    TABLE,
    Content,
    DataError,
    Entry,
    Found,
    LeftOut,
    is_clutter,
    line,
)
from maskimg.data.sources import text as as_text
from vqgan.images import ImageError, is_picture

LARGEST_FILE = 2**28  # bytes that are read of one file in an archive
MOST_SHARDS = 100_000
CORRUPT = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zipfile.BadZipFile, tarfile.TarError)
CORRUPT += (zlib.error, lzma.LZMAError)  # bz2 and gzip raise OSError
ZIP, TAR = "zip", "tar"
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # which of them holds a tar only opening it tells
OTHERS = {b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive", b"\x28\xb5\x2f\xfd": "Zstandard"}
READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
METHODS = {6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES encryption"}
SAME_NAME = ("file whose name comes again in the archive", "files whose names come again in the archive")
NO_MEMBER = ("link to what is not in the archive", "links to what is not in the archive")


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        offset: where it begins.
        size: in bytes; of a file that cannot be read, `fault` says why.
        handle: what its library needs to find it.
        data: of tables and of what lies beside pictures, which are read while the archive is listed.
        target: of a link, the name that it points at.
    """

    name: str
    offset: int
    size: int
    handle: Any = None
    fault: str = ""
    data: bytes | None = None
    target: str = ""


@dataclasses.dataclass(frozen=True)
class Archive:
    """One archive, or several shards; `place` of an entry is the number of its archive and the member in it."""

    where: str
    paths: list[Path]
    stamp: str = ""

    @property
    def name(self) -> str:
        return Path(self.where).name

    def read(self, entries: list[Entry]) -> Iterator[tuple[int, Content]]:
        """Each archive from its beginning to its end, so that a compressed one is decompressed only once."""
        order = sorted(range(len(entries)), key=lambda i: (entries[i].place[0], entries[i].place[1].offset))
        for number, positions in itertools.groupby(order, key=lambda i: entries[i].place[0]):
            path = self.paths[number]
            try:
                with _opened(path) as fetch:
                    for i in positions:
                        yield i, self._content(fetch, entries[i])
            except CORRUPT as error:
                raise DataError(f"`{path}` cannot be opened ({line(error)})") from error

    def _content(self, fetch: Callable[[Member], bytes], entry: Entry) -> bytes | ImageError:
        name, member = f"`{self.where}/{entry.name}`", entry.place[1]
        if member.fault:
            return ImageError(f"{name} {member.fault}")
        if member.size > LARGEST_FILE:
            return ImageError(f"{name} has {member.size / 1e6:.0f} MB; the limit is {LARGEST_FILE / 1e6:.0f}")
        try:
            return fetch(member)
        except CORRUPT as error:
            return ImageError(f"{name} is damaged in the archive ({line(error)})")


def kind_of_archive(path: Path) -> str | None:
    """ZIP or TAR, by what is in the file; by its name where that does not tell. None for anything else.

    Raises:
        DataError: it is an archive that cannot be read here.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read ({line(error)})") from error
    if other := next((words for signature, words in OTHERS.items() if start.startswith(signature)), None):
        raise DataError(f"`{path}` is {other}, which cannot be read: unpack it, and give the folder or a .zip of it")
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return ZIP
    if start[257:262] == b"ustar" or (start.startswith(COMPRESSED) and tarfile.is_tarfile(path)):
        return TAR
    name = path.name.lower()
    if name.endswith((".zip", *TARS)):  # one that is damaged, say
        return ZIP if name.endswith(".zip") else TAR
    return ZIP if zipfile.is_zipfile(path) else None  # one that begins with a program which unpacks it


def find_in_archives(where: str, paths: list[Path], *, shards: bool = False) -> Found:
    """Every file in one archive, or in several shards, whose names then begin with a name for the shard each.

    Raises:
        DataError: one is damaged, or all its pictures are packed or locked in a way that cannot be read.
    """
    left_out, several = LeftOut(), len(paths) > 1
    files: dict[str, Entry] = {}
    folders: list[str] = []
    for number, path in enumerate(paths):
        prefix = f"{number:0{len(str(len(paths) - 1))}}-{path.name}/" if several else ""
        members: dict[str, Member] = {}
        inside: list[str] = []
        for member in _members(path):
            if member.offset < 0:
                inside.append(member.name)
                continue
            if member.name in members and is_picture(member.name) and not is_clutter(member.name):
                left_out.add(SAME_NAME, prefix + member.name)  # the later one counts, as in tar itself
            members[member.name] = member
        for name, member in members.items():
            found = _followed(member, members)
            if found.fault and found.target and not is_picture(name):
                if not is_clutter(name):
                    folder = any(other.startswith(f"{found.target}/") for other in members)
                    left_out.add(READ_ALREADY if folder else NO_MEMBER, prefix + name)
                continue
            files[prefix + name] = Entry(prefix + name, found.size, (number, found))
        folders += [prefix + name for name in inside]
        _require_readable(path, list(members.values()))

    def read(entry: Entry, most: int) -> bytes | None:
        member = entry.place[1]
        if member.fault:
            raise DataError(f"`{where}/{as_text(entry.name)}` {member.fault}")
        return member.data if member.size <= most else None

    def missing(name: str) -> Entry:
        fault = "is a folder, not a picture" if name in folders else "is not in the archive"
        return Entry(name, -1, (0, Member(name, 0, -1, fault=fault)))

    marks = SIDES if kind_of_archive(paths[0]) == TAR else (".cls",)
    return Found(Archive(where, paths), files, read, missing, left_out, folders, several, shards, marks)


def list_shards(pattern: str) -> list[Path]:
    """`s-{000..003}.tar` -> four paths; `s-*.tar` -> those there are.

    Raises:
        DataError: one is missing.
    """
    paths = [Path(pattern)]
    while braces := re.search(r"\{(\d+)\.\.(\d+)\}", str(paths[0])):
        first, last = braces.groups()
        if int(last) < int(first) or (int(last) - int(first) + 1) * len(paths) > MOST_SHARDS:
            raise DataError(f"`{pattern}` must count upwards, to at most {MOST_SHARDS:,} shards")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        paths = [Path(str(path).replace(braces.group(), number, 1)) for path in paths for number in numbers]
    found = [path for each in paths for path in ([each] if each.is_file() else _matching(each))]
    missing = next((path for path in paths if not (path.is_file() or re.search(r"[*?\[]", str(path)))), None)
    if missing or not found:
        raise DataError(f"there is no shard `{missing or pattern}`")
    return found


def _matching(pattern: Path) -> list[Path]:
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _members(path: Path) -> list[Member]:
    kind = kind_of_archive(path)
    try:
        return list(_zip_members(path) if kind == ZIP else _tar_members(path))
    except CORRUPT as error:
        raise DataError(f"`{path}` is damaged or cut off: copy or download it again ({line(error)})") from error


def _zip_members(path: Path) -> Iterator[Member]:
    """Folders have the offset -1."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _plain(_zip_name(info))
            if info.is_dir() or not name:
                if name:
                    yield Member(name, -1, -1)
                continue
            fault = ""
            if info.flag_bits & 1:
                fault = "is encrypted"
            elif info.compress_type not in READ:
                fault = f"is packed with {METHODS.get(info.compress_type, f'method {info.compress_type}')}"
            linked = stat.S_ISLNK(info.external_attr >> 16) and not fault and info.file_size < 4096
            target = _target(name, archive.read(info).decode("utf-8", "surrogateescape")) if linked else ""
            data = archive.read(info) if not fault and not linked and info.file_size <= _wanted(name) else None
            yield Member(name, info.header_offset, info.file_size, info, fault, data, target)


def _tar_members(path: Path) -> Iterator[Member]:
    """Folders have the offset -1."""
    with tarfile.open(path) as archive:
        for info in archive:
            name = _plain(info.name)
            if info.isdir() or not name:
                if name:
                    yield Member(name, -1, -1)
                continue
            target = _target(name, info.linkname) if info.issym() else _plain(info.linkname) if info.islnk() else ""
            fault = "" if info.isreg() or info.issym() or info.islnk() else "is a device in the archive"
            file = archive.extractfile(info) if not fault and not target and info.size <= _wanted(name) else None
            handle = info if info.issparse() else None  # its blocks lie apart
            yield Member(name, info.offset_data, info.size, handle, fault, file.read() if file else None, target)
        # tarfile takes an archive that was cut off inside a header for one that ends there.
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        if stream.read(512) != bytes(512):
            raise tarfile.ReadError("its end is missing")


def _followed(member: Member, members: dict[str, Member]) -> Member:
    """A link as the file that it points at; where there is none, one that cannot be read."""
    found, passed = member, {member.name}
    while found.target:
        if found.target in passed or found.target not in members:
            fault = f"is a link to `{as_text(found.target)}`, which is not a file in the archive"
            return found._replace(fault=fault, size=-1, target=found.target)
        passed.add(found.target)
        found = members[found.target]
    return found


def _require_readable(path: Path, members: list[Member]) -> None:
    """That every picture is packed, or locked, in a way that cannot be read is known before any of them is tried."""
    faults = {member.fault for member in members if is_picture(member.name) and not is_clutter(member.name)}
    if len(faults) == 1 and (fault := faults.pop()).startswith(("is packed", "is encrypted")):
        raise DataError(f"each picture in `{path}` {fault}, which cannot be read: unpack it, and give the folder")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Callable[[Member], bytes]]:
    """A function that reads a member of the archive `path`."""
    if kind_of_archive(path) == ZIP:
        with zipfile.ZipFile(path) as archive:
            yield lambda member: archive.read(member.handle)
    else:
        with tarfile.open(path) as archive:
            file: Any = archive.fileobj

            def fetch(member: Member) -> bytes:
                if member.handle is not None:
                    blocks: Any = archive.extractfile(member.handle)
                    return blocks.read()
                file.seek(member.offset)
                return file.read(member.size)

            yield fetch


def _plain(name: str) -> str:
    """An archive's name for a file without what could lead out of a folder: `..`, drives, a leading `/`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Many programs write names in UTF-8 without saying so; zipfile then takes them for code page 437."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _target(name: str, target: str) -> str:
    """What a symbolic link in an archive points at, as a name in it; outside of it, a name that is no file's."""
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return f"/{target.lstrip('/')}" if joined.startswith(("/", "../")) else joined


def _wanted(name: str) -> int:
    """How many bytes of a file are read while an archive is listed; -1 if it is not."""
    last = name.rpartition("/")[2].lower()
    if last == TABLE:
        return LARGEST_TABLE
    return LARGEST_SIDE if last.endswith(SIDES) and not is_clutter(name) else -1
