"""What a folder, an archive or a shard holds: the same for the same tree, and every file is read or counted."""

import io
import json
import os
import shutil
import stat
import sys
import tarfile
import types
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from packing import as_folder, as_tar, as_tar_gz, as_zip, png
from PIL import Image

from maskimg.cli.main import main
from maskimg.data.pictures import list_pictures, read_pictures
from maskimg.data.sources import DataError

KINDS = pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
PICTURE = png(7)


def tree(*names: str, **texts: str | bytes) -> dict[str, bytes]:
    """Pictures, and texts whose names are written with `_` for `.` and `__` for `/`."""
    contents = {name: PICTURE for name in names}
    for name, text in texts.items():
        data = text if isinstance(text, bytes) else text.encode()
        contents[name.replace("__", "/").replace("_", ".")] = data
    return contents


def labels(listing) -> list[str]:
    """The class of each picture."""
    names = [*listing.fields["class"], ""]
    return [names[i] for i in listing.labels[:, 0]]


def left_out(listing) -> list[str]:
    return [line.removeprefix("left out: ") for line in listing.remarks if line.startswith("left out: ")]


# ----------------------------------------------------------------------------- the same, wherever they lie

TREES = {
    "flat": tree("b.png", "a.jpg", "c.webp"),
    "classes": tree("bee/1.png", "fly/1.png", "fly/big/2.png"),
    "wrapped": tree("set/bee/1.png", "set/fly/2.png"),
    "wrapped twice": tree("a/b/bee/1.png", "a/b/fly/2.png", notes_md="x"),
    "wrapped with a table": tree("set/1.png", "set/2.png", set__labels_csv="file,kind\n1.png,bee\n2.png,fly\n"),
    "table above": tree("set/1.png", "set/2.png", labels_csv="file,kind\nset/1.png,bee\nset/2.png,fly\n"),
    "table further down": tree("1.png", "set/2.png", set__labels_csv="file,kind\n2.png,bee\n"),
    "capital table": tree("1.png", Labels_CSV="file,kind\n1.png,bee\n"),
    "parts": tree("train/bee/1.png", "train/fly/2.png", "val/bee/3.png", "val/fly/4.png"),
    "parts in a folder": tree("set/Train/bee/1.png", "set/Train/fly/2.png", "set/TEST/bee/3.png"),
    "parts below": tree("bee/training/1.png", "fly/training/2.png", "bee/validation/3.png"),
    "parts and more": tree("train/bee/1.png", "train/fly/2.png", "dev/bee/3.png", "extra/4.png", "5.png"),
    "mixed": tree("bee/1.png", "fly/2.png", "3.png"),
    "captions": tree("a.png", "b.png", a_txt="one\ntwo", b_caption="three", c_txt="nobody's"),
    "captions of all names": tree("a.b.png", "a.png", a_b_txt="dotted", a_png_txt="whole"),
    "samples": tree("0.png", "0.mask.png", "1.png", "1.mask.png", **{"0_cls": "3", "1_cls": "4"}),
    "clutter": tree(
        "bee/1.png", "fly/2.png", "bee/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/bee/._1.png", ".git/x.png",
        "#recycle/9.png", "lost+found/8.png", "bee/.7.png", "$RECYCLE.BIN/x/6.png", "fly/SYNOFILE_THUMB_M.png",
        **{"Thumbs_db": "x", "bee__desktop_ini": "x"},
    ),
    "others": tree("1.png", a_psd="x", b_zip="x", c_svg="x", README_md="x"),
    "a model among them": tree(
        "bee/1.png", "fly/2.png", "out/samples.png",
        out__manifest_json=json.dumps({"format": 1, "files": {"x": {"size": 1, "sha256": "0"}}}),
    ),
    "decomposed": {f"{unicodedata.normalize('NFD', 'käfer')}/1.png": PICTURE, "fly/2.png": PICTURE},
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_tree_gives_the_same_wherever_it_lies(name, tmp_path):
    """A folder, a zip, a tar, a packed tar and a pattern that only one shard fits."""
    expected = list_pictures(as_folder(tmp_path / "folder", TREES[name]))
    single = as_tar(tmp_path / "shard-000", TREES[name])
    sources = [pack(tmp_path / "x", TREES[name]) for pack in (as_zip, as_tar, as_tar_gz)]
    for source in [*sources, single, tmp_path / "shard-{000..000}.tar"]:
        if name == "captions of all names" and "{" in str(source):
            continue  # in webdataset `a.b.png` belongs to the sample `a`
        listing = list_pictures(source)
        assert listing.names == expected.names
        assert listing.fields == expected.fields
        assert np.array_equal(listing.labels, expected.labels)
        assert np.array_equal(listing.held_out, expected.held_out)
        assert listing.captions == expected.captions
        assert listing.fingerprint == expected.fingerprint
        assert sorted(left_out(listing)) == sorted(left_out(expected))


def test_a_fingerprint_is_what_it_was(tmp_path):
    """Of plain folders, so that a training that began with an older version goes on."""
    contents = {name: b"x" * (10 + i) for i, name in enumerate(("cat/1.png", "cat/2.jpg", "dog/old/3.webp"))}
    assert list_pictures(as_folder(tmp_path / "a", contents)).fingerprint == (
        "7d5587c17da44b2af0233f03aaeda61cb95bf5a5abe15918cd419cbf8c82eca3"
    )
    flat = {"1.png": b"12345", "2.png": b"1", "1.txt": b"a cat\n"}
    assert list_pictures(as_folder(tmp_path / "b", flat)).fingerprint == (
        "c0fa46795aafd1b08553f05b734d5867ad29025f65f32f051422d5b6a65ad522"
    )


# ----------------------------------------------------------------------------- parts


@KINDS
@pytest.mark.parametrize("words", [("train", "val"), ("Training", "TEST"), ("train", "dev"), ("tr", "hold-out")])
def test_folders_that_are_parts_are_no_labels(pack, words, tmp_path):
    """Whichever of the two levels they are on; they used to be what a model was asked for by."""
    for i, shape in enumerate(("{part}/{kind}/{n}.png", "{kind}/{part}/{n}.png")):
        names = [shape.format(part=part, kind=kind, n=n) for part in words for kind in ("bee", "fly") for n in "12"]
        listing = list_pictures(pack(tmp_path / str(i), tree(*names)))
        assert listing.fields == {"class": ["bee", "fly"]}
        assert listing.held_out.tolist() == [words[1] in name.split("/") for name in listing.names]


def test_a_class_may_be_called_train(tmp_path):
    listing = list_pictures(as_folder(tmp_path, tree("train/1.png", "plane/2.png", "ship/3.png")))
    assert listing.fields == {"class": ["plane", "ship", "train"]}


def test_pictures_in_no_part_are_told(tmp_path):
    listing = list_pictures(as_folder(tmp_path, TREES["parts and more"]))
    assert len(listing) == 3
    assert left_out(listing) == [
        "2 pictures that lie in no part, such as `train`, of the data set (5.png, extra/4.png)"
    ]


def test_nothing_to_train_on_is_refused_before_any_work(tmp_path, capsys):
    """Splits in other words used to hold everything out, and training then crashed."""
    as_folder(tmp_path / "a", tree("val/bee/1.png", "test/fly/2.png"))
    as_folder(tmp_path / "b", tree("1.png", "2.png", labels_csv="file,split\n1.png,Test\n2.png,valid\n"))
    for name in "ab":
        for command in (["train"], ["train-tokenizer"]):
            with pytest.raises(SystemExit) as stop:
                main([*command, str(tmp_path / name), "--out", str(tmp_path / "out"), "--preset", "cpu"])
            assert stop.value.code == 2
            assert "are held out, and none is left to train on" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_table_without_a_split_is_held_out_as_its_folders_say(tmp_path):
    table = "file,kind\ntrain/1.png,bee\nval/2.png,fly\n"
    listing = list_pictures(as_folder(tmp_path, tree("train/1.png", "val/2.png", labels_csv=table)))
    assert listing.held_out.tolist() == [False, True]


# ----------------------------------------------------------------------------- links and what cannot be read


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_linked_folders_and_pictures_are_read(tmp_path):
    as_folder(tmp_path / "store", tree("wasps/1.png", "wasps/deep/2.png", "one.png"))
    folder = as_folder(tmp_path / "pics", tree("bee/1.png"))
    (folder / "wasp").symlink_to(tmp_path / "store" / "wasps")
    (folder / "fly").mkdir()
    (folder / "fly" / "x.png").symlink_to(tmp_path / "store" / "one.png")
    listing = list_pictures(folder)
    assert listing.names == ["bee/1.png", "fly/x.png", "wasp/1.png", "wasp/deep/2.png"]
    assert labels(listing) == ["bee", "fly", "wasp", "wasp"]
    assert len(read_pictures(listing, 8, tmp_path / "cache").names) == 4


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_in_circles_end_and_a_folder_is_read_once(tmp_path):
    folder = as_folder(tmp_path / "pics", tree("bee/1.png", "fly/2.png"))
    (folder / "a").symlink_to(folder / "bee")  # the real folder counts, though the link comes first
    (folder / "bee" / "up").symlink_to("..")
    (folder / "fly" / "root").symlink_to(tmp_path)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing = list_pictures(folder)
    assert listing.names == ["bee/1.png", "fly/2.png", "gone.png"]
    assert left_out(listing) == [
        "2 links to nothing (gone, loop)",
        "3 links to folders that are read already (a, bee/up, fly/root)",
    ]
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.names == ["bee/1.png", "fly/2.png"]
    assert "gone.png` cannot be read: there is no such file" in (tmp_path / "cache" / "bad.txt").read_text()


def test_folders_that_may_not_be_read_are_told(tmp_path, monkeypatch):
    folder = as_folder(tmp_path, tree("bee/1.png", "fly/2.png", "mine/3.png"))
    scandir = os.scandir

    def refused(path):  # as the system answers anyone but root
        if Path(path).name == "mine":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert left_out(list_pictures(folder)) == ["1 folder that cannot be read (mine)"]
    with pytest.raises(DataError, match=r"mine` cannot be read \(Permission denied\)"):
        list_pictures(folder / "mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_a_pipe_among_pictures_stops_nothing(tmp_path):
    folder = as_folder(tmp_path / "pics", tree("1.png", "2.png"))
    for name in ("3.png", "1.txt", "labels.csv.fifo"):
        os.mkfifo(folder / name)
    listing = list_pictures(folder)
    assert read_pictures(listing, 8, tmp_path / "cache").names == ["1.png", "2.png"]
    assert "3.png` is not a regular file" in (tmp_path / "cache" / "bad.txt").read_text()
    assert listing.captions == []


def linked_tar(path: Path) -> Path:
    as_tar(path, tree("store/1.png", "bee/0.png"))
    with tarfile.open(f"{path}.tar", "a") as archive:
        for name, kind, target in (
            ("fly/1.png", tarfile.SYMTYPE, "../store/1.png"),
            ("fly/2.png", tarfile.LNKTYPE, "store/1.png"),
            ("fly/3.png", tarfile.SYMTYPE, "2.png"),
            ("fly/out.png", tarfile.SYMTYPE, "../../etc/x.png"),
            ("fly/self.png", tarfile.SYMTYPE, "self.png"),
            ("wasp", tarfile.SYMTYPE, "store"),
            ("moth", tarfile.SYMTYPE, "/data/moth"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return Path(f"{path}.tar")


def test_links_in_a_tar_are_read_as_what_they_point_at(tmp_path):
    listing = list_pictures(linked_tar(tmp_path / "a"))
    assert left_out(listing) == [
        "1 link to a folder that is read already (wasp)",
        "1 link to what is not in the archive (moth)",
    ]
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.names == ["bee/0.png", "fly/1.png", "fly/2.png", "fly/3.png", "store/1.png"]
    assert pictures.pixels[:, 0, 4, 4].tolist() == [7] * 5
    bad = (tmp_path / "cache" / "bad.txt").read_text()
    assert "fly/out.png` is a link to" in bad and "fly/self.png` is a link to" in bad


def test_a_link_in_a_zip_is_read_as_what_it_points_at(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("store/1.png", PICTURE)
        info = zipfile.ZipInfo("bee/2.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "../store/1.png")
    assert read_pictures(list_pictures(tmp_path / "a.zip"), 8, tmp_path / "cache").names == ["bee/2.png", "store/1.png"]


# ----------------------------------------------------------------------------- tables and their files


@KINDS
def test_a_file_is_found_however_its_name_is_spelled(pack, tmp_path):
    """Macs compose letters otherwise, and Windows does not look at capitals."""
    names = [unicodedata.normalize("NFD", "höhle.png"), unicodedata.normalize("NFC", "küste.png"), "Wald.PNG"]
    rows = [unicodedata.normalize("NFC", "höhle.png"), unicodedata.normalize("NFD", "küste.png"), "wald.png"]
    kinds = ["dünn", unicodedata.normalize("NFD", "dünn"), "dick"]
    table = "file,kind\n" + "".join(f"{row},{kind}\n" for row, kind in zip(rows, kinds, strict=True))
    listing = list_pictures(pack(tmp_path / "a", tree(*names, labels_csv=table)))
    assert listing.names == names
    assert listing.fields == {"kind": ["dick", "dünn"]}
    assert listing.labels.tolist() == [[1], [1], [0]]
    assert listing.remarks == ["files found under names in other letters: 1 (Wald.PNG)"]
    assert all(entry.size == len(PICTURE) for entry in listing.entries)


def test_two_files_that_differ_in_capitals_are_not_guessed_between(tmp_path):
    contents = tree("A.png", "a.PNG", labels_csv="file\nA.PNG\n")
    listing = list_pictures(as_zip(tmp_path / "x", contents))
    assert (listing.names, listing.entries[0].size) == (["A.PNG"], -1)
    assert left_out(listing) == ["2 pictures that labels.csv does not name (A.png, a.PNG)"]


def test_a_table_may_name_files_from_the_root_of_the_disk(tmp_path):
    folder = as_folder(tmp_path / "pics", tree("1.png", "in/2.png"))
    (folder / "labels.csv").write_text(f"file\n{folder / '1.png'}\n{folder / 'in' / '2.png'}\n")
    assert list_pictures(folder).names == ["1.png", "in/2.png"]
    for elsewhere in ("/etc/1.png", "C:\\pics\\1.png", "../1.png"):
        (folder / "labels.csv").write_text(f"file\n1.png\n{elsewhere}\n")
        with pytest.raises(DataError, match=r"line 3 names .*, which lies outside the folder"):
            list_pictures(folder)


@KINDS
def test_a_picture_in_two_rows_counts_once_and_may_have_two_captions(pack, tmp_path):
    table = "file,kind,caption\n1.png,bee,one\n2.png,fly,\n./1.png,bee,two\n1.png,bee,one\n"
    listing = list_pictures(pack(tmp_path / "a", tree("1.png", "2.png", labels_csv=table)))
    assert listing.names == ["1.png", "2.png"]
    assert listing.captions == [["one", "two"], []]
    assert any("in several rows" in line and "count once: 1 (1.png)" in line for line in listing.remarks)


@pytest.mark.parametrize(("row", "field"), [("1.png,fly,train", "kind"), ("1.png,bee,test", "split")])
def test_a_picture_in_two_rows_that_contradict_each_other_is_refused(tmp_path, row, field):
    as_folder(tmp_path, tree("1.png", labels_csv=f"file,kind,split\n1.png,bee,train\n{row}\n"))
    with pytest.raises(DataError, match=f"line 3 names `1.png` a second time, with another `{field}` than line 2"):
        list_pictures(tmp_path)


def test_texts_that_a_table_overrides_are_told(tmp_path):
    listing = list_pictures(as_folder(tmp_path, tree("1.png", **{"1_txt": "x"}, labels_csv="file,text\n1.png,y\n")))
    assert listing.captions == [["y"]]
    assert any("the texts beside pictures are not read" in line for line in listing.remarks)


# ----------------------------------------------------------------------------- captions beside pictures


@KINDS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_captions_are_read_in_the_encoding_that_they_say(pack, encoding, tmp_path):
    contents = {"1.png": PICTURE, "1.TXT": "ein Käfer\n".encode(encoding), "2.png": PICTURE}
    contents["2.Json"] = json.dumps({"text": "двa"}, ensure_ascii=False).encode(encoding)
    assert list_pictures(pack(tmp_path / "a", contents)).captions == [["ein Käfer"], ["двa"]]


@KINDS
@pytest.mark.parametrize("data", ["schöner Käfer".encode("cp1252"), "abc".encode("utf-16-le"), b"\xff\xfea"])
def test_captions_in_no_known_encoding_are_refused_by_name(pack, data, tmp_path):
    """They used to be trained on as rubbish."""
    contents = tree("1.png", "2.png", "3.png", **{"1_txt": "fine"}) | {"2.txt": data, "3.caption": data}
    with pytest.raises(DataError, match=r"2 texts beside pictures in .* are not in UTF-8, such as `2.txt`"):
        list_pictures(pack(tmp_path / "a", contents))


@KINDS
def test_texts_that_say_nothing_are_told(pack, tmp_path):
    contents = tree("1.png", "2.png", "3.png", **{"1_json": "{not JSON", "2_json": "[1]"}) | {"3.txt": b"x" * 2**21}
    listing = list_pictures(pack(tmp_path / "a", contents | {"4.txt": b"alone"}))
    assert listing.captions == []
    assert sorted(left_out(listing)) == [
        "1 JSON file that cannot be read (1.json)",
        "1 text beside a picture of more than 1 MB (3.txt)",
        "1 text beside no picture (4.txt)",
    ]


def test_a_text_belongs_to_all_pictures_of_its_name_and_first_to_the_one_it_names_in_full(tmp_path):
    contents = tree("a.png", "a.jpg", "b.png", "b.jpg", a_txt="both", b_txt="both", b_jpg_txt="mine")
    assert list_pictures(as_folder(tmp_path, contents)).captions == [["both"], ["both"], ["mine"], ["both"]]


# ----------------------------------------------------------------------------- formats


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 40)).save(file, format=kind)
    return file.getvalue()


def test_every_usual_suffix_is_read(tmp_path):
    """`.jfif`, GIF, BMP, TIFF and AVIF were passed over without a word."""
    kinds = {"PNG": "png apng", "JPEG": "jpg JPEG jpe jfif jif pjpeg", "GIF": "gif", "BMP": "bmp BMP", "DIB": "dib"}
    kinds |= {"TIFF": "tif tiff", "WEBP": "webp", "PPM": "ppm pnm", "AVIF": "avif"}
    contents = {f"x.{suffix}": encoded(kind) for kind, suffixes in kinds.items() for suffix in suffixes.split()}
    if sys.platform == "darwin":
        contents.pop("x.BMP")
    pictures = read_pictures(list_pictures(as_folder(tmp_path / "a", contents)), 8, tmp_path / "cache")
    assert sorted(pictures.names) == sorted(contents)
    assert (pictures.pixels[:, 0, 4, 4] > 180).all() and (pictures.pixels[:, 1, 4, 4] < 60).all()


def test_heif_is_read_where_its_plugin_is_and_told_where_it_is_not(tmp_path, monkeypatch):
    """The plug-in here is a stand-in, which takes any such file for a red one."""
    data = b"\0\0\0\x18ftypheic" + bytes(40)
    folder = as_folder(tmp_path / "a", {"1.png": PICTURE, "2.HEIC": data, "3.heif": data})
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("vqgan.images.has_heif", lambda: False)
    assert left_out(list_pictures(folder)) == [
        "2 pictures in HEIF, which needs `pip install pillow-heif` (2.HEIC, 3.heif)"
    ]
    (folder / "4.jpg").write_bytes(data)  # as some programs rename them
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache", max_bad=1)
    assert pictures.names == ["1.png"]
    assert "4.jpg` is in HEIF, as phones write it: that needs `pip" in (tmp_path / "cache" / "bad.txt").read_text()

    def red(file, name):
        file.close()
        return Image.new("RGB", (9, 9), (255, 0, 0))

    plugin = types.ModuleType("pillow_heif")
    monkeypatch.setitem(Image.OPEN, "HEIF", (red, None))
    monkeypatch.setattr(plugin, "register_heif_opener", lambda: None, raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr("vqgan.images.has_heif", lambda: True)
    pictures = read_pictures(list_pictures(folder), 8, tmp_path / "cache2")
    assert pictures.names == ["1.png", "2.HEIC", "3.heif", "4.jpg"]
    assert pictures.pixels[:, 0, 4, 4].tolist() == [7, 255, 255, 255]


# ----------------------------------------------------------------------------- what is left out


def test_what_is_left_out_is_told_in_a_line_for_each_reason(tmp_path):
    listing = list_pictures(as_folder(tmp_path, TREES["clutter"] | TREES["others"]))
    assert left_out(listing) == [
        "8 pictures that are hidden or that a file manager keeps for itself (#recycle/9.png, $RECYCLE.BIN/x/6.png, "
        ".git/x.png, ...)",
        "3 files of other formats (README.md, a.psd, c.svg)",
        "1 archive, which is not looked into (b.zip)",
    ]


def test_a_mixed_folder_says_why_it_has_no_labels(tmp_path):
    listing = list_pictures(as_folder(tmp_path, TREES["mixed"]))
    assert listing.remarks == ["subfolders are no labels, since pictures lie beside them, too: 1 (3.png)"]


def test_own_output_in_the_folder_is_not_read(tmp_path):
    """What a training writes beside its pictures used to be trained on by the next."""
    ours = {
        "model/manifest.json": json.dumps({"format": 1, "files": {"x.json": {"size": 1, "sha256": "0"}}}),
        "model/samples.png": PICTURE,
        "model/drawn/1.png": PICTURE,
        "model.training/tokenizer/checkpoints/step-1/manifest.json": json.dumps({"format": 1, "files": {}}),
        "model.training/generator/samples.png": PICTURE,
        "drawn/run.json": json.dumps({"format": 1, "recipe": {}}),
        "drawn/000000.png": PICTURE,
    }
    theirs = {
        "app/manifest.json": json.dumps({"name": "app", "icons": []}),
        "app/icon.png": PICTURE,
        "run.training/1.png": PICTURE,
        "run/run.json": "[]",
        "run/2.png": PICTURE,
    }
    contents = {name: data if isinstance(data, bytes) else data.encode() for name, data in (ours | theirs).items()}
    listing = list_pictures(as_folder(tmp_path / "a", contents))
    assert listing.names == ["app/icon.png", "run/2.png", "run.training/1.png"]
    assert left_out(listing)[0] == "3 folders that maskimg wrote (drawn, model, model.training)"
    assert list_pictures(tmp_path / "a" / "drawn").names == ["000000.png"]  # asked for by itself


def test_what_is_about_to_be_written_is_left_out(tmp_path):
    folder = as_folder(tmp_path / "pics", tree("bee/1.png", "fly/2.png"))
    before = list_pictures(folder, leave_out=(folder / "out", folder / "out.training"))
    as_folder(folder, tree("out/x.png", "out.training/y.png", "output/z.png"))
    shutil.rmtree(folder / "output")
    after = list_pictures(folder, leave_out=(folder / "bee" / ".." / "out", folder / "out.training"))
    assert after.fingerprint == before.fingerprint
    assert left_out(after) == ["2 folders that maskimg wrote (out, out.training)"]
    assert len(list_pictures(folder)) == 4
    assert list_pictures(folder, leave_out=(tmp_path,)).names  # what holds the folder itself hides nothing


def test_every_command_says_what_it_leaves_out(tmp_path, capsys, monkeypatch):
    folder = as_folder(tmp_path / "pics", tree("1.png", "2.png", a_psd="x"))
    line = "left out: 1 file of another format (a.psd)"
    assert main(["check-data", str(folder)]) == 0
    assert line in capsys.readouterr().out.splitlines()
    encode = ["encode", str(folder), "emoji-64", "--out", str(tmp_path / "codes"), "--size", "16", "--versions", "1"]
    main(encode)
    assert line in capsys.readouterr().err.splitlines()
    main(["eval-tokenizer", "emoji-64", str(folder), "--size", "16", "--classifier-steps", "0"])
    assert line in capsys.readouterr().err.splitlines()


# ----------------------------------------------------------------------------- archives


@pytest.mark.parametrize("pack", [as_zip, as_tar, as_tar_gz])
@pytest.mark.parametrize("name", ["pictures", "x.ZIP", "x.TAR", "x.cbz", "x.tgz"])
def test_an_archive_is_known_by_what_is_in_it(pack, name, tmp_path):
    pack(tmp_path / "a", tree("bee/1.png", "fly/2.png")).rename(tmp_path / name)
    listing = list_pictures(tmp_path / name)
    assert listing.fields == {"class": ["bee", "fly"]}
    assert read_pictures(listing, 8, tmp_path / "cache").names == ["bee/1.png", "fly/2.png"]


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"Rar!\x1a\x07\x01\0", "is a RAR archive"), (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive")],
)
def test_archives_that_cannot_be_read_are_refused_by_their_kind(start, words, tmp_path):
    (tmp_path / "a.zip").write_bytes(start + bytes(600))
    with pytest.raises(DataError, match=f"{words}, which cannot be read: unpack it, and give the folder"):
        list_pictures(tmp_path / "a.zip")


def patched(path: Path, where: str, value: int) -> None:
    """Set a field of each member in both of a zip's headers: `flags` or `method`."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", {"flags": 6, "method": 8}), (b"PK\1\2", {"flags": 8, "method": 10})):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset[where]] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [("method", 9, "is packed with Deflate64"), ("method", 98, "is packed with PPMd"), ("flags", 1, "is encrypted")],
)
def test_a_zip_that_cannot_be_unpacked_is_refused_before_any_work(tmp_path, where, value, words):
    """Windows packs large folders with Deflate64."""
    path = as_zip(tmp_path / "a", tree("1.png", "2.png", **{"1_txt": "x"}))
    patched(path, where, value)
    with pytest.raises(DataError, match=f"each picture in .* {words}, which cannot be read: unpack it"):
        list_pictures(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_in_an_archive_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, red in (("1.png", 1), ("2.png", 2), ("../1.png", 3)):
            archive.writestr(name, png(red))
    listing = list_pictures(tmp_path / "a.zip")
    assert left_out(listing) == ["1 file whose name comes again in the archive (1.png)"]
    assert read_pictures(listing, 8, tmp_path / "cache").pixels[:, 0, 4, 4].tolist() == [3, 2]


def test_names_in_utf8_that_do_not_say_so_are_read_as_such(tmp_path):
    """As macOS and many programs write them; they used to come out as other letters."""
    path = as_zip(tmp_path / "a", tree("käfer/1.png", "fliege/2.png"))
    patched(path, "flags", 0)
    data = path.read_bytes().replace(b"\0\x08\0\0", b"\0\0\0\0")
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            info.flag_bits &= ~0x800
    flagged = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        at = -1
        while (at := flagged.find(signature, at + 1)) >= 0:
            flagged[at + offset] &= ~0x08
    path.write_bytes(flagged)
    assert list_pictures(path).fields == {"class": ["fliege", "käfer"]}


def test_a_sparse_member_of_a_tar_is_read(tmp_path):
    """Written as GNU tar writes them: one block of data, and a hole before it that is not stored."""
    path = tmp_path / "a.tar"
    hole, data = 4096, bytes(range(256)) * 2
    info = tarfile.TarInfo("2.ppm")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % len(data)
    header[386:410] = b"%011o\0%011o\0" % (hole, len(data))
    header[483:495] = b"%011o\0" % (hole + len(data))
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    as_tar(tmp_path / "b", {"1.png": PICTURE})
    rest = (tmp_path / "b.tar").read_bytes()
    path.write_bytes(bytes(header[:512]) + data + rest)
    listing = list_pictures(path)
    contents = dict(listing.source.read(listing.entries))
    assert contents[1] == bytes(hole) + data


def test_one_shard_is_read_as_several_are(tmp_path):
    """Masks of a sample used to be pictures of their own where there was one shard only."""
    contents = {}
    for i in range(3):
        contents |= {f"{i}.png": PICTURE, f"{i}.mask.png": PICTURE, f"{i}.json": b'{"class": "%d"}' % (i % 2)}
    for number in range(2):
        as_tar(tmp_path / f"s-{number}", contents)
    single, several = list_pictures(tmp_path / "s-0.tar"), list_pictures(tmp_path / "s-{0..1}.tar")
    assert single.names == ["0.png", "1.png", "2.png"]
    assert len(several) == 6
    assert single.fields == several.fields == {"class": ["0", "1"]}
    assert several.labels.tolist() == single.labels.tolist() * 2
    assert left_out(single)[0].startswith("3 pictures that belong to another one's sample")


def test_shards_in_a_folder_have_the_labels_below_it(tmp_path):
    for number in range(2):
        as_tar(tmp_path / f"s-{number}", tree("set/bee/1.png", "set/fly/2.png"))
    assert list_pictures(tmp_path / "s-*.tar").fields == {"class": ["bee", "fly"]}
