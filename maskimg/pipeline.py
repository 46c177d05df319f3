"""Pipeline = tokenizer + generator + critic: pictures from labels, and pictures from parts of pictures.

The only place where pictures, codes and the sampling loop meet; the command line, the browser demo and the batch
script all call it.
"""

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from maskimg import __version__
from maskimg.conditions import Label, LabelFields
from maskimg.data.codes import PICTURE
from maskimg.data.sources import text
from maskimg.drawing import edits
from maskimg.drawing.graphs import GraphedSampler
from maskimg.drawing.hole import Hole, make_hole
from maskimg.drawing.paint import Mask
from maskimg.drawing.reconstruction import Reconstruction, reconstruct
from maskimg.drawing.request import Asked, PromptReader, with_rest
from maskimg.hardware import autocast, compile_blocks, compile_fault, pick_device, pick_dtype
from maskimg.maskgit import MaskGit
from maskimg.network import Network
from maskimg.networks.architectures import read_network, write_network
from maskimg.networks.transformer import TokenCritic, TransformerConfig
from maskimg.networks.words import Words, read_words
from maskimg.noise import SEEDS
from maskimg.outputs import require_free, write_png
from maskimg.sampler import Sampler, make_presets
from maskimg.sampling import Step, first_features, sample_steps
from maskimg.values import WrongType, instance, shown, whole_number
from vqgan import Tokenizer, files, writing
from vqgan.colour import PictureWarning
from vqgan.images import to_pil, to_tensor
from vqgan.original import Original, load_original, original_of
from vqgan.tokenizer import share_tokenizer, tokenizer_checksum

FORMAT = 1
MOST = 2**16  # pictures of one call, and candidates of a picture
TOGETHER = 16  # pictures of a compiled loop on a CPU, always: fewer take as long
BUNDLED = Path(__file__).parent / "bundled"
Picture = Image.Image | Original | str | Path


@dataclasses.dataclass(frozen=True)
class Result:
    """Finished pictures, the codes (b, h, w) they were decoded from, and the recipe that draws each again."""

    images: list[Image.Image]
    codes: torch.Tensor
    recipes: list[dict[str, Any]]

    def save(self, directory: str | Path, *, force: bool = False) -> list[Path]:
        """Write each picture, with its recipe inside, as DIRECTORY/SEED.png.

        Raises:
            ValueError: one of them would replace a file that maskimg did not make, and `force` does not allow that;
                nothing is written.
        """
        directory = Path(directory)
        paths = [directory / f"{recipe['seed']:06d}.png" for recipe in self.recipes]
        for path, recipe in zip(paths, self.recipes, strict=True):
            require_free(path, task=recipe["task"], force=force)
        for image, recipe, path in zip(self.images, self.recipes, paths, strict=True):
            write_png(image, recipe, path, force=force)
        return paths


@dataclasses.dataclass(frozen=True)
class Preview:
    """The state after one step: what the demo shows while a picture is drawn.

    Attributes:
        step, steps: so many of so many.
        codes: (b, h, w), complete. scores: (b, h, w), higher = more certain. masked: (b, h, w), True = to be redrawn.
    """

    step: int
    steps: int
    codes: torch.Tensor
    scores: torch.Tensor
    masked: torch.Tensor


