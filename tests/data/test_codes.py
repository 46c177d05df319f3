"""Codes to train on: windows that can start anywhere, grids that stay whole, and the cache they come from."""

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from helpers import stirred, tiny_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import TOKENIZER
from torch.utils.data import DataLoader

from maskimg.cli.main import main
from maskimg.data import codes as coding
from maskimg.data.codes import (
    Grids,
    encode_pictures,
    fingerprint_of,
    read_codes,
    require_same_codes,
    require_tokenizer,
)
from maskimg.data.crops import Crops, Versions
from maskimg.data.datasets import MaskedTokenDataset
from maskimg.data.sources import DataError
from vqgan import Tokenizer, files, writing
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
def test_the_order_of_grids_does_not_depend_on_the_number_of_workers(tokenizer, tmp_path):
    """Nor what lies in the file that they are mapped from."""
    codes = encode_pictures(tokenizer, tiny_pictures(24), tmp_path / "codes", views=Versions(1)).codes
    dataset = MaskedTokenDataset(codes[0], 16)

    def epochs(workers: int) -> torch.Tensor:
        chance = torch.Generator().manual_seed(5)
        loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers, generator=chance, drop_last=True)
        return torch.stack([batch for _ in range(2) for batch in loader])

    alone = epochs(0)
    assert not torch.equal(alone[:4], alone[4:])
    for workers in (1, 4):
        assert torch.equal(epochs(workers), alone)


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
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(3))

    assert cache.codes.shape == (3, 12, 4, 4)
    assert cache.codes[:].dtype == torch.int64
    assert torch.equal(cache.codes[0], tokenizer.encode(normalize(pictures.pixels)))
    assert torch.equal(cache.labels, pictures.labels)
    assert torch.equal(cache.held_out, pictures.held_out)
    assert (cache.fields, cache.names) == (pictures.fields, pictures.names)
    assert (cache.grid, cache.vocab_size, cache.label_sizes) == ((4, 4), 64, (3, 2))

    again = read_codes(tmp_path / "codes")
    for field in dataclasses.fields(cache):
        left, right = getattr(cache, field.name), getattr(again, field.name)
        if isinstance(left, torch.Tensor | Grids):
            assert torch.equal(left[:], right[:])
        else:
            assert left == right


def test_pictures_without_labels_are_encoded_too(tokenizer, tmp_path):
    pictures = dataclasses.replace(tiny_pictures(3), labels=torch.zeros(3, 0, dtype=torch.int64), fields={})
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1))
    assert cache.codes.shape == (1, 3, 4, 4)
    assert cache.labels.shape == (3, 0)
    assert cache.label_sizes == ()


def test_versions_are_moved_and_every_second_one_is_mirrored_where_that_is_asked(tokenizer, tmp_path):
    pictures = tiny_pictures(size=16)
    kept, mirrored, other = (
        encode_pictures(tokenizer, pictures, tmp_path / name, views=Versions(2, flip=flip), seed=seed).codes[:]
        for name, flip, seed in (("kept", False, 0), ("mirrored", True, 0), ("other", False, 1))
    )
    assert torch.equal(kept[0], mirrored[0])
    assert not torch.equal(kept[1], mirrored[1])
    assert torch.equal(kept[0], other[0])
    assert torch.equal(kept, encode_pictures(tokenizer, pictures, tmp_path / "again", views=Versions(2)).codes[:])


def test_parts_are_the_training_grids_and_the_held_out_ones(tokenizer, tmp_path):
    cache = encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(2))
    train, unseen = cache.part(held_out=False), cache.part(held_out=True)
    assert torch.equal(torch.cat((train.codes[:], unseen.codes[:]), dim=1), cache.codes[:])
    assert torch.equal(torch.cat((train.labels, unseen.labels)), cache.labels)
    assert train.names + unseen.names == cache.names
    assert len(unseen.names) == 2
    assert unseen.held_out.all()
    assert not train.held_out.any()


def test_a_damaged_cache_is_refused(tokenizer, tmp_path):
    encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(1))
    path = tmp_path / "codes" / "codes.uint8"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"codes\.uint8` is damaged"):
        read_codes(tmp_path / "codes")
    with pytest.raises(ModelError, match="there is no model directory"):
        read_codes(tmp_path / "nowhere")


def test_progress_is_told_what_is_done(tokenizer, tmp_path):
    seen = []

    def progress(batches, total, desc):
        seen.append((desc, total))
        return batches

    encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(1), progress=progress)
    assert seen == [("encoding", 1)]


# ----------------------------------------------------------------------------- the file the codes lie in


