"""What a source of pictures holds, before anything is decoded: names, labels, captions, and what is held out.

Labels come from `labels.csv` where there is one (a column `file`, optionally `split` with `train` and `val`,
optionally `caption`, and one column per label field; one whose values hardly repeat is none), else from what lies
beside each picture (`name.cls`, or `class` in `name.json`), else from subfolders (one field, `class`), else there are
none. Captions come from the same table, or from `name.txt` (one a line) or `caption` in `name.json`. Without a `split`
one picture in twenty is held out, chosen by its name, so that figures on unseen pictures can be reported.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from maskimg.sources import TABLE, DataError, Entry, Files, Source, list_files

CAPTION_KEYS, CLASS_KEYS = ("caption", "text"), ("class", "label", "cls")  # of a JSON file beside a picture
ENOUGH = 20  # values of a column; with fewer, that they do not repeat means nothing


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


def list_picture_files(where: str | Path) -> Listing:
    """The pictures in a folder, an archive or shards.

    Raises:
        DataError: there is nothing of the kind, it holds no pictures, or its labels.csv cannot be used.
    """
    files = list_files(where)
    if files.table is not None:
        return _list_table(files, f"{files.source.where}/{TABLE}")
    if not files.entries:
        raise DataError(f"`{files.source.where}` holds no PNG, JPEG or WebP pictures")
    described = [_described(files.sides[entry.name]) for entry in files.entries]
    classes = [name for name, _ in described]
    if not any(classes):
        classes = [entry.folder for entry in files.entries]
        if "" in classes or len(set(classes)) == 1:  # a flat or mixed folder has no labels
            classes = []
    fields, labels = to_labels({"class": classes} if classes else {}, len(files.entries))
    captions = some([texts for _, texts in described])
    return Listing(files.source, files.entries, fields, labels, hold_out(files.entries), captions)


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
            raise DataError(f"a share of {share} of {len(listing)} pictures is none: hold out more")
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
    rows = _rows(files.table or b"", path)
    names = [name for name in rows[0] if name not in ("file", "split", "caption") and name]
    columns = {name: [row[name] or "" for row in rows] for name in names}
    single = [name for name, values in columns.items() if _hardly_repeats(values)]
    entries = []
    for number, row in enumerate(rows, 2):
        if not row["file"]:
            raise DataError(f"`{path}` names no file in row {number}")
        name = posixpath.normpath(row["file"].replace("\\", "/"))
        if name.split("/")[0] == ".." or name[0] == "/" or PurePath(row["file"]).is_absolute():
            raise DataError(f"`{path}` names `{row['file']}`, which lies outside the folder")
        entries.append(files.entry(name))

    fields, labels = to_labels({name: columns[name] for name in names if name not in single}, len(rows))
    remarks = [f"`{name}` is not used as a label: most of its values belong to one picture only" for name in single]
    if "split" in rows[0]:
        held_out = np.array([row["split"] not in ("train", "", None) for row in rows])
    else:
        held_out = hold_out(entries)
    if "caption" in rows[0]:
        captions = [[row["caption"]] if row["caption"] else [] for row in rows]
    else:
        captions = [_described(files.sides.get(entry.name, {}))[1] for entry in entries]
    return Listing(files.source, entries, fields, labels, held_out, some(captions), remarks)


def _hardly_repeats(values: list[str]) -> bool:
    """As addresses, numbers and descriptions do, from which nothing can be learnt about other pictures."""
    counts = collections.Counter(value for value in values if value)
    once = sum(count == 1 for count in counts.values())
    return counts.total() >= ENOUGH and 2 * once > counts.total()


def _rows(data: bytes, path: str) -> list[dict[str, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`{path}` cannot be read as a CSV file ({error})") from error
    if not rows or "file" not in rows[0]:
        raise DataError(f"`{path}` needs a header with a column `file`, and a row per picture")
    return rows


def _described(sides: dict[str, str]) -> tuple[str, list[str]]:
    """What lies beside a picture, by suffix -> its class, empty if none, and its captions."""
    about = _json(sides.get(".json", ""))
    names = [sides.get(".cls", "").strip(), *(str(about[key]) for key in CLASS_KEYS if _is_name(about.get(key)))]
    captions = [line.strip() for line in sides.get(".txt", "").splitlines() if line.strip()]
    for key in CAPTION_KEYS:
        captions = captions or strings(about.get(key))
    return next(filter(None, names), ""), captions


def _json(text: str) -> dict[str, Any]:
    """Whatever is no JSON object describes nothing."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _in_order(names: set[str]) -> list[str]:
    """Sorted; numbers by their size."""
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)
