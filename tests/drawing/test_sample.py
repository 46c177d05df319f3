"""The batch script: labels and seeds to files, in any batch size, each file whole, by one run at a time."""

import errno
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import LABELS, tiny_pipeline

from maskimg.cli.main import main
from maskimg.conditions import LabelFields
from maskimg.data.sources import DataError
from maskimg.drawing import folders
from maskimg.drawing.claims import claimed
from maskimg.drawing.exports import contact_sheet, write_npz
from maskimg.drawing.folders import compiles_itself, draw_each, each_name, read_table, sample_folder
from maskimg.drawing.request import Request, RequestReader
from maskimg.networks.words import WordPieces
from maskimg.noise import SEEDS
from maskimg.recipe import is_whole, read_recipe
from maskimg.sampler import Sampler
from vqgan import load_image, writing

FIELDS = LabelFields(LABELS)
READER = RequestReader(FIELDS, None, [])


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(directory)
    return directory


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def complete(folder: Path) -> dict | None:
    return json.loads((folder / "run.json").read_text()).get("complete")


def test_the_batch_size_changes_no_file(pipeline, tmp_path):
    for size in (1, 3, 7):
        assert sample_folder(pipeline, tmp_path / str(size), [None] * 7, seed=5, batch_size=size) == 7
    one, three, seven = (pictures(tmp_path / size) for size in "137")
    assert one == three == seven
    assert len(one) == 7


def test_only_long_runs_compile_without_being_asked(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "compile_fault", lambda device: "")
    asked = functools.partial(compiles_itself, pipeline, tmp_path)
    monkeypatch.setattr(folders, "LONG", 1.5 * work_of(pipeline, pictures=64, steps=4))
    assert not asked([None] * 64, Sampler(steps=4))
    assert asked([None] * 128, Sampler(steps=4))
    assert asked([None] * 64, Sampler(steps=8))
    assert asked([None] * 64, Sampler(steps=4), 2)  # two candidates of each
    assert not asked(["cat", "dog"] * 32 + [None] * 8, Sampler(steps=8))  # half of the last loop would be for nothing
    assert asked(["cat", "dog"] * 64, Sampler(steps=8))
    assert capsys.readouterr().err == ""

    # A compiler that cannot compile once ended the run with an error of torch's.
    monkeypatch.setattr(folders, "compile_fault", lambda device: "g++ has no headers")
    assert not asked([None] * 128, Sampler(steps=8))
    assert capsys.readouterr().err == "not compiled, which takes two or three times as long: g++ has no headers\n"
    monkeypatch.setattr(folders, "compile_fault", lambda device: pytest.fail("tried for a short run"))
    assert not asked([None] * 64, Sampler(steps=4))


def work_of(pipeline, *, pictures: int, steps: int) -> int:
    """Multiplications and additions of that many pictures, without guidance."""
    h, w = pipeline.grid
    return 2 * sum(weight.numel() for weight in pipeline.net.parameters()) * h * w * steps * pictures


@pytest.mark.filterwarnings("ignore")  # torch's compiler has deprecations of its own
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_folder_that_was_begun_is_gone_on_with_as_it_was(pipeline, model, tmp_path, capsys, monkeypatch):
    sample_folder(pipeline, tmp_path / "plain", [None] * 2)
    monkeypatch.setattr(folders, "LONG", 0)
    assert not compiles_itself(pipeline, tmp_path / "plain", [None] * 160)
    told = ["sample", "--model", str(model), "--steps", "2", "--out", str(tmp_path / "compiled")]
    assert main([*told, "--count", "1", "--compile"]) == 0
    assert main([*told, "--count", "2"]) == 0
    torch.compiler.reset()
    recipes = [read_recipe(path) for path in sorted((tmp_path / "compiled").glob("*.png"))]
    assert [recipe["compiled"] for recipe in recipes] == [True, True]

    monkeypatch.setattr("shutil.which", lambda name: None)
    capsys.readouterr()
    for words, answer in (
        (["--compile", "no"], "they are compiled): leave --compile out"),
        (["--compile", "so"], "auto, yes or no"),
        ([], "which is not possible here, because there is no C++ compiler"),
    ):
        with pytest.raises(SystemExit):
            main([*told, *words])
        assert answer in capsys.readouterr().err


def test_seeds_go_round_at_the_end_of_their_range(pipeline, tmp_path):
    sample_folder(pipeline, tmp_path, [None] * 2, seed=SEEDS - 1)
    assert sorted(read_recipe(path)["seed"] for path in tmp_path.glob("*.png")) == [0, SEEDS - 1]


