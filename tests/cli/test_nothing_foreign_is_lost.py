"""Every command and method that writes a directory, into every kind of place: what is somebody else's never changes.

The commands are found by walking the parsers, so a new one that writes a directory fails here until it is in the table.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import stirred, tiny_pictures
from tiny import TOKENIZER, tiny_pipeline

from maskimg.cli.main import COMMANDS, command_named, main
from maskimg.cli.options import Parser
from maskimg.data import codes as coding
from maskimg.data import pictures as reading
from maskimg.data.crops import Versions
from maskimg.training.folder import working_directory
from vqgan import Tokenizer, files, writing

# What each command reads besides --out; it all lies in the folder that the test works in.
DIRECTORIES = {
    "train": ("pictures",),
    "train-tokenizer": ("pictures",),
    "encode": ("pictures", "tokenizer", "--size=16"),
    "train-generator": ("codes", "tokenizer"),
    "tune": ("model", "pictures"),
    "convert": ("tokenizer",),
}
FILES = {"sample", "inpaint", "outpaint", "vary", "translate", "reconstruct", "check-data", "plot", "doubts", "export"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, draw_pictures) -> Path:
    root = tmp_path_factory.mktemp("made")
    draw_pictures(root / "pictures", count=4, size=16)
    tokenizer = stirred(Tokenizer(TOKENIZER), size=0.05).eval()
    tokenizer.save_pretrained(root / "tokenizer")
    coding.encode_pictures(tokenizer, tiny_pictures(6), root / "codes", views=Versions(1))
    tiny_pipeline().save_pretrained(root / "model")
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch) -> Path:
    """A copy of all that is read, in the working directory; no command may get as far as reading any of it."""
    shutil.copytree(made, tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    for owner, name in (
        (files, "verify"),
        (files, "read_weights"),
        (reading, "list_pictures"),
        (reading, "read_pictures"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("work began before the refusal"))
    return tmp_path / "root"


def digest(root: Path) -> dict[str, tuple]:
    """Everything below `root`: kind, mode, and contents or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        kept = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[path.relative_to(root).as_posix()] = (about.st_mode, kept)
    return found


# ----------------------------------------------------------------------------- places that are refused


def _model(out: Path) -> Path:
    return shutil.copytree("model", out)


def _with(out: Path, name: str, make: Callable[[Path], object]) -> None:
    place = _model(out) / name
    place.parent.mkdir(exist_ok=True)
    make(place)


def _note(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


def _linked(out: Path, target: str) -> None:
    _note(Path("elsewhere") / "note.txt")
    out.symlink_to(target)


def _protected(out: Path) -> None:
    out.mkdir()
    out.chmod(0o555)


def _manifest_of_another(out: Path, text: str) -> None:
    _note(out / "index.html")
    (out / "manifest.json").write_text(text)


PLACES = {
    "a folder with a note": lambda out: _note(out / "note.txt"),
    "a folder with a hidden file": lambda out: _note(out / ".env"),
    "a folder with a folder": lambda out: (out / "empty").mkdir(parents=True),
    "a folder called as clutter is": lambda out: (out / ".DS_Store").mkdir(parents=True),
    "a file": _note,
    "below a file": lambda out: _note(out.parent),
    "a named pipe": os.mkfifo,
    "a link to a folder with a note": lambda out: _linked(out, "elsewhere"),
    "a link to a file": lambda out: _linked(out, "elsewhere/note.txt"),
    "a link to nothing": lambda out: _linked(out, "nowhere"),
    "a protected folder": _protected,
    "a web app": lambda out: _manifest_of_another(out, "{}"),
    "a web app that lists files": lambda out: _manifest_of_another(out, '{"files": {"index.html": "/index.html"}}'),
    "a manifest that is a list": lambda out: _manifest_of_another(out, "[1]"),
    "a model and a note": lambda out: _with(out, "note.txt", _note),
    "a model and drawings": lambda out: _with(out, "drawn/000000.png", _note),
    "a model with a line in its card": lambda out: _with(out, "README.md", lambda path: path.write_text("mine")),
    "a model with other weights": lambda out: _with(out, "generator/model.safetensors", _note),
    "a model with a link to a file": lambda out: _with(out, "more", lambda path: path.symlink_to(__file__)),
    "a model with a link to a folder": lambda out: _with(out, "more", lambda path: path.symlink_to("/usr")),
    "a model with a folder": lambda out: _with(out, "more", Path.mkdir),
    "a model with a pipe": lambda out: _with(out, "more", os.mkfifo),
    "a model with a protected file": lambda out: _with(out, "README.md", lambda path: path.chmod(0o444)),
    "a model without its manifest": lambda out: (_model(out) / files.MANIFEST).unlink(),
}


def refused(capsys, command: str, out: str, *options: str, reads: tuple[str, ...] | None = None) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, *(reads or DIRECTORIES[command]), f"--out={out}", *options])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def test_every_command_with_an_out_is_in_a_table():
    for command in COMMANDS:
        run = command_named(command)
        parser = Parser(prog=command)
        with pytest.raises(SystemExit):
            run(parser, ["--no-such-option"])
        helps = [action.help or "" for action in parser._actions if "--out" in action.option_strings]
        assert (command in {*DIRECTORIES, *FILES}) == bool(helps), command
        assert (command in DIRECTORIES) == any("director" in text for text in helps), command


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", DIRECTORIES)
def test_a_place_that_holds_anything_of_somebody_elses_is_refused_before_any_work(command, place, root, capsys):
    out = Path("below/out") if place == "below a file" else Path("out")
    PLACES[place](out)
    before = digest(root)
    said = refused(capsys, command, str(out))
    assert "out`" in said or "out/" in said or "below`" in said
    assert digest(root) == before


