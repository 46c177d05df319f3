"""A folder of pictures: what its labels are, what is held out, what is left out, and when it is read anew."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskimg.data import pictures as reading
from maskimg.data.listing import subset
from maskimg.data.pictures import list_pictures, move, read_pictures
from maskimg.data.sources import DataError


def _plain(folder: Path, *names: str, size: int = 20) -> Path:
    """Pictures of one colour each; the colour of the i-th is (i, 0, 0)."""
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (i, 0, 0)).save(path, format="PNG")
    return folder


def _labels(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


# ----------------------------------------------------------------------------- labels


def test_subfolders_are_labels(tmp_path, draw_pictures):
    draw_pictures(tmp_path, count=7)
    listing = list_pictures(tmp_path)
    assert listing.fields == {"class": ["circle", "square", "triangle"]}
    assert [listing.fields["class"][i] for i in listing.labels[:, 0]] == [name.split("/")[0] for name in listing.names]
    assert listing.labels.dtype == np.int64


def test_folders_below_a_subfolder_belong_to_its_label(tmp_path):
    listing = list_pictures(_plain(tmp_path, "cat/old/1.png", "cat/2.png", "dog/3.png"))
    assert listing.labels.tolist() == [[0], [0], [1]]
    assert listing.fields == {"class": ["cat", "dog"]}


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("cat/1.png", "2.png", "dog/3.png"), ("cat/1.png", "cat/2.png")])
def test_a_flat_or_mixed_folder_has_no_labels(tmp_path, names):
    listing = list_pictures(_plain(tmp_path, *names))
    assert listing.fields == {}
    assert listing.labels.shape == (len(names), 0)
    assert len(listing) == len(names)


def test_a_table_gives_several_labels_and_the_split(tmp_path):
    _plain(tmp_path, "a.png", "b.png", "sub/c.png", "unlisted.png")
    _labels(
        tmp_path,
        [
            {"file": "b.png", "split": "train", "class": "cat", "style": "round"},
            {"file": "a.png", "split": "val", "class": "dog", "style": "flat"},
            {"file": "sub/c.png", "split": "train", "class": "cat", "style": "flat"},
        ],
    )
    listing = list_pictures(tmp_path)
    assert listing.names == ["b.png", "a.png", "sub/c.png"]
    assert listing.fields == {"class": ["cat", "dog"], "style": ["flat", "round"]}
    assert listing.labels.tolist() == [[0, 1], [1, 0], [0, 0]]
    assert listing.held_out.tolist() == [False, True, False]


def test_a_table_may_come_from_a_spreadsheet_with_a_byte_order_mark(tmp_path):
    _plain(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text("file,class\r\na.png,Käse\r\n", encoding="utf-8-sig")
    assert list_pictures(tmp_path).fields == {"class": ["Käse"]}


@pytest.mark.parametrize(
    ("count", "once", "used"),
    [
        (30, 30, False),
        (30, 16, False),
        (30, 15, True),
        (20, 20, False),
        (19, 19, True),  # too few to tell
    ],
)
def test_a_column_whose_values_hardly_repeat_is_no_label(tmp_path, count, once, used):
    """`once` of its values belong to one picture, all others to several; pictures without a value do not count."""
    rows = [{"file": f"{i}.png", "class": "cat", "id": str(i) if i < once else "same"} for i in range(count)]
    _labels(tmp_path, [*rows, *({"file": f"more{i}.png", "class": "dog", "id": ""} for i in range(count))])
    listing = list_pictures(tmp_path)
    assert list(listing.fields) == (["class", "id"] if used else ["class"])
    assert listing.labels.shape == (2 * count, len(listing.fields))
    assert [remark.split("`")[1] for remark in listing.remarks if "is not used" in remark] == ([] if used else ["id"])
    assert listing.chosen([0]).remarks == listing.remarks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a header with a column `file`"),
        ("file,class\n", "needs a header with a column `file`, and a row per picture"),
        ("name,class\na.png,cat\n", "needs a header with a column `file`"),
        ("file,class\n../../etc/passwd,cat\n", "which lies outside the folder"),
        ("file,class\n/etc/passwd,cat\n", "which lies outside the folder"),
        ("class,file\ncat\n", "line 2: it has another number of cells"),
        (b"file\n\xff\xfe.png\n", "is not UTF-8 text: save it as `CSV UTF-8`"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    _plain(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list_pictures(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="holds no PNG, JPEG, .* pictures; left out: 1 text beside no .*notes.txt"):
        list_pictures(tmp_path)
    with pytest.raises(DataError, match="is a file: give the folder that holds the pictures"):
        list_pictures(tmp_path / "notes.txt")


# ----------------------------------------------------------------------------- how many read at a time


def test_pictures_lie_in_the_same_order_however_many_are_read_at_a_time(tmp_path, draw_pictures, monkeypatch):
    draw_pictures(tmp_path / "pictures", count=40, size=20)
    (tmp_path / "pictures" / "circle" / "0001.png").write_text("no picture")
    listing, written = list_pictures(tmp_path / "pictures"), {}
    for jobs in (1, 4, 13):
        monkeypatch.setattr(reading.os, "cpu_count", lambda jobs=jobs: jobs)
        read_pictures(listing, 16, tmp_path / str(jobs))
        written[jobs] = {path.name: path.read_bytes() for path in (tmp_path / str(jobs)).iterdir()}
    assert written[1] == written[4] == written[13]
    assert len(written[1]["pixels.u8"]) == 40 * 3 * 16 * 16 + 3 * 16 * 16


# ----------------------------------------------------------------------------- what is held out


def test_about_one_picture_in_twenty_is_held_out(tmp_path):
    listing = list_pictures(_plain(tmp_path, *(f"{i}.png" for i in range(200)), size=1))
    assert 4 <= listing.held_out.sum() <= 20  # 10 expected; the names are fixed, and with them the outcome


def test_adding_a_picture_moves_no_other_one_into_or_out_of_training(tmp_path):
    _plain(tmp_path, *(f"{i}.png" for i in range(60)), size=1)
    before = list_pictures(tmp_path)
    _plain(tmp_path, "new.png", "0a.png", size=1)
    after = list_pictures(tmp_path)
    kept = {name: held_out for name, held_out in zip(after.names, after.held_out, strict=True) if name in before.names}
    assert list(kept.values()) == before.held_out.tolist()
    assert before.held_out.any()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_a_few_pictures_one_is_held_out_and_of_one_none(tmp_path, count):
    names = [f"{i}.png" for i in range(count)]
    assert list_pictures(_plain(tmp_path / "few", *names, size=1)).held_out.sum() >= 1
    assert not list_pictures(_plain(tmp_path / "few", *names, size=1)).held_out.all()
    assert list_pictures(_plain(tmp_path / "one", "1.png", size=1)).held_out.tolist() == [False]


# ----------------------------------------------------------------------------- reading


def test_pictures_come_in_as_equal_squares_in_order(tmp_path):
    folder = _plain(tmp_path / "in", "a.png", "b/b.png", "c.png")
    Image.new("L", (50, 30), 200).save(folder / "d.jpg")
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert pictures.pixels.shape == (4, 3, 8, 8)
    assert pictures.pixels.dtype == torch.uint8
    assert pictures.pixels[:, 0, 4, 4].tolist() == [0, 1, 2, 200]
    assert pictures.names == ["a.png", "b/b.png", "c.png", "d.jpg"]
    assert pictures.size == 8


def _spoil(folder: Path) -> None:
    """Three files that cannot be read, beside the pictures."""
    (folder / "b.png").write_text("<html>not found</html>")
    (folder / "d.png").write_bytes(b"")
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes()[:40])


def test_files_that_cannot_be_read_are_left_out_and_listed(tmp_path):
    folder = _plain(tmp_path / "in", "a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "g.png")
    _spoil(folder)
    listing = list_pictures(folder)
    pictures = read_pictures(listing, 8, tmp_path / "cache")

    assert pictures.names == ["a.png", "c.png", "e.png", "g.png"]
    assert pictures.pixels[:, 0, 4, 4].tolist() == [0, 2, 4, 6]
    assert len(pictures.labels) == len(pictures.held_out) == 4
    bad = (tmp_path / "cache" / "bad.txt").read_text().splitlines()
    assert len(bad) == 3
    assert all(f"/{name}`" in line for name, line in zip(("b.png", "d.png", "f.png"), bad, strict=True))


def test_a_file_that_the_table_names_and_the_folder_lacks_is_left_out(tmp_path):
    folder = _plain(tmp_path / "in", "a.png")
    _labels(folder, [{"file": "gone.png", "class": "cat"}, {"file": "a.png", "class": "dog"}])
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert pictures.names == ["a.png"]
    assert pictures.labels.tolist() == [[1]]
    assert "there is no such file" in (tmp_path / "cache" / "bad.txt").read_text()


def test_too_many_files_that_cannot_be_read_stop_the_run(tmp_path):
    folder = _plain(tmp_path / "in", *(f"{i}.png" for i in range(6)))
    for i in range(4):
        (folder / f"{i}.png").write_bytes(b"")
    listing = list_pictures(folder)
    with pytest.raises(DataError, match=r"4 of 6 pictures in .* cannot be read \(the first: .*0\.png.*--max-bad"):
        read_pictures(listing, 8, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert len(read_pictures(listing, 8, tmp_path / "cache", max_bad=0.7).names) == 2


def test_a_folder_of_nothing_but_damaged_files_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 pictures"):
        read_pictures(list_pictures(tmp_path), 8, tmp_path / "cache")


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_names_may_hold_any_bytes(tmp_path):
    folder = _plain(tmp_path / "in", "with space.png", "ümlaut.png", "new\nline.png")
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "ümlaut.png").read_bytes())
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert len(set(pictures.names)) == 4


# ----------------------------------------------------------------------------- the cache


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many pictures were decoded, one number for each time that any were."""
    counts, decode = [], reading._decode

    def counted(listing, *args):
        counts.append(len(listing))
        return decode(listing, *args)

    monkeypatch.setattr(reading, "_decode", counted)
    return counts


