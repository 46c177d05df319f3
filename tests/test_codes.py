"""Codes to train on: windows that can start anywhere, grids that stay whole, and the cache they come from."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import stirred, tiny_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TOKENIZER
from torch.utils.data import DataLoader

from maskimg.codes import MaskedTokenDataset, encode_pictures, read_codes
from maskimg.pictures import DataError
from vqgan import Tokenizer
from vqgan.files import ModelError
from vqgan.images import normalize

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stirred(Tokenizer(TOKENIZER), size=0.05).eval()


# ----------------------------------------------------------------------------- datasets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["array", "tensor", "map"])
def test_codes_of_any_integer_kind_come_out_as_int64(dtype, kind, tmp_path):
    values = np.arange(100).astype(dtype)
    if kind == "tensor":
        data = torch.from_numpy(values)
    elif kind == "map":
        values.tofile(tmp_path / "codes")
        data = np.memmap(tmp_path / "codes", dtype, "r")
    else:
        data = values
    window = MaskedTokenDataset(data, 16)[0]
    assert window.dtype == torch.int64
    assert window.shape == (16,)
    assert torch.equal(window, torch.arange(int(window[0]), int(window[0]) + 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_codes_of_any_integer_kind_are_held_against_the_vocabulary(dtype, kind):
    """torch itself knows no largest of uint16."""
    data = kind(np.arange(100).astype(dtype))
    assert len(MaskedTokenDataset(data, 16, vocab_size=100)) == 6
    with pytest.raises(DataError, match=r"expected codes in \[0, 99\), got 0 to 99"):
        MaskedTokenDataset(data, 16, vocab_size=99)


@pytest.mark.parametrize("length", [8, 10])
def test_every_window_can_start_anywhere(length):
    """x-transformers' pattern never drew the last start and failed on a corpus of one window.

    A start of three is missed by 100 draws with a chance of 10^-17.
    """
    dataset = MaskedTokenDataset(torch.arange(length), 8)
    assert {int(dataset[0][0]) for _ in range(100)} == set(range(length - 7))
    assert len(dataset) == 1


def test_windows_are_random_and_follow_from_torchs_seed():
    dataset = MaskedTokenDataset(torch.arange(10_000), 8)
    assert len(dataset) == 1250
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [int(dataset[5][0]) for _ in range(10)]
        torch.manual_seed(0)
        assert [int(dataset[7][0]) for _ in range(10)] == first
    assert len(set(first)) > 5


@pytest.mark.parametrize("shape", [(6, 16), (6, 4, 4), (6, 2, 8)])
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_grids_come_whole_in_raster_order(shape, kind):
    """The codes of picture i are all i: a window over a flat corpus would straddle two pictures."""
    grids = np.arange(6 * 16).reshape(shape)
    dataset = MaskedTokenDataset(kind(grids), 16)
    assert len(dataset) == 6
    for i in range(6):
        assert dataset[i].tolist() == list(range(16 * i, 16 * i + 16))
        assert torch.equal(dataset[i].reshape(shape[1:]), torch.tensor(grids[i]))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 2**31))
def test_a_window_is_a_piece_of_the_corpus_of_exactly_so_many_codes(length, more, seed):
    corpus = torch.randint(0, 5, (length + more,), generator=torch.Generator().manual_seed(seed))
    dataset = MaskedTokenDataset(corpus, length, vocab_size=5)
    assert len(dataset) == (length + more) // length
    pieces = corpus.unfold(0, length, 1)
    for window in dataset:
        assert window.dtype == torch.int64
        assert (pieces == window).all(1).any()


def test_batches_come_from_a_loader():
    batches = list(DataLoader(MaskedTokenDataset(torch.arange(100), 8), batch_size=5, drop_last=True))
    assert [batch.shape for batch in batches] == [(5, 8), (5, 8)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
def test_workers_of_a_loader_do_not_repeat_each_other():
    """Windows of 16 out of 100,000 starts: one in common would have a chance of 1 in 400; the seed is fixed."""
    dataset = MaskedTokenDataset(torch.arange(100_000), 4)
    loader = DataLoader(dataset, batch_size=16, num_workers=2, generator=torch.Generator().manual_seed(0))
    epochs = [iter(loader), iter(loader)]
    first, second, later = (set(next(epochs[i])[:, 0].tolist()) for i in (0, 0, 1))
    assert not first & second
    assert not first & later  # nor does the next epoch


@pytest.mark.parametrize(
    ("data", "length", "message"),
    [
        (torch.arange(7), 8, "a corpus of 7 codes holds no window of 8"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), 15, r"expected grids of 15 codes, got \(4, 4\)"),
        (torch.zeros(20), 8, "codes must be integers, got torch.float32"),
        (np.zeros(20), 8, "codes must be integers, got float64"),
        (torch.zeros(20, dtype=torch.bool), 8, "codes must be integers, got torch.bool"),
        (np.zeros(20, bool), 8, "codes must be integers, got bool"),
        (np.zeros((0, 8), int), 8, "there are no codes to train on"),
        (torch.zeros(0, 2, 4, dtype=torch.int64), 8, "there are no codes to train on"),
        (torch.tensor([0, 1, 10] * 4), 8, r"expected codes in \[0, 10\), got 0 to 10"),
        (torch.tensor([0, -1, 3] * 4), 8, r"expected codes in \[0, 10\), got -1 to 3"),
        (np.full((2, 8), 10, np.uint8), 8, r"expected codes in \[0, 10\), got 10 to 10"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(data, length, message):
    with pytest.raises(DataError, match=message):
        MaskedTokenDataset(data, length, vocab_size=10)


def test_mask_is_never_among_the_codes():
    dataset = MaskedTokenDataset(torch.randint(0, 10, (200,)), 8, vocab_size=10)
    assert max(int(dataset[0].max()) for _ in range(100)) < 10


# ----------------------------------------------------------------------------- the cache


def test_pictures_are_encoded_and_read_again(tokenizer, tmp_path):
    pictures = tiny_pictures()
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", versions=3)

    assert cache.codes.shape == (3, 12, 4, 4)
    assert cache.codes.dtype == torch.int64
    assert torch.equal(cache.codes[0], tokenizer.encode(normalize(pictures.pixels)))
    assert torch.equal(cache.labels, pictures.labels)
    assert torch.equal(cache.held_out, pictures.held_out)
    assert (cache.fields, cache.names, cache.fingerprint) == (pictures.fields, pictures.names, pictures.fingerprint)
    assert (cache.grid, cache.vocab_size, cache.label_sizes) == ((4, 4), 64, (3, 2))

    again = read_codes(tmp_path / "codes")
    for field in dataclasses.fields(cache):
        left, right = getattr(cache, field.name), getattr(again, field.name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_pictures_without_labels_are_encoded_too(tokenizer, tmp_path):
    pictures = dataclasses.replace(tiny_pictures(3), labels=torch.zeros(3, 0, dtype=torch.int64), fields={})
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", versions=1)
    assert cache.codes.shape == (1, 3, 4, 4)
    assert cache.labels.shape == (3, 0)
    assert cache.label_sizes == ()


def test_versions_are_moved_and_every_second_one_is_mirrored_where_that_is_asked(tokenizer, tmp_path):
    pictures = tiny_pictures(size=16)
    kept, mirrored, other = (
        encode_pictures(tokenizer, pictures, tmp_path / name, versions=2, flip=flip, seed=seed).codes
        for name, flip, seed in (("kept", False, 0), ("mirrored", True, 0), ("other", False, 1))
    )
    assert torch.equal(kept[0], mirrored[0])
    assert not torch.equal(kept[1], mirrored[1])
    assert torch.equal(kept[0], other[0])
    assert torch.equal(kept, encode_pictures(tokenizer, pictures, tmp_path / "again", versions=2).codes)


def test_parts_are_the_training_grids_and_the_held_out_ones(tokenizer, tmp_path):
    cache = encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", versions=2)
    train, unseen = cache.part(held_out=False), cache.part(held_out=True)
    assert torch.equal(torch.cat((train.codes, unseen.codes), dim=1), cache.codes)
    assert torch.equal(torch.cat((train.labels, unseen.labels)), cache.labels)
    assert train.names + unseen.names == cache.names
    assert len(unseen.names) == 2
    assert unseen.held_out.all()
    assert not train.held_out.any()


def test_a_damaged_cache_is_refused(tokenizer, tmp_path):
    encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", versions=1)
    path = tmp_path / "codes" / "codes.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"codes\.safetensors` is damaged"):
        read_codes(tmp_path / "codes")
    with pytest.raises(ModelError, match="there is no model directory"):
        read_codes(tmp_path / "nowhere")


def test_progress_is_told_what_is_done(tokenizer, tmp_path):
    seen = []

    def progress(batches, desc):
        seen.append(desc)
        return batches

    encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", versions=1, progress=progress)
    assert seen == ["encoding"]
