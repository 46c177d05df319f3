"""What a source of pictures holds, before anything is decoded: names, labels, captions, and what is held out.

Labels come from `labels.csv` where there is one (a column `file`, optionally `split` with `train`, `val` or `test`,
optionally `caption`, and one column per label field; one whose values hardly repeat is none), else from what lies
beside each picture (`name.cls`, or `class` in `name.json`), else from subfolders (one field, `class`), else there are
none. Captions come from the same table, or from `name.txt` (one a line) or `caption` in `name.json`. What is held out
is what `split` or folders such as `train` and `val` say; without them it is one picture in twenty, chosen by its name,
so that figures on unseen pictures can be reported.
"""

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np

from maskimg.data.label_table import Labelled, hardly_repeats, odd_labels, read_labels
from maskimg.data.sources import SHOWN, TABLE, DataError, Entry, Source
from maskimg.data.sources import text as as_text
from maskimg.data.tables import decode
from maskimg.data.trees import Files, composed, list_files

CAPTION_KEYS, CLASS_KEYS = ("caption", "text"), ("class", "label", "cls")  # of a JSON file beside a picture
DAMAGED = ("JSON file that cannot be read", "JSON files that cannot be read")
UNLISTED = (f"picture that {TABLE} does not name", f"pictures that {TABLE} does not name")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        entries: the pictures, in a fixed order.
        fields: the label names of each field, by field; empty without labels.
        labels: (n, f) int64, an index into each field's names, or their number where a picture has none.
        held_out: (n,) bool, True where a picture is kept out of training.
        captions: a list for each picture; empty where no picture has any.
        remarks: sentences about what was not used.
    """

    source: Source
    entries: list[Entry]
    fields: dict[str, list[str]]
    labels: np.ndarray
    held_out: np.ndarray
    captions: list[list[str]] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized, relabelled or captioned anew."""
        digest = hashlib.sha256(repr(self.fields).encode())
        for entry, labels, held_out in zip(self.entries, self.labels, self.held_out, strict=True):
            digest.update(f"{entry.name}|{entry.size}|{list(labels)}|{held_out}\n".encode(errors="replace"))
        if self.captions or self.source.stamp:
            digest.update(repr((self.captions, self.source.stamp)).encode())
        return digest.hexdigest()

    def chosen(self, positions: Sequence[int] | np.ndarray) -> "Listing":
        """Only the pictures at these positions."""
        return dataclasses.replace(
            self,
            entries=[self.entries[i] for i in positions],
            labels=self.labels[positions],
            held_out=self.held_out[positions],
            captions=[self.captions[i] for i in positions] if self.captions else [],
        )


def list_picture_files(where: str | Path, leave_out: Sequence[Path] = ()) -> Listing:
    """The pictures in a folder, an archive or shards.

    Args:
        leave_out: folders that are not looked into.

    Raises:
        DataError: there is nothing of the kind, it holds no pictures, or its labels.csv cannot be used.
    """
    files = list_files(where, leave_out)
    if files.table is not None:
        return _list_table(files, f"{files.source.where}/{TABLE}")
    described = _described(files, files.entries)
    classes, remarks = [name for name, _ in described], []
    if not any(classes):
        classes = [entry.folder for entry in files.entries]
        loose = [entry.name for entry in files.entries if not entry.folder]
        if "" in classes or len(set(classes)) == 1:  # a flat or mixed folder has no labels
            classes = []
        if 0 < len(loose) < len(files.entries):
            remarks.append(
                f"subfolders are no labels, since pictures lie beside them, too: {len(loose):,} ({_shown(loose)})"
            )
    fields, labels = to_labels({"class": classes} if classes else {}, len(files.entries))
    remarks += odd_labels("class", [composed(name) for name in classes])
    held_out = hold_out(files.entries)
    if files.held_out:
        held_out = np.array([files.held_out[entry.name] for entry in files.entries])
        held_out = held_out if held_out.any() else hold_out(files.entries)
    captions = some([texts for _, texts in described])
    remarks += files.left_out.sentences()
    return Listing(files.source, files.entries, fields, labels, held_out, captions, remarks)


def require_training(listing: Listing) -> Listing:
    """The same, if it holds a picture to train on.

    Raises:
        DataError: all are held out.
    """
    if listing.held_out.all():
        raise DataError(
            f"all {len(listing):,} pictures in `{listing.source.where}` are held out, and none is left to train on: "
            "call the part to train on `train`"
        )
    return listing


