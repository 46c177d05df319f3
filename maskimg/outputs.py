"""Files that a person names to be written: only new ones, or in the place of what maskimg made, unless forced.

`require_free` is asked before any work, and each writer asks `require_ours` again when it writes. All of them write
through `atomic_file`, so that a full disk leaves the older file as it was.
"""

import os
import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from maskimg.recipe import KEY, mark, mark_in, marked, png_text, to_json
from vqgan.writing import FULL, atomic_file


def require_free(
    path: Path,
    *,
    task: str,
    force: bool = False,
    inputs: Iterable[str | Path | None] = (),
    option: str = "",
) -> None:
    """Whether a file may be written, asked before the work; of a link, what it points at is judged.

    Args:
        task: what the file is going to hold. Of what lies in a folder that is read, only an older file of the same task
            is replaced.
        force: replace also what maskimg did not make.
        inputs: files and folders that are read; what is none on this disk, such as `hf://owner/name`, is left out.
            They are never replaced, not even by force.
        option: how the person named it, for the sentence.

    Raises:
        ValueError: it may not be written, or cannot be; the sentence says why.
    """
    there = _status(path)
    if there is None:
        _require_writable(Path(os.path.realpath(path)).parent, path, option)
        return
    name = option or "the file"
    if stat.S_ISDIR(there.st_mode):
        raise ValueError(f"{name} must name a file, and `{path}` is a folder")
    if not stat.S_ISREG(there.st_mode):
        raise ValueError(f"{name} must name a file, and `{path}` is a device or a pipe")
    for each in _on_disk(inputs):
        if each.samefile(path):
            raise ValueError(f"`{path}` is read, and would be overwritten: choose another {option or 'name'}")
        inside = each.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(each))
        if inside and (mark_in(path) or {}).get("task") != task:
            raise ValueError(f"`{path}` lies in `{each}`, which is read: choose another {option or 'name'}")
    require_ours(path, force=force, option=option)
    if not os.access(path, os.W_OK):
        raise ValueError(f"`{path}` is write-protected: choose another {option or 'name'}")
    _require_writable(Path(os.path.realpath(path)).parent, path, option)


def require_ours(path: Path, *, force: bool = False, option: str = "") -> None:
    """Raises ValueError where somebody else's file would be replaced, and nobody has asked for that."""
    if force or _status(path) is None or mark_in(path) is not None:
        return
    way = f"choose another {option}, or give --force" if option else "choose another name, or give `force=True`"
    raise ValueError(f"`{path}` exists and was not made by maskimg: {way}")


def require_folder(folder: Path, *, option: str = "--out") -> None:
    """Raises ValueError where no files can be written into a folder, which may not exist yet."""
    there = _status(folder)
    if there is not None and not stat.S_ISDIR(there.st_mode):
        raise ValueError(f"`{folder}` is a file, not a folder")
    _require_writable(Path(os.path.realpath(folder)), folder, option)


def require_apart(files: dict[str, Path | None], folder: Path | None = None) -> None:
    """Raises ValueError where two options name the same file, or one of them is a folder of another's path.

    Args:
        files: by option; None for what is not asked for.
        folder: what else is written, and may hold any of the files.
    """
    named: list[tuple[str, Path]] = []
    for option, path in files.items():
        if path is None:
            continue
        # Some file systems see no difference between capitals and small letters.
        real = Path(os.path.realpath(path).casefold())
        for other, taken in [*named, *([("--out", Path(os.path.realpath(folder).casefold()))] if folder else [])]:
            holds = other != "--out" and taken in real.parents
            if real == taken or real in taken.parents or holds:
                raise ValueError(f"{other} and {option} cannot both be written: give {option} another name")
        named.append((option, real))


def write_figures(figures: dict[str, Any], task: str, path: Path, *, force: bool = False) -> None:
    """Write figures as JSON, with their mark, whole or not at all."""
    require_ours(path, force=force)
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(marked(figures, task), indent=2) + "\n", encoding="utf-8")


def write_lines(lines: Sequence[str], task: str, path: Path, *, force: bool = False) -> None:
    """Write lines of text below one that holds their mark, whole or not at all."""
    require_ours(path, force=force)
    with atomic_file(path) as temporary:
        text = "".join(f"{line}\n" for line in (f"# {to_json({KEY: mark(task)})}", *lines))
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _status(path: Path) -> os.stat_result | None:
    """None where there is nothing, also at the end of a link."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a link that leads to itself, a name that is too long
        raise ValueError(f"`{path}` cannot be written: {error.strerror}") from error


def _require_writable(folder: Path, path: Path, option: str) -> None:
    """Try it, in the nearest folder that there is: permissions alone do not tell of a disk that is read-only."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"`{path}` cannot be written, since `{folder}` is a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(
            f"`{path}` cannot be written, since `{folder}` cannot be written to ({error.strerror}): choose another "
            f"{option or 'name'}"
        ) from error


def _on_disk(inputs: Iterable[str | Path | None]) -> list[Path]:
    """Those inputs that are files or folders; a pattern of shards stands for all that match it."""
    found: list[Path] = []
    for each in inputs:
        if each is None:
            continue
        path = Path(re.sub(r"\{\d+\.\.\d+\}", "*", os.fspath(each)))
        if Path(each).exists():
            found.append(Path(each))
        elif re.search(r"[*?\[]", str(path)):
            found += Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return found


def write_png(image: Image.Image, recipe: dict[str, Any], path: Path, *, force: bool = False) -> None:
    """Write a PNG with its recipe (or mark) inside, whole or not at all.

    Raises:
        ValueError: it would replace a file that maskimg did not make, and `force` does not allow that.
    """
    require_ours(path, force=force)
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_text(recipe))
