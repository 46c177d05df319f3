"""Where a command may write a directory: asked before any work, so that nothing is refused after minutes of it."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from maskimg.cli.options import Refused

CACHES = ("pictures", "sources", "tokenizer", "codes", "codes.source", "generator", "critic")  # in OUT.training


def out_directory(text: str, reads: Mapping[str, str | None], *, working: bool = False) -> Path:
    """The directory that --out names.

    Args:
        reads: what the command reads, by the word that the person knows it by; None where it was not given.
        working: OUT.training is written, too.

    Raises:
        Refused: OUT is something that is read, or holds it.
        InTheWay: what maskimg did not write is there, or nothing can be written there.
    """
    from vqgan.writing import require_replaceable

    out = apart(text, reads)
    require_replaceable(out)
    if working:
        _require_working(out, reads)
    return out


def working_out(text: str, reads: Mapping[str, str | None]) -> Path:
    """The directory of working files that --out names; raises as `out_directory`."""
    from maskimg.training.loop.alone import require_working

    out = apart(text, reads)
    require_working(out)
    return out


def apart(text: str, reads: Mapping[str, str | None]) -> Path:
    """--out as a path with a name of its own.

    Raises:
        Refused: it is something that is read, or holds it.
    """
    if not text:
        raise Refused("--out is empty: give the path of a folder")
    out = Path(text)
    if out.name in ("", ".."):
        out = Path(os.path.realpath(out))
    for word, where in reads.items():
        for path in _on_disk(where):
            if _is_or_holds(out, path):
                raise Refused(f"--out `{text}` is, or contains, {word} `{where}`: choose a new folder")
    return out


def _require_working(out: Path, reads: Mapping[str, str | None]) -> None:
    from maskimg.training.folder import working_directory
    from maskimg.training.loop.alone import require_working

    work = working_directory(out)
    for word, where in reads.items():
        for path in _on_disk(where):
            # Pictures may lie elsewhere in it, as what was given to the demo does.
            if _same(work, path) or (word == "FOLDER" and _in_cache(work, path)):
                raise Refused(f"the working files of `{out}` would go into {word} `{where}`: choose another --out")
    require_working(work)


def _in_cache(work: Path, path: Path) -> bool:
    return any(_is_or_holds(work / name, path) for name in CACHES)


def _on_disk(where: str | None) -> list[Path]:
    """What is read of this disk, as far as it is there: of a pattern the folder, of a library's dataset its root."""
    if not where:
        return []
    if "://" in where:
        roots = parse_qs(urlsplit(where).query).get("root", [])
    elif "{" in where and not Path(where).exists():
        roots = [str(Path(where.partition("{")[0] + "000").parent)]
    else:
        roots = [where]
    return [place for place in (Path(root).expanduser() for root in roots) if place.exists()]


def _is_or_holds(folder: Path, path: Path) -> bool:
    """Whatever the two are called: links are followed, and letters' case counts only where it does on the disk."""
    place = Path(os.path.realpath(path))
    return folder.exists() and any(_same(folder, each) for each in (place, *place.parents))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