def test_nothing_half_written_is_left_or_counted_and_nobody_elses_temporary_file_is_removed(pipeline, tmp_path):
    """Every `.*.tmp` used to be deleted; ours say so, and who wrote them."""
    gone, here, mark = ended_process(), os.getpid(), f"{writing._machine()}0123abcd"
    for name in ("000001.png", "000007.png", "run.json"):
        (tmp_path / f".{name}.maskimg-{gone}-{mark}.tmp").write_bytes(b"half")
    others = [".000001.png.tmp", ".x.tmp", f".y.maskimg-{here}-{mark}.tmp", f".z.maskimg-{gone}-short.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / f".folder.maskimg-{gone}-{mark}.tmp").mkdir()
    others.append(f".folder.maskimg-{gone}-{mark}.tmp")
    assert sample_folder(pipeline, tmp_path, [None] * 2) == 2
    ours = [".lock", "000000.png", "000001.png", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*ours, *others])
    assert sample_folder(pipeline, tmp_path, [None] * 2) == 0


def ended_process() -> int:
    """The number of a process that there is no longer."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "fast"},
        {"sampler": Sampler(counts=(4, 12), guidance=(1.0, 2.0), token_temperature=(2.0, 0.5))},
        {"best_of": 2},
    ],
)
def test_a_folder_is_recognised_when_it_is_asked_for_again(pipeline, tmp_path, options):
    """Whatever the recipe holds: JSON has lists where a Sampler has tuples."""
    assert sample_folder(pipeline, tmp_path, [None] * 2, **options) == 2
    before = pictures(tmp_path)
    assert sample_folder(pipeline, tmp_path, [None] * 3, **options) == 1
    assert before.items() < pictures(tmp_path).items()


@pytest.mark.parametrize("noted", [True, False])
def test_a_folder_of_another_recipe_is_refused_and_left_as_it_was(pipeline, tmp_path, noted):
    """By run.json even where no seed is the same; without it by the pictures themselves."""
    sample_folder(pipeline, tmp_path, [None])
    if not noted:
        (tmp_path / "run.json").unlink()
    before = pictures(tmp_path)
    changes = [("sampler", None, {"sampler": "fast"}), ("best of", None, {"best_of": 2}), ("label", "cat", {})]
    for name, label, options in changes:
        words = rf"another recipe \(its {name} is another\)" if noted else r"000000.png` was drawn with another recipe"
        with pytest.raises(ValueError, match=words + ": choose another folder"):
            sample_folder(pipeline, tmp_path, [label], seed=5 if noted else 0, **options)
        assert (tmp_path / "run.json").exists() == noted
    assert pictures(tmp_path) == before


@pytest.mark.parametrize("best_of", [1, 3])
def test_a_file_does_not_depend_on_how_many_are_drawn_together(pipeline, tmp_path, best_of):
    sample_folder(pipeline, tmp_path / "together", ["cat"] * 4, best_of=best_of)
    sample_folder(pipeline, tmp_path / "alone", ["cat"], seed=2, best_of=best_of)
    assert (tmp_path / "alone" / "000002.png").read_bytes() == (tmp_path / "together" / "000002.png").read_bytes()


@pytest.mark.parametrize(
    ("labels", "options"), [([], {}), ([None], {"batch_size": 0}), ([None], {"seed": -1}), (["dragon"], {})]
)
def test_what_cannot_be_drawn_gets_a_sentence_before_anything_is_written(pipeline, tmp_path, labels, options):
    with pytest.raises(ValueError, match="must be|there is no class"):
        sample_folder(pipeline, tmp_path / "out", labels, **options)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- what is damaged, or in use


def test_every_flipped_byte_is_found_and_the_picture_drawn_again(pipeline, tmp_path):
    """Of any part of the file; only what stands in the recipe itself may also be refused."""
    sample_folder(pipeline, tmp_path, [None] * 3)
    path, before, noted = tmp_path / "000001.png", pictures(tmp_path), complete(tmp_path)
    good = before[path.name]
    assert is_whole(path)
    for place in range(8, len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert not is_whole(path), place
    for rest in [good[:place] for place in range(8, len(good))] + [good + b"more"]:
        path.write_bytes(rest)
        assert not is_whole(path), len(rest)
    for place in (0, 20, len(good) // 2, len(good) - 30, len(good) - 5, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert sample_folder(pipeline, tmp_path, [None] * 3) == 1
        assert pictures(tmp_path) == before
    assert complete(tmp_path) == noted != None  # noqa: E711


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}'])
def test_a_damaged_note_of_the_recipe_is_written_again(pipeline, tmp_path, damage):
    sample_folder(pipeline, tmp_path, [None] * 2)
    before = (tmp_path / "run.json").read_bytes()
    (tmp_path / "run.json").write_bytes(damage)
    assert sample_folder(pipeline, tmp_path, [None] * 2) == 0
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(pipeline, tmp_path):
    sample_folder(pipeline, tmp_path, [None])
    recipe = json.loads((tmp_path / "run.json").read_text())["recipe"]
    with claimed(tmp_path, recipe), pytest.raises(ValueError, match="another run is drawing into .*: wait until"):
        sample_folder(pipeline, tmp_path, [None] * 2)
    assert sample_folder(pipeline, tmp_path, [None] * 2) == 1


def test_a_full_disk_ends_with_code_4_and_the_same_command_goes_on(model, tmp_path, monkeypatch, capsys):
    """Half of the fourth picture fits."""
    arguments = ["sample", "--model", str(model), "--count", "6", "--batch-size", "2", "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    save, saved = Image.Image.save, []

    def save_until_full(image, target, **options):
        if len(saved) == 3:
            Path(target).write_bytes(b"\x89PNG half")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(target)
        save(image, target, **options)

    with monkeypatch.context() as full:
        full.setattr(Image.Image, "save", save_until_full)
        with pytest.raises(SystemExit) as stop:
            main([*arguments, str(tmp_path / "full")])
    assert stop.value.code == 4
    assert "maskimg: the disk is full (" in capsys.readouterr().err
    assert len(list((tmp_path / "full").iterdir())) == 2 + 3  # the lock, the note, and what was finished
    assert complete(tmp_path / "full") is None

    assert main([*arguments, str(tmp_path / "full")]) == 0
    assert "3 new, 6 in all" in capsys.readouterr().out
    assert complete(tmp_path / "full") == complete(tmp_path / "whole") != None  # noqa: E711


# ----------------------------------------------------------------------------- which labels


def test_pictures_of_several_labels_are_each_what_they_would_be_alone(pipeline):
    labels = ["cat", None, {"class": "bug", "style": "flat"}, "cat", {"style": "flat", "class": "bug"}, "cat"]
    batches = list(draw_each(pipeline, labels, range(6), batch_size=2))
    assert [positions for positions, _ in batches] == [[0, 3], [5], [1], [2, 4]]
    for positions, result in batches:
        for i, image, recipe in zip(positions, result.images, result.recipes, strict=True):
            alone = pipeline.generate(labels[i], seeds=i)
            assert recipe == alone.recipes[0]
            assert image.tobytes() == alone.images[0].tobytes()


def test_per_class_draws_as_many_of_each_name_in_turn():
    flat = Request({"style": "flat"}, "a sentence")
    names = [asked.label["class"] for asked in each_name(FIELDS, flat, 2)]
    assert names == ["bird", "bug", "cat", "bird", "bug", "cat"]
    first = each_name(FIELDS, flat, 1)[0]
    assert (first.label, first.prompt) == ({"style": "flat", "class": "bird"}, "a sentence")
    assert each_name(FIELDS, Request(), 0) == []
    for label in ("cat", {"": "cat"}, {"class": "cat"}):
        with pytest.raises(ValueError, match="--per-class draws every class: leave that one label out"):
            each_name(FIELDS, Request(label), 1)
    with pytest.raises(ValueError, match="trained without labels"):
        each_name(LabelFields(), Request(), 1)


def test_a_table_says_what_each_picture_is_of(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("\ufeffclass, style\ncat,round\n bug ,\n\n,flat\n", encoding="utf-8")
    labels = [asked.label for asked in read_table(table, READER)]
    assert labels == [{"class": "cat", "style": "round"}, {"class": "bug"}, {"style": "flat"}]
    assert read_table(table, READER, Request({"style": "flat"}))[1].label == {"class": "bug", "style": "flat"}
    assert read_table(table, READER, Request("bird"))[2].label == {"class": "bird", "style": "flat"}


def test_a_table_may_hold_prompts(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("style,prompt,negative\nflat,red apple,dog\n,dog,\nround,,\n")
    reader = RequestReader(FIELDS, WordPieces(("red", "apple", "dog"), 8), ["words"])
    asked = [(each.prompt, each.negative) for each in read_table(table, reader, Request(negative="apple"))]
    assert asked == [("red apple", "dog"), ("dog", "apple"), (None, "apple")]
    with pytest.raises(DataError, match="line 2: this model was trained without captions"):
        read_table(table, READER)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"class\ncat\ncta\n", "line 3: there is no class `cta`; did you mean `cat`"),
        (b"class,mood\ncat,gay\n", "line 2: there is no label field `mood`"),
        (b"class,style\ncat\n", "line 2: it has another number of cells than the first line"),
        (b"class\ncat,flat\n", "line 2: it has another number of cells"),
        (b"class\n", "holds no rows"),
        (b"", "holds no rows"),
        (b"class\n\xff\xfe\n", "is not UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_used_gets_a_sentence(tmp_path, text, words):
    (tmp_path / "table.csv").write_bytes(text)
    with pytest.raises(DataError, match=words):
        read_table(tmp_path / "table.csv", READER)


# ----------------------------------------------------------------------------- the command


def test_the_command_draws_every_class_and_exports_them(model, tmp_path, capsys):
    options = ["--per-class", "2", "--label", "style=flat", "--npz", tmp_path / "a" / "all.npz"]
    options += ["--sheet", tmp_path / "sheet.png"]
    command = ["sample", "--model", model, "--out", tmp_path / "out", "--seed", "40", *options]
    assert main([str(each) for each in command]) == 0
    assert "6 new, 6 in all" in capsys.readouterr().out

    paths = [tmp_path / "out" / f"{seed:06d}.png" for seed in range(40, 46)]
    assert [read_recipe(path)["label"] for path in paths] == [
        {"class": name, "style": "flat"} for name in ("bird", "bug", "cat") * 2
    ]
    with np.load(tmp_path / "a" / "all.npz") as written:
        assert written.files == ["arr_0", "arr_1"]
        assert np.array_equal(written["arr_0"], np.stack([np.asarray(load_image(path)) for path in paths]))
        assert written["arr_0"].dtype == np.uint8
        assert written["arr_1"].tolist() == [0, 1, 2, 0, 1, 2]
    page = np.asarray(load_image(tmp_path / "sheet.png"))
    assert page.shape == (2 * 18 + 2, 3 * 18 + 2, 3)  # a column for each class
    assert np.array_equal(page[2:18, 20:36], np.asarray(load_image(paths[1])))


def test_the_command_draws_what_a_table_says(model, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("style,class\nflat,cat\n,bug\n")
    command = ["sample", "--model", str(model), "--out", str(tmp_path / "out"), "--from", str(table)]
    assert main([*command, "--npz", str(tmp_path / "all.npz")]) == 0
    labels = [read_recipe(path)["label"] for path in sorted((tmp_path / "out").glob("*.png"))]
    assert labels == [{"class": "cat", "style": "flat"}, {"class": "bug"}]
    shutil.rmtree(tmp_path / "out")
    table.write_text("style\nflat\n")
    assert main([*command, "--npz", str(tmp_path / "all.npz")]) == 0
    with np.load(tmp_path / "all.npz") as written:
        assert written.files == ["arr_0"]  # of no class


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--count", "2", "--per-class", "2"], "give one of --count, --per-class and --from"),
        (["--per-class", "0"], "--per-class must be between 1 and 10000000, got 0"),
        (["--from", "nowhere.csv"], "No such file or directory: 'nowhere.csv'"),
        (["--npz", "."], "--npz must name a file, and `.` is a folder"),
        (["--sheet", "sheet.gif"], "--sheet must end in .png"),
    ],
)
def test_wrong_options_get_a_sentence_and_write_nothing(model, tmp_path, options, sentence, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["sample", "--model", str(model), "--out", "out", *options])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- exports


def test_an_array_is_streamed_and_whole_or_not_there(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.new("RGB", (6, 4), (i, 2 * i, 3 * i)).save(path)
    write_npz(paths, None, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as written:
        assert written["arr_0"].shape == (5, 4, 6, 3)
        assert written["arr_0"][3, 1, 2].tolist() == [3, 6, 9]
    paths[2].write_bytes(b"damaged")
    with pytest.raises(ValueError, match="2.png` is not a readable PNG"):
        write_npz(paths, None, tmp_path / "other.npz")
    assert not (tmp_path / "other.npz").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_contact_sheet_shows_a_hundred_pictures_at_most(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (3, 3)).save(path)
    assert contact_sheet([path] * 120).size == (52, 52)
    assert contact_sheet([path] * 5).size == (3 * 5 + 2, 2 * 5 + 2)
    assert contact_sheet([path] * 8, 2).size == (2 * 5 + 2, 4 * 5 + 2)
