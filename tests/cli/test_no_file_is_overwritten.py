"""Every option of every command that names a file to write, found by walking the parsers: nobody's file is replaced.

What is there before and after is compared as a whole: every file's bytes, every link's target.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from tiny import listening_pipeline, tiny_pipeline

from maskimg import outputs
from maskimg.cli.main import COMMANDS, command_named, main
from maskimg.cli.options import Parser
from maskimg.drawing.exports import write_npz
from maskimg.drawing.request import Request
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import mark, mark_in, read_recipe
from maskimg.sampler import Sampler
from maskimg_apps.demo import replay, runs
from vqgan import writing

# Options that are read, or that are no paths.
NO_OUTPUT = {
    "codes", "config", "folder", "from", "image", "mask", "model", "models", "password_file", "runs", "source",
    "source_tokenizer", "tokenizer", "tokenizer_directory", "what",
    "budgets", "choice_temperature", "compile", "counts", "device", "dtype", "guidance", "guidance_schedule", "guide",
    "host", "label", "licence", "margins", "negative", "order", "pixels", "preset", "prompt", "schedule", "to",
    "token_temperature", "towards", "track", "user", "words",
    "print_config", "print_shtab", "generator", "generator_training", "generator_budget", "critic_budget", "recipe",
    "tokenizer_training", "tokenizer_budget",
}  # fmt: skip
# Whole directories, which `vqgan.writing.atomic_directory` guards.
DIRECTORIES = {(command, "out") for command in ("train", "train-tokenizer", "encode", "train-generator", "convert")}


class Row(NamedTuple):
    """A command, the option that names what it writes, the rest of its arguments, and which of them are read."""

    command: str
    option: str
    suffix: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]


MASKED = ("photo.png", "mask.png")
ROWS = [
    Row("inpaint", "out", ".png", ("photo.png", "mask.png", "--model=tiny"), MASKED),
    Row("outpaint", "out", ".png", ("photo.png", "--left=1", "--model=tiny"), ("photo.png",)),
    Row("vary", "out", ".png", ("photo.png", "--mask=mask.png", "--model=tiny"), MASKED),
    Row("translate", "out", ".png", ("photo.png", "--model=tiny"), ("photo.png",)),
    Row("reconstruct", "out", ".png", ("photo.png", "--model=tiny"), ("photo.png",)),
    Row("doubts", "out", ".png", ("photo.png", "--model=tiny"), ("photo.png",)),
    Row("plot", "out", ".png", ("runs",), ()),
    Row("check-data", "out", ".txt", ("pictures",), ("pictures/labels.csv",)),
    Row("sample", "npz", ".npz", ("--model=tiny", "--from=table.csv", "--out=drawn"), ("table.csv",)),
    Row("sample", "sheet", ".png", ("--model=tiny", "--count=2", "--out=drawn"), ()),
    Row("eval", "json", ".json", ("tiny", "pictures"), ("pictures/labels.csv", "tiny/pipeline.json")),
    Row("eval", "sheet", ".png", ("tiny", "pictures"), ("pictures/a.png",)),
    Row("eval-tokenizer", "json", ".json", ("tiny", "pictures"), ("pictures/labels.csv", "tiny/manifest.json")),
    Row("eval-tokenizer", "sheet", ".png", ("tiny", "pictures"), ("pictures/a.png",)),
]
# Folders of files, of which some are written: tested one by one below.
FOLDERS = {("sample", "out"), ("tune", "out")}
NAMES = [f"{row.command} --{row.option}" for row in ROWS]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """A model, a photo and its mask, a folder of pictures, a table, and the log of a training."""
    here = tmp_path_factory.mktemp("scene")
    listening_pipeline().save_pretrained(here / "tiny")
    photo((40, 24)).save(here / "photo.png")
    mask = Image.new("L", (40, 24))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(here / "mask.png")
    (here / "pictures").mkdir()
    for name in "abc":
        photo((16, 16)).save(here / "pictures" / f"{name}.png")
    (here / "pictures" / "labels.csv").write_text("file,class\na.png,cat\nb.png,cat\nc.png,bug\n")
    (here / "table.csv").write_text("class\ncat\nbug\n")
    (here / "runs" / "generator").mkdir(parents=True)
    lines = [{"step": step, "seconds": step / 10, "loss": 5 - step / 100} for step in (50, 100)]
    (here / "runs" / "generator" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return here


@pytest.fixture
def place(scene, tmp_path, monkeypatch) -> Path:
    """A copy of the scene, which commands are run in."""
    shutil.copytree(scene, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def nothing_begins(monkeypatch) -> None:
    """No model may be loaded, no folder of pictures read, and no log."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    for name in ("maskimg.pipeline.Pipeline.from_pretrained", "maskimg.data.pictures.list_pictures"):
        monkeypatch.setattr(name, begin)
    monkeypatch.setattr("vqgan.Tokenizer.from_pretrained", begin)
    monkeypatch.setattr("maskimg.training.tracking.curves.find_runs", begin)