class Pipeline:
    """A finished model.

    Attributes:
        tokenizer, generator, critic: the networks; `critic` is None where the model has none.
        recipe: the model's own Sampler, used wherever none is given.
        presets: Samplers by name, `fast`, `balanced` and `best`; a name may be given wherever a Sampler may.
        labels: its label fields.
        words: what reads its prompts; None where it was trained without captions.
        source_tokenizer: of the pictures that it translates; its own, unless they have another.
        about: name, data, licence and measured quality, as in pipeline.json.
        compiled: the networks' blocks are compiled: seconds at the first picture, then two or three times as fast for
            many of one label. A CPU then draws sixteen at a time, and one costs as much. Rounding differs, and in bf16
            so does the picture of a seed; the recipe says which it was.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        net: Network | MaskGit,
        critic: TokenCritic | None = None,
        *,
        labels: Mapping[str, Sequence[str]] | None = None,
        words: Words | None = None,
        source_tokenizer: Tokenizer | None = None,
        recipe: Sampler = Sampler(),  # noqa: B008 (frozen)
        presets: Mapping[str, Sampler] | None = None,
        about: dict[str, Any] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        compile: bool = False,
    ):
        generator = net if isinstance(net, MaskGit) else MaskGit(net, token_critic=critic)
        if not isinstance(generator.net, Network) or not isinstance(generator.token_critic, TokenCritic | None):
            raise ValueError("a pipeline needs a Network and, if any, a TokenCritic: it writes them to files")
        if tokenizer.vocab_size != generator.mask_id:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} codes but the generator {generator.mask_id}")
        self.device = pick_device(device) if isinstance(device, str) else device
        self.dtype = pick_dtype(dtype, self.device) if isinstance(dtype, str) else dtype
        self.tokenizer = tokenizer.to(self.device).eval()
        self.generator = generator.to(self.device).eval()
        self._running: MaskGit | None = None
        if compile and (fault := compile_fault(self.device)):
            raise ValueError(f"compiling is not possible here, because {fault}: leave it out")
        self.compiled = compile
        self._graphed: GraphedSampler | None = None
        self.graphs = self.device.type == "cuda"  # record whole generations; switched off where that fails
        self.labels = LabelFields(labels or {}, required=not generator.net.has_null)
        if self.labels.sizes != generator.net.label_sizes:
            raise ValueError(
                f"the generator knows {generator.net.label_sizes} labels per field, but {self.labels.sizes} are named"
            )
        sources = {source.name: source for source in generator.net.sources}
        if words is not None and sources.get(words.source.name) != words.source:
            raise ValueError("the generator was not made for these words")
        self.words, self.source_tokenizer = words, (source_tokenizer or tokenizer).to(self.device).eval()
        self.reader = PromptReader(self.labels, words, list(sources))
        self.recipe, self.about = recipe, about or {}
        self.presets = {**make_presets(recipe, self.generator.has_critic), **(presets or {})}

    @property
    def net(self) -> Network:
        return cast(Network, self.generator.net)

    @property
    def critic(self) -> TokenCritic | None:
        return cast(TokenCritic | None, self.generator.token_critic)

    def sampler(self, sampler: Sampler | str | None) -> Sampler:
        """A preset by its name; a Sampler as it is; None is the model's recipe.

        Raises:
            WrongType: it is none of the three. ValueError: there is no preset of that name, or it asks for guidance
                that the model cannot give.
        """
        instance("sampler", sampler, (Sampler, str, type(None)), "a Sampler, the name of a preset or None")
        if isinstance(sampler, str):
            if sampler not in self.presets:
                raise ValueError(f"there is no preset {shown(sampler)}; there is {', '.join(self.presets)}")
            sampler = self.presets[sampler]
        sampler = sampler or self.recipe
        self.net.check_guidance(*(each for i in range(sampler.steps) for each in sampler.guidances_at(i).values()))
        self.reader.check_fields([name for name, _ in sampler.field_guidance])
        return sampler

    @property
    def grid(self) -> tuple[int, int]:
        return self.generator.grid

    @property
    def image_size(self) -> int:
        """Side of the model's pictures, in pixels."""
        return self.grid[0] * self.tokenizer.stride

    @property
    def name(self) -> str:
        return self.about.get("name", "unnamed")

    @property
    def example(self) -> dict[str, str]:
        """A label that the model draws well, to begin with; may be empty."""
        example = self.about.get("example")
        return example if isinstance(example, dict) else {}

    @property
    def running(self) -> MaskGit:
        """The generator with its weights in the number format that pictures are drawn in.

        A copy where that is not fp32: weights converted at every step would take longer than a small model's steps,
        and `generator` must stay exact for `save_pretrained`.
        """
        if self._running is None:
            same = self.dtype == torch.float32
            self._running = self.generator if same else copy.deepcopy(self.generator).to(self.dtype)
            if self.compiled:
                compile_blocks(self._running, self.device)
        return self._running

    # From labels and holes to pictures.

    def generate(
        self,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        towards: Label = None,
        share: float | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int = 1,
    ) -> Result:
        """Draw pictures.

        Args:
            label: a name of the first label field, `{field: name}`, or None for anything; or a whole Prompt.
            prompt, negative: in words, what they are to show, and what guidance moves away from. A PromptWarning tells
                of words that the model never saw.
            towards, share: another label, and how far from the first to it, 0 to 1; half-way if not given.
            seeds: image i of `count` uses (seeds + i) mod 2**32; or a list with one seed per image, of which `count`
                is then the length. A seed is a whole number from 0 to 2**32 - 1.
            count: one if not given.
            sampler: numbers of the loop, or the name of a preset.
            best_of: draw so many candidates of each picture and keep the one the critic believes most.

        Raises:
            WrongType: a value is of another type (a TypeError, and a ValueError).
            ValueError: the label does not exist, a number is out of range, or a critic is asked for that is not there.
        """
        asked = with_rest(label, prompt, negative, towards, share)
        self.reader.warn([asked])
        return self.draw(asked, seeds=expand_seeds(seeds, count), sampler=sampler, best_of=best_of)

    def draw(
        self, asked: Asked, *, seeds: int | Sequence[int], sampler: Sampler | str | None = None, best_of: int = 1
    ) -> Result:
        """`generate`, for those who have said already what its words are to the model."""
        seeds = expand_seeds(seeds)
        recipes = [self.recipe_for(asked, seed, sampler, best_of=best_of) for seed in seeds]
        return self._finish(self._draw(asked, seeds, sampler, best_of), recipes)

    def translate(
        self,
        image: Picture,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int = 1,
    ) -> Result:
        """Draw what a picture becomes: in colour, in another style, sharper; whatever the model was trained to do.

        Args:
            image: of any size; it is padded to the model's square, and the result is cut back to its shape.
            label, prompt, negative, sampler, best_of: as in `generate`.

        Raises:
            ImageError: a file cannot be read. ValueError: the model cannot translate, or as in `generate`.
        """
        edit, source = edits.translation(self, opened(image))
        asked = dataclasses.replace(with_rest(label, prompt, negative), source=source)
        self.reader.warn([asked])
        return self.edit(edit, asked, seeds=expand_seeds(seeds, count), sampler=sampler, best_of=best_of)

    @property
    def source_kind(self) -> str:
        """What the sources of a model that translates are: `grey`, `edges`, `lowres` or `folder`; empty if none."""
        return self.about.get("source", "folder") if PICTURE in self.reader.sources else ""

    def inpaint(
        self,
        image: Picture,
        mask: Mask,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int = 1,
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
            label, prompt, negative, sampler, best_of: as in `generate`.
            coverage, grow, feather: which tokens the paint reaches, and how their edge fades, as in `make_hole`.
            window: pixels of the picture along the side of the square that the model sees at a time; smaller than the
                picture, the model's grid slides over the hole. If not given, it sees the whole picture.

        Raises:
            ImageError: a file cannot be read. ValueError: nothing is painted, the sizes differ, a number is out of
                range, or as in `generate`.
        """
        options = {"coverage": coverage, "grow": grow, "feather": feather, "window": window}
        edit = edits.inpainting(self, opened(image), mask, **options)
        asked = with_rest(label, prompt, negative)
        self.reader.warn([asked])
        return self.edit(edit, asked, seeds=expand_seeds(seeds, count), sampler=sampler, best_of=best_of)

    def outpaint(
        self,
        image: Picture,
        margins: tuple[int, int, int, int],
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int = 1,
        window: int | None = None,
    ) -> Result:
        """Draw what lies around a picture; all its own pixels stay as they were, as in `inpaint`. Can be repeated.

        Args:
            margins: left, top, right and bottom, in tokens; each at most half of the model's grid.
            label, prompt, negative, sampler, best_of: as in `generate`.
            window: pixels of the picture along the side of the square that the model sees at a time. If not given, the
                picture's shorter side; or, of a file that was outpainted before, the same again.

        Raises:
            ImageError: a file cannot be read. ValueError: a number is out of range, or as in `generate`.
        """
        edit = edits.outpainting(self, opened(image), margins, window)
        asked = with_rest(label, prompt, negative)
        self.reader.warn([asked])
        return self.edit(edit, asked, seeds=expand_seeds(seeds, count), sampler=sampler, best_of=best_of)

    def variations(
        self,
        image: Picture,
        strength: float = 0.5,
        label: Asked = None,
        *,
        prompt: str | None = None,
        negative: str | None = None,
        mask: Mask | None = None,
        seeds: int | Sequence[int] = 0,
        count: int | None = None,
        sampler: Sampler | str | None = None,
        best_of: int = 1,
    ) -> Result:
        """Redraw a share of a picture's tokens, others for each seed.

        Args:
            strength: the share, above 0 and at most 1; with more, the same tokens and further ones.
            mask: white or True where tokens may change; the pixels of all others stay, at the picture's own size and in
                its mode, as in `inpaint`. Without a mask the whole picture is decoded, at the model's size, in RGB.
            label, prompt, negative, sampler, best_of: as in `generate`.

        Raises:
            ImageError: a file cannot be read. ValueError: the strength is out of range, nothing is painted, the sizes
                differ, or as in `generate`.
        """
        seeds = expand_seeds(seeds, count)
        edit = edits.variation(self, opened(image), strength, seeds, mask)
        asked = with_rest(label, prompt, negative)
        self.reader.warn([asked])
        return self.edit(edit, asked, seeds=seeds, sampler=sampler, best_of=best_of)

    def edit(
        self,
        edit: "edits.Edit",
        label: Asked = None,
        *,
        seeds: Sequence[int],
        sampler: Sampler | str | None = None,
        best_of: int = 1,
    ) -> Result:
        """Draw what an edit asks for; `editing.draw_steps` does the same step by step."""
        instance("edit", edit, edits.Edit, "an Edit, as those that `maskimg.drawing.edits` makes")
        seeds, options = expand_seeds(seeds), {"sampler": sampler, "best_of": best_of}
        if edit.hole and edit.hole.note:
            warnings.warn(edit.hole.note, PictureWarning, stacklevel=3)
        recipes = [self.recipe_for(label, seed, task=edit.task, **options) | edit.numbers for seed in seeds]
        *_, last = edits.draw_steps(self, edit, label, seeds, complete=False, **options)
        return Result(edit.finish(self.decode(last.codes)), last.codes, recipes)

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
            stride=self.tokenizer.stride,
            vocab_size=self.tokenizer.vocab_size,
            square=self.image_size,
            size=size,
        )

    def steps(
        self,
        label: Asked = None,
        *,
        codes: torch.Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        sampler: Sampler | str | None = None,
        complete: bool = True,
    ) -> Iterator[Preview]:
        """Like `generate`, but yields after every step; `codes` (b, h, w) with MASK where something is to be drawn.

        Args:
            complete: show in each step what is predicted for tokens that stay masked; else those are MASK.
        """
        sampler = self.sampler(sampler)
        if sampler.order == "critic" and not self.generator.has_critic:
            raise ValueError("this model has no critic: choose another order (confidence, halton, random or moment)")
        chosen = torch.tensor(read_seeds(seeds, 2**63), device=self.device)  # with the numbers of candidates and places
        if codes is None:
            codes = torch.full((len(chosen), *self.grid), self.generator.mask_id)
        self._check_grids(codes, self.generator.mask_id)
        if len(codes) != len(chosen):
            raise ValueError(f"expected one seed for each of {len(codes)} grids, got {len(chosen)}")
        codes = codes.to(self.device)
        condition = self.reader.condition(label, len(chosen)).to(self.device)

        # On a CPU each image has a loop of its own, so that not even rounding depends on the others, or is one of as
        # many as ever, which comes to the same. On a GPU that would cost nearly all the speed.
        alike = bool((codes == self.generator.mask_id).all())
        size = 1 if self.device.type == "cpu" else max(1, len(chosen))
        if self.compiled and self.device.type == "cpu" and alike:
            size = TOGETHER
        count = len(chosen)
        if count % size:  # fill the last loop up
            filled = torch.arange(count + -count % size).clamp(max=count - 1)
            codes, chosen, condition = codes[filled], chosen[filled], condition.rows(filled)
        rows = [condition.rows(slice(start, start + size)) for start in range(0, len(chosen), size)]
        first, loops = None, []
        if alike:  # then all images begin alike
            first = first_features(self.running, rows[0], sampler, codes[:size])
        for part, row, seed in zip(codes.split(size), rows, chosen.split(size), strict=True):
            loops.append(sample_steps(self.running, part, row, sampler, seed, complete=complete, first=first))
        states: list[Step | None] = [None] * len(loops)
        for i in range(sampler.steps):
            now = [next(loop, None) for loop in loops]
            if not any(now):
                return
            # An image with few tokens to draw may be finished before the others.
            states = [new or old for new, old in zip(now, states, strict=True)]
            whole = [
                state or Step(part, torch.zeros(part.shape, device=self.device), part == self.generator.mask_id)
                for state, part in zip(states, codes.split(size), strict=True)
            ]
            step = Step(*(torch.cat(parts)[:count] for parts in zip(*whole, strict=True)))
            yield Preview(i + 1, sampler.steps, *step)

    # Pieces, for those who draw step by step.

    def recipe_for(
        self,
        label: Asked,
        seed: int,
        sampler: Sampler | str | None = None,
        *,
        task: str = "generate",
        best_of: int = 1,
    ) -> dict[str, Any]:
        """What is written into the PNG of one seed; its errors are those of `generate`."""
        self.check_candidates(best_of)
        recipe = {
            "version": __version__,
            "model": self.name,
            "model_sha256": self.about.get("manifest_sha256"),
            "task": task,
            **self.reader.told(label),
            "seed": whole_number("seed", seed, 0, SEEDS - 1),
            "sampler": self.sampler(sampler).numbers(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if self.compiled:
            recipe["compiled"] = True
        return recipe | {"best_of": int(best_of)} if best_of > 1 else recipe

    def encode(self, image: Image.Image) -> torch.Tensor:
        """A picture, of the model's size or any other that the stride divides -> codes (1, h, w)."""
        return self.tokenizer.encode(to_tensor(image)[None].to(self.device))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) -> images (b, 3, H, W) in [-1, 1]. One at a time, so that no picture depends on another."""
        instance("codes", codes, torch.Tensor, "a tensor (b, h, w)")
        with autocast(self.device, self.dtype):
            images = torch.cat([self.tokenizer.decode(one[None]) for one in codes.to(self.device)])
        self._require_finite(images, "pictures")
        return images

    def hole(self, image: Picture, mask: Mask, **options: Any) -> Hole:
        """Which tokens of `image` the painted `mask` asks to redraw; options and errors are those of `make_hole`."""
        return make_hole(opened(image), mask, self.grid, self.tokenizer.stride, **options)

    def _require_finite(self, numbers: torch.Tensor, what: str) -> None:
        """Raises ValueError where a network computed NaN or infinity, of which a picture could be made all the same."""
        if not bool(numbers.isfinite().all()):
            plain = self.dtype == torch.float32
            raise ValueError(
                f"the model's {what} are not finite in {'fp32' if plain else 'bf16'}: "
                + ("it has to be trained again" if plain else "try dtype `fp32`, or train it again")
            )

    def check_candidates(self, best_of: int) -> None:
        """Raises WrongType or ValueError where so many candidates cannot be drawn or compared."""
        if whole_number("best_of", best_of, 1) > MOST:
            raise ValueError(f"best_of must be at most {MOST}, got {shown(best_of)}")
        if best_of > 1 and not self.generator.has_critic:
            raise ValueError("best_of needs a critic, and this model has none")

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
            ValueError: there is no such device or number format here.
            ModelError: it is missing, incomplete, damaged, or made by a newer version.
        """
        directory = locate_model(name)
        files.verify(directory)
        about = files.read_json(directory / "pipeline.json")
        if about.get("format") != FORMAT:
            raise files.ModelError(
                f"`{directory}` has format {about.get('format')}, this version reads {FORMAT}: upgrade maskimg"
            )
        about["manifest_sha256"] = files.checksum(directory / files.MANIFEST)
        device_found, dtype_found = pick_device(device), pick_dtype(dtype, pick_device(device))
        try:
            net = read_network(directory / "generator")
            critic = None
            if files.has_part(directory, "critic"):
                critic = TokenCritic(files.read_config(directory / "critic", TransformerConfig))
                files.read_weights(directory / "critic", critic)
            heads = about.get("heads", [])
            generator = MaskGit(
                net, token_critic=critic, self_cond="self_cond" in heads, self_token_critic="self_critic" in heads
            )
            if heads:
                files.read_weights(directory / "heads", generator.heads)
            other = files.has_part(directory, "source_tokenizer")
            return cls(
                Tokenizer.from_directory(directory / "tokenizer"),
                generator,
                labels=about["labels"],
                words=read_words(about.get("words")),
                source_tokenizer=Tokenizer.from_directory(directory / "source_tokenizer") if other else None,
                recipe=Sampler(**about["recipe"]),
                presets={name: Sampler(**numbers) for name, numbers in about.get("presets", {}).items()},
                about=about,
                device=device_found,
                dtype=dtype_found,
                compile=compile,
            )
        except files.ModelError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise files.ModelError(
                f"`{directory}` does not fit this version ({error}): upgrade maskimg, or download it again"
            ) from error

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
        """
        dtype = torch.bfloat16 if half else None
        useless = ("", "..", Path(directory).name)
        if tokenizer_of is not None and (tokenizer_of in useless or Path(tokenizer_of).name != tokenizer_of):
            raise ValueError(f"tokenizer_of must be the name of another model beside this one, got `{tokenizer_of}`")
        with writing.atomic_directory(directory) as temporary:
            self.tokenizer.write(temporary / "tokenizer", dtype)
            if tokenizer_of is not None:
                _lend(Path(directory).parent / tokenizer_of, temporary)
            if self.source_tokenizer is not self.tokenizer:
                self.source_tokenizer.write(temporary / "source_tokenizer", dtype)
            write_network(temporary / "generator", self.net, dtype)
            if self.critic is not None:
                files.write_module(temporary / "critic", dataclasses.asdict(self.critic.config), self.critic, dtype)
            heads = list(self.generator.heads)
            if heads:
                files.write_module(temporary / "heads", {"heads": heads}, self.generator.heads, dtype)
            about = {key: value for key, value in self.about.items() if key != "manifest_sha256"}
            about |= {
                "format": FORMAT,
                "name": text(about.get("name", Path(directory).name)),
                "labels": {field: list(names) for field, names in self.labels.names.items()},
                "words": self.words.numbers if self.words else None,
                "recipe": self.recipe.numbers(),
                "presets": {name: sampler.numbers() for name, sampler in self.presets.items()},
                "heads": heads,
                "image_size": self.image_size,
                "versions": {"maskimg": __version__, "torch": torch.__version__},
            }
            files.write_json(temporary / "pipeline.json", about)
            (temporary / "README.md").write_text(card or self._card(about), encoding="utf-8")
            for name, picture in (pictures or {}).items():
                picture.save(temporary / name)

    def push_to_hub(self, repository: str, **options) -> str:
        """Upload to a Hugging Face model repository; returns its address."""
        return files.push_to_hub(self.save_pretrained, repository, **options)

    def _card(self, about: dict[str, Any]) -> str:
        fields = "".join(f"- {field}: {', '.join(names)}\n" for field, names in about["labels"].items())
        sentence = about.get("memorisation", {}).get("in_words")
        learnt = f"Learnt by heart? {sentence}.\n\n" if sentence else ""
        words = f"Prompts: {self.words.told}.\n\n" if self.words else ""
        source = f"Translates pictures: {self.source_kind}.\n\n" if self.source_kind else ""
        return (
            f"# {about['name']}\n\nA maskimg model: {self.image_size} pixels, {self.grid[0]}x{self.grid[1]} tokens, "
            f"{self.tokenizer.vocab_size} codes.\n\n    maskimg demo --model {about['name']}\n\n"
            f"Labels:\n\n{fields or '- none'}\n\n{words}{source}{learnt}"
            "Training and measured quality: see pipeline.json.\n"
        )

    def _draw(self, asked: Asked, seeds: list[int], sampler: Sampler | str | None, best_of: int) -> torch.Tensor:
        """Codes (b, h, w), one grid a seed, drawn from nothing."""
        self.check_candidates(best_of)
        found = []
        for candidate in range(best_of):  # numbered in the upper half of the seed; the first is the plain picture
            numbered = [seed + candidate * SEEDS for seed in seeds]
            drawn = self._draw_graphed(asked, numbered, self.sampler(sampler))
            if drawn is None:
                *_, last = self.steps(asked, seeds=numbered, sampler=sampler, complete=False)
                drawn = last.codes
            found.append(drawn)
        return found[0] if best_of == 1 else self.most_believed(asked, found)

    def _check_grids(self, codes: torch.Tensor, highest: int) -> None:
        instance("codes", codes, torch.Tensor, f"grids (b, h, w) of {self.grid} codes")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise WrongType(f"codes must be integers, got {codes.dtype}")
        if codes.ndim != 3 or tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"expected grids (b, h, w) of {self.grid} codes, got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= highest:
            raise ValueError(f"expected codes in [0, {highest}], got {int(codes.min())} to {int(codes.max())}")

    def _draw_graphed(self, label: Asked, seeds: list[int], sampler: Sampler) -> torch.Tensor | None:
        """All-MASK grids drawn by a CUDA graph; None where there can be none."""
        if not self.graphs or (sampler.order == "critic" and not self.generator.has_critic):
            return None
        condition = self.reader.condition(label, len(seeds)).to(self.device)
        self._graphed = self._graphed or GraphedSampler(self.running)
        try:
            return self._graphed(condition, sampler, torch.tensor(seeds, device=self.device))
        except RuntimeError as error:
            self.graphs = False
            warnings.warn(
                f"this GPU cannot record CUDA graphs, so each step is launched on its own ({error})", stacklevel=2
            )
            return None

    def most_believed(self, label: Asked, candidates: list[torch.Tensor]) -> torch.Tensor:
        """Of several grids (b, h, w) for each image, those that the critic doubts least on the whole."""
        doubts = torch.stack([self.doubts(label, codes).mean((1, 2)) for codes in candidates])  # (candidates, b)
        return torch.stack(candidates)[doubts.argmin(0), torch.arange(doubts.shape[1], device=doubts.device)]

    def doubts(self, label: Asked, codes: torch.Tensor) -> torch.Tensor:
        """The critic's opinion of complete codes (b, h, w): (b, h, w), high where a token looks wrong.

        Raises:
            ValueError: the model has no critic.
        """
        self._check_grids(codes, self.generator.mask_id - 1)
        condition = self.reader.condition(label).to(self.device)
        with torch.no_grad():  # one at a time, so that no picture's rank depends on the others
            each = [self.running.critic_logits(codes[i : i + 1], condition) for i in range(len(codes))]
        doubts = torch.cat(each).float()
        self._require_finite(doubts, "doubts")
        return doubts

    def _finish(self, codes: torch.Tensor, recipes: list[dict[str, Any]]) -> Result:
        return Result([to_pil(image) for image in self.decode(codes)], codes, recipes)


def _lend(lender: Path, directory: Path) -> None:
    """Replace the tokenizer in the unfinished model `directory` by a note that it is that of the model `lender`."""
    files.verify(lender)
    if tokenizer_checksum(lender) != tokenizer_checksum(directory):
        raise ValueError(f"`{lender}` has another tokenizer, or in another precision: leave `tokenizer_of` out")
    for part in (directory / "tokenizer").iterdir():
        part.unlink()
    share_tokenizer(directory / "tokenizer", lender)


def bundled_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(path.name for path in BUNDLED.glob("*") if (path / files.MANIFEST).is_file())


def locate_model(name: str | Path) -> Path:
    """The directory of a bundled model, or as `files.locate` finds it.

    Raises:
        ModelError: there is none.
    """
    return BUNDLED / name if isinstance(name, str) and name in bundled_models() else files.locate(name)


def expand_seeds(seeds: int | Sequence[int], count: int | None = None) -> list[int]:
    """One seed and a count (1 if not given) -> consecutive seeds mod 2**32; a list of seeds stays as it is.

    Raises:
        WrongType: a seed or the count is no whole number. ValueError: one is out of range, or the count is another one
            than that of the seeds.
    """
    found = read_seeds(seeds)
    if count is None:
        return found
    if whole_number("count", count, 1) > MOST:
        raise ValueError(
            f"count must be at most {MOST} in one call, got {shown(count)}: draw the rest by further calls"
        )
    if _is_one(seeds):
        return [(found[0] + i) % SEEDS for i in range(int(count))]
    if count != len(found):
        raise ValueError(f"count is {count}, but there are {len(found)} seeds: leave count out, or give one seed")
    return found


def read_seeds(seeds: int | Sequence[int], end: int = SEEDS) -> list[int]:
    """One seed, or several as a list, an array or a tensor (b,) -> a list of whole numbers from 0 to below `end`.

    Raises:
        WrongType: one is no whole number. ValueError: one is out of range, or there is none.
    """
    if _is_one(seeds):
        return [whole_number("seeds", seeds, 0, end - 1)]
    several = getattr(seeds, "ndim", 1) == 1
    if not several or isinstance(seeds, Mapping) or not isinstance(seeds, Sequence | np.ndarray | torch.Tensor):
        raise WrongType(f"seeds must be a whole number or a list of them, got {shown(seeds)}")
    if not len(seeds):
        raise ValueError("give at least one seed")
    return [whole_number("each of the seeds", seed, 0, end - 1) for seed in seeds]


def _is_one(seeds: Any) -> bool:
    """Whether it is to be one seed; a string is no list of them."""
    return isinstance(seeds, str | bytes | int | float) or getattr(seeds, "ndim", None) == 0


def opened(image: Picture) -> Original:
    """A picture as it is edited, or the one in a file; raises ImageError where that cannot be read."""
    return load_original(image) if isinstance(image, str | Path) else original_of(image)