@pytest.mark.parametrize("command", [name for name in DIRECTORIES if name not in ("tune", "convert")])
def test_working_files_do_not_go_into_a_folder_of_somebody_elses(command, root, capsys):
    """`birds.training` may well be where somebody keeps the pictures to train on."""
    _note(Path("out.training/000.png"))
    before = digest(root)
    assert "working files go into `out.training`, which holds `000.png`" in refused(capsys, command, "out")
    (root / "out.training" / "lock").write_text("mine")
    assert "`out.training/lock` is no lock of maskimg's" in refused(capsys, command, "out")
    (root / "out.training" / "lock").unlink()
    assert digest(root) == before


@pytest.mark.parametrize("command", DIRECTORIES)
def test_an_out_that_is_or_holds_what_is_read_is_refused_whatever_it_is_called(command, root, capsys):
    reads = [each for each in DIRECTORIES[command] if not each.startswith("-")]
    Path("link").symlink_to(reads[0])
    Path("up").symlink_to(root.parent)
    Path("other").mkdir()
    before = digest(root)
    names = [*reads, f"{reads[0]}/", f"./{reads[0]}", f"other/../{reads[0]}", "link", str(root / reads[0])]
    for name in [*names, ".", "..", "/", "up", str(root), "other/..", ""]:
        assert "out" in refused(capsys, command, name).lower()
    assert digest(root) == before


@pytest.mark.parametrize("command", ["train", "train-tokenizer", "encode"])
def test_pictures_where_working_files_go_are_refused(command, root, capsys):
    Path("pictures").rename("out.training")
    rest = DIRECTORIES[command][1:]
    before = digest(root)
    assert "would go into FOLDER `out.training`" in refused(capsys, command, "out", reads=("out.training", *rest))
    assert digest(root) == before


def test_an_archive_of_pictures_and_shards_in_out_are_refused(root, capsys):
    _note(Path("data/pics.zip"))
    _note(Path("data/s-000.tar"))
    before = digest(root)
    for where in ("data/pics.zip", "data/s-{000..001}.tar", "torchvision://FashionMNIST?root=data"):
        assert "--out `data` is, or contains, FOLDER" in refused(capsys, "train", "data", reads=(where,))
    assert digest(root) == before


# ----------------------------------------------------------------------------- the same in Python