def photo(size: tuple[int, int]) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB")


def everything(folder: Path) -> dict[str, tuple]:
    """Each path below a folder with its kind and permissions, and where its link leads or the digest of its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.readlink() if path.is_symlink() else ""
        if stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (mode, str(content))
    return found


def answer(*arguments: object) -> tuple[int, str, str]:
    """The exit code of a command, what it printed, and what it said on stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
    return code, out.getvalue(), error.getvalue()


def refused(*arguments: object) -> str:
    """The one sentence of a command that is refused."""
    code, out, error = answer(*arguments)
    assert (code, out) == (2, ""), (arguments, out, error)
    assert error.startswith("maskimg: ") and error.count("\n") == 1, error
    return error


# ----------------------------------------------------------------------------- the table is whole


def test_every_option_that_names_a_file_to_write_is_in_the_table():
    """A new option is either read, or a directory, or gets a row: nothing is forgotten."""
    found = set()
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            kind = getattr(action, "_typehint", action.type)
            takes_a_text = action.nargs != 0 and kind not in (int, float, bool, int | None, float | None)
            if takes_a_text and "." not in action.dest and action.dest not in NO_OUTPUT:
                found.add((command, action.dest))
    assert found == {(row.command, row.option) for row in ROWS} | FOLDERS | DIRECTORIES


@pytest.mark.parametrize("command", sorted({row.command for row in ROWS} | {"tune"}))
def test_every_command_that_writes_a_file_can_be_forced(command):
    options = {option for action in parser_of(command)._actions for option in action.option_strings}
    assert "--force" in options


def parser_of(command: str) -> Parser:
    parser = Parser(prog=command)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        command_named(command)(parser, ["--help"])
    return parser


# ----------------------------------------------------------------------------- what is refused


def a_foreign_picture(path: Path) -> None:
    photo((9, 7)).save(path, format="PNG")


