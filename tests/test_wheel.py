"""The wheel holds every package and the bundled models. In a flat layout no other test notices one that is missing."""

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"vqgan": "vqgan", "maskimg": "maskimg", "apps": "maskimg_apps"}  # here -> in the wheel
MAX_MEGABYTES = 40


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, so that neither a stale build/ here nor a second test run at the same time can meddle."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in (*FOLDERS, "configs", "tests", "benchmarks"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)

    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.parametrize("folder, package", FOLDERS.items())
def test_every_module_is_in_the_wheel_under_the_name_it_is_imported_by(wheel, folder, package):
    modules = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}
    assert "__init__.py" in modules
    assert {f"{package}/{module}" for module in modules} <= set(wheel.namelist())


def test_the_training_package_is_in_the_wheel(wheel):
    assert "maskimg/training/__init__.py" in wheel.namelist()


def test_every_file_of_the_bundled_models_is_in_the_wheel_unchanged(wheel):
    files = [path for path in (ROOT / "maskimg" / "bundled").rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert any(path.suffix == ".safetensors" for path in files), "there is no bundled model to look for"
    for path in files:
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_the_wheel_holds_nothing_else(wheel):
    top_level = {name.partition("/")[0] for name in wheel.namelist()}
    (metadata,) = {name for name in top_level if re.fullmatch(r"maskimg-.*\.dist-info", name)}
    assert top_level == {"vqgan", "maskimg", "maskimg_apps", metadata}
    assert [name for name in wheel.namelist() if "__pycache__" in name or name.endswith(".pyc")] == []


def test_the_wheel_brings_the_maskimg_command(wheel):
    points = configparser.ConfigParser()
    points.read_string(wheel.read(metadata_name(wheel, "entry_points.txt")).decode())
    assert dict(points["console_scripts"]) == {"maskimg": "maskimg.cli.main:main"}


def test_the_wheel_brings_its_licence(wheel):
    assert wheel.read(metadata_name(wheel, "licenses/LICENSE")) == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_is_small_enough_to_download_without_a_thought(wheel):
    assert sum(entry.compress_size for entry in wheel.infolist()) < MAX_MEGABYTES * 1_000_000


def metadata_name(wheel: zipfile.ZipFile, file: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(f".dist-info/{file}"))
    return name
