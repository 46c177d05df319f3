"""A folder of pictures, decoded once into one memory-mapped array of equal squares.

Labels come from `labels.csv` where the folder holds one (a column `file`, optionally `split` with `train` and
`val`, and one column per label field), else from subfolders (one field, `class`), else there are none.
Without a `split` column one picture in twenty is held out, chosen by its name, so that figures on unseen pictures
can be reported.
"""

import concurrent.futures
import csv
import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from maskimg.noise import Source, randint
from vqgan import files
from vqgan.images import ImageError, fit_square, list_images, load_image


class DataError(ValueError):
    """A folder that cannot be trained on; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds, before anything is decoded.

    Attributes:
        paths: the pictures, in a fixed order.
        fields: the label names of each field, by field; empty without labels.
        labels: (n, f) int64, an index into each field's names, or their number where a picture has none.
        held_out: (n,) bool, True where a picture is kept out of training.
    """

    folder: Path
    paths: list[Path]
    fields: dict[str, list[str]]
    labels: np.ndarray
    held_out: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or relabelled."""
        digest = hashlib.sha256(repr(self.fields).encode())
        for path, labels, held_out in zip(self.paths, self.labels, self.held_out, strict=True):
            size = path.stat().st_size if path.exists() else -1
            digest.update(
                f"{path.relative_to(self.folder)}|{size}|{list(labels)}|{held_out}\n".encode(errors="replace")
            )
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Decoded pictures.

    Attributes:
        pixels: (n, 3, size, size) uint8, memory-mapped.
        labels: (n, f) int64; fields as in `Listing`.
        held_out: (n,) bool.
        names: file names relative to the folder.
        fingerprint: of the folder they came from.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    fields: dict[str, list[str]]
    held_out: torch.Tensor
    names: list[str]
    fingerprint: str

    @property
    def size(self) -> int:
        return self.pixels.shape[-1]

    def part(self, held_out: bool) -> "Pictures":
        """Only the training pictures, or only the held-out ones (copied out of the map)."""
        chosen = (self.held_out == held_out).nonzero()[:, 0]
        names = [self.names[i] for i in chosen.tolist()]
        return dataclasses.replace(
            self,
            pixels=self.pixels[chosen],
            labels=self.labels[chosen],
            held_out=self.held_out[chosen],
            names=names,
        )


def list_folder(folder: str | Path) -> Listing:
    """What `folder` holds.

    Raises:
        DataError: there is no such folder, it holds no pictures, or its labels.csv cannot be used.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DataError(f"there is no folder `{folder}`")
    if not folder.is_dir():
        raise DataError(f"`{folder}` is a file: give the folder that holds the pictures")
    if (folder / "labels.csv").is_file():
        return _list_csv(folder)
    paths = list_images(folder)
    if not paths:
        raise DataError(f"`{folder}` holds no PNG, JPEG or WebP pictures")
    classes = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    names = sorted(set(classes) - {""})
    if not names or "" in classes or len(names) == 1:  # a flat or mixed folder has no labels
        return Listing(folder, paths, {}, np.zeros((len(paths), 0), np.int64), _held_out(folder, paths))
    labels = np.array([[names.index(name)] for name in classes], np.int64)
    return Listing(folder, paths, {"class": names}, labels, _held_out(folder, paths))


def subset(listing: Listing, *, held_out: int, training: int, share: float | None = None, seed: int = 0) -> Listing:
    """At most `held_out` held-out pictures and `training` others, drawn at random, in their old order.

    Args:
        share: first hold out this share of all pictures instead, drawn at random.

    Raises:
        DataError: the share leaves no picture to hold out.
    """
    chance = np.random.default_rng(seed)
    if share is not None:
        count = round(share * len(listing.paths))
        if not count:
            raise DataError(f"a share of {share} of {len(listing.paths)} pictures is none: hold out more")
        unseen = np.zeros(len(listing.paths), bool)
        unseen[chance.permutation(len(listing.paths))[:count]] = True
        listing = dataclasses.replace(listing, held_out=unseen)
    parts = [
        chance.permutation(np.flatnonzero(listing.held_out == kept_out))[:most]
        for kept_out, most in ((True, held_out), (False, training))
    ]
    chosen = np.sort(np.concatenate(parts))
    return dataclasses.replace(
        listing,
        paths=[listing.paths[i] for i in chosen],
        labels=listing.labels[chosen],
        held_out=listing.held_out[chosen],
    )


def read_pictures(listing: Listing, size: int, cache: str | Path, *, max_bad: float = 0.01, progress=None) -> Pictures:
    """Every picture of `listing` as a centred `size` x `size` square, decoded once and kept in `cache`.

    Args:
        cache: a directory to keep the array in; reused while the folder's fingerprint stays the same.
        max_bad: the share of unreadable files that is tolerated (three always are). They are left out and listed
            in `bad.txt` beside the array.
        progress: wraps the iteration, such as `tqdm`.

    Raises:
        DataError: too many files are unreadable.
    """
    cache = Path(cache)
    fingerprint = listing.fingerprint
    try:
        cached = _open_cache(cache)
        if cached.fingerprint == fingerprint and cached.size == size:
            return cached
    except files.ModelError:
        pass  # nothing there yet, or a half-finished or damaged cache: decode again

    with files.atomic_directory(cache) as temporary:
        bad = _decode(listing, size, temporary / "pixels.u8", progress)
        _require_few_bad(listing, bad, max_bad)
        good = np.array([i for i in range(len(listing.paths)) if i not in bad], np.int64)
        (temporary / "bad.txt").write_text("".join(f"{bad[i]}\n" for i in sorted(bad)), encoding="utf-8")
        files.write_json(
            temporary / "pictures.json",
            {
                "count": len(good),
                "size": size,
                "fingerprint": fingerprint,
                "fields": listing.fields,
                "labels": listing.labels[good].tolist(),
                "held_out": listing.held_out[good].tolist(),
                "names": [_name(listing.paths[i].relative_to(listing.folder)) for i in good],
            },
        )
    return _open_cache(cache)


