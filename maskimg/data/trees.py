"""Which files of a folder or archive are pictures, and what belongs to each: the same, wherever they lie.

Folders that everything lies in are looked through, down to a `labels.csv`; folders called `train`, `val`, `test` and
the like are parts of the data set and no labels. Whatever is not read is counted, with the reason.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from maskimg.data.archives import find_in_archives, kind_of_archive, list_shards
from maskimg.data.folders import find_in_folder
from maskimg.data.sources import (
    LARGEST_SIDE,
    LARGEST_TABLE,
    OURS,
    SIDES,
    TABLE,
    DataError,
    Entry,
    Found,
    LeftOut,
    Source,
    is_clutter,
    text,
)
from vqgan.files import MANIFEST
from vqgan.images import HEIF_SUFFIXES, IN_WORDS, is_picture

# What people call the parts of a data set.
TRAINING = ("train", "training", "tr", "trn")
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "holdout", "heldout")

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")
# What maskimg notes in folders that it writes, and what such a note has to hold for a folder to count as one.
NOTES = {MANIFEST: ("format", "files"), "run.json": ("format", "recipe"), "begun.json": ("pictures", "mark")}
WORK = re.compile(r"((?:.*/)?[^/]+\.training/)(?:(?:pictures|sources|codes|codes\.source|tokenizer|generator)/.*)?$")

CLUTTERED = (
    "picture that is hidden or that a file manager keeps for itself",
    "pictures that are hidden or that a file manager keeps for itself",
)
COMPANION = ("picture that belongs to another one's sample", "pictures that belong to another one's sample")
IN_NO_PART = (
    "picture that lies in no part, such as `train`, of the data set",
    "pictures that lie in no part, such as `train`, of the data set",
)
ARCHIVED = ("archive, which is not looked into", "archives, which are not looked into")
ELSEWHERE = (f"{TABLE} that does not lie above all pictures", f"{TABLE} that do not lie above all pictures")
BESIDE_NONE = ("text beside no picture", "texts beside no picture")
NO_PLUGIN = (
    "picture in HEIF, which needs `pip install pillow-heif`",
    "pictures in HEIF, which needs `pip install pillow-heif`",
)
OTHER = ("file of another format", "files of other formats")
TOO_LONG = ("text beside a picture of more than 1 MB", "texts beside pictures of more than 1 MB")


@dataclasses.dataclass(frozen=True)
class Files:
    """What a source of files holds.

    Attributes:
        entries: the pictures, sorted by name.
        held_out: by a picture's name, where folders say so.
        sides: by a picture's name, the files that lie beside it, by their suffix in lower case.
        table: the content of labels.csv, if there is one.
        others: every file that labels.csv might name, by its name beside that.
        left_out: what is not read.
        root: the folder, with a `/`, that everything lies in.
    """

    found: Found
    entries: list[Entry]
    held_out: dict[str, bool]
    sides: dict[str, dict[str, Entry]]
    table: bytes | None
    others: dict[str, Entry]
    left_out: LeftOut
    root: str = ""

    @property
    def source(self) -> Source:
        return self.found.source

    def beside(self, name: str) -> dict[str, bytes]:
        """The contents of what lies beside a picture, by their suffix; what is too long is left out."""
        texts = {}
        for suffix, entry in self.sides.get(name, {}).items():
            data = self.found.read(entry, LARGEST_SIDE)
            if data is None:
                self.left_out.add(TOO_LONG, entry.name)
            else:
                texts[suffix] = data
        return texts


def list_files(where: str | Path, leave_out: Sequence[Path] = ()) -> Files:
    """The files at `where`: a folder, an archive, or a pattern of shards such as `s-{000..127}.tar` or `s-*.tar`.

    Args:
        leave_out: folders that are not looked into.

    Raises:
        DataError: there is nothing, it holds no pictures, or an archive is damaged.
    """
    path = Path(where)
    if path.is_dir():
        return _arranged(find_in_folder(path, leave_out))
    if path.is_file():
        if kind_of_archive(path):
            return _arranged(find_in_archives(str(where), [path]))
        raise DataError(f"`{path}` is a file: give the folder that holds the pictures, or a .zip or .tar archive")
    if re.search(r"[{*?\[]", str(where)):
        return _arranged(find_in_archives(str(where), list_shards(str(where)), shards=True))
    raise DataError(f"there is no folder `{path}`, and no archive of that name")


def composed(name: str) -> str:
    """Letters with accents as one character each: a Mac's file names have them as two."""
    return unicodedata.normalize("NFC", name)


