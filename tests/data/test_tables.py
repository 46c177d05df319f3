"""Tables are read strictly: a slip is refused by its line, and what is only written otherwise means the same."""

import codecs

import pytest

from maskimg.data.label_table import odd_labels, read_labels
from maskimg.data.sources import DataError
from maskimg.data.tables import read_table


def rows_of(text: str | bytes) -> list[tuple]:
    rows, _ = read_labels(text if isinstance(text, bytes) else text.encode(), "labels.csv")
    return [(row.file, row.held_out, row.caption, row.labels) for row in rows]


PLAIN = 'file,kind,split,caption\n1.png,bee,train,"one, two"\n2.png,fly,val,three\n'
MEANING = [("1.png", False, "one, two", {"kind": "bee"}), ("2.png", True, "three", {"kind": "fly"})]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        "\n\n" + PLAIN.replace("\n2", "\n\n  \n2") + "\n,,,\n",
        ' File , kind,SPLIT,Caption \n 1.png , bee ,Train, "one, two"\n2.png,fly ,VALIDATION,three\n',
        "image;kind;split;caption\n1.png;bee;training;one, two\n2.png;fly;Test;three\n",
        "filename\tkind\tSplit\ttext\n1.png\tbee\ttr\tone, two\n2.png\tfly\thold-out\tthree\n",
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_the_same_table_however_it_is_written(text):
    assert [row[:3] for row in rows_of(text)] == [row[:3] for row in MEANING]
    assert [list(row[3].values()) for row in rows_of(text)] == [["bee"], ["fly"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,caption\n1.png,a\n2.png,red, round\n", "line 3: it has another number of cells than the first line"),
        ("file,kind\n\n1.png\n", r"line 3: it has another number of cells than the first line \(1 instead of 2\)"),
        ("file,caption,split\n1.png,red, round,train\n", "line 2: it has another number of cells"),
        ("file,caption,kind,split\n1.png,red, round,bee\n", "line 2: `split` is `bee`; it must be `train`"),
        ('file,kind\n1.png,bee\n2.png,"fly\n3.png,bee\n', "line 3: a double quote opens a cell"),
        ('file,kind\n1.png,"a 3" fly\n2.png,bee\n', "line 2: a double quote opens a cell"),
        # Closed by the next quote, it is a whole table, and rows are gone.
        ('file,caption\n1.png,"bee\n2.png,fly\n3.png,5"\n4.png,wasp\n', "line 2: a double quote opens `caption`"),
        ('file,kind\n1.png,"bee\nfly"\n', "line 2: a double quote opens `kind`"),
        ("file,kind,Kind\n1.png,bee,fly\n", "has two columns called `kind`"),
        ("file,kind, kind\n1.png,bee,fly\n", "has two columns called `kind`"),
        ("file;kind,size\n1.png;bee,2\n", "holds commas and semicolons: separate the columns by commas alone"),
        ("file|kind\n1.png|bee\n", "needs a header with a column `file`"),
        ("path,image\n1.png,2.png\n", "has `path` and `image`: call the one that names the pictures `file`"),
        ("file,kind\n1.png,bee\n,fly\n", "names no file in line 3"),
        ("file,split\n1.png,trainign\n", "line 2: `split` is `trainign`; it must be `train`, `val` or `test`"),
        ("file,kind\n1.png,Käfer\n".encode("cp1252"), "is not UTF-8 text: save it as `CSV UTF-8`"),
        ("file,kind\n1.png,bee\n".encode("utf-16-le"), "is not UTF-8 text"),
        (PLAIN.encode("utf-16")[:-1], "is not UTF-8 text"),
        ("file,kind\n", "and a row per picture"),
        ("file,kind\n,\n\n", "and a row per picture"),
        ("", "needs a header with a column `file`"),
    ],
)  # fmt: skip
def test_a_slip_is_refused_by_its_line(text, words):
    with pytest.raises(DataError, match=words):
        rows_of(text)


def test_a_caption_may_go_over_lines_and_hold_quotes():
    assert rows_of('file,caption\n1.png,"red,\nround"\n2.png,a 5" pipe\n3.png,"a ""big"" one"\n') == [
        ("1.png", None, "red,\nround", {}),
        ("2.png", None, 'a 5" pipe', {}),
        ("3.png", None, 'a "big" one', {}),
    ]


def test_a_line_is_counted_as_an_editor_counts_it():
    table = read_table(b'a,b\n\n"x\ny",1\n\nz,2\n', "t.csv", prose=("a",))
    assert [row.line for row in table.rows] == [3, 6]


def test_a_column_without_a_name_is_told_where_it_holds_something():
    """As pandas writes its row numbers, and Excel empty columns."""
    assert read_labels(b",file,kind\n0,1.png,bee\n", "x.csv")[1] == [
        "`x.csv` has a column without a name, which is not used (line 2)"
    ]
    assert read_labels(b"file,kind,,\n1.png,bee,,\n", "x.csv")[1] == []
    assert read_labels(b"file,split\n1.png,\n2.png,train\n", "x.csv")[1] == [
        "pictures whose `split` is empty are trained on: 1"
    ]


@pytest.mark.parametrize(
    ("values", "remarks"),
    [
        (["bee", "fly", "bee"], []),
        (["1", "2", "10"], []),
        (["bee", "", "fly", ""], ["pictures whose `kind` is empty: 2"]),
        (["Bee", "bee", "fly"], ["`kind` has labels of their own for `Bee` and `bee`"]),
        (["house fly", "housefly"], ["`kind` has labels of their own for `house fly` and `housefly`"]),
        (["1", "01"], ["`kind` has labels of their own for `01` and `1`"]),
        (["bee", "nan"], ["`kind` has a label `nan`: leave the cell empty where there is none"]),
        (["0.5", "2"], ["`kind` holds numbers, such as `0.5`: each is a label without order or distance"]),
    ],
)
def test_odd_labels_are_named(values, remarks):
    assert odd_labels("kind", values) == remarks