def test_pictures_are_decoded_once_while_the_folder_stays_the_same(tmp_path, decoded):
    folder = _plain(tmp_path / "in", "cat/a.png", "dog/b.png", "dog/c.png")
    first = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    again = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert decoded == [3]
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.held_out, again.held_out)
    assert (first.names, first.fields, first.fingerprint) == (again.names, again.fields, again.fingerprint)


def _add(folder: Path) -> None:
    _plain(folder, "dog/new.png")


def _remove(folder: Path) -> None:
    (folder / "dog" / "c.png").unlink()


def _rename(folder: Path) -> None:
    (folder / "dog" / "c.png").rename(folder / "dog" / "z.png")


def _relabel(folder: Path) -> None:
    (folder / "dog" / "c.png").rename(folder / "cat" / "c.png")


def _edit(folder: Path) -> None:
    Image.effect_noise((20, 20), 50).save(folder / "dog" / "c.png")


@pytest.mark.parametrize("change", [_add, _remove, _rename, _relabel, _edit])
def test_a_folder_that_changed_is_read_anew(tmp_path, decoded, change):
    folder = _plain(tmp_path / "in", "cat/a.png", "dog/b.png", "dog/c.png")
    read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    change(folder)
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert len(decoded) == 2
    assert pictures.names == list_pictures(folder).names