@pytest.mark.parametrize("vocab_size, dtype", [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_codes_are_stored_as_narrow_as_the_vocabulary_allows(tokenizer, tmp_path, vocab_size, dtype, monkeypatch):
    """The largest code of each survives, though no sign is left for it."""
    pictures = tiny_pictures(5)
    codes = torch.randint(0, vocab_size, (5, 4, 4), generator=torch.Generator().manual_seed(0))
    codes[0, 0, 0], codes[4, 3, 3] = 0, vocab_size - 1
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda self: vocab_size))
    monkeypatch.setattr(coding, "_encoded", lambda tokenizer, pixels: codes)
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1))
    assert (tmp_path / "codes" / f"codes.{dtype}").stat().st_size == codes.numel() * np.dtype(dtype).itemsize
    assert torch.equal(cache.codes[0], codes)
    assert torch.equal(cache.codes[torch.tensor([0]), torch.tensor([4])], codes[4:])
    assert int(cache.part(held_out=True).codes[:].max()) == vocab_size - 1


def test_codes_stay_on_disk_and_each_part_is_a_piece_of_the_file(tokenizer, tmp_path):
    """Held-out pictures come last, however they came in, so that neither part is copied into memory."""
    pictures = tiny_pictures(12)
    mixed = dataclasses.replace(pictures, held_out=torch.arange(12) % 4 == 1, captions=[[str(i)] for i in range(12)])
    cache = encode_pictures(tokenizer, mixed, tmp_path / "codes", views=Versions(2))
    assert cache.held_out.tolist() == [False] * 9 + [True] * 3
    assert cache.names[-3:] == [mixed.names[i] for i in (1, 5, 9)]
    assert cache.captions[-3:] == [["1"], ["5"], ["9"]] == cache.part(held_out=True).captions
    expected = tokenizer.encode(normalize(mixed.part(held_out=True).pixels))
    assert torch.equal(cache.part(held_out=True).codes[0], expected)
    for held_out in (False, True):
        part = cache.part(held_out).codes
        assert part.stored.untyped_storage().data_ptr() == cache.codes.stored.untyped_storage().data_ptr()


def test_an_encoding_that_is_done_is_kept_and_one_that_was_cut_off_starts_again(tokenizer, tmp_path, monkeypatch):
    pictures, calls, encoded = tiny_pictures(), [], coding._encoded
    monkeypatch.setattr(coding, "BATCH", 5)

    def counted(tokenizer, pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoded(tokenizer, pixels)

    monkeypatch.setattr(coding, "_encoded", counted)
    with pytest.raises(KeyboardInterrupt):
        encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1))
    assert list(tmp_path.iterdir()) == []
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1))
    assert calls == [5, 5, 5, 5, 2]
    assert torch.equal(
        encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1)).codes[:], cache.codes[:]
    )
    assert len(calls) == 5
    encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(2))
    assert len(calls) > 5


def test_views_do_not_depend_on_where_batches_end(tokenizer, tmp_path, monkeypatch):
    pictures, crops = tiny_pictures(size=20), Crops(16, 3)
    whole = encode_pictures(tokenizer, pictures, tmp_path / "a", views=crops).codes[:]
    monkeypatch.setattr(coding, "BATCH", 5)
    assert torch.equal(encode_pictures(tokenizer, pictures, tmp_path / "b", views=crops).codes[:], whole)
    assert not torch.equal(encode_pictures(tokenizer, pictures, tmp_path / "c", views=crops, seed=1).codes[:], whole)


def test_a_cache_with_codes_outside_its_vocabulary_is_refused(tokenizer, tmp_path):
    """MASK among them: on a GPU training no longer looks."""
    encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(1))
    with (tmp_path / "codes" / "codes.uint8").open("r+b") as file:
        file.seek(70)
        file.write(bytes([64]))
    files.write_manifest(tmp_path / "codes")
    with pytest.raises(ModelError, match="there is the code 64 in a vocabulary of 64.*encode them again"):
        read_codes(tmp_path / "codes")


def test_codes_in_the_older_format_are_still_read(tmp_path):
    codes = torch.arange(2 * 3 * 4, dtype=torch.int32).reshape(2, 3, 2, 2)
    with writing.atomic_directory(tmp_path / "codes") as temporary:
        tensors = {"codes": codes, "labels": torch.zeros(3, 0, dtype=torch.int64), "held_out": torch.zeros(3).bool()}
        save_file(tensors, temporary / "codes.safetensors")
        about = {"fields": {}, "names": ["a", "b", "c"], "vocab_size": 24, "fingerprint": "old"}
        files.write_json(temporary / "codes.json", about)
    cache = read_codes(tmp_path / "codes")
    assert torch.equal(cache.codes[:], codes.long())
    assert (cache.fingerprint, cache.captions, cache.tokenizer) == ("old", [], "")


def test_codes_of_another_tokenizer_or_of_other_pictures_are_refused(tokenizer, tmp_path):
    pictures = tiny_pictures()
    cache = encode_pictures(tokenizer, pictures, tmp_path / "codes", views=Versions(1))
    other = copy.deepcopy(tokenizer)
    next(other.parameters()).data[0, 0, 0, 0] += 1e-3
    assert fingerprint_of(other) != fingerprint_of(tokenizer) == fingerprint_of(copy.deepcopy(tokenizer))
    require_tokenizer(cache, tokenizer)
    require_same_codes(tmp_path / "codes", tokenizer, pictures)
    require_same_codes(tmp_path / "new", tokenizer, pictures)
    with pytest.raises(DataError, match="were encoded with another tokenizer"):
        require_tokenizer(cache, other)
    with pytest.raises(DataError, match="holds codes of another tokenizer: choose a new directory"):
        require_same_codes(tmp_path / "codes", other, pictures)
    with pytest.raises(DataError, match="holds codes of other pictures: choose a new directory"):
        require_same_codes(tmp_path / "codes", tokenizer, dataclasses.replace(pictures, fingerprint="other"))


