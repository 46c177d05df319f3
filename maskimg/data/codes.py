"""Codes to train on: pictures encoded once into a memory-mapped file.

Shapes: k views of each picture, n pictures, h w tokens, f label fields.
"""

import collections
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from maskimg import distributed
from maskimg.conditions import Condition, Context
from maskimg.data.crops import Crops, Versions
from maskimg.data.pictures import Pictures
from maskimg.data.sources import DataError
from maskimg.networks.words import NAME as WORDS
from maskimg.networks.words import Words, encode_captions
from maskimg.noise import Rng, rand
from vqgan import Tokenizer, files, writing
from vqgan.images import normalize

DTYPES = ("uint8", "uint16", "uint32")  # of stored codes, the narrowest that holds the vocabulary
SIGNED = {torch.uint8: torch.uint8, torch.uint16: torch.int16, torch.uint32: torch.int32}  # of the same width
RESIDENT_SHARE = 0.25  # of a GPU's free memory that codes may fill
BATCH = 256  # pictures encoded at a time
PICTURE = "picture"  # name of the context that is an input picture


class Grids:
    """Codes (k, n, h, w) as narrow as they are stored, on disk or in memory; what is taken out of them is int64."""

    def __init__(self, stored: torch.Tensor):
        self.stored = stored

    @property
    def shape(self) -> torch.Size:
        return self.stored.shape

    @property
    def device(self) -> torch.device:
        return self.stored.device

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, key: Any) -> torch.Tensor:
        # As signed numbers: no device indexes every unsigned kind. The mask undoes the sign.
        taken = self.stored.view(SIGNED[self.stored.dtype])[key].long()
        return taken & (2 ** (8 * self.stored.element_size()) - 1)

    def pictures(self, rows: torch.Tensor) -> "Grids":
        """Only these pictures, sorted by number; a view where they follow one another, else a copy."""
        if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
            return Grids(self.stored[:, int(rows[0]) : int(rows[-1]) + 1])
        signed = self.stored.view(SIGNED[self.stored.dtype])
        return Grids(signed[:, rows].view(self.stored.dtype))

    def to(self, device: torch.device | str) -> "Grids":
        signed = self.stored.view(SIGNED[self.stored.dtype])
        return Grids(signed.to(device).view(self.stored.dtype))


@dataclasses.dataclass(frozen=True)
class Captions:
    """The captions of n pictures, read once: `context` holds all, picture i's are `count[i]` from `first[i]` on."""

    context: Context
    first: torch.Tensor
    count: torch.Tensor

    def drawn(self, rows: torch.Tensor, u: torch.Tensor) -> Context:
        """One caption for each of these pictures (p,), chosen by `u` (p,) on [0, 1); none where there is none."""
        count = self.count[rows]
        chosen = self.first[rows] + (u * count).long().clamp(max=(count - 1).clamp(min=0))
        chosen = chosen.clamp(max=len(self.context.present) - 1)
        values, present = (tensor[chosen] for tensor in self.context)
        return Context(values, present & (count > 0)[:, None])