def subset(listing: Listing, *, held_out: int, training: int, share: float | None = None, seed: int = 0) -> Listing:
    """At most `held_out` held-out pictures and `training` others, drawn at random, in their old order.

    Args:
        share: first hold out this share of all pictures instead, drawn at random.

    Raises:
        DataError: the share leaves no picture to hold out.
    """
    chance = np.random.default_rng(seed)
    if share is not None:
        count = round(share * len(listing))
        if not count:
            raise DataError(f"a share of {share} of {len(listing)} pictures is less than one picture: hold out more")
        unseen = np.zeros(len(listing), bool)
        unseen[chance.permutation(len(listing))[:count]] = True
        listing = dataclasses.replace(listing, held_out=unseen)
    parts = [
        chance.permutation(np.flatnonzero(listing.held_out == kept_out))[:most]
        for kept_out, most in ((True, held_out), (False, training))
    ]
    return listing.chosen(np.sort(np.concatenate(parts)))


def to_labels(columns: dict[str, list[str]], count: int) -> tuple[dict[str, list[str]], np.ndarray]:
    """Label names of `count` pictures, by field -> the names of each field, and labels (count, f).

    An empty name is the null label, one past the last name.
    """
    columns = {field: [composed(name) for name in names] for field, names in columns.items()}
    fields = {field: _in_order(set(names) - {""}) for field, names in columns.items()}
    places = {field: {name: i for i, name in enumerate(names)} for field, names in fields.items()}
    labels = [[places[field].get(name, len(fields[field])) for name in names] for field, names in columns.items()]
    return fields, np.array(labels, np.int64).reshape(len(columns), count).T.copy()


def hold_out(entries: list[Entry]) -> np.ndarray:
    """One in twenty, by a hash of the name, so that adding pictures moves none from one part to the other.

    Of a source so small that none or all are chosen, the last picture.
    """
    digests = [hashlib.sha256(entry.name.encode()).digest() for entry in entries]
    held_out = np.array([digest[0] * 20 < 256 for digest in digests], bool)
    if not held_out.any() or held_out.all():
        held_out = np.arange(len(entries)) == len(entries) - 1 if len(entries) > 1 else np.zeros(len(entries), bool)
    return held_out