def test_another_size_is_read_anew(tmp_path, decoded):
    folder = _plain(tmp_path / "in", "a.png", "b.png")
    read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    assert read_pictures(list_pictures(folder), 16, tmp_path / "cache").size == 16
    assert len(decoded) == 2


def test_a_damaged_cache_is_read_anew(tmp_path, decoded):
    folder = _plain(tmp_path / "in", "a.png", "b.png")
    expected = read_pictures(list_pictures(folder), 8, tmp_path / "cache").pixels.clone()
    (tmp_path / "cache" / "pixels.u8").write_bytes(bytes(100))
    assert torch.equal(read_pictures(list_pictures(folder), 8, tmp_path / "cache").pixels, expected)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(read_pictures(list_pictures(folder), 8, tmp_path / "cache").pixels, expected)
    assert len(decoded) == 3


def test_parts_are_the_training_pictures_and_the_held_out_ones(tmp_path):
    folder = _plain(tmp_path / "in", "a.png", "b.png", "c.png")
    _labels(folder, [{"file": f"{n}.png", "split": s} for n, s in (("a", "val"), ("b", "train"), ("c", "train"))])
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache")
    train, unseen = pictures.part(held_out=False), pictures.part(held_out=True)
    assert (train.names, unseen.names) == (["b.png", "c.png"], ["a.png"])
    assert train.pixels[:, 0, 0, 0].tolist() == [1, 2]
    train.pixels.zero_()  # a copy: the cache on disk stays as it is
    assert pictures.pixels[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_moving_shifts_each_picture_and_repeats_its_edges():
    """The same for the same generator; 3 x 3 offsets, each of which 200 pictures miss with a chance of 10^-10."""
    picture = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5).expand(200, 3, 5, 5)
    moved = move(picture, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(picture[:1].float(), (1, 1, 1, 1), mode="replicate").byte()
    possible = [padded[0, :, y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    found = [next(i for i, one in enumerate(possible) if torch.equal(one, image)) for image in moved]
    assert set(found) == set(range(9))
    assert torch.equal(move(picture, 1, torch.Generator().manual_seed(0)), moved)
    assert torch.equal(move(picture, 0, torch.Generator()), picture)


# ----------------------------------------------------------------------------- a part of a folder


def test_a_subset_keeps_who_is_held_out_and_every_label(tmp_path, draw_pictures):
    draw_pictures(tmp_path, count=60)
    listing = list_pictures(tmp_path)
    part = subset(listing, held_out=2, training=10)
    assert (int(part.held_out.sum()), len(part.names)) == (2, 12)
    rows = [listing.names.index(name) for name in part.names]
    assert rows == sorted(rows)
    assert np.array_equal(part.held_out, listing.held_out[rows])
    assert np.array_equal(part.labels, listing.labels[rows])
    assert subset(listing, held_out=2, training=10).names == part.names
    assert subset(listing, held_out=2, training=10, seed=1).names != part.names
    assert subset(listing, held_out=100, training=100).names == listing.names


def test_a_share_may_be_held_out_instead(tmp_path, draw_pictures):
    draw_pictures(tmp_path, count=40)
    listing = list_pictures(tmp_path)
    part = subset(listing, held_out=100, training=100, share=0.25)
    assert (int(part.held_out.sum()), len(part.names)) == (10, 40)
    assert not np.array_equal(part.held_out, listing.held_out)
    with pytest.raises(DataError, match="a share of 0.01 of 40 pictures is less than one picture: hold out more"):
        subset(listing, held_out=100, training=100, share=0.01)
