"""Pipeline: a finished model as a person uses it.

Each method makes a Request and an Edit; `maskimg.drawing.runner` draws what they ask for.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from maskimg.conditions import Label
from maskimg.drawing import edits
from maskimg.drawing.hole import Hole, make_hole
from maskimg.drawing.model_files import (
    check_lender,
    lend_tokenizer,
    locate_model,
    no_fit,
    read_parts,
    short_card,
    write_parts,
)
from maskimg.drawing.paint import Mask
from maskimg.drawing.reconstruction import Reconstruction, reconstruct
from maskimg.drawing.request import Asked, Seeds, make_request
from maskimg.drawing.runner import Result, Runner, require_compiler
from maskimg.hardware import pick_device, pick_dtype
from maskimg.sampler import Sampler
from vqgan import files, writing
from vqgan.original import Original, load_original, original_of

Picture = Image.Image | Original | str | Path


class Pipeline(Runner):
    """A finished model: pictures from labels and words, and pictures from parts of pictures.

    `Pipeline.from_pretrained("emoji-64")` is the usual way to one. Its attributes are those of Model and Runner: the
    networks, `labels`, `words`, `presets`, `recipe`, `about`, `device` and `dtype`.

    Each method that draws is `draw(edit, request)`. Their options have the same names and meanings everywhere, and are
    written out so that an editor shows them; that is why there are so many.
    """

    def generate(
        self,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        towards: Label = None,
        share: float | None = None,
        seeds: Seeds | None = None,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int | None = None,
    ) -> Result:
        """Draw pictures.

        Args:
            label: a name of the first label field, `{field: name}`, or None for anything; or a whole Request.
            prompt, negative: in words, what they are to show, and what guidance moves away from. A PromptWarning names
                words that the model never saw.
            towards, share: another label, and how far from the first to it, 0 to 1; half-way if not given.
            seeds: image i of `count` uses (seeds + i) mod 2**32; or a list with one seed per image, of which `count`
                is then the length. A seed is a whole number from 0 to 2**32 - 1; 0 if not given.
            count: one if not given.
            sampler: numbers of the loop, or the name of a preset; the model's recipe if not given.
            best_of: draw so many candidates of each picture and keep the one the critic believes most; one if not
                given.

        Raises:
            WrongType: a value is of another type (a TypeError, and a ValueError).
            ValueError: the label does not exist, a number is out of range, or a critic is asked for that is not there.
        """
        request = make_request(
            label, prompt=prompt, negative=negative, towards=towards, share=share, seeds=seeds, count=count,
            sampler=sampler, best_of=best_of,
        )  # fmt: skip
        self.reader.warn([request])
        return self.draw(None, request)

    def translate(
        self,
        image: Picture,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: Seeds | None = None,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int | None = None,
    ) -> Result:
        """Draw what a picture becomes: in colour, in another style, sharper; whatever the model was trained to do.

        Args:
            image: of any size; it is padded to the model's square, and the result is cut back to its shape.
            label, prompt, negative, seeds, count, sampler, best_of: as in `generate`.

        Raises:
            ImageError: a file cannot be read. ValueError: the model cannot translate, or as in `generate`.
        """
        edit = edits.translation(self, opened(image))
        request = make_request(
            label, prompt=prompt, negative=negative, seeds=seeds, count=count, sampler=sampler, best_of=best_of
        )
        self.reader.warn([request])
        return self.draw(edit, request)

    def inpaint(
        self,
        image: Picture,
        mask: Mask,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: Seeds | None = None,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int | None = None,
        coverage: float = 0.0,
        grow: int = 1,
        feather: float = 0.5,
        window: int | None = None,
    ) -> Result:
        """Redraw the painted part of a picture of any size; every pixel outside the redrawn tokens stays as it was.

        Args:
            image: a picture in Python, or the path of one. Modes L, LA, RGB and RGBA, 16 bits of grey, transparency and
                colour profile are given back: a grey picture stays grey, a palette becomes RGB or RGBA, one bit becomes
                L. What no PNG holds (CMYK, LAB, floating point) becomes 8-bit sRGB. Files are turned upright.
            mask: white (above 127 of 255) or True where to redraw; as large as the picture. What is transparent is not
                painted. Arrays have up to 4 channels; floating-point ones run from 0 to 1, or to 255.
            label, prompt, negative, seeds, count, sampler, best_of: as in `generate`.
            coverage, grow, feather: which tokens the paint reaches, and how their edge fades, as in `make_hole`.
            window: pixels of the picture along the side of the square that the model sees at a time; smaller than the
                picture, the model's grid slides over the hole. If not given, it sees the whole picture.

        Raises:
            ImageError: a file cannot be read. ValueError: nothing is painted, the sizes differ, a number is out of
                range, or as in `generate`.
        """
        options = {"coverage": coverage, "grow": grow, "feather": feather, "window": window}
        edit = edits.inpainting(self, opened(image), mask, **options)
        request = make_request(
            label, prompt=prompt, negative=negative, seeds=seeds, count=count, sampler=sampler, best_of=best_of
        )
        self.reader.warn([request])
        return self.draw(edit, request)

    def outpaint(
        self,
        image: Picture,
        margins: tuple[int, int, int, int],
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: Seeds | None = None,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int | None = None,
        window: int | None = None,
    ) -> Result:
        """Draw what lies around a picture; all its own pixels stay as they were, as in `inpaint`. Can be repeated.

        Args:
            margins: left, top, right and bottom, in tokens; each at most half of the model's grid.
            label, prompt, negative, seeds, count, sampler, best_of: as in `generate`.
            window: pixels of the picture along the side of the square that the model sees at a time. If not given, the
                picture's shorter side; or, of a file that was outpainted before, the same again.

        Raises:
            ImageError: a file cannot be read. ValueError: a number is out of range, or as in `generate`.
        """
        edit = edits.outpainting(self, opened(image), margins, window)
        request = make_request(
            label, prompt=prompt, negative=negative, seeds=seeds, count=count, sampler=sampler, best_of=best_of
        )
        self.reader.warn([request])
        return self.draw(edit, request)

    def vary(
        self,
        image: Picture,
        strength: float = 0.5,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        mask: Mask | None = None,
        seeds: Seeds | None = None,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int | None = None,
    ) -> Result:
        """Redraw a share of a picture's tokens, others for each seed.

        Args:
            strength: the share, above 0 and at most 1; with more, the same tokens and further ones.
            mask: white or True where tokens may change; the pixels of all others stay, at the picture's own size and in
                its mode, as in `inpaint`. Without a mask the whole picture is decoded, at the model's size, in RGB.
            label, prompt, negative, seeds, count, sampler, best_of: as in `generate`.

        Raises:
            ImageError: a file cannot be read. ValueError: the strength is out of range, nothing is painted, the sizes
                differ, or as in `generate`.
        """
        request = make_request(
            label, prompt=prompt, negative=negative, seeds=seeds, count=count, sampler=sampler, best_of=best_of
        )
        edit = edits.variation(self, opened(image), strength, request.seeds, mask)
        self.reader.warn([request])
        return self.draw(edit, request)

    def variations(self, image: Picture, strength: float = 0.5, label: Asked = None, **options: Any) -> Result:
        """The old name of `vary`; it will go with the next version."""
        warnings.warn("`variations` is called `vary` now, and will go", DeprecationWarning, stacklevel=2)
        return self.vary(image, strength, label, **options)

    def edit(self, edit: edits.Edit, label: Asked = None, **options: Any) -> Result:
        """The old name of `draw(edit, request)`; it will go with the next version."""
        warnings.warn("`edit` is `draw(edit, Request(...))` now, and will go", DeprecationWarning, stacklevel=2)
        return self.draw(edit, make_request(label, **options))

    def reconstruct(self, image: Picture, *, size: int | None = None) -> Reconstruction:
        """Encode a picture and decode it again: what the tokenizer can and cannot keep.

        Args:
            size: the longer side at which it is encoded, in pixels; if not given, the picture is padded to the square
                that the model draws.

        Raises:
            ImageError: a file cannot be read. ValueError: the size is out of range.
        """
        return reconstruct(
            opened(image).rgb,
            self.encode,
            self.decode,
            stride=self.stride,
            vocab_size=self.tokenizer.vocab_size,
            square=self.image_size,
            size=size,
        )

    def hole(self, image: Picture, mask: Mask, **options: Any) -> Hole:
        """Which tokens of `image` the painted `mask` asks to redraw; options and errors are those of `make_hole`."""
        return make_hole(opened(image), mask, self.grid, self.stride, **options)

    # Files.

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "emoji-64",
        *,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
    ) -> "Pipeline":
        """A bundled model by name, a directory, or a hub repository `owner/name`.

        Raises:
            ValueError: there is no such device or number format here, or compiling is not possible.
            ModelError: it is missing, incomplete, damaged, or made by a newer version.
        """
        directory = locate_model(name)
        parts = read_parts(directory)
        found = pick_device(device)
        machine = {"device": found, "dtype": pick_dtype(dtype, found)}
        if compile:
            require_compiler(found)
        try:
            return cls(**parts, **machine, compile=compile)
        except files.ModelError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise no_fit(directory, error) from error

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        half: bool = False,
        tokenizer_of: str | None = None,
        card: str | None = None,
        pictures=None,
    ):
        """Write a model directory, whole or not at all.

        Args:
            half: store weights as bf16, half the size.
            tokenizer_of: name of a model beside `directory` with the same tokenizer, which is then not stored twice.
            card: README.md of the model; a short one is written if not given.
            pictures: extra pictures {file name: PIL image} that the card shows.

        Raises:
            ValueError: `tokenizer_of` is no such name, or that model has another tokenizer.
        """
        directory = Path(directory)
        if tokenizer_of is not None:
            check_lender(directory, tokenizer_of)
        with writing.atomic_directory(directory) as temporary:
            about = write_parts(temporary, self, name=directory.name, dtype=torch.bfloat16 if half else None)
            if tokenizer_of is not None:
                lend_tokenizer(directory.parent / tokenizer_of, temporary)
            (temporary / "README.md").write_text(card or short_card(self, about), encoding="utf-8")
            for name, picture in (pictures or {}).items():
                picture.save(temporary / name)

    def push_to_hub(self, repository: str, **options) -> str:
        """Upload to a Hugging Face model repository; returns its address."""
        return files.push_to_hub(self.save_pretrained, repository, **options)


def opened(image: Picture) -> Original:
    """A picture as it is edited, or the one in a file; raises ImageError where that cannot be read."""
    return load_original(image) if isinstance(image, str | Path) else original_of(image)
