"""Network disks and odd systems, models with somebody's notes in them, and what a killed writer leaves."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_pictures
from tiny import TOKENIZER, tiny_pipeline

from maskimg.data.codes import encode_pictures, read_codes
from maskimg.data.crops import Versions
from maskimg.evaluation.card import amend
from maskimg.pipeline import Pipeline
from maskimg.training.loop.alone import only_trainer, working_in
from maskimg.training.loop.checkpoints import Checkpoints, TrainingError
from maskimg.training.plan import Plan
from maskimg.training.stages import encode_stage
from vqgan import Tokenizer, files, writing


def write(path: Path, text: str = "text") -> None:
    with writing.atomic_directory(path) as directory:
        (directory / "config.json").write_text(text)


def failing(number: int, *, only=lambda *_: True, instead=None):
    """A call that the system refuses with this error where `only` says so."""

    def call(*arguments, **options):
        if only(*arguments):
            raise OSError(number, os.strerror(number))
        return instead(*arguments, **options) if instead else None

    return call


def is_folder(descriptor: int, *_) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


# ----------------------------------------------------------------------------- network disks and odd systems


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_that_cannot_sync_a_folder_does_without(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(number, only=is_folder, instead=os.fsync))
    write(tmp_path / "model")
    with writing.atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "file").read_text() == (tmp_path / "model" / "config.json").read_text() == "text"


def test_a_system_that_does_not_open_a_folder_does_without(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", failing(errno.EACCES, only=lambda path, *_: Path(path).is_dir(), instead=os.open))
    write(tmp_path / "model")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_to_sync_is_not_passed_over(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(number, only=lambda d: not is_folder(d), instead=os.fsync))
    with pytest.raises(OSError, match=r"\.json") as error:
        write(tmp_path / "model")
    assert error.value.errno == number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_disk_without_modes_does_without(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", failing(number))
    monkeypatch.setattr(Path, "chmod", failing(number))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    files.verify(tmp_path / "model")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_disk_that_takes_no_room_beforehand_is_written_to_the_end(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    monkeypatch.setattr(writing, "CHUNK", 1000)
    writing.take_room(tmp_path / "file", 10_500)
    about = (tmp_path / "file").stat()
    assert about.st_size == 10_500 <= 512 * about.st_blocks


def test_a_full_disk_is_found_before_it_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        writing.take_room(tmp_path / "file", 10)


def test_where_two_directories_cannot_be_exchanged_two_renames_do(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        write(tmp_path / "model", text)
    assert (tmp_path / "model" / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_two_renames_loses_neither_model(tmp_path, monkeypatch):
    """The next writer took both for leftovers of its own, and deleted the last good model."""
    write(tmp_path / "model", "old")
    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    child = os.fork()
    if not child:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, target: (rename(self, target), os.kill(os.getpid(), 9)))
        write(tmp_path / "model", "new")
    os.waitpid(child, 0)
    assert not (tmp_path / "model").exists()
    write(tmp_path / "model", "third")
    assert (tmp_path / "model.old" / "config.json").read_text() == "old"


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_a_model_has_the_modes_that_the_umask_asks_for(umask, file, folder, tmp_path):
    before = os.umask(umask)
    try:
        tiny_pipeline().save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_only_temporary_names_of_our_own_are_removed_and_only_of_writers_that_are_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = writing._machine()
    elsewhere = "0000" if here != "0000" else "1111"
    foreign = [".x.tmp", ".model.tmp", f".model.maskimg-{gone.pid}-notes.tmp", ".model.maskimg-x-00000000.tmp"]
    other = f".model.maskimg-{gone.pid}-{elsewhere}00000000.tmp"  # of another machine, on the same disk
    stale = f".model.maskimg-{gone.pid}-{here}00000000.tmp"
    living = f".model.maskimg-{os.getppid()}-{here}00000000.tmp"
    for name in (*foreign, other, stale, living):
        (tmp_path / name).mkdir()
    write(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {*foreign, other, living, "model"}
    os.utime(tmp_path / other, (0, 0))
    write(tmp_path / "model")
    assert not (tmp_path / other).exists()


# ----------------------------------------------------------------------------- locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_trained_on_and_that_is_said_once(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with working_in(tmp_path / "model.training"):
        pass
    assert capsys.readouterr().err.count("knows no locks") == 1


def test_a_second_training_into_one_out_is_told_who_is_there_and_can_begin_afterwards(tmp_path):
    work = tmp_path / "model.training"
    with (
        working_in(work),
        pytest.raises(TrainingError, match=f"trained in by process {os.getpid()} on"),
        working_in(work),
    ):
        pass
    with working_in(work):
        pass


def test_a_lock_file_of_somebody_elses_is_not_written_over(tmp_path):
    for content in (b"mine", b"\xff\xfe", b"process of making jam"):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(writing.InTheWay, match="is no lock of maskimg's"), only_trainer(tmp_path):
            pass
        assert (tmp_path / "lock").read_bytes() == content


# ----------------------------------------------------------------------------- models with somebody's notes in them


@pytest.fixture
def model(tmp_path) -> Path:
    """A model that its owner works with: a line in the card, a note, drawings, a link."""
    path = tmp_path / "model"
    tiny_pipeline().save_pretrained(path)
    with (path / "README.md").open("a") as card:
        card.write("\nMy favourite.\n")
    (path / "drawn").mkdir()
    for name in ("note.txt", "run.json", "drawn/run.json", "drawn/000000.png", "drawn/x.safetensors"):
        (path / name).write_text("mine")
    (path / "latest").symlink_to("drawn/000000.png")
    return path


def test_a_model_with_its_owners_things_in_it_is_read(model):
    assert Pipeline.from_pretrained(model, device="cpu").name == "tiny"
    assert Tokenizer.from_pretrained(model).vocab_size == 64
    (model / "README.md").unlink()
    files.verify(model)


@pytest.mark.parametrize("name", ["critic", "source_tokenizer"])
def test_weights_that_the_manifest_does_not_list_are_never_taken_for_the_models(name, tmp_path):
    tiny_pipeline(critic=False).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).mkdir()
    assert Pipeline.from_pretrained(tmp_path / "model", device="cpu").critic is None
    shutil.copy(tmp_path / "model/generator/model.safetensors", tmp_path / "model" / name)
    with pytest.raises(files.ModelError, match=rf"{name}/model.safetensors` is not listed in the manifest"):
        Pipeline.from_pretrained(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("name", ["tokenizer/shared.json", "generator/more.safetensors", "more.safetensors"])
def test_a_file_that_is_not_listed_does_not_lie_where_others_are_read(name, model):
    (model / name).write_text("{}")
    with pytest.raises(files.ModelError, match=rf"{name}` is not listed in the manifest"):
        files.verify(model)


@pytest.mark.parametrize("links", [True, False])
def test_figures_go_into_a_model_and_its_owners_things_stay(links, model, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    kept = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    (model / "drawn").chmod(0o700)
    for value in (1, 2):
        amend(model, lambda about, value=value: about.update(measured={"a": value}), "Measured", f"a is {value}.")
    assert Pipeline.from_pretrained(model, device="cpu").about["measured"] == {"a": 2}
    changed = {path.name for path, before in kept.items() if path.read_bytes() != before}
    assert changed == {"README.md", "pipeline.json", "manifest.json"}
    assert "My favourite." in (model / "README.md").read_text()
    assert (model / "README.md").read_text().endswith("## Measured\n\na is 2.\n")
    assert (model / "latest").is_symlink() and stat.S_IMODE((model / "drawn").stat().st_mode) == 0o700
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    for path in ("note.txt", "run.json", "drawn", "latest"):
        shutil.rmtree(model / path) if (model / path).is_dir() else (model / path).unlink()
    with pytest.raises(writing.InTheWay, match=r"drawn|note|run|README\.md` was changed since maskimg wrote it"):
        writing.require_replaceable(model)  # the card still holds its owner's line


@pytest.mark.parametrize("moment", ["_sync_one", "_replace"])
def test_a_full_disk_in_the_middle_leaves_the_model_as_it_was(moment, model, monkeypatch):
    kept = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    monkeypatch.setattr(writing, moment, failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        amend(model, lambda about: about.update(measured={"a": 1}), "Measured", "a is 1.")
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == kept
    assert [path.name for path in model.parent.iterdir()] == ["model"]


# ----------------------------------------------------------------------------- working files


def _note_in(path: Path) -> None:
    (path / "note.txt").write_text("mine")


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        _note_in,
        lambda codes: (codes / "codes.uint8").unlink(),
        lambda codes: (codes / "codes.uint8").write_bytes(b"x"),
        lambda codes: (codes / files.MANIFEST).unlink(),
        lambda codes: shutil.rmtree(codes.with_name("codes-state")),
    ],
)
def test_damaged_or_half_deleted_codes_are_made_again_and_nothing_is_lost(damage, tmp_path, capsys):
    """`codes` deleted by hand while `codes-state` said they were finished: every later run was refused."""
    plan, pictures = Plan(versions=1), tiny_pictures(6)
    tokenizer, work = Tokenizer(TOKENIZER).eval(), tmp_path / "model.training"
    with working_in(work):
        first = encode_stage(tokenizer, pictures, plan, work / "codes").codes[:]
        damage(work / "codes")
        assert (encode_stage(tokenizer, pictures, plan, work / "codes").codes[:] == first).all()
        encode_stage(tokenizer, pictures, Plan(versions=2), work / "codes")  # other settings replace it
    assert read_codes(work / "codes").codes.shape[0] == 2
    notes = list(work.rglob("note.txt"))
    if damage is _note_in:
        assert [note.parent.name for note in notes] == ["codes.aside"]
        assert "holds `note.txt`, which maskimg did not write there: it is now `codes.aside`" in capsys.readouterr().err


def test_codes_in_a_place_of_ones_own_are_not_set_aside(tmp_path):
    encode_pictures(Tokenizer(TOKENIZER), tiny_pictures(6), tmp_path / "codes", views=Versions(1))
    _note_in(tmp_path / "codes")
    with pytest.raises(writing.InTheWay, match=r"holds `note\.txt`"):
        encode_pictures(Tokenizer(TOKENIZER), tiny_pictures(6), tmp_path / "codes", views=Versions(2))


def test_a_checkpoint_with_a_note_in_it_is_not_removed_and_a_copy_of_one_neither(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.write(step, {}, {"seconds": 0.0, "identity": {}}, keep=1)
        if step == 1:
            shutil.copytree(tmp_path / "step-000000001", tmp_path / "step-000000001-keep")
            _note_in(tmp_path / "step-000000001")
    left = ["step-000000001", "step-000000001-keep", "step-000000004"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert checkpoints.newest() == tmp_path / "step-000000004"


def test_a_damaged_checkpoint_in_the_place_of_a_new_one_is_set_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(3, {}, {"seconds": 0.0, "identity": {}})
    (tmp_path / "step-000000003" / "state.json").write_text("{}")
    checkpoints.write(3, {}, {"seconds": 1.0, "identity": {}})
    assert checkpoints.newest() == tmp_path / "step-000000003"
    assert (tmp_path / "step-000000003.aside" / "state.json").read_text() == "{}"
