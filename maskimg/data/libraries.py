"""Pictures from other libraries' datasets: Hugging Face's, from the hub or a saved directory, and torchvision's.

Both libraries are imported when they are asked for. Hugging Face's pictures come as the bytes of their files, so that
they pass the same guarded door as any other; torchvision decodes those of its datasets itself.
"""

import dataclasses
import importlib
import inspect
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from PIL import Image

from maskimg.data.listing import CAPTION_KEYS, Listing, hold_out, some, strings, to_labels
from maskimg.data.sources import Content, DataError, Entry
from maskimg.data.trees import is_held_out
from vqgan.images import ImageError

# The first of these splits that there is, is held out.
UNSEEN = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
BROKEN = (
    OSError,
    ValueError,
    RuntimeError,
    SyntaxError,
    KeyError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Splits of a dataset; `place` of an entry is the split and the row.

    Attributes:
        stamp: changes with the data, as far as the library tells.
        open_row: a row of a split -> its picture.
    """

    where: str
    splits: dict[str, Any]
    open_row: Any
    stamp: str = ""

    @property
    def name(self) -> str:
        return urlsplit(self.where).path.rpartition("/")[2] or urlsplit(self.where).netloc

    def read(self, entries: list[Entry]) -> Iterator[tuple[int, Content]]:
        for i, entry in enumerate(entries):
            split, row = entry.place
            try:
                yield i, self.open_row(self.splits[split][row])
            except BROKEN as error:
                yield i, ImageError(f"`{self.where}/{entry.name}` cannot be read ({_line(error)})")


def is_saved_dataset(path: Path) -> bool:
    """Whether `path` is what `save_to_disk` of Hugging Face's library wrote."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def list_huggingface(where: str) -> Listing:
    """`hf://owner/name`, with `?config=...&split=...` where these are wanted, or a directory of `save_to_disk`.

    Class labels become label fields of the same names; `caption` or `text` become captions.

    Raises:
        DataError: the library is missing, the dataset cannot be had, or it holds no pictures.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"`{where}` is a Hugging Face dataset: that needs `pip install 'maskimg[data]'`") from error
    all_splits = _load_huggingface(datasets, where)
    splits = _chosen_splits(where, all_splits)
    features = next(iter(splits.values())).features
    image = next((name for name, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise DataError(f"`{where}` has no column of pictures: its columns are {', '.join(features)}")

    fields, columns = {}, []
    for name, kind in features.items():
        if isinstance(kind, datasets.ClassLabel):
            fields[name] = list(kind.names)
            numbers = np.array([-1 if i is None else i for split in splits.values() for i in split[name][:]], np.int64)
            columns.append(np.where(numbers < 0, len(kind.names), numbers))
    spoken = next((name for name in CAPTION_KEYS if name in features), None)
    captions = [strings(value) for split in splits.values() for value in split[spoken][:]] if spoken else []
    stamp = " ".join(str(getattr(split, "_fingerprint", "")) for split in splits.values())
    files = {name: split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
             for name, split in splits.items()}  # fmt: skip
    source = Rows(where, files, lambda row: _file_of(row[image]), stamp)
    listing = _listing(source, fields, np.stack(columns, axis=1) if columns else None, captions)
    unused = [name for name in all_splits if name not in splits]
    if unused and "split" not in dict(parse_qsl(urlsplit(where).query)):
        listing.remarks.append(f"left out: {len(unused)} splits ({', '.join(unused)}); `?split=NAME` reads one of them")
    return listing


def list_torchvision(where: str) -> Listing:
    """`torchvision://FashionMNIST?root=DIR`: a dataset that lies in DIR already; nothing is downloaded.

    What else stands in the query is given to the dataset, such as `split=train`. Without a `train` or `split` of one's
    own the test part is what is held out.

    Raises:
        DataError: there is no such dataset, or it is not in DIR.
    """
    address = urlsplit(where)
    options: dict[str, Any] = {key: _value(value) for key, value in parse_qsl(address.query)}
    module = importlib.import_module("torchvision.datasets")
    kind = getattr(module, address.netloc, None)
    if not (inspect.isclass(kind) and issubclass(kind, module.VisionDataset)):
        raise DataError(f"torchvision has no dataset `{address.netloc}`; known ones are MNIST, CIFAR10, Flowers102 ...")
    if "root" not in options:
        raise DataError(f"`{where}` does not say where it lies: add `?root=DIR`")
    known = inspect.signature(kind).parameters
    if "train" in known and "train" not in options:
        parts = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in known and "split" not in options:
        parts = {"train": {"split": "train"}, "test": {"split": "test"}}
    else:
        parts = {"all": {}}
    try:
        splits = {name: kind(**options, **more) for name, more in parts.items()}
        numbers = np.array([int(i) for split in splits.values() for i in _targets(split)], np.int64)
    except (*BROKEN, TypeError, ImportError) as error:
        raise DataError(f"`{where}` cannot be opened ({_line(error)})") from error
    classes = getattr(next(iter(splits.values())), "classes", None)
    names = [str(name) for name in classes] if classes else [str(i) for i in range(int(numbers.max(initial=-1)) + 1)]
    fields, labels = ({"class": names}, numbers[:, None]) if len(names) > 1 else ({}, None)
    return _listing(Rows(where, splits, lambda row: _as_picture(row[0])), fields, labels, [])


def _load_huggingface(datasets: Any, where: str) -> dict[str, Any]:
    address = urlsplit(where)
    options = dict(parse_qsl(address.query))
    try:
        if address.scheme != "hf":
            found = datasets.load_from_disk(where)
        else:
            found = datasets.load_dataset(address.netloc + address.path, options.get("config"))
    except BROKEN as error:
        raise DataError(
            f"`{where}` cannot be loaded ({_line(error)}): it needs an internet connection once, or a directory that "
            "`save_to_disk` wrote"
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _chosen_splits(where: str, splits: dict[str, Any]) -> dict[str, Any]:
    """The one that is asked for; or the one to train on, and the first of UNSEEN."""
    wanted = dict(parse_qsl(urlsplit(where).query)).get("split")
    if wanted is not None and wanted not in splits:
        raise DataError(f"`{where}` has no split `{wanted}`; it has {', '.join(splits)}")
    training = next((name for name in splits if is_held_out(name) is False), None)
    if wanted is not None or training is None:
        name = wanted or next(iter(splits))
        return {name: splits[name]}
    lower = {name.lower(): name for name in splits}
    unseen = next((lower[name] for name in UNSEEN if name in lower), None)
    return {name: splits[name] for name in (training, unseen) if name}


def _listing(source: Rows, fields: dict[str, list[str]], labels: np.ndarray | None, captions: list) -> Listing:
    sizes = {name: len(split) for name, split in source.splits.items()}
    entries = [Entry(f"{name}/{i:08d}", -1, (name, i)) for name, size in sizes.items() for i in range(size)]
    if not entries:
        raise DataError(f"`{source.where}` holds no pictures")
    if len(sizes) > 1:
        held_out = np.array([is_held_out(name) is not False for name, size in sizes.items() for _ in range(size)], bool)
    else:
        held_out = hold_out(entries)
    if labels is None:
        fields, labels = to_labels({}, len(entries))
    return Listing(source, entries, fields, labels, held_out, some(captions))


def _file_of(value: Any) -> Content:
    if not value or not (value.get("bytes") or value.get("path")):
        return ImageError("a row without a picture cannot be read")
    return value["bytes"] or Path(value["path"])


def _as_picture(value: Any) -> Content:
    return value if isinstance(value, Image.Image) else ImageError(f"expected a picture, got {type(value).__name__}")


def _targets(split: Any) -> Any:
    """The class of each picture; read with the pictures where the dataset keeps no list of them."""
    for name in ("targets", "labels", "_labels", "y"):
        found = getattr(split, name, None)
        if found is not None and len(found) == len(split):
            return found
    return [split[i][1] for i in range(len(split))]


def _value(text: str) -> Any:
    """ "true" -> True, "3" -> 3; all else is text."""
    return {"true": True, "false": False}.get(text.lower(), int(text) if text.isdigit() else text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