@dataclasses.dataclass(frozen=True)
class CodeCache:
    """Encoded pictures.

    Attributes:
        codes: (k, n, h, w) in [0, vocab_size), int64 when taken out; view 0 is the picture as it is, the others are
            moved a little or cropped (and mirrored, where that was asked for).
        labels: (n, f) int64, with `fields` their names.
        held_out: (n,) bool, True for pictures that training must not see; in what is read from disk they come last.
        fingerprint: of the pictures, the tokenizer and the views.
        captions: a list for each picture; empty where no picture has any.
        tokenizer: fingerprint of the tokenizer; empty where it is not known.
        words: the captions as a generator reads them, from `with_words` on.
        inputs: the codes of the input pictures that are to be translated into these, view by view, if there are any.
        kind: of input pictures, how they were made: `grey`, `edges`, `lowres` or `folder`; empty of others.
    """

    codes: torch.Tensor | Grids
    labels: torch.Tensor
    fields: dict[str, list[str]]
    held_out: torch.Tensor
    names: list[str]
    vocab_size: int
    fingerprint: str
    captions: list[list[str]] = dataclasses.field(default_factory=list)
    tokenizer: str = ""
    words: Captions | None = None
    inputs: "CodeCache | None" = None
    kind: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        return self.codes.shape[2], self.codes.shape[3]

    @property
    def label_sizes(self) -> tuple[int, ...]:
        return tuple(len(names) for names in self.fields.values())

    def part(self, held_out: bool) -> "CodeCache":
        """Only the training grids, or only the held-out ones."""
        chosen = (self.held_out == held_out).nonzero()[:, 0]
        rows = chosen.tolist()
        return dataclasses.replace(
            self,
            codes=self.codes.pictures(chosen) if isinstance(self.codes, Grids) else self.codes[:, chosen],
            labels=self.labels[chosen],
            held_out=self.held_out[chosen],
            names=[self.names[i] for i in rows],
            captions=[self.captions[i] for i in rows] if self.captions else [],
            words=self.words and Captions(self.words.context, self.words.first[chosen], self.words.count[chosen]),
            inputs=self.inputs and self.inputs.part(held_out),
        )

    def translated_from(self, inputs: "CodeCache") -> "CodeCache":
        """With the codes of the input pictures that are to be translated into these.

        Raises:
            DataError: they are not those of the same pictures, view by view.
        """
        if inputs.names != self.names or inputs.codes.shape[:2] != self.codes.shape[:2]:
            raise DataError("the sources are not those of these pictures: run `maskimg encode` again")
        fingerprint = hashlib.sha256(f"{self.fingerprint} from {inputs.fingerprint}".encode()).hexdigest()
        return dataclasses.replace(self, inputs=inputs, fingerprint=fingerprint)

    def with_words(self, words: Words, directory: Path, *, progress: Any = None) -> "CodeCache":
        """With its captions read by `words`; features of a frozen encoder are kept in `directory`."""
        captions = [caption for several in self.captions for caption in several]
        count = torch.tensor([len(several) for several in self.captions], dtype=torch.int64)
        context = encode_captions(words, captions or [""], directory, progress=progress)
        return dataclasses.replace(self, words=Captions(context, count.cumsum(0) - count, count))

    def condition(self, rows: torch.Tensor, version: torch.Tensor | int = 0, generator: Rng = None) -> Condition:
        """What pictures `rows` (p,) are drawn from, in these views: labels, a caption and an input picture each.

        Args:
            generator: which of several captions; the first if not given.
        """
        contexts = {}
        if self.words is not None:
            u = torch.zeros(len(rows)) if generator is None else rand(generator, "caption", (len(rows),))
            contexts[WORDS] = self.words.drawn(rows, u)
        if self.inputs is not None:
            codes = self.inputs.codes[version, rows].flatten(1)
            contexts[PICTURE] = Context(codes, torch.ones_like(codes, dtype=torch.bool))
        return Condition(self.labels[rows] if self.fields else None, tuple(self.fields), contexts)

    def resident(self, device: torch.device) -> "CodeCache":
        """With the codes on a CUDA `device`, if they fill a quarter of its free memory at most; else as it is."""
        if device.type != "cuda" or not isinstance(self.codes, Grids):
            return self
        needed = self.codes.stored.numel() * self.codes.stored.element_size()
        if needed > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self
        return dataclasses.replace(
            self, codes=self.codes.to(device), inputs=self.inputs and self.inputs.resident(device)
        )


def encode_pictures(
    tokenizer: Tokenizer,
    pictures: Pictures,
    directory: str | Path,
    *,
    views: Versions | Crops = Versions(),  # noqa: B008 (frozen)
    kind: str = "",
    seed: int = 0,
    progress=None,
) -> CodeCache:
    """Encode every picture into `directory`, which exists whole or not at all; one with the same codes is kept.

    Several processes (`ranks`) share the pictures; the first writes what all have encoded.

    Args:
        views: what is encoded of each picture.
        kind: of input pictures, how they were made.
        progress: wraps the iteration, such as `tqdm`.
    """
    about = {
        "pictures": pictures.fingerprint,
        "tokenizer": fingerprint_of(tokenizer),
        "views": dataclasses.asdict(views),
        "seed": seed,
    } | ({"kind": kind} if kind else {})
    fingerprint = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    kept = _kept(directory, fingerprint)
    if distributed.of_first(kept is not None):
        return kept or read_codes(directory)

    if distributed.is_first():
        writing.make_way(Path(directory))

    # Training pictures first: each part is then one piece of the file, and is mapped rather than copied.
    order = torch.argsort(pictures.held_out.int(), stable=True)
    batches = order.split(BATCH)

    def encoded(number: int) -> np.ndarray:
        """The codes (k, b, h, w) of a batch."""
        places = batches[number]
        pixels = pictures.pixels[places]
        shown = views(pixels, places, seed) if isinstance(views, Crops) else views(pixels, number, seed)
        return np.stack([_encoded(tokenizer, images).numpy() for images in shown])

    results = distributed.shared_out(encoded, len(batches) if len(order) else 0)
    if distributed.is_first():
        results = progress(results, total=len(batches), desc="encoding") if progress else results
        _write_codes(directory, results, pictures, order, tokenizer.vocab_size, fingerprint, about)
    else:
        collections.deque(results, maxlen=0)  # takes part, and is given nothing
    distributed.wait_for_all()
    return read_codes(directory)


def _kept(directory: str | Path, fingerprint: str) -> CodeCache | None:
    """What was encoded before, if it is the same."""
    try:
        found = read_codes(directory)
    except files.ModelError:
        return None  # nothing there yet, or a damaged cache: encode again
    return found if found.fingerprint == fingerprint else None


