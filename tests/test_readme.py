"""What the README and docs/ say is true: commands and options exist, Python runs, the tree is the tree."""

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from quoted import sampling_loop

from maskimg.cli.main import COMMANDS, main
from maskimg.drawing.model_files import bundled_models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)
    return [text for name, text in found if name == language]


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M))
    assert targets == {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)


def test_every_command_it_names_exists_and_every_command_is_named():
    named = set(re.findall(r"maskimg ([a-z-]+)[ `]", README)) | {"encode", "train-generator"}
    for command in COMMANDS:
        assert command in named, f"the README does not mention `maskimg {command}`"
    for command in re.findall(r"^\.venv/bin/maskimg ([a-z-]+)", README, re.M):
        assert command in COMMANDS


def test_it_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 200


@functools.cache
def options_of(command: str) -> set[str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([command, "--help-all"])
    return set(re.findall(r"^  (--[\w.-]+)", shown.getvalue(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_shown_is_accepted_by_its_command(page):
    for command, rest in re.findall(r"maskimg ([a-z-]+)([^`\n]*)", PAGES[page]):
        for option in re.findall(r"--[\w.-]*\w", rest) if command in COMMANDS else ():
            assert option in options_of(command), f"`maskimg {command}` has no `{option}`"


def test_the_table_of_commands_names_options_that_exist():
    rows = re.findall(r"^\| `maskimg ([a-z-]+).*$", PAGES["commands.md"], re.MULTILINE)
    for command, line in zip(rows, re.findall(r"^\| `maskimg .*$", PAGES["commands.md"], re.MULTILINE), strict=True):
        known = options_of(command) | (options_of("encode") if command == "train-tokenizer" else set())
        for option in re.findall(r"--[\w.-]*\w", line):
            assert option in known, f"`maskimg {command}` has no `{option}`"
    assert len(rows) >= len(COMMANDS) - 2  # of the stages one by one in a row


def test_its_python_runs_with_the_bundled_model(tmp_path, monkeypatch):
    assert "emoji-64" in bundled_models()
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 70), (240, 200, 40)).save("photo.png")
    mask = Image.new("L", (90, 70))
    mask.paste(255, (20, 20, 40, 40))
    mask.save("mask.png")
    (code,) = (block for block in blocks("python") if block.startswith("from maskimg import"))
    exec(compile(code, "README.md", "exec"), {})
    assert sorted(path.name for path in Path("birds").iterdir()) == [f"{seed:06d}.png" for seed in range(7, 11)]


def test_its_prompts_are_drawn_by_the_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shell = "\n".join(blocks("sh"))
    drawn = re.findall(r"^maskimg (sample --model emoji-64[^#\n]*)", shell, re.MULTILINE)
    assert len(drawn) == 2 and any("--prompt" in command for command in drawn)
    for command in drawn:
        assert main([*shlex.split(command), "--steps", "2"]) == 0
    assert len(list(Path("apples").glob("*.png"))) == 4


def test_its_sampling_loop_is_the_code():
    assert sampling_loop() in blocks("python")


def test_its_way_over_from_x_transformers_runs():
    (code,) = (block for block in blocks("python") if block.startswith("import torch\nfrom x_transformers"))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["codes"].shape == (4, 64)
    assert 0 <= names["codes"].min() <= names["codes"].max() < 256


def test_its_tree_names_every_room_and_no_other():
    (tree,) = (block for block in blocks("") if block.startswith("vqgan/"))
    above: list[str] = []
    named = set()
    for line in tree.splitlines():
        name = line.split()[0].rstrip("/")
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        assert ROOT.joinpath(*above).is_dir(), f"there is no folder {'/'.join(above)}"
        named.add("/".join(above))
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for package in ("vqgan", "maskimg", "apps")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert rooms <= named, f"the tree leaves out {rooms - named}"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_its_links_and_pictures_exist(link):
    path, _, heading = link.partition("#")
    assert (ROOT / path).exists()
    titles = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE) if heading else [""]
    assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
