"""Pictures in folders, archives and shards: the same listing wherever they lie, and nothing written beside them."""

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packing import as_folder, as_tar, as_tar_gz, as_zip, png

from maskimg.data import archives
from maskimg.data.pictures import list_pictures, read_pictures
from maskimg.data.sources import DataError

ARCHIVES = pytest.mark.parametrize("pack", [as_zip, as_tar, as_tar_gz])
KINDS = pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar, as_tar_gz])

NESTED = {"dog/2.png": png(2), "cat/1.png": png(1), "cat/old/3.png": png(3), "cat/notes.md": b"of no interest"}


# ----------------------------------------------------------------------------- the same, wherever they lie


@ARCHIVES
def test_an_archive_gives_what_its_folder_gives(pack, tmp_path):
    expected = list_pictures(as_folder(tmp_path / "folder", NESTED))
    listing = list_pictures(pack(tmp_path / "archive", NESTED))
    assert listing.names == expected.names == ["cat/1.png", "cat/old/3.png", "dog/2.png"]
    assert listing.fields == expected.fields == {"class": ["cat", "dog"]}
    assert np.array_equal(listing.labels, expected.labels)
    assert np.array_equal(listing.held_out, expected.held_out)
    assert listing.fingerprint == expected.fingerprint
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.pixels[:, 0, 4, 4].tolist() == [1, 3, 2]


