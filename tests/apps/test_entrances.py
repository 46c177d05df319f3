"""The page and the batch script can be run as programs; both are commands of `maskimg`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("program", "command"),
    [([str(ROOT / "apps" / "sample.py")], "sample"), (["-m", "maskimg_apps.demo"], "demo")],
)
def test_a_program_is_its_command(program, command, tmp_path):
    def told(*arguments: str) -> str:
        run = [sys.executable, *arguments, "--help"]
        return subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    assert told(*program) == told("-m", "maskimg", command)
    wrong = subprocess.run([sys.executable, *program, "--no-such-option"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2 and "--no-such-option" in wrong.stderr