def test_codes_stay_where_they_are_unless_there_is_a_gpu_they_fit_on(tokenizer, tmp_path):
    cache = encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(1))
    assert cache.resident(torch.device("cpu")) is cache


@pytest.mark.gpu
def test_codes_move_to_a_gpu_they_fit_on(tokenizer, tmp_path, monkeypatch):
    cache = encode_pictures(tokenizer, tiny_pictures(), tmp_path / "codes", views=Versions(2))
    device = torch.device("cuda")
    chosen = torch.tensor([0, 1]), torch.tensor([3, 2])
    resident = cache.part(held_out=False).resident(device)
    assert resident.codes.device.type == "cuda"
    assert torch.equal(resident.codes[chosen].cpu(), cache.codes[chosen])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 100))
    assert cache.resident(device) is cache


# ----------------------------------------------------------------------------- crops


def _ramps(side: int, count: int = 400) -> torch.Tensor:
    """Pictures whose red is the row and whose green is the column, so that a crop tells what it cut."""
    row = torch.arange(side, dtype=torch.uint8)
    return torch.stack(
        (row[:, None].expand(side, side), row.expand(side, side), torch.zeros(side, side).byte())
    ).expand(count, 3, side, side)


def test_crops_are_squares_no_smaller_than_they_end_up_anywhere_in_the_picture():
    """400 crops miss one of 25 corners of the smallest squares with a chance below 10^-5; the seed is fixed."""
    crops = Crops(16, 2)
    whole, cut = crops(_ramps(20), torch.arange(400), 0)
    assert whole.shape == cut.shape == (400, 3, 16, 16)
    assert whole[0].float().sub(whole[-1].float()).abs().max() == 0  # the first is all of each
    rows, columns = cut[:, 0].float(), cut[:, 1].float()
    spans = rows[:, -1].mean(1) - rows[:, 0].mean(1)
    assert torch.allclose(spans, columns[:, :, -1].mean(1) - columns[:, :, 0].mean(1), atol=1.5)  # not distorted
    assert spans.min() >= 14 and spans.max() <= 19.5 and len(spans.round().unique()) >= 4
    corners = {(int(a), int(b)) for a, b in zip(rows[:, 0, 0], columns[:, 0, 0], strict=True)}
    assert {(0, 0), (4, 4), (0, 4), (4, 0)} <= corners


def test_a_crop_depends_on_seed_and_picture_only():
    crops, pictures = Crops(16, 3, flips=True), _ramps(20, 8)
    views = list(crops(pictures, torch.arange(8), 5))
    assert len(views) == crops.views == 6
    alone = list(crops(pictures[:1], torch.tensor([6]), 5))
    assert all(torch.equal(one[0], many[6]) for one, many in zip(alone, views, strict=True))
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
    assert not torch.equal(views[2], views[4])
    assert not torch.equal(views[2], list(crops(pictures, torch.arange(8), 6))[2])


def test_crops_of_what_is_too_small_are_refused():
    assert (Crops(16, 1).source_size, Crops(16, 2).source_size) == (16, 20)
    with pytest.raises(ValueError, match="crops of 16 pixels need pictures of as many, got 8"):
        next(Crops(16, 1)(_ramps(8, 1), torch.arange(1), 0))
    with pytest.raises(ValueError, match="must be 1 or more, got 16 and 0"):
        Crops(16, 0)


def test_the_command_encodes_crops_says_its_rate_and_refuses_to_replace_others(
    tokenizer, tmp_path, draw_pictures, capsys
):
    draw_pictures(tmp_path / "pictures", count=6)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["encode", str(tmp_path / "pictures"), str(tmp_path / "tokenizer"), "--size", "16"]
    assert main([*command, "--out", str(tmp_path / "codes"), "--crops", "2", "--flips"]) == 0
    assert re.search(r"done: 6 pictures, 4 versions each, 4x4 codes; [\d,]+ pictures/s", capsys.readouterr().out)
    assert read_codes(tmp_path / "codes").codes.shape == (4, 6, 4, 4)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*command, *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    draw_pictures(tmp_path / "pictures", count=7)
    out = ["--out", str(tmp_path / "codes")]
    assert "holds codes of other pictures" in refused(*out, "--crops", "2", "--flips")
    assert "--flips goes with --crops" in refused(*out, "--flips")
    assert "must be 1 or more, got 16 and 0" in refused(*out, "--crops", "0")
    assert "or contains, FOLDER" in refused("--out", str(tmp_path / "pictures"))
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 7
