"""Where picture files lie: folders, zip and tar archives read in place, webdataset's shards.

A source lists its files once and hands their contents out later, in the order in which that is cheapest. Nothing is
unpacked to disk, so a name such as `../../x.png` inside an archive is a name and nothing else.
"""

import contextlib
import dataclasses
import itertools
import lzma
import os
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from vqgan.colour import to_rgb8
from vqgan.images import FORMATS, MAX_PIXELS, SUFFIXES, ImageError, list_images, load_image

TABLE = "labels.csv"
SIDES = (".txt", ".cls", ".json")  # what may lie beside a picture: captions, its class, or both
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_FILE, LARGEST_SIDE, LARGEST_TABLE = 2**28, 2**20, 2**30  # bytes that are read of one file in an archive
MOST_SHARDS = 100_000
CORRUPT = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zipfile.BadZipFile, tarfile.TarError)
CORRUPT += (zlib.error, lzma.LZMAError)  # bz2 and gzip raise OSError

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
class Files:
    """What a source of files holds.

    Attributes:
        entries: the pictures, sorted by name.
        sides: by a picture's name, the texts that lie beside it, by their suffix.
        table: the text of labels.csv, if there is one.
        others: in an archive, every file that labels.csv might name.
    """

    source: "Folder | Archive"
    entries: list[Entry]
    sides: dict[str, dict[str, str]]
    table: bytes | None
    others: dict[str, Entry]

    def entry(self, name: str) -> Entry:
        """The one that labels.csv calls `name`; one that cannot be read if there is none."""
        if name in self.others:
            return self.others[name]
        return self.source.missing(name)


