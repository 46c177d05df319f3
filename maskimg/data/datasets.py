"""Datasets for training loops of one's own: windows of a corpus or whole grids of codes, and pairs of sequences."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from maskimg.data.sources import DataError


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


def paired_batches(
    sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], batch_size: int, *, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Endless batches of pairs: source (b, s) int64, target (b, t) int64, and which of the source is there (b, s) bool.

    Sources may be of different lengths; they are padded with 0 where the mask is False. For a MaskGit:
    `model(target, from_source(source, present))`. Keep one iterator: each new one begins with the same batch again.

    Raises:
        DataError: there are no pairs, or the targets differ in length.
    """
    if not len(sources) or len(sources) != len(targets):
        raise DataError(f"expected as many sources as targets, got {len(sources)} and {len(targets)}")
    if len({each.numel() for each in targets}) > 1:
        raise DataError("the targets differ in length: a generator draws grids of one size")
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randint(len(sources), (batch_size,), generator=generator).tolist()
        rows = [sources[i].flatten().long() for i in chosen]
        source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        present = torch.arange(source.shape[1]) < lengths[:, None]
        yield source, torch.stack([targets[i].flatten().long() for i in chosen]), present