def _arranged(found: Found) -> Files:
    left_out = LeftOut()
    left_out.names |= found.left_out.names
    files = _without_ours(found, left_out)
    names = [name for name in files if is_picture(name)]
    for name in [name for name in names if is_clutter(found.inner(name))]:
        left_out.add(CLUTTERED, name)
    names = [name for name in names if not is_clutter(found.inner(name))]
    # A folder that is called like a picture and holds none counts as one that cannot be read.
    empty = [each for each in found.folders if is_picture(each) and not is_clutter(found.inner(each))]
    empty = [each for each in empty if not any(name.startswith(f"{each}/") for name in names)]
    files |= {each: found.missing(each) for each in empty}
    names += empty

    beside = _sides(found, files)
    names = _without_companions(found, names, beside, left_out)
    names.sort(key=lambda name: name.split("/"))
    tables = {name for name in files if name.rpartition("/")[2].lower() == TABLE and not found.prefixed}
    root = common_folder([found.inner(name) for name in names], [name[: -len(TABLE)] for name in tables])
    table = max((name for name in tables if name[: -len(TABLE)] == root), default=None)  # rather in small letters
    inner = {name: found.inner(name).removeprefix(root) for name in names}

    folders, unseen = _parts(inner)
    entries, sides, held_out = [], {}, {}
    for name in names:
        shown = text(name if found.prefixed else inner[name])
        if (part := unseen.get(name)) is not None:
            held_out[shown] = part
        elif unseen and table is None:
            left_out.add(IN_NO_PART, name)
            continue
        entries.append(files[name]._replace(name=shown, folder=folders[name]))
        sides[shown] = {suffix: files[file] for suffix, file in beside.get(name, {}).items()}
    used = {table, *(side for each in beside.values() for side in each.values())}
    for name in files:
        if name not in used and not is_picture(name) and not is_clutter(found.inner(name)):
            left_out.add(_kind(name), name)
    if not entries and table is None:
        lines = "".join(f"; {line}" for line in left_out.sentences())
        raise DataError(f"`{found.source.where}` holds no {IN_WORDS} pictures{lines}")
    data = found.read(files[table], LARGEST_TABLE) if table else None
    if table and data is None:
        raise DataError(f"`{found.source.where}/{table}` is too long, or no file")
    others = {name.removeprefix(root): entry._replace(name=text(name.removeprefix(root)))
              for name, entry in found.files.items() if name.startswith(root)} if table else {}  # fmt: skip
    return Files(found, entries, held_out, sides, data, others, left_out, root)


def _without_ours(found: Found, left_out: LeftOut) -> dict[str, Entry]:
    """All files but those in models, trainings and drawn pictures of maskimg's that lie among the pictures.

    What everything lies in stays: it is what was asked for.
    """
    visible = [name for name in found.files if is_picture(name) and not is_clutter(found.inner(name))]
    root = common_folder(visible)
    ours = {folder for name, entry in found.files.items() if (folder := _written(found, name, entry)) is not None}
    ours = {folder for folder in ours if folder and not root.startswith(folder)}
    outermost = {folder for folder in ours if not any(folder != other and folder.startswith(other) for other in ours)}
    for folder in sorted(outermost):
        left_out.add(OURS, folder[:-1])
    within = tuple(outermost)
    return {name: entry for name, entry in found.files.items() if not name.startswith(within)}


def _written(found: Found, name: str, entry: Entry) -> str | None:
    """The folder, with a `/`, that maskimg wrote, if this is a note of its own; of a training, all of its folder."""
    folder, _, last = name.rpartition("/")
    if last not in NOTES or not folder:
        return None
    try:
        about = json.loads(found.read(entry, LARGEST_SIDE) or b"")
    except (ValueError, RecursionError):  # also where it cannot be read
        return None
    if not isinstance(about, dict) or not all(key in about for key in NOTES[last]):
        return None
    listed = about["files"] if last == MANIFEST else {}
    if not isinstance(listed, dict) or not all(isinstance(each, dict) and "sha256" in each for each in listed.values()):
        return None
    work = WORK.match(folder + "/")
    return work[1] if work else folder + "/"