def _decode(listing: Listing, size: int, path: Path, progress) -> dict[int, str]:
    """Write every readable picture to `path`, without gaps; returns why the others are not, by position."""
    count = len(listing.paths)
    pixels = np.memmap(path, np.uint8, "w+", shape=(count, 3, size, size))
    bad: dict[int, str] = {}

    def decode(i: int) -> None:
        try:
            pixels[i] = np.moveaxis(np.asarray(fit_square(load_image(listing.paths[i]), size)), -1, 0)
        except ImageError as error:
            bad[i] = str(error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(decode, range(count))
        for _ in progress(done, total=count, desc="reading pictures") if progress else done:
            pass
    if bad:  # close the gaps; the good positions rise, so no row is overwritten before it has moved
        for new, old in enumerate(i for i in range(count) if i not in bad):
            pixels[new] = pixels[old]
    pixels.flush()
    return bad


def move(pixels: torch.Tensor, reach: int, generator: Source) -> torch.Tensor:
    """uint8 (b, 3, H, W), each moved by up to `reach` pixels at random; edges are repeated where they move in."""
    b, size = len(pixels), pixels.shape[-1]
    offsets = randint(generator, "move", -reach, reach + 1, (b, 2))
    rows = (torch.arange(size) + offsets[:, :1]).clamp(0, size - 1)[:, None, :, None]
    columns = (torch.arange(size) + offsets[:, 1:]).clamp(0, size - 1)[:, None, None, :]
    return pixels[torch.arange(b)[:, None, None, None], torch.arange(3)[:, None, None], rows, columns]


def _open_cache(cache: Path) -> Pictures:
    files.verify(cache)
    about = files.read_json(cache / "pictures.json")
    count, size = about["count"], about["size"]
    pixels = np.memmap(cache / "pixels.u8", np.uint8, "c", shape=(count, 3, size, size))
    return Pictures(
        torch.from_numpy(pixels),
        torch.tensor(about["labels"], dtype=torch.int64).reshape(count, len(about["fields"])),
        about["fields"],
        torch.tensor(about["held_out"], dtype=torch.bool),
        about["names"],
        about["fingerprint"],
    )


def _list_csv(folder: Path) -> Listing:
    path = folder / "labels.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"`{path}` cannot be read as a CSV file ({error})") from error
    if not rows or "file" not in rows[0]:
        raise DataError(f"`{path}` needs a header with a column `file`, and a row per picture")
    columns = [name for name in rows[0] if name not in ("file", "split") and name]
    short = next((number for number, row in enumerate(rows, 2) if not row["file"]), None)
    if short is not None:
        raise DataError(f"`{path}` names no file in row {short}")
    fields = {name: sorted({row[name] for row in rows if row[name]}) for name in columns}
    # An empty cell is the null label, one past the last name.
    places = {name: {label: i for i, label in enumerate(names)} for name, names in fields.items()}
    labels = np.array(
        [[places[name].get(row[name] or "", len(fields[name])) for name in columns] for row in rows], np.int64
    )
    paths = [folder / row["file"] for row in rows]
    outside = next((p for p in paths if not p.resolve().is_relative_to(folder.resolve())), None)
    if outside is not None:
        raise DataError(f"`{path}` names `{outside}`, which lies outside the folder")
    if "split" in rows[0]:
        held_out = np.array([row["split"] not in ("train", "", None) for row in rows])
    else:
        held_out = _held_out(folder, paths)
    return Listing(folder, paths, fields, labels.reshape(len(rows), len(columns)), held_out)


def _held_out(folder: Path, paths: list[Path]) -> np.ndarray:
    """One in twenty, by a hash of the name, so that adding pictures moves none from one part to the other.

    Of a folder so small that none or all are chosen, the last picture.
    """
    digests = [hashlib.sha256(_name(path.relative_to(folder)).encode()).digest() for path in paths]
    held_out = np.array([digest[0] * 20 < 256 for digest in digests])
    if not held_out.any() or held_out.all():
        held_out = np.arange(len(paths)) == len(paths) - 1 if len(paths) > 1 else np.zeros(len(paths), bool)
    return held_out


def _require_few_bad(listing: Listing, bad: dict[int, str], max_bad: float) -> None:
    total = len(listing.paths)
    if len(bad) == total:
        raise DataError(f"none of the {total} pictures in `{listing.folder}` can be read; the first: {bad[min(bad)]}")
    if len(bad) > max(3, max_bad * total):
        raise DataError(
            f"{len(bad)} of {total} pictures in `{listing.folder}` cannot be read (the first: {bad[min(bad)]}); "
            f"remove them, or raise the limit of {max_bad:.0%} with `--max-bad`"
        )


def _name(path: Path) -> str:
    """A path as text that JSON can hold, whatever bytes its name has."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
