"""Files by their names, put into folders and archives."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Contents = dict[str, bytes]


def png(red: int, size: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (red, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def as_folder(path: Path, contents: Contents) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, contents: Contents) -> Path:
    path = path.with_suffix(".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def as_tar(path: Path, contents: Contents, suffix: str = ".tar") -> Path:
    path = path.with_name(path.name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode: Any = "w:" + {".tar": "", ".tar.gz": "gz"}[suffix]
    with tarfile.open(path, mode) as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def as_tar_gz(path: Path, contents: Contents) -> Path:
    return as_tar(path, contents, ".tar.gz")


Pack = Callable[[Path, Contents], Path]