METHODS = {
    "Pipeline.save_pretrained": lambda path: tiny_pipeline().save_pretrained(path),
    "Tokenizer.save_pretrained": lambda path: Tokenizer(TOKENIZER).save_pretrained(path),
    "encode_pictures": lambda path: coding.encode_pictures(
        Tokenizer(TOKENIZER), tiny_pictures(4), path, views=Versions(1)
    ),
    "read_pictures": lambda path: reading.read_pictures(reading.list_pictures("pictures"), 8, path),
}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_goes_around_it(method, made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    changed = {"a model with a line in its card", "a model with other weights"}  # working files may be set aside
    for number, place in enumerate(PLACES.keys() - (changed if method.endswith("pictures") else set())):
        out = Path(f"out{number}/below/out" if place == "below a file" else f"out{number}")
        out.parent.parent.mkdir(parents=True, exist_ok=True)
        PLACES[place](out)
        before = digest(tmp_path)
        with pytest.raises((writing.InTheWay, OSError)):
            METHODS[method](out)
        assert digest(tmp_path) == before, place


# ----------------------------------------------------------------------------- places that are taken


def _ours(path: Path, text: str) -> None:
    with writing.atomic_directory(path) as directory:
        (directory / "config.json").write_text(text)
        (directory / "part").mkdir()
        (directory / "part" / "model.safetensors").write_text(text)


def _read(path: Path) -> str:
    files.verify(path)
    return (path / "config.json").read_text()


def test_what_is_absent_empty_or_ours_is_replaced_and_clutter_goes_with_it(tmp_path):
    (tmp_path / "empty").mkdir()
    _ours(tmp_path / "old", "old")
    for name in (".DS_Store", "part/Thumbs.db", "desktop.ini"):
        _note(tmp_path / "old" / name)
    for name in ("new", "empty", "old"):
        _ours(tmp_path / name, "new")
        assert _read(tmp_path / name) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new", "old"]
    assert not list(tmp_path.rglob(".DS_Store"))


def test_a_half_deleted_directory_of_ours_is_replaced(tmp_path):
    _ours(tmp_path / "old", "old")
    shutil.rmtree(tmp_path / "old" / "part")
    _ours(tmp_path / "old", "new")
    assert _read(tmp_path / "old") == "new"


def test_through_a_link_the_directory_is_replaced_and_the_link_stays(tmp_path):
    _ours(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    _ours(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert _read(tmp_path / "disk" / "model") == "new"


def test_what_came_while_it_was_written_is_not_lost_and_neither_is_what_was_written(tmp_path):
    """A person saved a note into the model's folder in the hours of a training."""
    _ours(tmp_path / "model", "old")
    late = pytest.raises(writing.InTheWay, match=r"holds `note.txt`.*is in `.*model\.new`")
    with late, writing.atomic_directory(tmp_path / "model") as directory:
        (directory / "config.json").write_text("new")
        _note(tmp_path / "model" / "note.txt")
    assert (tmp_path / "model" / "note.txt").read_text() == "mine"
    assert _read(tmp_path / "model.new") == "new"
    assert _read(tmp_path / "model") == "old"


def test_what_comes_in_the_very_moment_is_kept_beside_it(tmp_path, monkeypatch):
    _ours(tmp_path / "model", "old")
    exchange = writing._exchange

    def late(one: Path, other: Path) -> bool:
        _note(other / "late.txt")
        return exchange(one, other)

    monkeypatch.setattr(writing, "_exchange", late)
    with pytest.warns(UserWarning, match=r"late\.txt` came while .* was replaced: it is in `.*model\.old`"):
        _ours(tmp_path / "model", "new")
    assert _read(tmp_path / "model") == "new"
    assert (tmp_path / "model.old" / "late.txt").read_text() == "mine"


def test_the_working_directory_and_a_mounted_disk_are_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "..", str(tmp_path), "../here"):
        with pytest.raises(writing.InTheWay, match="is the folder that you are in, or one above it"):
            writing.require_replaceable(name)
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("disk"))
    (tmp_path / "disk").mkdir()
    with pytest.raises(writing.InTheWay, match=r"is where a disk is mounted.*disk/model`"):
        writing.require_replaceable(tmp_path / "disk")


@pytest.mark.parametrize("name", ["with space", "it's", '"x"', "-x", "x.", "…", "n" * 200, "\udcff\udcfe", "a\nb"])
def test_a_model_can_have_any_name(name, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.about.pop("name", None)
    for _ in range(2):
        pipeline.save_pretrained(tmp_path / name)
    files.verify(tmp_path / name, everything=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert working_directory(tmp_path / name).name == f"{name}.training"
