"""Tables and texts as people write them, read strictly: a slip is refused by its line and never becomes data."""

import codecs
import csv
import dataclasses
import io
from collections.abc import Collection, Iterator

from maskimg.data.sources import DataError
from vqgan.images import is_picture

MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # between cells
SIGNATURES = (  # of UTF-32 first: its little-endian one begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row, with the number of the line that it begins in; its cells by their column, without blanks around them."""

    line: int
    cells: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under the names of their columns.

    Attributes:
        nameless: the first line with something in a column that has no name, 0 if there is none.
    """

    columns: list[str]
    rows: list[Row]
    nameless: int = 0


def read_table(data: bytes, path: str, *, prose: Collection[str] = ()) -> Table:
    """A CSV file, separated by commas, or by semicolons or tabs where its first line shows that.

    Blank lines are skipped; every other row has as many cells as the first line has names.

    Args:
        path: for messages.
        prose: columns, in lower case, whose cells may go over several lines.

    Raises:
        DataError: it is no such table; the message names the line.
    """
    try:
        text = decode(data)
    except UnicodeError as error:
        raise DataError(f"`{path}` is not UTF-8 text: save it as `CSV UTF-8` ({error})") from error
    mark = _mark(text, path)
    rows = _rows(text, path, mark)
    columns = [name.strip() for name in next(rows, (0, []))[1]]
    names = [name.casefold() for name in columns if name]
    if double := next((name for name in columns if names.count(name.casefold()) > 1), None):
        raise DataError(f"`{path}` has two columns called `{double}`: rename one of them")

    found, nameless = [], 0
    for line, cells in rows:
        if len(cells) != len(columns):
            raise DataError(
                f"`{path}`, line {line}: it has another number of cells than the first line ({len(cells)} instead of "
                f"{len(columns)}); a cell with {MARKS[mark]} in it must stand in double quotes"
            )
        for name, cell in zip(columns, cells, strict=True):
            _require_closed(name, cell.strip(), f"`{path}`, line {line}", name.casefold() in prose, mark)
        if not nameless and any(cell.strip() for name, cell in zip(columns, cells, strict=True) if not name):
            nameless = line
        named = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name}
        found.append(Row(line, named))
    return Table([name for name in columns if name], found, nameless)


def decode(data: bytes) -> str:
    """UTF-8, or what a byte order mark says.

    Raises:
        UnicodeError: it is not.
    """
    encoding = next((name for signature, name in SIGNATURES if data.startswith(signature)), "utf-8")
    text = data.decode(encoding)
    if "\0" in text:  # as UTF-16 without its mark holds them
        raise UnicodeError("it holds zero bytes")
    return text


def _mark(text: str, path: str) -> str:
    """What separates the cells of the first line."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    found = [mark for mark in MARKS if mark in first]
    if len(found) > 1:
        names = " and ".join(MARKS[mark] for mark in found)
        raise DataError(f"the first line of `{path}` holds {names}: separate the columns by commas alone")
    return found[0] if found else ","


def _rows(text: str, path: str, mark: str) -> Iterator[tuple[int, list[str]]]:
    """(the number of its first line, cells) of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"`{path}`, line {line}: a double quote opens a cell there and does not close it: end the cell with "
                f"one, and write one inside it twice ({error})"
            ) from error
        if cells is None:
            return
        if len(cells) > 1 or any(cell.strip() for cell in cells):
            yield line, cells


def _require_closed(name: str, cell: str, where: str, prose: bool, mark: str) -> None:
    """A quote that stands open swallows rows up to the next one, and what comes out may still look like a table."""
    lines = cell.splitlines()
    swallowed = any(is_picture(part.strip().strip('"')) for line in lines[1:] for part in line.split(mark))
    if len(lines) > 1 and (swallowed or not prose):
        raise DataError(
            f"{where}: a double quote opens `{name}` there and closes {len(lines) - 1} lines below: end the cell with "
            "one, and write one inside it twice"
        )
