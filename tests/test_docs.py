"""What the documentation says is true: its commands run, its reference is the docstrings', its links lead somewhere."""

import importlib.util
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from quoted import sampling_loop

from maskimg.cli.main import main

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# So small that all commands of the guide take seconds.
SMALL = {
    "train": "--size 16 --versions 1 --tokenizer.channels [16,16] --tokenizer_training.batch_size 8 "
    "--tokenizer_training.perceptual random --tokenizer_budget.steps 4 --generator.dim 32 --generator.depth 1 "
    "--generator.heads 2 --generator_training.batch_size 8 --generator_budget.steps 4 --generator_budget.minutes 1 "
    "--critic_budget.steps 2",
    "eval": "--count 24 --classifier-steps 4",
    "tune": "--count 24 --classifier-steps 4 --candidates 2 --budgets 2,3,4",
}


def test_every_command_of_the_guide_runs(tmp_path, draw_pictures, monkeypatch, capsys):
    draw_pictures(tmp_path / "pictures", count=60, size=16)
    Image.new("RGB", (30, 20), (240, 200, 40)).save(tmp_path / "photo.png")
    mask = Image.new("L", (30, 20))
    mask.paste(255, (8, 8, 14, 14))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^maskimg .*", (DOCS / "guide.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) > 12
    for command in commands:
        name, *arguments = shlex.split(command)[1:]
        if name == "demo":
            opened_and_closed([name, *arguments])
            continue
        assert main([name, *arguments, *SMALL.get(name, "").split()]) == 0, command
        assert capsys.readouterr().out.strip(), command
        if "--out" in arguments:
            assert Path(arguments[arguments.index("--out") + 1]).exists(), command


def opened_and_closed(arguments: list[str]) -> None:
    """The command opens a page, says where, and ends when it is asked to."""
    command = [sys.executable, "-m", "maskimg", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("http://127.0.0.1:" in line for line in process.stdout)
        process.terminate()  # a Ctrl-C may be ignored in what a script starts in the background
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_the_reference_is_what_the_docstrings_say():
    found = importlib.util.spec_from_file_location("write_api", DOCS / "write_api.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert (DOCS / "api.md").read_text(encoding="utf-8") == module.page(), "run `python docs/write_api.py`"


def test_the_loop_beside_the_papers_is_the_code():
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    assert f"```python\n{sampling_loop()}```" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)h#][^)#]*)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