def a_picture_of_another_program(path: Path) -> None:
    """With text as other programs of this kind write it."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", "a cat, steps: 20, sampler: maskimg")
    text.add_itxt("maskimg", json.dumps({"psnr": 30}))
    photo((9, 7)).save(path, format="PNG", pnginfo=text)


def a_note(path: Path) -> None:
    path.write_text("# maskimg\n\nmy notes about it\n")


def a_table_of_figures(path: Path) -> None:
    path.write_text(json.dumps({"maskimg": 0.3, "other": {"task": "plot", "version": "1"}}))


def a_list(path: Path) -> None:
    path.write_text("[" * 5000)


def an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, arr_0=np.zeros(3))


def an_empty_file(path: Path) -> None:
    path.touch()


def a_link_to_a_foreign_file(path: Path) -> None:
    a_foreign_picture(path.with_name("theirs"))
    path.symlink_to("theirs")


FOREIGN = [
    a_foreign_picture, a_picture_of_another_program, a_note, a_table_of_figures, a_list, an_array, an_empty_file,
    a_link_to_a_foreign_file,
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_file_that_maskimg_did_not_make_is_refused_before_the_work_and_stays(row, place, nothing_begins):
    for make in FOREIGN:
        path = place / f"{make.__name__}{row.suffix}"
        make(path)
        before = everything(place)
        said = refused(row.command, *row.arguments, f"--{row.option}", path.name)
        assert said == (
            f"maskimg: `{path.name}` exists and was not made by maskimg: "
            f"choose another --{row.option}, or give --force\n"
        )
        assert everything(place) == before, make.__name__


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def below_a_file(path: Path) -> Path:
    path.write_text("theirs")
    return path / f"x{path.suffix}"


TARGETS: dict[str, Callable[[Path], Path | None]] = {
    "and `{path}` is a folder": Path.mkdir,
    "and `{path}` is a device or a pipe": lambda path: path.symlink_to(os.devnull),
    "and `{path}` is a device or a pipe ": os.mkfifo,
    "`{path}` cannot be written, since": below_a_file,
    "`{path}` cannot be written: Too many levels": to_itself,
    "`{path}` cannot be written: File name too long": lambda path: path.with_name("x" * 300 + path.suffix),
}


@pytest.mark.skipif(os.name == "nt", reason="no devices with names, no pipes")
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_what_no_file_can_be_written_to_is_refused_before_the_work_even_by_force(row, force, place, nothing_begins):
    for i, (words, make) in enumerate(TARGETS.items()):
        path = make(Path(f"target{i}{row.suffix}")) or Path(f"target{i}{row.suffix}")
        before = everything(place)
        said = refused(row.command, *row.arguments, f"--{row.option}", path, *force)
        assert words.strip().format(path=path) in said
        assert everything(place) == before, words


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_a_folder_that_takes_no_files_is_refused_before_the_work(row, place, nothing_begins):
    (place / "closed").mkdir()
    old = place / "closed" / f"old{row.suffix}"
    write_png(photo((4, 4)), mark(row.command), old)
    (place / "closed").chmod(0o500)
    with closed(place / "closed"):
        for path in (f"closed/new{row.suffix}", f"closed/a/b/c{row.suffix}", f"closed/old{row.suffix}"):
            before = everything(place)
            said = refused(row.command, *row.arguments, f"--{row.option}", path, "--force")
            assert f"`{path}` cannot be written, since" in said and "cannot be written to (Permission denied)" in said
            assert everything(place) == before


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[None]:
    """While active, a folder takes no files; nor from root, who is asked by nobody else."""
    real = outputs.tempfile.TemporaryFile

    def temporary(*, dir: Path):
        if Path(dir).resolve().is_relative_to(folder.resolve()):
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return real(dir=dir)

    with pytest.MonkeyPatch.context() as patched:
        if os.geteuid() == 0:
            patched.setattr(outputs.tempfile, "TemporaryFile", temporary)
        yield
    folder.chmod(0o700)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.inputs], ids=lambda row: f"{row.command} --{row.option}")
def test_what_a_command_reads_is_never_what_it_writes_even_by_force(row, force, place, nothing_begins):
    """`inpaint src.png mask.png --out src.png` replaced the original; also by another path to the same file."""
    link, same = f"link{row.suffix}", f"same{row.suffix}"
    (place / "elsewhere").symlink_to(".")
    for name in row.inputs:
        if Path(name).suffix == row.suffix:
            ways = [name, f"./{name}", str(place / name), f"elsewhere/{name}", f"tiny/../{name}", link]
        else:
            ways = [link]  # an input of another kind, by a name that the option takes
        if name in row.arguments:  # not of a folder: there nothing is lost by a second name
            ways.append(same)
            os.link(place / name, same)
        Path(link).symlink_to(name)
        before = everything(place)
        for way in ways:
            said = refused(row.command, *row.arguments, f"--{row.option}", way, *force)
            assert f"`{Path(way)}` is read, and would be overwritten" in said or f"`{Path(way)}` lies in `" in said
            assert everything(place) == before, way
        Path(link).unlink()
        Path(same).unlink(missing_ok=True)


def test_a_case_that_the_disk_does_not_tell_apart_is_the_same_file(place, nothing_begins):
    """As on macOS: here every spelling of a name leads to the same file."""
    (place / "PHOTO.PNG").hardlink_to(place / "photo.png")
    said = refused("reconstruct", "photo.png", "--out", "PHOTO.PNG", "--force")
    assert "`PHOTO.PNG` is read, and would be overwritten: choose another --out" in said


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_shards_that_a_pattern_names_are_not_written_to_either(place, force, nothing_begins):
    for i in range(3):
        (place / f"s-{i:03d}.tar").write_bytes(b"shard")
    for pattern in ("s-{000..002}.tar", "s-*.tar", str(place / "s-{000..001}.tar")):
        said = refused("check-data", pattern, "--out", "s-001.tar", *force)
        assert "`s-001.tar` is read, and would be overwritten" in said


def test_two_options_do_not_write_to_one_file(place, nothing_begins):
    before = everything(place)
    sampling = ["sample", "--model=tiny", "--count=2", "--out=drawn"]
    for arguments, words in (
        ([*sampling, "--npz=x.png", "--sheet=x.png"], "--npz and --sheet cannot both be written"),
        ([*sampling, "--npz=x.png", "--sheet=./tiny/../X.png"], "--npz and --sheet cannot both be written"),
        ([*sampling, "--npz=x", "--sheet=x/y.png"], "--npz and --sheet cannot both be written"),
        ([*sampling, "--npz=x/y.png/z", "--sheet=x/y.png"], "--npz and --sheet cannot both be written"),
        ([*sampling, "--npz=drawn"], "--out and --npz cannot both be written"),
        (["sample", "--model=tiny", "--out=a/b", "--npz=a"], "--out and --npz cannot both be written"),
        ([*sampling, "--sheet=drawn/000001.png"], "is the name of a file that is drawn into `drawn`"),
        ([*sampling, "--sheet=drawn/4294967295.PNG"], "is the name of a file that is drawn into `drawn`"),
        ([*sampling, "--npz=./drawn/run.json"], "is the name of a file that is drawn into `drawn`"),
        ([*sampling, "--npz=drawn/.lock"], "is the name of a file that is drawn into `drawn`"),
        (["eval", "tiny", "pictures", "--json=f.png", "--sheet=f.png"], "--json and --sheet cannot both be written"),
        (["eval-tokenizer", "tiny", "pictures", "--json=f.png", "--sheet=f.png"], "--json and --sheet cannot both"),
    ):
        assert words in refused(*arguments, "--force")
        assert everything(place) == before, arguments


# ----------------------------------------------------------------------------- what is written


# Every command that writes a file, with little to do, and the options that name its files.
QUICK = {
    **{row.command: [*row.arguments, "--out=new.png"] for row in ROWS if row.suffix == ".png" and row.option == "out"},
    "check-data": ["pictures", "--out=new.txt"],
    "sample": ["--model=tiny", "--count=2", "--out=drawn", "--npz=new.npz", "--sheet=new.png"],
    "eval": ["tiny", "many", "--classifier-steps=0", "--count=8", "--json=new.json", "--sheet=new.png"],
    "eval-tokenizer": ["tiny", "many", "--classifier-steps=0", "--json=new.json", "--sheet=new.png"],
}


@pytest.mark.parametrize("command", QUICK)
def test_the_same_command_runs_again_over_its_own_files_and_force_replaces_others(command, place, draw_pictures):
    """Links stay, also a link to nothing yet; what they point at is what is written."""
    if "many" in QUICK[command]:
        draw_pictures(place / "many", count=24, size=16)
    arguments = [command, *QUICK[command]]
    written = [Path(each.partition("=")[2]) for each in arguments if "=new." in each]
    kept = place / "elsewhere"
    kept.mkdir()
    for path in written:
        path.symlink_to(kept / path.name)
    before = everything(place)
    assert answer(*arguments)[0] == 0
    for path in written:
        found = mark_in(path)
        assert found and found["task"] == command and path.is_symlink()
    after = everything(place)
    assert {name: after[name] for name in before} == before
    assert {name for name in after.keys() - before.keys() if not name.startswith("drawn")} == {
        f"elsewhere/{path.name}" for path in written
    }

    assert answer(*arguments)[0] == 0  # again
    for path in written:
        path.unlink()
        a_note(path)
        path.chmod(0o640)
    assert "was not made by maskimg" in refused(*arguments)
    assert answer(*arguments, "--force")[0] == 0
    for path in written:
        assert (mark_in(path) or {})["task"] == command
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not [name for name in everything(place) if name.endswith(".tmp")]


def test_what_is_written_with_a_mark_is_still_what_it_was(place):
    """Marks are no data: a picture opens, an array has its two parts, JSON its figures, and text its lines."""
    outputs.write_figures({"psnr": 1.5, "name": "caf\udce9"}, "eval", place / "f.json")
    figures = json.loads((place / "f.json").read_text(encoding="utf-8"))
    assert figures.pop("maskimg") == mark("eval") and figures == {"psnr": 1.5, "name": "caf\udce9"}
    outputs.write_lines(["one", "caf\udce9"], "check-data", place / "l.txt")
    assert (place / "l.txt").read_text(encoding="utf-8").splitlines()[1:] == ["one", "caf\\udce9"]
    write_npz([place / "photo.png"], [2], place / "a.npz")
    with np.load(place / "a.npz") as array:
        assert array["arr_0"].shape == (1, 24, 40, 3) and array["arr_1"].tolist() == [2]
    write_png(photo((6, 4)), mark("plot"), place / "p.png")
    assert read_recipe(place / "p.png") == mark("plot")
    with Image.open(place / "p.png") as image:
        assert image.info.keys() == {"maskimg"}


def test_a_name_that_is_no_text_is_kept_in_the_recipe(tmp_path):
    """A model in a folder whose name is not UTF-8 failed after its pictures were drawn."""
    recipe = {**tiny_pipeline().recipe_for("cat", 3), "model": "mod\udce8le"}
    write_png(photo((6, 4)), recipe, tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png") == mark_in(tmp_path / "a.png") == recipe


def test_a_mark_is_shown_where_recipes_are_and_has_no_settings(place):
    write_png(photo((6, 4)), mark("doubts"), place / "d.png")
    code, out, _ = answer("info", "d.png")
    assert code == 0 and json.loads(out) == mark("doubts")
    with pytest.raises(ValueError, match=r"maskimg made this picture \(`doubts`\) without a sampler"):
        runs.read_settings(tiny_pipeline(), mark("doubts"))
    assert answer("outpaint", "d.png", "--left=1", "--model=tiny", "--out=o.png")[0] == 0  # a picture like any other


@pytest.mark.parametrize("command", ["inpaint", "plot", "check-data", "sample"])
def test_a_write_protected_file_is_not_replaced(command, place, monkeypatch):
    """Root may write to it: the system is asked, as by anybody else."""
    arguments = [command, *QUICK[command]]
    path = next(each.partition("=")[2] for each in reversed(arguments) if "=new." in each)
    outputs.write_lines(["mine"], command, Path(path))
    monkeypatch.setattr(os, "access", lambda asked, _: str(asked) != path)
    before = everything(place)
    assert f"`{path}` is write-protected" in refused(*arguments, "--force")
    assert everything(place) == before


def test_pictures_go_into_folders_that_do_not_exist_yet(place):
    assert answer("reconstruct", "photo.png", "--model=tiny", "--out=a/b/c.png")[0] == 0
    assert (mark_in(Path("a/b/c.png")) or {})["task"] == "reconstruct"


# ----------------------------------------------------------------------------- several pictures in a folder


EDITS = [row for row in ROWS if row.command in ("inpaint", "outpaint", "vary", "translate")]


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("row", EDITS, ids=lambda row: row.command)
def test_versions_do_not_replace_their_own_original(row, force, place, nothing_begins):
    """`vary ffhq/000000.png --count 4 --out ffhq` overwrote its own input; so would the mask's name have been."""
    (place / "ffhq").mkdir()
    for name in row.inputs:
        shutil.move(place / name, place / "ffhq" / "000002.png")
        arguments = [each.replace(name, "ffhq/000002.png") for each in row.arguments]
        before = everything(place)
        for out in ("ffhq", "./ffhq/", str(place / "ffhq")):
            said = refused(row.command, *arguments, "--count=4", "--out", out, *force)
            assert "000002.png` is read, and would be overwritten" in said
        assert everything(place) == before
        shutil.move(place / "ffhq" / "000002.png", place / name)


