"""Pictures of other libraries' datasets: torchvision's own files, and Hugging Face's rows."""

import io
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskimg.data.pictures import list_pictures, read_pictures
from maskimg.data.sources import DataError

# ----------------------------------------------------------------------------- torchvision


def _fashion(root: Path, train: int = 5, test: int = 2) -> Path:
    """The four files of FashionMNIST as they are downloaded, unpacked; picture i is of the grey value i."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count, first in (("train", train, 0), ("t10k", test, 100)):
        pixels = np.repeat(np.arange(first, first + count, dtype=np.uint8), 28 * 28).tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels)
        labels = bytes(i % 3 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)
    return root


def test_a_dataset_of_torchvisions_is_read_from_its_own_files(tmp_path):
    listing = list_pictures(f"torchvision://FashionMNIST?root={_fashion(tmp_path / 'data')}")
    assert listing.fields["class"][:3] == ["T-shirt/top", "Trouser", "Pullover"]
    assert listing.labels[:, 0].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert listing.held_out.tolist() == [False] * 5 + [True] * 2  # the test part
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.pixels[:, :, 4, 4].tolist() == [[i] * 3 for i in (0, 1, 2, 3, 4, 100, 101)]


def test_options_go_to_the_dataset(tmp_path):
    root = _fashion(tmp_path / "data", train=40)
    listing = list_pictures(f"torchvision://FashionMNIST?root={root}&train=true")
    assert len(listing) == 40
    assert 0 < listing.held_out.sum() < 40  # by name, as there is no test part


@pytest.mark.parametrize(
    "address, sentence",
    [
        ("torchvision://Fashion?root=x", "torchvision has no dataset `Fashion`"),
        ("torchvision://os?root=x", "torchvision has no dataset `os`"),
        ("torchvision://FashionMNIST", r"does not say where it lies: add `\?root=DIR`"),
        ("torchvision://FashionMNIST?root=/nowhere", r"cannot be opened \(Dataset not found"),
        ("torchvision://FashionMNIST?root=x&colour=red", r"cannot be opened \(.*colour"),
    ],
)
def test_what_is_no_dataset_of_torchvisions_gets_a_sentence(address, sentence):
    with pytest.raises(DataError, match=sentence):
        list_pictures(address)


# ----------------------------------------------------------------------------- Hugging Face


def _png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9), (red, 0, 0)).save(file, format="PNG")
    return file.getvalue()


class _Image:
    def __init__(self, decode: bool = True):
        self.decode = decode


class _ClassLabel:
    def __init__(self, names: list[str]):
        self.names = names


class _Split:
    """As much of `datasets.Dataset` as is used: the same was run once with the real library, 5.2."""

    def __init__(self, columns: dict, features: dict):
        self.columns, self.features = columns, features
        self._fingerprint = str(hash(str(columns)))

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert all(not kind.decode for kind in self.features.values() if isinstance(kind, _Image))
        return {name: values[key] for name, values in self.columns.items()}

    def select_columns(self, names):
        return _Split({name: self.columns[name] for name in names}, {name: self.features[name] for name in names})

    def cast_column(self, name, kind):
        return _Split(self.columns, self.features | {name: kind})


@pytest.fixture
def hub(monkeypatch) -> dict[str, dict[str, _Split]]:
    """Datasets by name, which a stand-in for the library finds."""
    found: dict[str, dict[str, _Split]] = {}

    def load(name, config=None):
        if name not in found:
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub")
        return found[name]

    library = types.SimpleNamespace(Image=_Image, ClassLabel=_ClassLabel, load_dataset=load, load_from_disk=load)
    monkeypatch.setitem(sys.modules, "datasets", library)
    return found


def _split(first: int, count: int, **more) -> _Split:
    features = {"image": _Image(), "label": _ClassLabel(["cat", "dog"]), "caption": None}
    columns = {
        "image": [{"bytes": _png(first + i), "path": None} for i in range(count)],
        "label": [(0, 1, -1)[i % 3] for i in range(count)],
        "caption": [f"number {first + i}" for i in range(count)],
    }
    return _Split(columns | more, features)


def test_a_dataset_of_the_hub_brings_labels_captions_and_what_is_held_out(hub, tmp_path):
    hub["owner/pets"] = {"train": _split(0, 4), "test": _split(90, 1), "validation": _split(100, 2)}
    listing = list_pictures("hf://owner/pets")
    assert listing.fields == {"label": ["cat", "dog"]}
    assert listing.labels.tolist() == [[0], [1], [2], [0], [0], [1]]  # -1 means none
    assert listing.held_out.tolist() == [False] * 4 + [True] * 2
    pictures = read_pictures(listing, 8, tmp_path / "cache")
    assert pictures.pixels[:, 0, 4, 4].tolist() == [0, 1, 2, 3, 100, 101]
    assert pictures.captions[5] == ["number 101"]
    assert pictures.part(held_out=True).captions == [["number 100"], ["number 101"]]


def test_other_pictures_in_a_dataset_change_its_fingerprint(hub):
    hub["a/b"] = {"train": _split(0, 3)}
    before = list_pictures("hf://a/b").fingerprint
    hub["a/b"] = {"train": _split(9, 3, caption=["number 0", "number 1", "number 2"])}
    assert list_pictures("hf://a/b").fingerprint != before


def test_one_split_can_be_asked_for(hub):
    hub["a/b"] = {"train": _split(0, 3), "test": _split(9, 5)}
    assert len(list_pictures("hf://a/b?split=test")) == 5
    with pytest.raises(DataError, match="has no split `best`; it has train, test"):
        list_pictures("hf://a/b?split=best")


def test_a_saved_dataset_is_found_in_its_directory(hub, tmp_path):
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    hub[str(tmp_path)] = {"train": _split(0, 3)}
    assert len(list_pictures(tmp_path)) == 3


def test_rows_that_cannot_be_read_cost_a_line(hub, tmp_path):
    images = [{"bytes": data, "path": None} for data in (_png(1), b"<html>", None)]
    hub["a/b"] = {"train": _split(0, 3, image=images)}
    assert read_pictures(list_pictures("hf://a/b"), 8, tmp_path / "cache").names == ["train/00000000"]
    assert len((tmp_path / "cache" / "bad.txt").read_text().splitlines()) == 2


def test_a_dataset_that_cannot_be_had_gets_a_sentence(hub, monkeypatch):
    with pytest.raises(DataError, match=r"cannot be loaded \(Couldn't reach 'a/b' on the Hub\): it needs an internet"):
        list_pictures("hf://a/b")
    hub["a/b"] = {"train": _Split({"text": ["x"]}, {"text": None})}
    with pytest.raises(DataError, match="has no column of pictures: its columns are text"):
        list_pictures("hf://a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"that needs `pip install 'maskimg\[data\]'`"):
        list_pictures("hf://a/b")


def test_the_real_library_is_read_alike(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [Image.new("RGB", (9, 9), (i, 0, 0)) for i in range(4)], "label": [0, 1, 0, 1]}
    part = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(train=part, test=part.select([3])).save_to_disk(tmp_path / "saved")
    listing = list_pictures(tmp_path / "saved")
    assert listing.fields == {"label": ["cat", "dog"]}
    assert listing.labels[:, 0].tolist() == [0, 1, 0, 1, 1]
    assert read_pictures(listing, 8, tmp_path / "cache").pixels[:, 0, 4, 4].tolist() == [0, 1, 2, 3, 3]