@ARCHIVES
def test_an_archive_is_read_in_place(pack, tmp_path):
    """Nothing is unpacked, whatever the names in it."""
    contents = {
        "../../evil.png": png(1),
        "/etc/evil.png": png(2),
        "..\\..\\worse.png": png(3),
        "C:\\x\\4.png": png(4),
    }
    path = pack(tmp_path / "in" / "archive", contents)
    listing = list_pictures(path)
    assert len(read_pictures(listing, 8, tmp_path / "out" / "cache").names) == 4
    assert not any(".." in name.split("/") or name[0] == "/" for name in listing.names)
    left = {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*") if each.is_file()}
    assert left == {f"in/{path.name}", *(f"out/cache/{name}" for name in ("pixels.u8", "bad.txt", "pictures.json",
                                                                          "manifest.json"))}  # fmt: skip


@ARCHIVES
def test_the_one_folder_that_everything_in_an_archive_lies_in_is_no_label(pack, tmp_path):
    listing = list_pictures(pack(tmp_path / "a", {f"flowers/all/{name}": data for name, data in NESTED.items()}))
    assert listing.fields == {"class": ["cat", "dog"]}
    assert listing.names[0] == "cat/1.png"


@ARCHIVES
def test_what_systems_hide_in_archives_is_no_picture(pack, tmp_path):
    hidden = {"__MACOSX/cat/._1.png": b"resource", "cat/._1.png": b"fork", ".thumbs/1.png": png(9)}
    assert list_pictures(pack(tmp_path / "a", NESTED | hidden)).names == ["cat/1.png", "cat/old/3.png", "dog/2.png"]


@KINDS
def test_a_table_labels_captions_and_splits_the_pictures_beside_it(pack, tmp_path):
    table = "file,split,class,caption\n./b.png,train,x,a red square\nsub/a.png,val,,\ngone.png,train,y,\n"
    listing = list_pictures(
        pack(tmp_path / "a", {"data/labels.csv": table.encode(), "data/b.png": png(1), "data/sub/a.png": png(2)})
        if pack is not as_folder
        else as_folder(tmp_path / "a", {"labels.csv": table.encode(), "b.png": png(1), "sub/a.png": png(2)})
    )
    assert listing.names == ["b.png", "sub/a.png", "gone.png"]
    assert listing.fields == {"class": ["x", "y"]}  # `caption` is no label
    assert listing.labels.tolist() == [[0], [2], [1]]
    assert listing.held_out.tolist() == [False, True, False]
    assert listing.captions == [["a red square"], [], []]
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.names == ["b.png", "sub/a.png"]
    assert pictures.captions == [["a red square"], []]
    (bad,) = (tmp_path / "cache" / "bad.txt").read_text().splitlines()
    assert "gone.png` " in bad


@KINDS
def test_what_lies_beside_a_picture_describes_it(pack, tmp_path):
    contents = {
        "1.png": png(1), "1.txt": "a cat\n\nblack Käse\n".encode(), "1.cls": b"10\n",
        "2.png": png(2), "2.json": json.dumps({"label": 2, "caption": ["two", "more", ""]}).encode(),
        "3.png": png(3), "3.json": b"no JSON at all",
        "4.txt": b"beside nothing",
    }  # fmt: skip
    listing = list_pictures(pack(tmp_path / "a", contents))
    assert listing.captions == [["a cat", "black Käse"], ["two", "more"], []]
    assert listing.fields == {"class": ["2", "10"]}  # numbers in the order of numbers
    assert listing.labels.tolist() == [[1], [0], [2]]
    changed = list_pictures(pack(tmp_path / "b", contents | {"1.txt": b"a dog"}))
    assert changed.fingerprint != listing.fingerprint


# ----------------------------------------------------------------------------- shards


def _shard(folder: Path, number: int, suffix: str = ".tar") -> Path:
    contents = {}
    for i in range(3):
        key = f"{number}/{i}"
        contents |= {f"{key}.png": png(10 * number + i), f"{key}.cls": str(i % 2).encode(), f"{key}.txt": b"text"}
        contents |= {f"{key}.mask.png": png(200)}
    return as_tar(folder / f"s-{number:03d}", contents, suffix)


@pytest.mark.parametrize("pattern", ["s-{000..002}.tar", "s-*.tar", "s-00[012].tar"])
def test_shards_are_read_by_a_pattern(pattern, tmp_path):
    for number in range(3):
        _shard(tmp_path, number)
    listing = list_pictures(tmp_path / pattern)
    assert len(listing) == 9 == len(set(listing.names))
    assert listing.fields == {"class": ["0", "1"]}
    assert listing.captions == [["text"]] * 9
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.pixels[:, 0, 4, 4].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def test_pictures_of_one_name_in_two_shards_are_two(tmp_path):
    for number in range(2):
        as_tar(tmp_path / f"s-{number}", {"same.png": png(number)})
    pictures = read_pictures(list_pictures(tmp_path / "s-{0..1}.tar"), 8, tmp_path / "cache")
    assert sorted(pictures.pixels[:, 0, 4, 4].tolist()) == [0, 1]


def test_a_missing_shard_is_named(tmp_path):
    _shard(tmp_path, 0)
    with pytest.raises(DataError, match=r"there is no shard `.*s-001\.tar`"):
        list_pictures(tmp_path / "s-{000..001}.tar")
    with pytest.raises(DataError, match="there is no shard"):
        list_pictures(tmp_path / "t-*.tar")
    for pattern in ("s-{3..1}.tar", "s-{0..999999999}.tar"):
        with pytest.raises(DataError, match="must count upwards, to at most 100,000 shards"):
            list_pictures(tmp_path / pattern)


def test_a_compressed_archive_is_read_from_front_to_back(tmp_path, monkeypatch):
    """Going back would decompress it from its beginning again, for each picture."""
    names = [f"{i}.png" for i in (5, 3, 1, 4, 2, 0)]
    path = as_tar_gz(tmp_path / "a", {name: png(int(name[0])) for name in names})
    seen, opened = [], archives._opened

    class Watched:
        def __init__(self, path):
            self.inner = opened(path)

        def __enter__(self):
            fetch = self.inner.__enter__()
            return lambda member: (seen.append(member.offset), fetch(member))[1]

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    monkeypatch.setattr(archives, "_opened", Watched)
    pictures = read_pictures(list_pictures(path), 8, tmp_path / "cache")
    assert pictures.pixels[:, 0, 4, 4].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(seen) == 6 and seen == sorted(seen)


# ----------------------------------------------------------------------------- damage


@ARCHIVES
def test_a_damaged_archive_is_refused_with_a_sentence(pack, tmp_path):
    path = pack(tmp_path / "a", {f"{i}.png": png(i) for i in range(9)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match="is damaged or cut off: copy or download it again"):
        list_pictures(path)


@ARCHIVES
def test_a_damaged_picture_in_an_archive_costs_a_line(pack, tmp_path):
    contents = {"1.png": png(1), "2.png": b"<html>", "3.png": b"", "4.png": png(4)[:50], "5.png": png(5)}
    pictures = read_pictures(list_pictures(pack(tmp_path / "a", contents)), 8, tmp_path / "cache")
    assert pictures.names == ["1.png", "5.png"]
    bad = (tmp_path / "cache" / "bad.txt").read_text().splitlines()
    assert [f"/{i}.png`" in line for i, line in zip((2, 3, 4), bad, strict=True)] == [True] * 3


def test_bytes_that_flipped_inside_a_zip_cost_a_line(tmp_path):
    path = as_zip(tmp_path / "a", {"1.png": png(1), "2.png": png(2, size=200)})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("2.png").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    assert read_pictures(list_pictures(path), 8, tmp_path / "cache").names == ["1.png"]
    assert "2.png` is damaged in the archive" in (tmp_path / "cache" / "bad.txt").read_text()


def test_links_and_locks_in_archives_cost_a_line(tmp_path):
    path = as_tar(tmp_path / "a", {"1.png": png(1)})
    with tarfile.open(path, "a") as archive:
        for name, kind in (("2.png", tarfile.SYMTYPE), ("3.png", tarfile.LNKTYPE), ("4.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert read_pictures(list_pictures(path), 8, tmp_path / "cache").names == ["1.png"]
    bad = (tmp_path / "cache" / "bad.txt").read_text()
    assert bad.count("etc/passwd`, which is not a file in the archive") == 2
    assert bad.count("is a device in the archive") == 1

    locked = as_zip(tmp_path / "b", {"1.png": png(1), "2.png": png(2)})
    data = bytearray(locked.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(signature) + flags] |= 1
    locked.write_bytes(data)
    assert read_pictures(list_pictures(locked), 8, tmp_path / "cache").names == ["1.png"]
    assert "2.png` is encrypted" in (tmp_path / "cache" / "bad.txt").read_text()


@pytest.mark.parametrize("pack", [as_zip, as_tar_gz])
def test_a_bomb_in_an_archive_is_not_unpacked(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 10_000)
    path = pack(tmp_path / "a", {"1.png": png(1), "2.png": bytes(1_000_000)})
    assert path.stat().st_size < 10_000
    assert read_pictures(list_pictures(path), 8, tmp_path / "cache").names == ["1.png"]
    assert "2.png` has 1 MB; the limit is 0" in (tmp_path / "cache" / "bad.txt").read_text()


def test_what_is_no_source_is_refused(tmp_path):
    (tmp_path / "a.doc").write_bytes(b"Dear all")
    with pytest.raises(
        DataError, match="is a file: give the folder that holds the pictures, or a .zip or .tar archive"
    ):
        list_pictures(tmp_path / "a.doc")
    with pytest.raises(DataError, match="there is no folder"):
        list_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no PNG, JPEG, WebP"):
        list_pictures(as_zip(tmp_path / "empty", {}))
    (tmp_path / "not.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is damaged or cut off"):
        list_pictures(tmp_path / "not.zip")