def test_versions_replace_no_foreign_picture_and_none_is_drawn_before_one_is_refused(place, nothing_begins):
    (place / "x").mkdir()
    a_foreign_picture(place / "x" / "000007.png")
    before = everything(place)
    said = refused("vary", "photo.png", "--count=3", "--seed=5", "--out=x")
    assert "`x/000007.png` exists and was not made by maskimg: choose another --out, or give --force" in said
    assert "is a file, not a folder" in refused("vary", "photo.png", "--count=3", "--out=mask.png", "--force")
    assert everything(place) == before


def test_versions_are_drawn_beside_a_photo_and_again_over_themselves(place):
    (place / "x").mkdir()
    shutil.copy("photo.png", "x/photo.png")
    before = everything(place / "x")["photo.png"]
    arguments = ["vary", "x/photo.png", "--count=2", "--model=tiny", "--out=x"]
    for force in ([], [], ["--force"]):
        assert answer(*arguments, *force)[0] == 0
        assert everything(place / "x")["photo.png"] == before
        assert sorted(path.name for path in Path("x").iterdir()) == ["000000.png", "000001.png", "photo.png"]
    a_note(place / "x" / "000001.png")
    assert "x/000001.png` exists" in refused(*arguments)
    assert answer(*arguments, "--force")[0] == 0


