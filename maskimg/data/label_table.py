"""labels.csv: a row for each picture, with a column `file`, and optionally `split`, `caption` and label fields."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from maskimg.data.sources import DataError
from maskimg.data.tables import Row, Table, read_table
from maskimg.data.trees import is_held_out

# Columns by what they are also called, the first of which there is one.
FILE = ("file", "filename", "file_name", "file name", "filepath", "file_path", "path", "image", "image_path", "picture")
CAPTION = ("caption", "text")
SPLIT = ("split",)
ENOUGH = 20  # values of a column; with fewer, that they do not repeat means nothing
NOTHING = ("nan", "none", "null", "n/a", "na", "-", "?")  # labels that most likely mean none


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What one row says of a picture.

    Attributes:
        held_out: None where the table has no `split`.
        caption: empty for none, None where the table has no captions.
        labels: by field, empty for none.
    """

    line: int
    file: str
    held_out: bool | None
    caption: str | None
    labels: dict[str, str]


def read_labels(data: bytes, path: str) -> tuple[list[Labelled], list[str]]:
    """The rows of a labels.csv, and sentences about what is odd in it.

    Raises:
        DataError: it is no such table; the message names the line.
    """
    table = read_table(data, path, prose=CAPTION)
    file, caption, split = (_column(table, names) for names in (FILE, CAPTION, SPLIT))
    if file is None or not table.rows:
        raise DataError(f"`{path}` needs a header with a column `file`, and a row per picture")
    if file.casefold() != "file" and (others := [name for name in table.columns if name.casefold() in FILE])[1:]:
        raise DataError(
            f"`{path}` has {' and '.join(f'`{name}`' for name in others)}: call the one that names the pictures `file`"
        )
    fields = [name for name in table.columns if name not in (file, caption, split)]
    rows = []
    for row in table.rows:
        if not any(row.cells.values()):
            continue  # as spreadsheets write below the last row
        if not row.cells[file]:
            raise DataError(f"`{path}` names no file in line {row.line}")
        rows.append(
            Labelled(
                row.line,
                row.cells[file],
                _part(row, split, path) if split else None,
                row.cells[caption] if caption else None,
                {name: row.cells[name] for name in fields},
            )
        )
    if not rows:
        raise DataError(f"`{path}` needs a header with a column `file`, and a row per picture")
    remarks = []
    if table.nameless:
        remarks.append(f"`{path}` has a column without a name, which is not used (line {table.nameless})")
    if split and (empty := sum(not row.cells[split] for row in table.rows if row.cells[file])):
        remarks.append(f"pictures whose `{split}` is empty are trained on: {empty:,}")
    return rows, remarks


def hardly_repeats(values: Sequence[str]) -> bool:
    """As addresses, numbers and descriptions do, from which nothing can be learnt about other pictures."""
    counts = collections.Counter(value for value in values if value)
    once = sum(count == 1 for count in counts.values())
    return counts.total() >= ENOUGH and 2 * once > counts.total()


def odd_labels(field: str, values: Sequence[str]) -> list[str]:
    """Sentences about labels of a field that may not be meant as they are written."""
    remarks, names = [], sorted(set(values) - {""})
    if empty := sum(not value for value in values):
        remarks.append(f"pictures whose `{field}` is empty: {empty:,}")
    alike = collections.defaultdict(list)
    for name in names:
        alike[_number(name) or "".join(name.casefold().split())].append(name)
    for same in (same for same in alike.values() if len(same) > 1):
        remarks.append(f"`{field}` has labels of their own for {' and '.join(f'`{name}`' for name in same)}")
    if void := [name for name in names if name.casefold() in NOTHING]:
        remarks.append(f"`{field}` has a label `{void[0]}`: leave the cell empty where there is none")
    if names and all(map(_number, names)) and not all(name.isdigit() for name in names):
        remarks.append(f"`{field}` holds numbers, such as `{names[0]}`: each is a label without order or distance")
    return remarks


def _column(table: Table, names: Sequence[str]) -> str | None:
    """The first of `names` that there is, as it is written."""
    written = {name.casefold(): name for name in table.columns}
    return next((written[name] for name in names if name in written), None)


def _part(row: Row, split: str, path: str) -> bool:
    """Whether a row's picture is held out; without a word it is not."""
    word = row.cells[split]
    held_out = is_held_out(word) if word else False
    if held_out is None:
        raise DataError(f"`{path}`, line {row.line}: `{split}` is `{word}`; it must be `train`, `val` or `test`")
    return held_out


def _number(name: str) -> str:
    """ "01" and "1.0" -> "1.0"; empty for what is no number."""
    return str(float(name)) if re.fullmatch(r"[+-]?\d+(\.\d+)?", name) else ""