def list_files(where: str | Path) -> Files:
    """The files at `where`: a folder, an archive, or a pattern of shards such as `s-{000..127}.tar` or `s-*.tar`.

    Raises:
        DataError: there is nothing, or an archive is damaged.
    """
    path = Path(where)
    if path.is_dir():
        return _list_folder(path)
    if path.is_file():
        if path.name.lower().endswith((".zip", *TARS)):
            return _list_archive(str(where), [path])
        raise DataError(f"`{path}` is a file: give the folder that holds the pictures, or a .zip or .tar archive")
    if re.search(r"[{*?\[]", str(where)):
        return _list_archive(str(where), _shards(str(where)))
    raise DataError(f"there is no folder `{path}`, and no archive of that name")


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
        raise ImageError(f"`{content}` is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that `load_image` refuses
            with Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
                return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(_line(error)) from error


def text(name: str) -> str:
    """A name as text that JSON can hold, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


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

    def missing(self, name: str) -> Entry:
        """A file that was not listed; it may be there all the same, under a name that is no picture's."""
        return Entry(text(name), _size(self.path / name), self.path / name)

    def read(self, entries: list[Entry]) -> Iterator[tuple[int, Content]]:
        """Only where they are: whoever decodes them opens them, several at a time."""
        for i, entry in enumerate(entries):
            yield i, entry.place


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        offset: where it begins.
        size: in bytes; of a file that cannot be read, `fault` says why.
        data: of labels.csv and of what lies beside pictures, which are read while the archive is listed.
    """

    name: str
    offset: int
    size: int
    handle: Any = None
    fault: str = ""
    data: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Archive:
    """One archive, or several shards; `place` of an entry is the number of its archive and the member in it."""

    where: str
    paths: list[Path]
    stamp: str = ""

    @property
    def name(self) -> str:
        return Path(self.where).name

    def missing(self, name: str) -> Entry:
        return Entry(text(name), -1, (0, Member(name, 0, -1, fault="is not in the archive")))

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
                raise DataError(f"`{path}` cannot be opened ({_line(error)})") from error

    def _content(self, fetch: Callable[[Member], bytes], entry: Entry) -> bytes | ImageError:
        name, member = f"`{self.where}/{entry.name}`", entry.place[1]
        if member.fault:
            return ImageError(f"{name} {member.fault}")
        if member.size > LARGEST_FILE:
            return ImageError(f"{name} has {member.size / 1e6:.0f} MB; the limit is {LARGEST_FILE / 1e6:.0f}")
        try:
            return fetch(member)
        except CORRUPT as error:
            return ImageError(f"{name} is damaged in the archive ({_line(error)})")


def _list_folder(folder: Path) -> Files:
    """A folder that is named like a picture and holds none counts as a picture that cannot be read."""
    pictures, beside = [], set()
    for directory, subdirectories, names in os.walk(folder):
        subdirectories[:] = sorted(name for name in subdirectories if name[0] != ".")
        found = [Path(directory) / name for name in names if name[0] != "."]
        folders = [Path(directory) / name for name in subdirectories if _is_picture(name)]
        pictures += [path for path in found if _is_picture(path.name)]
        pictures += [path for path in folders if not list_images(path)]
        beside |= {path for path in found if path.suffix in SIDES}

    entries, sides = [], {}
    for path in sorted(pictures):
        parts = path.relative_to(folder).parts
        entry = Entry(text("/".join(parts)), _size(path), path, parts[0] if len(parts) > 1 else "")
        texts = {file.suffix: _read(file, LARGEST_SIDE) for file in map(path.with_suffix, SIDES) if file in beside}
        entries.append(entry)
        sides[entry.name] = {suffix: _decoded(data) for suffix, data in texts.items()}
    table = folder / TABLE
    return Files(Folder(folder), entries, sides, _read(table, LARGEST_TABLE) if table.is_file() else None, {})


def _list_archive(where: str, paths: list[Path]) -> Files:
    several = len(paths) > 1
    found: dict[str, tuple[int, Member]] = {}  # of two files of one name the later one counts, as in tar itself
    for number, path in enumerate(paths):
        prefix = f"{number:0{len(str(len(paths) - 1))}}-{path.name}/" if several else ""
        found |= {prefix + member.name: (number, member) for member in _members(path)}

    pictures = [name for name in found if _is_picture(name) and not _is_hidden(name)]
    if several:  # `000.mask.png` belongs to the sample `000` and is not its picture
        pictures = [name for name in pictures if "." not in name.rpartition("/")[2].rpartition(".")[0]]
    root = "" if several else _root(pictures, found)
    entries, sides = [], {}
    for name in sorted(pictures, key=lambda name: name.split("/")):
        member = found[name][1]
        parts = member.name.removeprefix(root).split("/")
        entries.append(Entry(text(name.removeprefix(root)), member.size, found[name], parts[0] if parts[1:] else ""))
        beside = {suffix: found.get(name.rpartition(".")[0] + suffix) for suffix in SIDES}
        texts = {suffix: each[1].data for suffix, each in beside.items() if each and each[1].data is not None}
        sides[entries[-1].name] = {suffix: _decoded(data) for suffix, data in texts.items()}

    table = found[root + TABLE][1].data if root + TABLE in found else None
    others = {name.removeprefix(root): Entry(text(name.removeprefix(root)), at[1].size, at)
              for name, at in found.items()} if table else {}  # fmt: skip
    return Files(Archive(where, paths), entries, sides, table, others)


def _members(path: Path) -> list[Member]:
    try:
        return list(_zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path))
    except CORRUPT as error:
        raise DataError(f"`{path}` is damaged or cut off: copy or download it again ({_line(error)})") from error


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _plain(info.filename)
            if info.is_dir() or not name:
                continue
            fault = "is encrypted" if info.flag_bits & 1 else ""
            data = archive.read(info) if not fault and info.file_size <= _wanted(name) else None
            yield Member(name, info.header_offset, info.file_size, info, fault, data)


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            name = _plain(info.name)
            if info.isdir() or not name:
                continue
            fault = "" if info.isreg() else "is a link or device in the archive"
            fault = "is a sparse file in the archive" if info.issparse() else fault
            file = archive.extractfile(info) if not fault and info.size <= _wanted(name) else None
            yield Member(name, info.offset_data, info.size, None, fault, file.read() if file else None)
        # tarfile takes an archive that was cut off inside a header for one that ends there.
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        if stream.read(512) != bytes(512):
            raise tarfile.ReadError("it lacks its end")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Callable[[Member], bytes]]:
    """A function that reads a member of the archive `path`."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            yield lambda member: archive.read(member.handle)
    else:
        with tarfile.open(path) as archive:
            file: Any = archive.fileobj

            def fetch(member: Member) -> bytes:
                file.seek(member.offset)
                return file.read(member.size)

            yield fetch


def _shards(pattern: str) -> list[Path]:
    """`s-{000..003}.tar` -> four paths; `s-*.tar` -> those there are."""
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


def _root(pictures: list[str], found: dict[str, Any]) -> str:
    """The folder, with a `/`, that everything in an archive lies in; that of labels.csv, if there is one above."""
    root = ""
    while pictures and root + TABLE not in found:
        first = pictures[0][len(root) :].partition("/")
        if not first[1] or not all(name.startswith(root + first[0] + "/") for name in pictures):
            break
        root += first[0] + "/"
    return root


def _plain(name: str) -> str:
    """An archive's name for a file without what could lead out of a folder: `..`, drives, a leading `/`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _wanted(name: str) -> int:
    """How many bytes of a file are read while an archive is listed; -1 if it is not."""
    if name.rpartition("/")[2] == TABLE:
        return LARGEST_TABLE
    return LARGEST_SIDE if name.endswith(SIDES) and not _is_hidden(name) else -1


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_hidden(name: str) -> bool:
    """Including what macOS adds to archives."""
    return any(part[0] == "." or part == "__MACOSX" for part in name.split("/"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read ({_line(error)})") from error


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig", "replace")


def _line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