def test_a_picture_of_ours_is_not_drawn_on_in_place(place):
    """The way back would be lost, even where the file is ours."""
    assert answer("outpaint", "photo.png", "--left=1", "--model=tiny", "--out=wide.png")[0] == 0
    before = everything(place)
    for force in ([], ["--force"]):
        assert "is read, and would be" in refused("outpaint", "wide.png", "--left=1", "--out=wide.png", *force)
    assert everything(place) == before


def test_results_in_python_follow_the_same_rule(tmp_path):
    pipeline = tiny_pipeline()
    result = pipeline.generate("cat", seeds=4, count=3)
    (tmp_path / "x").mkdir()
    a_foreign_picture(tmp_path / "x" / "000006.png")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"000006.png` exists and was not made by maskimg: .* give `force=True`"):
        result.save(tmp_path / "x")
    assert everything(tmp_path) == before
    with pytest.raises(ValueError, match="since `.*000006.png` is a file"):
        result.save(tmp_path / "x" / "000006.png")
    result.save(tmp_path / "x", force=True)
    pipeline.generate("bug", seeds=4, count=3).save(tmp_path / "x")  # ours, and of another recipe
    assert [read_recipe(path)["label"] for path in sorted((tmp_path / "x").iterdir())] == [{"class": "bug"}] * 3


