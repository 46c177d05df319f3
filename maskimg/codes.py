"""Codes to train on: a folder of pictures encoded once, and datasets of code grids or windows.

Shapes: k versions of each picture, n pictures, h w tokens, f label fields.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from maskimg.pictures import DataError, Pictures, move
from vqgan import Tokenizer, files
from vqgan.images import normalize


@dataclasses.dataclass(frozen=True)
class CodeCache:
    """Encoded pictures.

    Attributes:
        codes: (k, n, h, w) int64 in [0, vocab_size); version 0 is the picture as it is, the others are moved a
            little (and mirrored, where that was asked for).
        labels: (n, f) int64, with `fields` their names.
        held_out: (n,) bool, True for pictures that training must not see.
    """

    codes: torch.Tensor
    labels: torch.Tensor
    fields: dict[str, list[str]]
    held_out: torch.Tensor
    names: list[str]
    vocab_size: int
    fingerprint: str

    @property
    def grid(self) -> tuple[int, int]:
        return self.codes.shape[2], self.codes.shape[3]

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return tuple(len(names) for names in self.fields.values())

    def part(self, held_out: bool) -> "CodeCache":
        """Only the training grids, or only the held-out ones."""
        chosen = (self.held_out == held_out).nonzero()[:, 0]
        return dataclasses.replace(
            self,
            codes=self.codes[:, chosen],
            labels=self.labels[chosen],
            held_out=self.held_out[chosen],
            names=[self.names[i] for i in chosen.tolist()],
        )


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Pictures,
    directory: str | Path,
    *,
    versions: int = 4,
    flip: bool = False,
    seed: int = 0,
    progress=None,
) -> CodeCache:
    """Encode every picture `versions` times and write codes.safetensors and codes.json to `directory`.

    Args:
        versions: 1 keeps the pictures as they are; each further version moves them by up to a sixteenth of the side.
        flip: mirror every second version. Leave it off where left and right mean something, as in writing.
        progress: wraps the iteration, such as `tqdm`.
    """
    device = next(tokenizer.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    reach = pictures.size // 16
    parts: list[list[torch.Tensor]] = [[] for _ in range(versions)]
    batches = pictures.pixels.split(256)
    for pixels in progress(batches, desc="encoding") if progress else batches:
        for version in range(versions):
            moved = pixels if version == 0 else move(pixels, reach, generator)
            moved = moved.flip(-1) if flip and version % 2 else moved
            parts[version].append(tokenizer.encode(normalize(moved).to(device)).cpu())
    codes = torch.stack([torch.cat(part) for part in parts])

    with files.atomic_directory(directory) as temporary:
        tensors = {"codes": codes.to(torch.int32), "labels": pictures.labels, "held_out": pictures.held_out}
        save_file(tensors, temporary / "codes.safetensors")
        about = {
            "fields": pictures.fields,
            "names": pictures.names,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": pictures.fingerprint,
        }
        files.write_json(temporary / "codes.json", about)
    return read_codes(directory)


def read_codes(directory: str | Path) -> CodeCache:
    """What `encode_pictures` wrote.

    Raises:
        ModelError: the directory is missing, incomplete or damaged.
    """
    directory = Path(directory)
    files.verify(directory)
    about = files.read_json(directory / "codes.json")
    try:
        tensors = load_file(directory / "codes.safetensors")
    except SafetensorError as error:
        raise files.ModelError(f"`{directory}/codes.safetensors` cannot be read ({error})") from error
    return CodeCache(
        tensors["codes"].long(),
        tensors["labels"],
        about["fields"],
        tensors["held_out"],
        about["names"],
        about["vocab_size"],
        about["fingerprint"],
    )


class MaskedTokenDataset(Dataset):
    """Complete sequences of exactly `max_seq_len` codes, int64; masking is the model's work.

    A flat corpus (m,) gives windows from random starts, every one of which can occur; the index is ignored and the
    randomness is torch's own, which differs between the workers of a DataLoader. Grids (n, h, w) or rows (n, L) give
    item i whole, in raster order, never straddling two pictures.

    Args:
        data: integer codes of any dtype, as a tensor, array or memory map; read window by window.
        max_seq_len: codes per sequence.
        vocab_size: if given, codes must lie in [0, vocab_size), so MASK (= vocab_size) cannot be among them.

    Raises:
        DataError: a wrong shape, too few codes, or codes outside the vocabulary.
    """

    def __init__(self, data: torch.Tensor | np.ndarray, max_seq_len: int, *, vocab_size: int | None = None):
        if isinstance(data, torch.Tensor):
            integers = not (data.is_floating_point() or data.is_complex() or data.dtype == torch.bool)
        else:
            integers = data.dtype.kind in "iu"
        if not integers:
            raise DataError(f"codes must be integers, got {data.dtype}")
        if not len(data):
            raise DataError("there are no codes to train on")
        if data.ndim == 1 and len(data) < max_seq_len:
            raise DataError(f"a corpus of {len(data)} codes holds no window of {max_seq_len}")
        if data.ndim > 1 and int(np.prod(data.shape[1:])) != max_seq_len:
            raise DataError(f"expected grids of {max_seq_len} codes, got {tuple(data.shape[1:])}")
        values = data.cpu().numpy() if isinstance(data, torch.Tensor) else data  # torch has no min of uint16 (2.15)
        if vocab_size is not None and not 0 <= int(values.min()) <= int(values.max()) < vocab_size:
            raise DataError(f"expected codes in [0, {vocab_size}), got {int(values.min())} to {int(values.max())}")
        self.data, self.max_seq_len = data, max_seq_len

    def __len__(self) -> int:
        return len(self.data) // self.max_seq_len if self.data.ndim == 1 else len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= len(self):
            raise IndexError(f"item {index} of {len(self)}")  # ends a plain `for`, although windows are random
        if self.data.ndim > 1:
            window = self.data[index]
        else:
            start = int(torch.randint(0, len(self.data) - self.max_seq_len + 1, ()))
            window = self.data[start : start + self.max_seq_len]
        if not isinstance(window, torch.Tensor):
            window = torch.from_numpy(np.array(window).astype(np.int64))
        return window.reshape(-1).long()
