"""Captions -> the sequence that a generator reads: word pieces learnt along with it, or a frozen encoder's features.

Shapes: b captions, s pieces, e features.
"""

import collections
import dataclasses
import difflib
import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from maskimg.conditions import Context
from maskimg.networks.context_encoder import SourceConfig
from maskimg.values import shown
from vqgan import files, writing

NAME = "words"  # of the source in a Condition
BYTES = 256
MOST_TOLD = 5  # words in a sentence about them
LONGEST = 10_000  # characters of a prompt that is looked at at all
_WORD = re.compile(r"\w+|[^\w\s]")


class Words(Protocol):
    """What reads captions; pipeline.json holds `numbers`."""

    @property
    def source(self) -> SourceConfig: ...

    @property
    def numbers(self) -> dict[str, Any]: ...

    @property
    def summary(self) -> str:
        """Which words it knows, in a few."""
        ...

    def encode(self, captions: Sequence[str], *, cut: bool = False) -> Context:
        """Captions -> (b, s) pieces or (b, s, e) features, always `source.length` long; an empty one has none."""
        ...

    def check(self, captions: Sequence[str]) -> None:
        """Raises: ValueError where one of these captions is longer than the model reads."""
        ...

    def remarks(self, captions: Sequence[str]) -> list[str]:
        """What to know before these captions are drawn, a sentence each: words that it never saw, say."""
        ...


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """Words that are common in training are one piece each, all others are spelt in bytes, with a space before them.

    Upper and lower case are the same. Nothing is downloaded, and nothing but the training captions is known: a word
    that never occurred in them means nothing to the model.

    Attributes:
        vocabulary: the words, piece 256 + i each; pieces below are bytes.
        length: most pieces of a caption.
        rare: the other words of the training captions; None where they were not kept.
    """

    vocabulary: tuple[str, ...]
    length: int = 32
    depth: int = 2
    rare: tuple[str, ...] | None = None

    @functools.cached_property
    def seen(self) -> frozenset[str]:
        """The words of which it is known that captions held them."""
        return frozenset(self.vocabulary) | frozenset(self.rare or ())

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """The piece of each word."""
        return {word: BYTES + i for i, word in enumerate(self.vocabulary)}

    @classmethod
    def learn(cls, captions: Iterable[str], *, most: int = 8192, longest: int = 64) -> "WordPieces":
        """The words of `captions` that occur at least twice, the commonest first; rarer ones teach the bytes."""
        captions = list(captions)
        counts = collections.Counter(word for caption in captions for word in split(caption))
        common = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
        kept = set(common[:most])
        pieces = cls(tuple(common[:most]), longest, rare=tuple(sorted(counts.keys() - kept)))
        needed = max((len(pieces.pieces(caption)) for caption in captions), default=1)
        return dataclasses.replace(pieces, length=min(longest, -(-max(needed, 8) // 4) * 4))

    @property
    def source(self) -> SourceConfig:
        return SourceConfig(NAME, BYTES + len(self.vocabulary), grid=(1, self.length), depth=self.depth)

    @property
    def numbers(self) -> dict[str, Any]:
        numbers = {"kind": "pieces", **dataclasses.asdict(self)}
        if self.rare is None:
            del numbers["rare"]
        else:
            numbers["rare"] = " ".join(self.rare)  # no word holds a space
        return numbers

    @property
    def summary(self) -> str:
        shown = ", ".join([word for word in self.vocabulary if len(word) > 3][:12])
        return f"{len(self.vocabulary)} words of its training captions, such as {shown}"

    def pieces(self, caption: str) -> list[int]:
        """One caption -> its pieces, however many."""
        found = []
        for word in split(caption):
            found += [self.places[word]] if word in self.places else list(f" {word}".encode())
        return found

    def unknown(self, caption: str) -> list[str]:
        """The words of a caption that no training caption is known to have held, each once; signs are no words."""
        return list(dict.fromkeys(word for word in split(caption) if word[0].isalnum() and word not in self.seen))

    def check(self, captions: Sequence[str]) -> None:
        for caption in captions:
            check_length(caption)
            if (count := len(self.pieces(caption))) > self.length:
                raise ValueError(
                    f"this prompt is {count} word pieces long, and the model reads at most {self.length}: make it "
                    f"shorter{_spelt(self.unknown(caption))}"
                )

    def remarks(self, captions: Sequence[str]) -> list[str]:
        return [*_unseen(self, captions), *_wordless(captions, self.seen)]

    def encode(self, captions: Sequence[str], *, cut: bool = False) -> Context:
        """
        Args:
            cut: leave the end of a caption that is too long away, as training does.

        Raises:
            ValueError: a caption is longer than the model reads.
        """
        if not cut:
            self.check(captions)
        values = torch.zeros(len(captions), self.length, dtype=torch.int64)
        present = torch.zeros(len(captions), self.length, dtype=torch.bool)
        for row, caption in enumerate(captions):
            check_length(caption)
            pieces = self.pieces(caption)[: self.length]
            values[row, : len(pieces)] = torch.tensor(pieces, dtype=torch.int64)
            present[row, : len(pieces)] = True
        return Context(values, present)


class FrozenWords:
    """A pretrained text encoder from the `transformers` library, T5's or CLIP's, whose weights stay as they are.

    Args:
        name: a hub repository or a local directory.
        length: most tokens of a caption.

    Raises:
        ModelError: the library or the encoder is not at hand.
    """

    def __init__(self, name: str, *, length: int = 77, depth: int = 1):
        try:
            from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel
        except ImportError as error:
            raise files.ModelError(
                "a frozen text encoder needs the library transformers: `pip install 'maskimg[text]'`"
            ) from error
        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind not in ("t5", "clip", "clip_text_model"):
                raise files.ModelError(f"`{name}` is a `{kind}`: give a T5 or CLIP text encoder")
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            encoder = T5EncoderModel if kind == "t5" else CLIPTextModel
            self.encoder: Any = encoder.from_pretrained(name).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            if isinstance(error, files.ModelError):
                raise
            reason = str(error).splitlines()[0]
            raise files.ModelError(f"the text encoder `{name}` cannot be loaded ({reason})") from error
        self.name, self.depth = str(name), depth
        self.length = min(length, getattr(self.encoder.config, "max_position_embeddings", length))

    @property
    def source(self) -> SourceConfig:
        return SourceConfig(NAME, features=self.encoder.config.hidden_size, grid=(1, self.length), depth=self.depth)

    @property
    def numbers(self) -> dict[str, Any]:
        return {"kind": "frozen", "name": self.name, "length": self.length, "depth": self.depth}

    @property
    def summary(self) -> str:
        return f"whatever `{self.name}` can read, up to {self.length} tokens"

    def check(self, captions: Sequence[str]) -> None:
        """Raises: ValueError where one of these captions is longer than the model reads."""
        for caption in captions:
            check_length(caption)
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=False, return_tensors=None)
        longest = max((sum(row) for row in tokens["attention_mask"]), default=0)
        if longest > self.length:
            raise ValueError(
                f"this prompt is {longest} tokens long, and the model reads at most {self.length}: make it shorter"
            )

    def remarks(self, captions: Sequence[str]) -> list[str]:
        """Its encoder has read more than anybody knows: only of captions that say nothing."""
        return _wordless(captions, None)

    @torch.no_grad()
    def encode(self, captions: Sequence[str], *, cut: bool = False) -> Context:
        """As `WordPieces.encode`; features (b, s, e)."""
        if cut:
            for caption in captions:
                check_length(caption)
        else:
            self.check(captions)
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        features = self.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        said = torch.tensor([bool(caption.strip()) for caption in captions])
        return Context(features.float(), tokens.attention_mask.bool() & said[:, None])


def read_words(numbers: dict[str, Any] | None) -> Words | None:
    """What `Words.numbers` holds; None where a model knows no words."""
    if not numbers:
        return None
    rest = {name: value for name, value in numbers.items() if name != "kind"}
    if numbers.get("kind") == "frozen":
        return FrozenWords(**rest)
    rare = rest.pop("rare", None)
    return WordPieces(tuple(rest.pop("vocabulary")), **rest, rare=None if rare is None else tuple(rare.split()))


def encode_captions(words: Words, captions: Sequence[str], directory: Path, *, progress: Any = None) -> Context:
    """Captions of a training set, cut to length; a frozen encoder's features are kept in `directory`."""
    if isinstance(words, WordPieces):
        return words.encode(captions, cut=True)
    from safetensors.torch import load_file, save_file

    key = hashlib.sha256(repr((words.numbers, list(captions))).encode()).hexdigest()
    kept = directory / f"words-{key[:16]}"
    if not files.is_whole(kept):
        writing.make_way(kept)
        batches = [captions[start : start + 64] for start in range(0, len(captions), 64)]
        parts = []
        for batch in progress(batches, desc="reading captions") if progress else batches:
            values, present = words.encode(batch, cut=True)
            parts.append((values.half(), present))
        values, present = (torch.cat(part) for part in zip(*parts, strict=True))
        with writing.atomic_directory(kept) as temporary:
            save_file({"values": values, "present": present}, temporary / "words.safetensors")
    tensors = load_file(kept / "words.safetensors")
    return Context(tensors["values"].float(), tensors["present"])


def split(caption: str) -> list[str]:
    """Words and signs, in lower case; an accent is one with its letter, however it was typed."""
    return _WORD.findall(unicodedata.normalize("NFC", caption.lower()))


def check_length(caption: str) -> None:
    """Raises: ValueError where a caption is longer than anybody means."""
    if len(caption) > LONGEST - 1:
        raise ValueError(f"this prompt has {len(caption):,} characters: say it in fewer words")


def _unseen(words: WordPieces, captions: Sequence[str]) -> list[str]:
    """The sentence about words that the model never saw, with the nearest one that it did."""
    unknown = list(dict.fromkeys(word for caption in captions for word in words.unknown(caption)))
    if not unknown:
        return []
    listed = []
    for word in unknown[:MOST_TOLD]:
        close = difflib.get_close_matches(word[:40], words.vocabulary, n=1, cutoff=0.7)
        listed.append(f"{shown(word[:40])}" + (f" (did you mean {shown(close[0])}?)" if close else ""))
    if len(unknown) > MOST_TOLD:
        listed.append(f"{len(unknown) - MOST_TOLD} words more")
    them = "it" if len(unknown) == 1 else "them"
    if words.rare is None:  # only the common ones are known
        return [f"at most one caption of the model's training held {_listed(listed)}, so it hardly knows {them}"]
    return [f"no caption of the model's training held {_listed(listed)}, so it does not know {them}"]


def _wordless(captions: Sequence[str], seen: frozenset[str] | None) -> list[str]:
    """The sentences about prompts that say nothing at all: empty ones, and those without a word that is known."""
    found = []
    if any(not caption.strip() for caption in captions):
        found.append("the prompt is empty, so it asks for nothing")
    spoken = [caption for caption in captions if caption.strip()]
    if seen is not None and any(not any(word in seen for word in split(caption)) for caption in spoken):
        found.append("the model knows no word of the prompt, so what it draws has nothing to do with it")
    return found


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + [words[-1]])


def _spelt(words: list[str]) -> str:
    if not words:
        return ""
    return f" (it never saw {', '.join(f'`{word[:20]}`' for word in words[:5])}, and spells what it never saw)"