# ----------------------------------------------------------------------------- maskimg sample, and its folder


SAMPLE = ["sample", "--model=tiny", "--count=3", "--out=out"]


def test_a_foreign_picture_is_never_drawn_again_as_damaged(place):
    """A photo of 24.2 megapixels called 000001.png could not be read, so it was redrawn; not even --force does that."""
    assert answer(*SAMPLE)[0] == 0
    drawn = Path("out/000001.png").read_bytes()
    huge = io.BytesIO()
    Image.new("1", (6100, 4000)).save(huge, format="PNG")
    for content in (huge.getvalue(), huge.getvalue()[:200], b"\xff\xd8\xff\xe0 jpeg", b"BM", b"maskimg", drawn[40:]):
        Path("out/000001.png").write_bytes(content)
        before = everything(place)
        assert "`out/000001.png` was not made by maskimg: choose another folder" in answer(*SAMPLE, "--force")[2]
        assert everything(place) == before
    Path("theirs").write_bytes(b"theirs")
    for target in ("../theirs", "nowhere", "."):
        Path("out/000001.png").unlink()
        Path("out/000001.png").symlink_to(target)
        before = everything(place)
        assert "`out/000001.png` was not made by maskimg" in answer(*SAMPLE)[2]
        assert everything(place) == before