def _write_codes(
    directory: str | Path,
    batches: Iterable[np.ndarray],
    pictures: Pictures,
    order: torch.Tensor,
    vocab_size: int,
    fingerprint: str,
    about: dict[str, Any],
) -> None:
    """The cache of `pictures`, whose codes come in batches (k, b, h, w) in this `order`."""
    rows = order.tolist()
    with writing.atomic_directory(directory) as temporary:
        writer, done = None, 0
        for codes in batches:
            if writer is None:
                shape = (len(codes), len(rows), *codes.shape[2:])
                dtype = _narrowest(vocab_size)
                path = temporary / f"codes.{dtype}"
                writing.take_room(path, np.dtype(dtype).itemsize * math.prod(shape))
                writer = np.memmap(path, dtype, "r+", shape=shape)
            writer[:, done : done + codes.shape[1]] = codes
            done += codes.shape[1]
        if writer is None:
            raise DataError("there are no pictures to encode")
        writer.flush()
        save_file(
            {"labels": pictures.labels[order], "held_out": pictures.held_out[order]}, temporary / "labels.safetensors"
        )
        files.write_json(
            temporary / "codes.json",
            {
                "shape": list(writer.shape),
                "dtype": str(writer.dtype),
                "vocab_size": vocab_size,
                "fields": pictures.fields,
                "names": [pictures.names[i] for i in rows],
                "captions": [pictures.captions[i] for i in rows] if pictures.captions else [],
                "fingerprint": fingerprint,
                "made_of": about,
            },
        )


def read_codes(directory: str | Path) -> CodeCache:
    """What `encode_pictures` wrote; the codes stay on disk until they are asked for.

    Raises:
        ModelError: the directory is missing, incomplete or damaged.
    """
    directory = Path(directory)
    files.verify(directory)
    about = files.read_json(directory / "codes.json")
    older = (directory / "codes.safetensors").is_file()
    tensors = _tensors(directory / ("codes.safetensors" if older else "labels.safetensors"))
    try:
        return CodeCache(
            tensors["codes"].long() if older else _mapped(directory, about),
            tensors["labels"],
            about["fields"],
            tensors["held_out"],
            about["names"],
            about["vocab_size"],
            about["fingerprint"],
            about.get("captions", []),
            about.get("made_of", {}).get("tokenizer", ""),
            kind=about.get("made_of", {}).get("kind", ""),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise files.ModelError(
            f"`{directory}` does not hold codes that maskimg can read ({error}): encode them again"
        ) from error


def require_same_codes(directory: Path, tokenizer: Tokenizer, pictures: Pictures) -> None:
    """Raises: DataError where `directory` holds codes of other pictures, or of another tokenizer."""
    if not (directory / "codes.json").is_file():
        return
    made_of = files.read_json(directory / "codes.json").get("made_of", {})
    other = None
    if made_of.get("pictures") != pictures.fingerprint:
        other = "other pictures"
    elif made_of.get("tokenizer") != fingerprint_of(tokenizer):
        other = "another tokenizer"
    if other:
        raise DataError(f"`{directory}` holds codes of {other}: choose a new directory, or delete that one")


def require_tokenizer(cache: CodeCache, tokenizer: Tokenizer) -> None:
    """Raises: DataError where the codes come from another tokenizer, which would decode them to something else."""
    if cache.tokenizer and cache.tokenizer != fingerprint_of(tokenizer):
        raise DataError(
            "the codes were encoded with another tokenizer, or with another version of this one: give that one, or run "
            "`maskimg encode` again"
        )


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """Changes with every weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tokenizer.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + data.numpy().tobytes())
    return digest.hexdigest()


def _encoded(tokenizer: Tokenizer, pixels: torch.Tensor) -> torch.Tensor:
    device = next(tokenizer.parameters()).device
    return tokenizer.encode(normalize(pixels.to(device))).cpu()


def _narrowest(vocab_size: int) -> str:
    return next(name for name in DTYPES if vocab_size <= np.iinfo(name).max + 1)


def _mapped(directory: Path, about: dict[str, Any]) -> Grids:
    if about["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype `{about['dtype']}`")
    shape = tuple(about["shape"])
    # Copy on write, because torch takes no read-only arrays; nothing writes.
    codes = np.memmap(directory / f"codes.{about['dtype']}", about["dtype"], "c", shape=shape)
    if codes.size and codes.max() >= about["vocab_size"]:  # a GPU could not say it without being waited for
        raise ValueError(f"there is the code {codes.max()} in a vocabulary of {about['vocab_size']}")
    return Grids(torch.from_numpy(codes))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise files.ModelError(f"`{path}` cannot be read ({error})") from error
