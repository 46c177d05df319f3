"""A signal at any moment: the command ends with a sentence and its exit code, and nothing half-written is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from maskimg.cli.main import main
from maskimg.training import stages
from maskimg.training.loop.errors import Stopped
from maskimg.training.loop.run import Budget, Run
from maskimg.training.loop.signals import PATIENCE, Interrupted, Interruptions
from vqgan.writing import atomic_directory

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]


def sent(number: int) -> None:
    """Send this process a signal and wait for what it does."""
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.fixture
def interruptions():
    with Interruptions(lambda interrupt: pytest.fail(f"{interrupt!r} ended the process")) as active:
        yield active


@pytest.fixture
def pretend(monkeypatch):
    """`pretend(work)`: every command does `work` in place of its own."""

    def set_work(work) -> None:
        for name in ("training.train", "training.encode", "drawing.sample", "measuring.eval"):
            monkeypatch.setattr(f"maskimg.cli.{name}", lambda *_: work())

    return set_work


@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_leaves_with_0_and_other_commands_with_the_signals_number(number, pretend, capsys):
    """Outside the loop, as in the classifier, a signal once killed a training without a word."""
    pretend(lambda: sent(number))
    by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    assert main(["train"]) == 0
    assert capsys.readouterr() == (f"maskimg: stopped by {by}; run the same command again to continue\n", "")
    assert main(["sample"]) == 128 + number
    assert capsys.readouterr() == ("", f"maskimg: stopped by {by}; run the same command again to continue\n")
    for name in ("eval", "encode"):
        assert main([name]) == 128 + number
        assert capsys.readouterr() == ("", f"maskimg: stopped by {by}\n")


def test_what_was_set_before_is_set_again(pretend):
    numbers = [*SIGNALS, signal.SIGALRM]
    before = [signal.getsignal(number) for number in numbers]
    pretend(lambda: sent(signal.SIGTERM))
    main(["eval"])
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_half_written_directory_disappears(pretend, tmp_path):
    def work() -> None:
        with atomic_directory(tmp_path / "model") as directory:
            (directory / "weights").write_bytes(b"half")
            sent(signal.SIGTERM)

    pretend(work)
    assert main(["eval"]) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_a_library_swallows_comes_again(interruptions):
    """Destructors and `except:` lose what is raised in them."""
    with pytest.raises(Interrupted):
        try:
            sent(signal.SIGTERM)
        except BaseException as lost:
            assert isinstance(lost, Interrupted)
        time.sleep(5)


def test_what_an_extension_module_makes_of_it_is_still_a_stop(pretend, capsys):
    def work() -> None:
        try:
            sent(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    pretend(work)
    assert main(["eval"]) == 143
    assert capsys.readouterr().err == "maskimg: stopped by SIGTERM\n"


def test_cleaning_up_is_not_interrupted_once_more(interruptions):
    cleaned = False
    with pytest.raises(Interrupted):
        try:
            sent(signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # a launcher's, right after the terminal's
            time.sleep(0.4)
            cleaned = True
    assert cleaned


def test_a_short_import_ends_before_the_signal_is_heard(interruptions, tmp_path, monkeypatch):
    """Raised in there, it would come out as a traceback of the module's."""
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.3)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted):
        import slow_to_import  # pyright: ignore[reportMissingImports]

        whole = slow_to_import.whole
        time.sleep(5)
    assert whole


CHILD = """
import os, signal, subprocess, sys, time
from maskimg.cli import main
from maskimg.cli import models

def work(*_):
    {work}

models.info = work
raise SystemExit(main.main(["info"]))
"""


def child(work: str, cwd: Path) -> subprocess.CompletedProcess:
    script = CHILD.format(work=textwrap.indent(textwrap.dedent(work), " " * 4).strip())
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)


def test_an_import_that_takes_long_is_not_waited_for(tmp_path):
    (tmp_path / "endless.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGUSR1)\ntime.sleep(60)"
    )
    begun = time.monotonic()
    done = child("import endless", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (138, "", "maskimg: stopped by SIGUSR1\n")
    assert PATIENCE < time.monotonic() - begun < 45


def test_a_second_signal_ends_at_once(tmp_path):
    done = child(
        """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:  # cleans up for longer than a person likes to wait
            time.sleep(0.7)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_a_forked_child_dies_as_if_nobody_listened_and_says_nothing(tmp_path):
    done = child(
        """
        heard, told = os.pipe()
        process = os.fork()
        if not process:
            os.write(told, b"!")  # a signal that comes before Python is back from the fork is lost
            time.sleep(60)
            os._exit(1)
        os.read(heard, 1)
        os.kill(process, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")


def test_a_program_that_nohup_started_outlives_its_terminal(tmp_path):
    work = 'os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.2); print("still here")'
    assert child(work, tmp_path).returncode == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; the child inherits it
    try:
        done = child(work, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_stop_at_the_very_last_step_is_a_stop(tmp_path, monkeypatch):
    """It was taken for the end of the stage, and the next one began."""
    run = Run(tmp_path, Budget(steps=2), stage="critic", identity={})
    run.restore()
    save = run.save
    monkeypatch.setattr(run, "save", lambda: (os.kill(os.getpid(), signal.SIGTERM), save()))
    assert [step for step, _ in run.steps()] == [0, 1]
    assert run.finished
    with pytest.raises(Stopped, match="stopped at step 2 of the critic"):
        stages._require_end(run)


def caught(process: subprocess.Popen, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what a process listens to")
def test_a_command_may_be_stopped_at_any_moment(tmp_path, draw_pictures):
    """From its first line on, through imports, reading, training: a sentence, the code, and nothing temporary."""
    draw_pictures(tmp_path / "pictures", count=12)
    train = ["train", str(tmp_path / "pictures"), "--out", str(tmp_path / "model"), "--size=16", "--minutes=1"]
    sample = ["sample", "--count=200", "--out", str(tmp_path / "drawn")]
    begun = []
    for i, delay in enumerate((0.0, 0.02, 0.1, 0.3, 1.0, 2.0, 3.0, 4.5)):
        number, command = SIGNALS[1:][i % 3], [train, sample][i % 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "maskimg", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begun.append((process, number, command is train))
        while not caught(process, number):
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
    for process, number, trains in begun:
        out, err = process.communicate(timeout=300)
        assert process.returncode == (0 if trains else 128 + number), err
        assert "Traceback" not in err
        assert "maskimg: stopped" in (out if trains else err)
    assert [path for path in tmp_path.rglob("*.tmp")] == []
