"""What becomes of a folder of finished pictures: one array for other people's metrics, or a contact sheet."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from maskimg.outputs import require_ours
from maskimg.recipe import marked, to_json
from vqgan import load_image
from vqgan.images import sheet
from vqgan.writing import atomic_file

MOST_SHOWN = 100  # pictures on a contact sheet


def write_npz(
    paths: Sequence[Path], labels: Sequence[int] | None, target: Path, *, force: bool = False, progress=None
) -> None:
    """Pictures as `arr_0` (n, H, W, 3) uint8 and, if given, labels as `arr_1` (n,): the layout of ADM's evaluator.

    Streamed, so that never more than one picture is in memory, and written whole or not at all; with our mark.
    """
    require_ours(target, force=force)
    width, height = load_image(paths[0]).size
    with atomic_file(target) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        archive.comment = to_json(marked({}, "sample")).encode()
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            _write_header(file, "|u1", (len(paths), height, width, 3))
            each: Iterable[Path] = progress(paths, desc="npz", unit="picture") if progress else paths
            for path in each:
                file.write(np.asarray(load_image(path)).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                _write_header(file, "<i8", (len(labels),))
                file.write(np.asarray(labels, "<i8").tobytes())


def contact_sheet(paths: Sequence[Path], columns: int | None = None) -> Image.Image:
    """The first hundred pictures, row by row; about as wide as high, if the columns are not given."""
    shown = [load_image(path) for path in paths[:MOST_SHOWN]]
    return sheet(shown, columns or round(len(shown) ** 0.5 + 0.49))


def _write_header(file: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