def test_a_damaged_picture_of_ours_is_drawn_again_also_where_its_recipe_is_what_is_damaged(place):
    assert answer(*SAMPLE)[0] == 0
    before = everything(place)
    path = Path("out/000001.png")
    drawn = path.read_bytes()
    flipped = [drawn[:place] + bytes([drawn[place] ^ 1]) + drawn[place + 1 :] for place in (3, 100, -30)]
    for content in (drawn[:60], drawn[:200], drawn[:-1], *flipped):
        path.write_bytes(content)
        assert "1 new, 3 in all" in answer(*SAMPLE)[1]
        assert everything(place) == before


def test_an_empty_file_is_drawn_again_in_a_folder_of_ours_only(place):
    Path("out").mkdir()
    Path("out/000002.png").touch()
    before = everything(place)
    assert "`out/000002.png` was not made by maskimg" in answer(*SAMPLE)[2]
    assert everything(place)["out/000002.png"] == before["out/000002.png"]
    Path("out/000002.png").unlink()
    assert answer(*SAMPLE)[0] == 0
    Path("out/000002.png").write_bytes(b"")
    assert "1 new, 3 in all" in answer(*SAMPLE)[1]


@pytest.mark.parametrize(
    "content", [b"notes", b'{"format": 2}', b'{"format": 1, "scripts": {}}', b"[]", b'{"name": "my app"}', b"\xff\xfe"]
)
def test_a_run_json_that_is_not_ours_is_refused_before_a_model_is_loaded(content, place, nothing_begins):
    Path("out").mkdir()
    Path("out/run.json").write_bytes(content)
    before = everything(place)
    assert "`out/run.json` was not written by maskimg: choose another folder" in refused(*SAMPLE)
    assert everything(place) == before


