"""The pictures that a model translates from: made from the targets themselves, or found in a second folder.

Shapes: b images of H x W pixels.
"""

import dataclasses
import hashlib
import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from maskimg.data.pictures import Pictures, list_pictures, read_pictures
from maskimg.data.sources import DataError
from maskimg.data.trees import composed
from vqgan import writing
from vqgan.images import MAX_PIXELS, normalize, to_uint8

TRANSFORMS = ("grey", "edges", "lowres")


def transform(name: str, images: torch.Tensor) -> torch.Tensor:
    """Pictures (b, 3, H, W) in [-1, 1] -> their sources, of the same shape and range; `folder` are as they are.

    `grey` is their luma (BT.601); `edges` the length of its Sobel gradient, black on white; `lowres` half the
    resolution, as large as before.
    """
    if name == "grey":
        return _luma(images).expand_as(images).contiguous()
    if name == "edges":
        return _edges(_luma(images)).expand_as(images).contiguous()
    if name == "lowres":
        small = F.avg_pool2d(images, 2)
        return F.interpolate(small, size=images.shape[-2:], mode="bilinear").clamp(-1, 1)
    if name == "folder":
        return images
    raise ValueError(f"there is no source `{name}`: choose {', '.join(TRANSFORMS)}, or a folder")


def kind_of(source: str) -> str:
    """One of TRANSFORMS, or `folder`: what `transform` is to do to a new picture."""
    return source if source in TRANSFORMS else "folder"


def read_sources(
    source: str,
    pictures: Pictures,
    work: Path,
    *,
    max_bad: float = 0.01,
    max_pixels: int = MAX_PIXELS,
    progress: Any = None,
) -> tuple[Pictures, Pictures]:
    """The pictures that have a source, and their sources, in the same order.

    Args:
        source: one of TRANSFORMS, or where pictures of the same names are.

    Raises:
        DataError: there is nothing there, or pictures have no source; the message names one.
    """
    if source in TRANSFORMS:
        return pictures, _transformed(source, pictures, work / "sources.u8")
    listing = list_pictures(source, leave_out=(work, work.with_name(work.name.removesuffix(".training"))))
    limits: dict[str, Any] = {"max_bad": max_bad, "max_pixels": max_pixels}
    found = read_pictures(listing, pictures.size, work / "sources", progress=progress, **limits)
    return paired(pictures, found, source)


def paired(pictures: Pictures, sources: Pictures, where: str) -> tuple[Pictures, Pictures]:
    """Those of two sets that have the same name, whatever its suffix; labels and what is held out are the first's.

    Raises:
        DataError: a picture has no source, or several that differ in their suffix only.
    """
    places = {composed(name): i for i, name in enumerate(sources.names)}
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(sources.names):
        alike.setdefault(_stem(name), []).append(i)
    found = [[places[composed(name)]] if composed(name) in places else alike.get(_stem(name), [])
             for name in pictures.names]  # fmt: skip
    alone = [name for name, each in zip(pictures.names, found, strict=True) if not each]
    if alone:
        raise DataError(
            f"{len(alone)} of {len(pictures.names)} pictures have no source in `{where}`, such as `{alone[0]}`: both "
            "folders need pictures of the same names"
        )
    several = next(((name, each) for name, each in zip(pictures.names, found, strict=True) if len(each) > 1), None)
    if several:
        names = " and ".join(f"`{sources.names[i]}`" for i in several[1])
        raise DataError(f"`{several[0]}` has {len(several[1])} sources in `{where}`, {names}: keep one of them")
    order = torch.tensor([each[0] for each in found])
    return pictures, dataclasses.replace(pictures, pixels=sources.pixels[order], fingerprint=_both(pictures, sources))


def both(pictures: Pictures, sources: Pictures) -> Pictures:
    """All of them, for a tokenizer that is to know both kinds."""
    return dataclasses.replace(
        pictures,
        pixels=torch.cat((pictures.pixels, sources.pixels)),
        labels=pictures.labels.repeat(2, 1),
        held_out=pictures.held_out.repeat(2),
        names=pictures.names + [f"source of {name}" for name in sources.names],
        fingerprint=_both(pictures, sources),
        captions=pictures.captions * 2,
    )


def _transformed(name: str, pictures: Pictures, path: Path) -> Pictures:
    """Every picture's source, in a memory-mapped file, written by the first process that needs it."""
    fingerprint = _digest(f"{name} of {pictures.fingerprint} at {pictures.size}")
    shape, path = tuple(pictures.pixels.shape), path.with_name(f"{fingerprint[:16]}-{path.name}")
    if not path.is_file() or path.stat().st_size != math.prod(shape):
        with writing.atomic_file(path) as unfinished:
            writing.take_room(unfinished, math.prod(shape))
            pixels = np.memmap(unfinished, np.uint8, "r+", shape=shape)
            for places in torch.arange(len(pixels)).split(256):
                pixels[places.numpy()] = to_uint8(transform(name, normalize(pictures.pixels[places]))).numpy()
            pixels.flush()
    pixels = torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))
    return dataclasses.replace(pictures, pixels=pixels, fingerprint=fingerprint)


def _stem(name: str) -> str:
    return composed(str(PurePosixPath(name).with_suffix("")))


def _both(pictures: Pictures, sources: Pictures) -> str:
    return _digest(f"{pictures.fingerprint} from {sources.fingerprint}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _luma(images: torch.Tensor) -> torch.Tensor:
    """(b, 3, H, W) -> (b, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _edges(luma: torch.Tensor) -> torch.Tensor:
    """(b, 1, H, W) in [-1, 1] -> dark lines on white, (b, 1, H, W) in [-1, 1]."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=luma.device, dtype=luma.dtype) / 8
    kernels = torch.stack((sobel, sobel.T))[:, None]
    gradient = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return (1 - 4 * gradient).clamp(-1, 1)