def _sides(found: Found, files: dict[str, Entry]) -> dict[str, dict[str, str]]:
    """By a picture's name, the names of what lies beside it: `a.txt` or `a.png.txt` beside `a.png`."""
    texts: dict[str, str] = {}
    for name in sorted(files, reverse=True):  # `a.txt` after `a.TXT`: where there are both, it is the one
        if name.lower().endswith(SIDES) and not is_clutter(found.inner(name)):
            stem, _, suffix = name.rpartition(".")
            texts[composed(f"{stem}.{suffix.lower()}")] = name
    sides: dict[str, dict[str, str]] = {}
    for name in filter(is_picture, files) if texts else ():
        stem = name.rpartition(".")[0]
        places = {suffix: texts.get(composed(name + suffix), texts.get(composed(stem + suffix))) for suffix in SIDES}
        sides[name] = {suffix: place for suffix, place in places.items() if place}
    return sides


def _without_companions(
    found: Found, names: list[str], beside: dict[str, dict[str, str]], left_out: LeftOut
) -> list[str]:
    """All but such as `000.mask.png`, which belongs to the sample `000` of webdataset's and is not its picture.

    What was not said to be a shard is only taken for one where a text marks the sample, and `000.mask.png` has none.
    """
    samples = {name.rpartition(".")[0] for name in names if not beside.get(name, {}).keys().isdisjoint(found.marks)}
    kept = []
    for name in names:
        folder, slash, last = name.rpartition("/")
        key, dot, rest = last.partition(".")
        part = dot and "." in rest and (found.shards or (folder + slash + key in samples and not beside.get(name)))
        if part:
            left_out.add(COMPANION, name)
        else:
            kept.append(name)
    return kept


def _parts(inner: dict[str, str]) -> tuple[dict[str, str], dict[str, bool | None]]:
    """By name the outermost folder that is no part of the data set, and whether it is held out, if folders say so."""
    level = find_level(list(inner.values()))
    folders = {name: each.split("/")[:-1] for name, each in inner.items()}
    if level is None:
        return {name: text(parts[0]) if parts else "" for name, parts in folders.items()}, {}
    unseen = {name: is_held_out(parts[level]) if len(parts) > level else None for name, parts in folders.items()}
    rest = {name: "/".join([*parts[:level], *parts[level + 1 :], ""]) for name, parts in folders.items()}
    root = common_folder([rest[name] for name, part in unseen.items() if part is not None])
    return {name: text(each.removeprefix(root).partition("/")[0]) for name, each in rest.items()}, unseen


def _kind(name: str) -> tuple[str, str]:
    """Why a file that is neither a picture nor beside one is not read."""
    name = name.lower()
    if name.endswith(HEIF_SUFFIXES):
        return NO_PLUGIN
    if name.endswith(PACKED):
        return ARCHIVED
    if name.rpartition("/")[2] == TABLE:
        return ELSEWHERE
    return BESIDE_NONE if name.endswith(SIDES) else OTHER


def is_held_out(word: str) -> bool | None:
    """`Train` -> False, `val` or `Test` -> True, None for a word that names no part."""
    plain = word.strip().casefold().replace("-", "").replace("_", "").replace(" ", "")
    return True if plain in HELD_OUT else False if plain in TRAINING else None


def find_level(names: Sequence[str]) -> int | None:
    """The level at which folders are parts of a data set, as in `train/cat/1.png` (0) or `cat/train/1.png` (1).

    At the outermost level it is enough that training and held-out parts stand side by side (what lies elsewhere
    belongs to no part), or that there is nothing else; below it every picture must lie in a part.
    """
    folders = [name.split("/")[:-1] for name in names]
    outer = {parts[0] if parts else "" for parts in folders}
    found = {is_held_out(name) for name in outer}
    if found >= {True, False} or (len(outer) > 1 and None not in found):
        return 0
    if all(len(parts) > 1 for parts in folders) and {is_held_out(parts[1]) for parts in folders} == {True, False}:
        return 1
    return None


def common_folder(names: Sequence[str], stop: Sequence[str] = ()) -> str:
    """The folder, with a `/`, that all of `names` lie in; no deeper than one that is named in `stop`."""
    root = ""
    while names and root not in stop:
        first = names[0][len(root) :].partition("/")
        if not first[1] or not all(name.startswith(root + first[0] + "/") for name in names):
            break
        root += first[0] + "/"
    return root