def strings(value: Any) -> list[str]:
    """One text or a list of them -> those that are not empty."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str) and each]


def some(captions: list[list[str]]) -> list[list[str]]:
    """The captions, or none at all where no picture has any."""
    return captions if any(captions) else []


def _list_table(files: Files, path: str) -> Listing:
    rows, remarks = read_labels(files.table or b"", path)
    places = Places(files)
    found: dict[str, list[Labelled]] = {}
    entries: dict[str, Entry] = {}
    for row in rows:
        entry = places.entry(row, path)
        entries.setdefault(entry.name, entry)
        found.setdefault(entry.name, []).append(row)
    for same in found.values():
        _require_one_meaning(same, path)
    if again := [name for name, same in found.items() if len(same) > 1]:
        remarks.append(f"pictures in several rows of `{path}`, which count once: {len(again):,} ({_shown(again)})")
    if places.guessed:
        remarks.append(f"files found under names in other letters: {len(places.guessed):,} ({_shown(places.guessed)})")

    firsts = [same[0] for same in found.values()]
    columns = {name: [row.labels[name] for row in firsts] for name in firsts[0].labels}
    single = [name for name, values in columns.items() if hardly_repeats(values)]
    columns = {name: [composed(value) for value in values] for name, values in columns.items() if name not in single}
    fields, labels = to_labels(columns, len(firsts))
    remarks += [f"`{name}` is not used as a label: most of its values belong to one picture only" for name in single]
    remarks += [line for name, values in columns.items() for line in odd_labels(name, values)]

    chosen = list(entries.values())
    if firsts[0].held_out is not None:
        held_out = np.array([bool(row.held_out) for row in firsts])
    elif all(entry.name in files.held_out for entry in chosen) and any(files.held_out[e.name] for e in chosen):
        held_out = np.array([files.held_out[entry.name] for entry in chosen])
    else:
        held_out = hold_out(chosen)
    if firsts[0].caption is not None:
        captions = [list(dict.fromkeys(row.caption for row in same if row.caption)) for same in found.values()]
        if any(".txt" in sides or ".caption" in sides for sides in files.sides.values()):
            remarks.append(f"captions are those of `{path}`; the texts beside pictures are not read")
    else:
        captions = [texts for _, texts in _described(files, chosen)]
    for entry in files.entries:
        if entry.name not in entries:
            files.left_out.add(UNLISTED, entry.name)
    remarks += files.left_out.sentences()
    return Listing(files.source, chosen, fields, labels, held_out, some(captions), remarks)


class Places:
    """Files by the names that a table calls them.

    Attributes:
        guessed: names of files that differ from those in the table in capital letters only.
    """

    def __init__(self, files: Files):
        self.files, self.guessed = files, []
        self.composed = {composed(name): entry for name, entry in files.others.items()}
        self.folded: dict[str, list[Entry]] = {}
        for name, entry in self.composed.items():
            self.folded.setdefault(name.casefold(), []).append(entry)

    def entry(self, row: Labelled, path: str) -> Entry:
        """The file that a row names; one that cannot be read if there is none.

        Raises:
            DataError: it lies outside the folder.
        """
        if row.file in self.files.others:
            return self.files.others[row.file]
        name = posixpath.normpath(self._relative(row.file).replace("\\", "/"))
        if name.split("/")[0] == ".." or name[0] == "/" or PureWindowsPath(row.file).drive:
            raise DataError(
                f"`{path}`, line {row.line} names `{row.file}`, which lies outside the folder: name files as from there"
            )
        if found := self.files.others.get(name) or self.composed.get(composed(name)):
            return found
        entry = self.files.found.missing(self.files.root + name)
        entry = entry._replace(name=as_text(name))
        alike = self.folded.get(composed(name).casefold(), [])
        if entry.size < 0 and len(alike) == 1:
            self.guessed.append(alike[0].name)
            return alike[0]
        return entry

    def _relative(self, name: str) -> str:
        """What lies in the folder may be named from the root of the disk on."""
        if not PurePath(name).is_absolute():
            return name
        folder = Path(self.files.source.where).absolute() / self.files.root
        for each in (folder, folder.resolve()):
            if PurePath(name).is_relative_to(each):
                return PurePath(name).relative_to(each).as_posix()
        return name


def _require_one_meaning(rows: list[Labelled], path: str) -> None:
    """Several rows of one picture may give it several captions, but neither other labels nor another part."""
    first = rows[0]
    for row in rows[1:]:
        differs = [name for name, label in row.labels.items() if composed(label) != composed(first.labels[name])]
        differs += ["split"] if row.held_out != first.held_out else []
        if differs:
            raise DataError(
                f"`{path}`, line {row.line} names `{row.file}` a second time, with another `{differs[0]}` than line "
                f"{first.line}: keep one of the two"
            )


def _described(files: Files, entries: list[Entry]) -> list[tuple[str, list[str]]]:
    """Of each picture the class, empty if none, and the captions, by what lies beside it.

    Raises:
        DataError: one of the texts cannot be read.
    """
    described, unreadable = [], []
    for entry in entries:
        texts = {}
        for suffix, data in files.beside(entry.name).items():
            side = files.sides[entry.name][suffix].name
            try:
                texts[suffix] = decode(data)
            except UnicodeError:
                if suffix == ".json":
                    files.left_out.add(DAMAGED, side)
                else:
                    unreadable.append(side)
        about = _json(texts[".json"]) if ".json" in texts else {}
        if about is None:
            files.left_out.add(DAMAGED, files.sides[entry.name][".json"].name)
        described.append(_described_by(texts, about or {}))
    if unreadable:
        raise DataError(
            f"{len(unreadable):,} texts beside pictures in `{files.source.where}` are not in UTF-8, such as "
            f"`{as_text(unreadable[0])}`: save them in UTF-8"
        )
    return described


def _described_by(texts: dict[str, str], about: dict[str, Any]) -> tuple[str, list[str]]:
    names = [texts.get(".cls", "").strip(), *(str(about[key]) for key in CLASS_KEYS if _is_name(about.get(key)))]
    captions: list[str] = []
    for suffix in (".txt", ".caption"):
        captions = captions or [line.strip() for line in texts.get(suffix, "").splitlines() if line.strip()]
    for key in CAPTION_KEYS:
        captions = captions or strings(about.get(key))
    return next(filter(None, names), ""), captions


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _json(text: str) -> dict[str, Any] | None:
    """A JSON object; what is another value describes nothing, and None is what is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else {}


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _in_order(names: set[str]) -> list[str]:
    """Sorted; numbers by their size."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)
