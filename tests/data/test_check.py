"""Files that cannot be read cost a line each, in `check-data` and in training; and what else check-data says."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TOKENIZER

from maskimg.cli.main import main
from maskimg.data.check import check_pictures, summary
from maskimg.data.pictures import list_pictures, read_pictures
from maskimg.sampler import Sampler
from maskimg.training.folder import train_folder, working_directory
from maskimg.training.loop.run import Budget
from maskimg.training.loop.session import Session
from maskimg.training.plan import NetworkSize, Plan
from maskimg.training.settings import GeneratorTraining, TokenizerTraining


def _encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in a few kilobytes."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    chunks = [(b"IHDR", struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    body = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture
def planted(tmp_path, draw_pictures, monkeypatch) -> tuple[Path, set[str], set[str]]:
    """A folder with every kind of file that goes wrong -> it, the names that cannot be read, those that can."""
    folder = tmp_path / "pictures"
    good = {path.relative_to(folder).as_posix() for path in draw_pictures(folder, count=60, classes=())}
    noise = Image.effect_noise((20, 20), 80)

    bad = {
        "cut.png": _encoded(noise)[:200], "cut.jpg": _encoded(noise, "JPEG")[:150], "empty.png": b"",
        "page.jpg": b"<html>not found</html>", "bomb.png": _bomb(12_000), "secret.png": _encoded(noise),
        "new\nline \N{GRINNING FACE}.png": b"nothing", "removed.png": _encoded(noise),
    }  # fmt: skip
    if os.name == "posix":
        bad[os.fsdecode(b"no text \xff.png")] = b"nothing"
    fine = {
        "wide.png": _encoded(Image.fromarray((np.arange(400).reshape(20, 20) * 160).astype(np.uint16))),
        "print.jpg": _encoded(noise.convert("CMYK"), "JPEG"),
        "\N{GRINNING FACE} ok.png": _encoded(noise.rotate(90)),
        "x" * 240 + ".png": _encoded(noise.rotate(180)),
    }
    for name, data in (bad | fine).items():
        (folder / name).write_bytes(data)
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")

    # As they answer anyone but root, whom no permission keeps out.
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, *more: "secret" not in str(path) and may(path, *more))
    return folder, {*bad, "folder.png", "dangling.png"}, good | set(fine)


def _named(line: str, names: set[str]) -> set[str]:
    escaped = {name: name.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n") for name in names}
    return {name for name, shown in escaped.items() if f"/{shown}`" in line}


def test_training_leaves_out_exactly_the_files_that_cannot_be_read(planted, tmp_path):
    folder, bad, good = planted
    listing = list_pictures(folder)
    (folder / "removed.png").unlink()  # after it was listed
    plan = Plan(
        size=16,
        versions=1,
        tokenizer=TOKENIZER,
        tokenizer_training=TokenizerTraining(batch_size=4),
        tokenizer_budget=Budget(steps=2),
        generator=NetworkSize(dim=32, depth=1, heads=2, critic_depth=0),
        generator_training=GeneratorTraining(batch_size=4),
        generator_budget=Budget(steps=2),
        recipe=Sampler(steps=2),
    )
    pipeline = train_folder(listing, plan, tmp_path / "model", Session("cpu", "fp32"), max_bad=0.3)
    assert pipeline.about["data"]["pictures"] == len(good)

    lines = (working_directory(tmp_path / "model") / "pictures" / "bad.txt").read_text().splitlines()
    assert len(lines) == len(bad)
    assert [len(_named(line, bad)) for line in lines] == [1] * len(bad)
    assert set().union(*(_named(line, bad) for line in lines)) == bad
    pictures = read_pictures(listing, 16, tmp_path / "cache", max_bad=0.3)
    assert set(pictures.names) == good

    wide = pictures.pixels[pictures.names.index("wide.png"), 0].float()
    assert 60 < wide.mean() < 190  # 16 bits scaled; clipped, they would be white


def test_the_same_files_are_what_check_data_lists(planted, tmp_path, capsys):
    folder, bad, good = planted
    (folder / "removed.png").unlink()
    bad = bad - {"removed.png"}
    out = tmp_path / "new" / "bad.txt"
    assert main(["check-data", str(folder), "--jobs", "3", "--out", str(out)]) == 1
    shown, progress = capsys.readouterr()
    mark, *lines = out.read_text().splitlines()
    assert mark.startswith('# {"maskimg": {"task": "check-data"')
    assert set().union(*(_named(line, bad) for line in lines)) == bad and len(lines) == len(bad)
    assert f"{len(good) + len(bad)} pictures, {len(good)} of them readable" in shown
    assert f"cannot be read: {len(bad)}" in shown
    for reason in (
        f"{4 if os.name == 'posix' else 3} x: the file is not a readable PNG, JPEG, WebP",
        "2 x: the file is damaged or cut off",
        "1 x: the file has 144 megapixels",
        "1 x: the file is a folder, not a picture",
        "1 x: the file cannot be read: there is no such file",
        "1 x: the file cannot be read: permission denied",
    ):
        assert reason in shown
    assert "pictures/s" in progress


def test_too_many_bad_files_stop_the_run_with_a_sentence(planted, tmp_path, capsys):
    folder, bad, _ = planted
    with pytest.raises(SystemExit) as stop:
        main(["train-tokenizer", str(folder), "--out", str(tmp_path / "t"), "--preset", "cpu", "--max-bad", "0.1"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{len(bad) - 1} of" in last and "raise the limit of 10% with `--max-bad`" in last


def test_a_table_may_name_what_no_file_can_be_called(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file\na.png\n{'x' * 300}.png\n")
    assert read_pictures(list_pictures(tmp_path), 8, tmp_path / "cache").names == ["a.png"]
    assert "name too long" in (tmp_path / "cache" / "bad.txt").read_text()


def test_a_folder_named_like_a_picture_may_hold_pictures(tmp_path, draw_pictures):
    draw_pictures(tmp_path, count=6, classes=("circle", "square"))
    (tmp_path / "circle").rename(tmp_path / "logo.png")
    (tmp_path / "square").rename(tmp_path / "sign.jpg")
    assert list_pictures(tmp_path).fields == {"class": ["logo.png", "sign.jpg"]}
    assert len(list_pictures(tmp_path)) == 6


# ----------------------------------------------------------------------------- the report


def test_the_summary_says_what_there_is(tmp_path, capsys):
    for i in range(14):
        path = tmp_path / ("cat" if i < 11 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((30 + i, 20), 50).save(path)
    Image.effect_noise((64, 128), 50).save(tmp_path / "dog" / "x.jpg")
    (tmp_path / "cat" / "copy.png").write_bytes((tmp_path / "cat" / "3.png").read_bytes())
    (tmp_path / "cat" / "3.txt").write_text("a cat")
    assert main(["check-data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "16 pictures, 16 of them readable"
    assert lines[1] == (
        "sizes: 15 different; shorter side 20 to 64 pixels, half of them up to 20; the longest side is 2.1 times the "
        "shorter"
    )
    assert lines[2] == "formats: PNG 15, JPEG 1"
    assert lines[3:5] == ["class: 2 labels: cat 12, dog 4", "  fewer than 10 pictures: dog"]
    assert lines[5] == "captions: 1 pictures"
    held_out = int(list_pictures(tmp_path).held_out.sum())
    assert lines[6] == f"held out: {held_out} ({held_out / 16:.1%})"
    assert lines[7] == "duplicates: 1 files repeat another, such as cat/3.png = cat/copy.png"


def test_a_column_that_tells_every_picture_apart_is_said_to_be_no_label(tmp_path, capsys):
    for i in range(24):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{'ab'[i % 2]},https://example.org/{i}\n" for i in range(24)]
    (tmp_path / "labels.csv").write_text("file,class,address\n" + "".join(rows))
    assert main(["check-data", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "class: 2 labels: a 12, b 12" in lines
    assert "`address` is not used as a label: most of its values belong to one picture only" in lines


def test_a_picture_on_both_sides_of_the_split_is_told(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,split,class\na.png,train,x\nb.png,val,\n")
    text = summary(check_pictures(list_pictures(tmp_path)))
    assert "  1 of them stand both in training and among the held-out pictures" in text
    assert "  without: 1 pictures" in text


@pytest.mark.parametrize("jobs", [1, 4])
def test_the_number_of_jobs_changes_nothing(planted, jobs):
    folder, _, _ = planted
    report = check_pictures(list_pictures(folder), jobs=jobs)
    assert summary(report) == summary(check_pictures(list_pictures(folder)))


def test_wrong_options_get_a_sentence(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for options, sentence in (
        ([str(tmp_path / "none")], "there is no folder"),
        ([str(tmp_path), "--jobs", "0"], "--jobs must be 1 or more, got 0"),
        ([str(tmp_path), "--out", str(tmp_path)], "--out must name a file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["check-data", *options])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
