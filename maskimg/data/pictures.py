"""Pictures from any source, decoded once into one memory-mapped array of equal squares."""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskimg.data import libraries
from maskimg.data.listing import Listing, list_picture_files
from maskimg.data.sources import Content, DataError, Entry, open_content, text
from maskimg.noise import Rng, randint
from vqgan import files, writing
from vqgan.images import MAX_PIXELS, ImageError, fit_square


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Decoded pictures.

    Attributes:
        pixels: (n, 3, size, size) uint8, memory-mapped.
        labels: (n, f) int64; fields as in `Listing`.
        held_out: (n,) bool.
        names: of the files in their source.
        fingerprint: of the source.
        captions: a list for each picture; empty where no picture has any.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    fields: dict[str, list[str]]
    held_out: torch.Tensor
    names: list[str]
    fingerprint: str
    captions: list[list[str]] = dataclasses.field(default_factory=list)

    @property
    def size(self) -> int:
        return self.pixels.shape[-1]

    def part(self, held_out: bool) -> "Pictures":
        """Only the training pictures, or only the held-out ones (copied out of the map)."""
        chosen = (self.held_out == held_out).nonzero()[:, 0]
        rows = chosen.tolist()
        return dataclasses.replace(
            self,
            pixels=self.pixels[chosen],
            labels=self.labels[chosen],
            held_out=self.held_out[chosen],
            names=[self.names[i] for i in rows],
            captions=[self.captions[i] for i in rows] if self.captions else [],
        )


def list_pictures(where: str | Path, *, leave_out: Sequence[Path] = ()) -> Listing:
    """What `where` holds: a folder, a .zip or .tar archive, webdataset's shards, or another library's dataset.

    Args:
        where: a path; a pattern such as `s-{000..127}.tar`; `hf://owner/name`; `torchvision://FashionMNIST?root=DIR`.
        leave_out: folders whose files are not read, where they lie in the folder `where`: what is about to be written.
            Models, trainings and drawings of maskimg's among the pictures are never read.

    Raises:
        DataError: there is nothing of the kind, it holds no pictures, or its labels cannot be used.
    """
    text = str(where)
    if text.startswith("hf://") or libraries.is_saved_dataset(Path(where)):
        return libraries.list_huggingface(text)
    if text.startswith("torchvision://"):
        return libraries.list_torchvision(text)
    return list_picture_files(where, leave_out)


def read_pictures(
    listing: Listing,
    size: int,
    cache: str | Path,
    *,
    max_bad: float = 0.01,
    max_pixels: int = MAX_PIXELS,
    progress=None,
) -> Pictures:
    """Every picture of `listing` as a centred `size` x `size` square, decoded once and kept in `cache`.

    Args:
        cache: a directory to keep the array in; reused while the source's fingerprint stays the same.
        max_bad: the share of unreadable files that is tolerated (three always are). They are left out and listed
            in `bad.txt` beside the array, a line each.
        max_pixels: larger pictures count as unreadable.
        progress: wraps the iteration, such as `tqdm`.

    Raises:
        DataError: too many files are unreadable.
    """
    cache = Path(cache)
    fingerprint = listing.fingerprint
    try:
        cached = _open_cache(cache)
        same_limit = files.read_json(cache / "pictures.json").get("max_pixels") == max_pixels
        complete = not (cache / "bad.txt").read_bytes()
        if cached.fingerprint == fingerprint and cached.size == size and (same_limit or complete):
            return cached
    except files.ModelError:
        pass  # nothing there yet, or a half-finished or damaged cache: decode again

    writing.make_way(cache)
    with writing.atomic_directory(cache) as temporary:
        bad = _decode(listing, size, temporary / "pixels.u8", max_pixels, progress)
        _require_few_bad(listing, bad, max_bad)
        rows = [i for i in range(len(listing)) if i not in bad]
        good = listing.chosen(np.array(rows, np.int64))
        (temporary / "bad.txt").write_text("".join(f"{line}\n" for line in bad_lines(bad)), encoding="utf-8")
        files.write_json(
            temporary / "pictures.json",
            {
                "count": len(good),
                "size": size,
                "max_pixels": max_pixels,
                "fingerprint": fingerprint,
                "fields": good.fields,
                "labels": good.labels.tolist(),
                "held_out": good.held_out.tolist(),
                "names": good.names,
                "captions": good.captions,
            },
        )
    return _open_cache(cache)


def for_each_picture(
    listing: Listing, work: Callable[[int, Entry, Content], Any], *, jobs: int | None = None
) -> Iterator[tuple[int, Any]]:
    """(position, result) of `work(position, entry, content)` for each picture, several at a time, as they are done.

    The source is read by one thread alone, in the order that suits it; decoding is what runs side by side.
    """
    jobs = jobs or os.cpu_count() or 1
    contents = listing.source.read(listing.entries)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        # Not all at once: what is read and waits to be decoded lies in memory.
        running, room = {}, 4 * jobs
        while True:
            for i, content in itertools.islice(contents, room):
                running[pool.submit(work, i, listing.entries[i], content)] = i
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            room = len(done)
            for future in done:
                yield running.pop(future), future.result()


def bad_lines(bad: dict[int, str]) -> list[str]:
    """Why files cannot be read, by position: a line for each file, whatever its name."""
    return [text(bad[i]).replace("\n", "\\n").replace("\r", "\\r") for i in sorted(bad)]


def _decode(listing: Listing, size: int, path: Path, max_pixels: int, progress) -> dict[int, str]:
    """Write every readable picture to `path`, without gaps; returns why the others are not, by position."""
    count = len(listing)
    writing.take_room(path, count * 3 * size * size)
    pixels = np.memmap(path, np.uint8, "r+", shape=(count, 3, size, size))

    def decode(i: int, entry: Entry, content: Content) -> str | None:
        try:
            name = f"{listing.source.where}/{entry.name}"
            square = fit_square(open_content(content, name, max_pixels=max_pixels, side=size), size)
        except ImageError as error:
            return str(error)
        pixels[i] = np.moveaxis(np.asarray(square), -1, 0)

    results = for_each_picture(listing, decode)
    if progress:
        results = progress(results, total=count, desc="reading pictures")
    bad = {i: reason for i, reason in results if reason is not None}
    if bad:  # close the gaps; the good positions rise, so no row is overwritten before it has moved
        for new, old in enumerate(i for i in range(count) if i not in bad):
            pixels[new] = pixels[old]
    pixels.flush()
    return bad


def move(pixels: torch.Tensor, reach: int, generator: Rng) -> torch.Tensor:
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
        about.get("captions", []),
    )


def _require_few_bad(listing: Listing, bad: dict[int, str], max_bad: float) -> None:
    total = len(listing)
    if len(bad) == total:
        raise DataError(
            f"none of the {total} pictures in `{listing.source.where}` can be read; the first: {bad[min(bad)]}"
        )
    if len(bad) > max(3, max_bad * total):
        raise DataError(
            f"{len(bad)} of {total} pictures in `{listing.source.where}` cannot be read (the first: {bad[min(bad)]}); "
            f"remove them, or raise the limit of {max_bad:.0%} with `--max-bad`"
        )
