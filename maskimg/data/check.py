"""What `maskimg check-data` says about a source of pictures: every file is decoded, nothing is written."""

import collections
import dataclasses
import hashlib
import re
import statistics
from io import BytesIO
from pathlib import Path

import numpy as np

from maskimg.data.listing import Listing
from maskimg.data.pictures import for_each_picture
from maskimg.data.sources import Content, Entry, open_content
from vqgan.images import MAX_PIXELS, ImageError

FEW = 10  # pictures; a class with fewer is hard to learn
SIGNATURES = (
    (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"RIFF", "WEBP"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II", "TIFF"), (b"MM", "TIFF"), *((b"P%d" % i, "PPM") for i in range(1, 7)), (b"(\0\0\0", "DIB"),
)  # fmt: skip
SHOWN = 12  # of many classes, sizes and reasons


@dataclasses.dataclass(frozen=True)
class Checked:
    """One picture: its size as it is seen, or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    format: str = ""
    digest: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a source holds; `checked` in the order of the listing."""

    listing: Listing
    checked: list[Checked]

    @property
    def bad(self) -> dict[int, str]:
        """Why pictures cannot be read, by position."""
        return {i: each.fault for i, each in enumerate(self.checked) if each.fault}

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of files with the same bytes, together."""
        groups = collections.defaultdict(list)
        for name, each in zip(self.listing.names, self.checked, strict=True):
            if each.digest:
                groups[each.digest].append(name)
        return [names for names in groups.values() if len(names) > 1]

    def label_counts(self, field: int) -> dict[str, int]:
        """How many readable pictures each label of a field has."""
        good = [i for i, each in enumerate(self.checked) if not each.fault]
        names = list(self.listing.fields.values())[field]
        counts = np.bincount(self.listing.labels[good, field], minlength=len(names) + 1)
        return dict(zip(names, counts.tolist(), strict=False))


def check_pictures(listing: Listing, *, jobs: int | None = None, max_pixels: int = MAX_PIXELS, progress=None) -> Report:
    """Decode every picture, `jobs` at a time (one for each core, if None).

    Args:
        max_pixels: larger pictures cannot be read.
        progress: wraps the iteration, such as `tqdm`.
    """

    def check(i: int, entry: Entry, content: Content) -> Checked:
        try:
            size = open_content(content, f"{listing.source.where}/{entry.name}", max_pixels=max_pixels).size
            return Checked(size, *_identity(content))
        except (ImageError, OSError) as error:  # it may also go away in between
            return Checked(fault=str(error))

    results = for_each_picture(listing, check, jobs=jobs)
    if progress:
        results = progress(results, total=len(listing), desc="checking", unit="pictures")
    found = dict(results)
    return Report(listing, [found[i] for i in range(len(listing))])


def summary(report: Report) -> str:
    """The report in lines for people."""
    listing, good = report.listing, [each for each in report.checked if not each.fault]
    lines = [f"{len(listing):,} pictures, {len(good):,} of them readable"]
    if good:
        lines += _sizes(good)
        formats = collections.Counter(each.format for each in good)
        lines.append("formats: " + _counts(formats))
    lines += [line for field, name in enumerate(listing.fields) for line in _labels(report, field, name)]
    if not listing.fields:
        lines.append("labels: none")
    lines += listing.remarks
    captioned = sum(map(bool, listing.captions))
    lines.append(f"captions: {captioned:,} pictures" if captioned else "captions: none")
    held_out = int(listing.held_out.sum())
    lines.append(f"held out: {held_out:,} ({held_out / len(listing):.1%})")
    lines += _duplicates(report)
    if report.bad:
        names = [listing.entries[i].name for i in list(report.bad)[:SHOWN]]
        more = ", ..." if len(report.bad) > SHOWN else ""
        lines.append(f"cannot be read: {len(report.bad):,} ({', '.join(names)}{more})")
        where = f"`{listing.source.where}/"
        reasons = collections.Counter(_reason(fault, where) for fault in report.bad.values())
        lines += [f"  {count:,} x: {reason}" for reason, count in reasons.most_common(SHOWN)]
    return "\n".join(lines)


def _sizes(good: list[Checked]) -> list[str]:
    sizes = collections.Counter(each.size for each in good)
    if len(sizes) == 1:
        ((width, height),) = sizes
        return [f"size: {width}x{height} pixels, all of them"]
    sides = [min(each.size) for each in good]
    widest = max(max(each.size) / min(each.size) for each in good)
    return [
        f"sizes: {len(sizes):,} different; shorter side {min(sides)} to {max(sides)} pixels, half of them up to "
        f"{statistics.median_low(sides)}; the longest side is {widest:.1f} times the shorter"
    ]


def _labels(report: Report, field: int, name: str) -> list[str]:
    counts = collections.Counter(report.label_counts(field))
    unlabelled = int((report.listing.labels[:, field] == len(counts)).sum())
    lines = [f"{name}: {len(counts):,} labels: {_counts(counts)}"]
    few = sorted((label for label, count in counts.items() if count < FEW), key=lambda label: counts[label])
    if few:
        rest = f" and {len(few) - SHOWN:,} more" if len(few) > SHOWN else ""
        lines.append(f"  fewer than {FEW} pictures: {', '.join(few[:SHOWN])}{rest}")
    if unlabelled:
        lines.append(f"  without: {unlabelled:,} pictures")
    return lines


def _duplicates(report: Report) -> list[str]:
    groups = report.duplicates
    if not groups:
        return ["duplicates: none"]
    spare = sum(len(names) - 1 for names in groups)
    lines = [f"duplicates: {spare:,} files repeat another, such as {' = '.join(groups[0][:3])}"]
    unseen = {name for name, out in zip(report.listing.names, report.listing.held_out, strict=True) if out}
    leaks = sum(0 < len(unseen.intersection(names)) < len(names) for names in groups)
    if leaks:
        lines.append(f"  {leaks:,} of them stand both in training and among the held-out pictures")
    return lines


def _counts(counts: collections.Counter) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN))
    return shown + (f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else "")


def _reason(fault: str, where: str) -> str:
    """A fault without the name of its file, and without what differs from file to file."""
    rest = "the file " + fault[fault.find("` ", len(where)) + 2 :] if fault.startswith(where) else fault
    return re.split(r": (?!there|permission|is)|; | \(", rest)[0]


def _identity(content: Content) -> tuple[str, str]:
    """The format, and a hash of the content."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            start = file.read(12)
            file.seek(0)
            return _format(start), hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(content, bytes):
        return _format(content), hashlib.file_digest(BytesIO(content), "sha256").hexdigest()
    return "decoded by its library", hashlib.sha256(getattr(content, "tobytes", bytes)()).hexdigest()


def _format(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        return "AVIF" if start[8:11] == b"avi" else "HEIF"
    return next((name for signature, name in SIGNATURES if start.startswith(signature)), "unknown")
