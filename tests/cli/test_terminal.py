"""Streams that are closed, full, abandoned or short of letters: a sentence or an exit code, and never a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskimg.cli.main import main
from maskimg.cli.terminal import usable_streams

COMMAND = [sys.executable, "-m", "maskimg"]
FULL = Path("/dev/full")


def run(*arguments: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command, with what a shell does to its streams."""
    script = f'exec "$@" {shell}'
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *arguments], capture_output=True, env=os.environ | environment, timeout=300
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code_and_leave_no_traceback(shell, buffered):
    """With `>&-` the end was a traceback, and the next file that was opened got the number 1."""
    done = run("--help", shell=shell, PYTHONUNBUFFERED=buffered)
    assert (done.returncode, done.stderr) == (0, b"")
    refused = run("no-such-command", shell=shell, PYTHONUNBUFFERED=buffered)
    assert refused.returncode == 2 and b"Traceback" not in refused.stderr
    assert ("2>&-" in shell) == (refused.stderr == b"")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_output_that_nobody_can_keep_is_said_and_talk_that_nobody_can_keep_is_not():
    done = run("--help", shell=">/dev/full")
    assert done.returncode == 4
    assert done.stderr == b"maskimg: the output could not be printed (No space left on device)\n"
    assert run("no-such-command", shell="2>/dev/full").returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_letter_that_the_encoding_lacks_is_written_as_an_escape(encoding):
    """`maskimg train` once ended with code 2 after everything was drawn, because of one label's name."""
    file = io.BytesIO()
    out = io.TextIOWrapper(file, encoding=encoding, errors="strict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        with usable_streams():
            print("Katze 猫 \udce9 ✓", flush=True)
    assert file.getvalue().decode(encoding).strip() == r"Katze \u732b \udce9 \u2713"


@pytest.mark.skipif(os.name == "nt", reason="Windows' file names are letters")
def test_a_name_that_is_not_utf_8_is_refused_in_words():
    done = subprocess.run([*COMMAND, b"caf\xe9"], capture_output=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr == b"maskimg: there is no command `caf\\udce9`; `maskimg --help` lists them\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_work_goes_on_when_nobody_hears_its_talk_any_more():
    """A progress bar once ended a training when the `tee` behind it, or the terminal, was gone."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1, encoding="utf-8") as gone, pytest.MonkeyPatch.context() as patch:
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            os.write(writing, b"x")
        patch.setattr(sys, "stderr", gone)
        with usable_streams():
            from tqdm import tqdm

            assert sum(tqdm(range(3), mininterval=0)) == 3
            print("a warning", file=sys.stderr, flush=True)
        assert sys.stderr is gone


@pytest.mark.parametrize("columns", ["10", "1", "0", "many"])
def test_help_fits_any_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(SystemExit) as end:
        main(["sample", "--help"])
    assert end.value.code == 0
    assert "--count" in capsys.readouterr().out


def test_a_file_called_random_where_somebody_happens_to_be_stands_in_for_nothing(tmp_path):
    """Neither for a person's own `python -m maskimg` nor for the processes that it starts."""
    for name in ("random.py", "PIL/__init__.py", "jsonargparse.py", "shlex.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    done = subprocess.run([*COMMAND, "info", "nowhere"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (2, "maskimg: there is no model directory `nowhere`\n")

    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONSAFEPATH", raising=False)
        patch.chdir(tmp_path)
        patch.setattr("maskimg.cli.models.info", lambda *_: seen.update(child=imported_random()))
        main(["info"])
        assert "PYTHONSAFEPATH" not in os.environ
    assert seen["child"] == "random of Python's own\n"


def imported_random() -> str:
    script = "import random; print('random of Python\\'s own' if hasattr(random, 'Random') else random)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300).stdout