@pytest.mark.parametrize("make", [a_note, Path.mkdir, lambda path: path.symlink_to("../new"), os.mkfifo])
def test_a_lock_that_is_not_ours_is_refused_before_a_model_is_loaded(make, place, nothing_begins):
    """A link would make a file elsewhere, and a pipe wait for ever."""
    Path("out").mkdir()
    make(Path("out/.lock"))
    before = everything(place)
    assert "`out/.lock` is not the empty file that maskimg locks a folder by" in refused(*SAMPLE)
    assert everything(place) == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_drawn_to_and_that_is_said_once(number, place, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    code, _, said = answer(*SAMPLE)
    assert code == 0 and said.count("has no locks: do not start a second run") == 1


def test_the_folder_of_tune_is_refused_where_its_files_are_other_peoples(place, nothing_begins):
    arguments = ["tune", "tiny", "pictures", "--out=t", "--budgets=2,3,4"]
    for name, content in (
        ("log.jsonl", b'{"of": "my own program"}\n'), ("tune.json", b'{"piano": 440}'), ("pareto.png", b"theirs"),
    ):  # fmt: skip
        Path("t").mkdir()
        Path("t", name).write_bytes(content)
        before = everything(place)
        assert f"{name}`" in refused(*arguments)
        assert everything(place) == before
        shutil.rmtree("t")
    Path("t").write_text("a file")
    assert "`t` is a file, not a folder" in refused(*arguments)


# ----------------------------------------------------------------------------- a full disk


FULL = [command for command in QUICK if not command.startswith("eval")]


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_leaves_the_older_file(command, place, monkeypatch):
    """`reconstruct --out r.png` destroyed r.png, `doubts` left nothing of it: 0 bytes."""
    arguments = [command, *QUICK[command]]
    assert answer(*arguments)[0] == 0
    before = everything(place)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(writing, "_sync_one", full)
    code, _, said = answer(*arguments)
    assert code == 4 and "maskimg: the disk is full (" in said and said.rstrip().endswith("run the same command again")
    assert everything(place) == before


WRITERS: dict[str, Callable[[Path], None]] = {
    "picture": lambda path: write_png(photo((200, 200)), mark("plot"), path),
    "figures": lambda path: outputs.write_figures({"values": list(range(2000))}, "eval", path),
    "lines": lambda path: outputs.write_lines(["a line"] * 2000, "check-data", path),
    "array": lambda path: write_npz([path.with_name("photo.png")] * 9, None, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_where_there_is_no_more_room_a_writer_leaves_the_older_file(writer, place):
    """The system itself stops it, in the middle of the new file."""
    resource = pytest.importorskip("resource")
    outputs.write_lines(["mine"], "check-data", place / "file")
    before = everything(place)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            WRITERS[writer](place / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(place) == before
    WRITERS[writer](place / "file")
    assert everything(place) != before


def test_what_the_page_saves_is_whole_or_not_there(tmp_path, monkeypatch):
    pipeline = tiny_pipeline()
    result = pipeline.reconstruct(photo((16, 16)))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(writing, "_sync_one", full)
    monkeypatch.setattr(replay, "animate", lambda _: b"animation")
    monkeypatch.setattr(replay, "frames", lambda *_, **__: [])
    reel = type("Reel", (), {"request": Request(seeds=[3])})
    for save in (
        lambda: runs.save_reconstruction(pipeline, result, tmp_path),
        lambda: replay.save_animation(pipeline, reel, tmp_path),
    ):
        with pytest.raises(OSError, match="No space left"):
            save()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ----------------------------------------------------------------------------- what tells ours from other people's


def test_a_foreign_file_that_appears_while_the_work_is_done_stays(place, monkeypatch):
    """What is asked before the work is asked again when it is written."""
    reconstruct = Pipeline.reconstruct

    def slow(self, image, **options):
        a_note(place / "new.png")
        return reconstruct(self, image, **options)

    monkeypatch.setattr(Pipeline, "reconstruct", slow)
    assert "`new.png` exists and was not made by maskimg" in refused("reconstruct", *QUICK["reconstruct"])
    a_note(place / "theirs")
    assert (place / "new.png").read_bytes() == (place / "theirs").read_bytes()


def test_every_kind_of_recipe_says_that_a_file_is_ours(tmp_path):
    """Also one that is larger than what may be opened, and one that a profile stands in front of."""
    recipe = tiny_pipeline().recipe_for(Request("cat", sampler=Sampler(steps=2)), 1)
    write_png(Image.new("1", (6100, 4000)), recipe, tmp_path / "large.png")
    assert mark_in(tmp_path / "large.png") == recipe
    from PIL import ImageCms

    from maskimg.recipe import png_text

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo((5, 5)).save(tmp_path / "profile.png", pnginfo=png_text(recipe), icc_profile=profile)
    assert mark_in(tmp_path / "profile.png") == recipe
    photo((5, 5)).save(tmp_path / "profile.png")
    assert mark_in(tmp_path / "profile.png") is None  # saved again by another program
