"""Pipeline = tokenizer + generator + critic: pictures from labels, and pictures with a hole from pictures.

The only place where pictures, codes and the sampling loop meet; the command line, the browser demo and the batch
script all call it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from maskimg import __version__
from maskimg.conditions import Label, LabelFields
from maskimg.evaluate import psnr
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.hole import Hole, Mask, painted_pixels, tokens_along, tokens_to_redraw
from maskimg.maskgit import MaskGit
from maskimg.noise import SEEDS
from maskimg.recipe import write_png
from maskimg.sampling import Sampler, sample_steps
from maskimg.transformer import MaskedTransformer, TokenCritic, TransformerConfig
from vqgan import Tokenizer, files, load_image
from vqgan.images import pad_square, to_pil, to_tensor

FORMAT = 1
BUNDLED = Path(__file__).parent / "models"


@dataclasses.dataclass(frozen=True)
class Result:
    """Finished pictures, the codes (b, h, w) they were decoded from, and the recipe that draws each again."""

    images: list[Image.Image]
    codes: torch.Tensor
    recipes: list[dict[str, Any]]

    def save(self, directory: str | Path) -> list[Path]:
        """Write each picture, with its recipe inside, as DIRECTORY/SEED.png."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{recipe['seed']:06d}.png" for recipe in self.recipes]
        for image, recipe, path in zip(self.images, self.recipes, paths, strict=True):
            write_png(image, recipe, path)
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


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture after the round trip through the tokenizer, at the model's size, and how close it came."""

    original: Image.Image
    image: Image.Image
    codes: torch.Tensor
    psnr_db: float


class OneByOne:
    """A model that is run on one image at a time, so that not even bf16 rounding depends on the batch.

    On a CPU this costs between a quarter and a third of the speed of a large batch; on a GPU it would cost nearly all.
    """

    def __init__(self, model: MaskGit):
        self.model, self.mask_id = model, model.mask_id

    def logits(self, codes: torch.Tensor, condition: torch.Tensor | None, guidance: float) -> torch.Tensor:
        return self._each(lambda code, label: self.model.logits(code, label, guidance), codes, condition)

    def critic_logits(self, codes: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        return self._each(self.model.critic_logits, codes, condition)

    def _each(self, run: Callable, codes: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        rows = codes.split(1)
        labels = condition.split(1) if condition is not None else [None] * len(rows)
        return torch.cat([run(row, label) for row, label in zip(rows, labels, strict=True)])


class Pipeline:
    """A finished model.

    Attributes:
        tokenizer, generator, critic: the networks; `critic` is None where the model has none.
        recipe: the model's own Sampler, used wherever none is given.
        labels: its label fields.
        about: name, data, licence and measured quality, as in pipeline.json.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        net: MaskedTransformer,
        critic: TokenCritic | None = None,
        *,
        labels: Mapping[str, Sequence[str]] | None = None,
        recipe: Sampler = Sampler(),  # noqa: B008 (frozen)
        about: dict[str, Any] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ):
        if tokenizer.vocab_size != net.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} codes but the generator {net.vocab_size}")
        self.device = pick_device(device) if isinstance(device, str) else device
        self.dtype = pick_dtype(dtype, self.device) if isinstance(dtype, str) else dtype
        self.tokenizer = tokenizer.to(self.device).eval()
        self.generator = MaskGit(net, token_critic=critic).to(self.device).eval()
        self.labels = LabelFields(labels or {})
        if self.labels.sizes != net.label_sizes:
            raise ValueError(
                f"the generator knows {net.label_sizes} labels per field, but {self.labels.sizes} are named"
            )
        self.recipe, self.about = recipe, about or {}

    @property
    def critic(self) -> TokenCritic | None:
        return self.generator.token_critic

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

    # From labels and holes to pictures.

    def generate(
        self,
        label: Label = None,
        *,
        seeds: int | Sequence[int] = 0,
        count: int = 1,
        sampler: Sampler | None = None,
    ) -> Result:
        """Draw pictures.

        Args:
            label: a name of the first label field, `{field: name}`, or None for anything.
            seeds: image i of `count` uses (seeds + i) mod 2**32; or a list with one seed per image.

        Raises:
            ValueError: the label does not exist, or the sampler asks for a critic that is not there.
        """
        seeds = expand_seeds(seeds, count)
        recipes = [self.recipe_for(label, seed, sampler) for seed in seeds]
        return self._finish(self._last(self.steps(label, seeds=seeds, sampler=sampler)), recipes)

    def inpaint(
        self,
        image: Image.Image | str | Path,
        mask: Mask,
        label: Label = None,
        *,
        seeds: int | Sequence[int] = 0,
        count: int = 1,
        sampler: Sampler | None = None,
        coverage: float = 0.0,
        grow: int = 1,
    ) -> Result:
        """Redraw the painted part of a picture of any size; every pixel outside the redrawn tokens stays as it was.

        Args:
            mask: white (above 127) or True where to redraw; as large as the picture.
            coverage, grow: which tokens the paint reaches, as in `token_mask`.

        Raises:
            ImageError: a file cannot be read. ValueError: nothing is painted, the sizes differ, or as in `generate`.
        """
        hole = self.hole(image, mask, coverage=coverage, grow=grow)
        seeds = expand_seeds(seeds, count)
        recipes = [
            self._recipe_of("inpaint", label, seed, sampler, tokens_redrawn=int(hole.tokens.sum())) for seed in seeds
        ]
        codes = self._last(self.steps(label, codes=hole.codes.expand(len(seeds), -1, -1), seeds=seeds, sampler=sampler))
        result = self._finish(codes, recipes)
        return dataclasses.replace(result, images=[hole.paste(drawn) for drawn in result.images])

    def reconstruct(self, image: Image.Image | str | Path) -> Reconstruction:
        """Encode a picture (padded to a square) and decode it again: what the tokenizer can and cannot keep."""
        square, box = pad_square(opened(image), self.image_size)
        codes = self.encode(square)
        restored = self.decode(codes)
        closeness = psnr(restored.cpu(), to_tensor(square)[None]).item()
        return Reconstruction(square.crop(box), to_pil(restored[0]).crop(box), codes, closeness)

    def steps(
        self,
        label: Label = None,
        *,
        codes: torch.Tensor | None = None,
        seeds: int | Sequence[int] = 0,
        sampler: Sampler | None = None,
    ) -> Iterator[Preview]:
        """Like `generate`, but yields after every step; `codes` (b, h, w) with MASK where something is to be drawn."""
        sampler = sampler or self.recipe
        if sampler.order == "critic" and not self.generator.has_critic:
            raise ValueError("this model has no critic: choose another order (confidence, halton or random)")
        seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        if codes is None:
            codes = torch.full((len(seeds), *self.grid), self.generator.mask_id)
        condition = self.labels.encode(label, len(seeds))
        condition = condition.to(self.device) if condition is not None else None
        model = OneByOne(self.generator) if self.device.type == "cpu" else self.generator
        loop = sample_steps(model, codes.to(self.device), condition, sampler, torch.tensor(seeds, device=self.device))
        for i in range(sampler.steps):
            # The context is entered per step: a generator must not leave autocast on while its caller runs.
            with autocast(self.device, self.dtype):
                step = next(loop, None)
            if step is None:
                return
            yield Preview(i + 1, sampler.steps, *step)

    # Pieces, for those who draw step by step.

    def recipe_for(self, label: Label, seed: int, sampler: Sampler | None = None) -> dict[str, Any]:
        """What `generate` writes into the PNG of one seed."""
        return self._recipe_of("generate", label, seed, sampler)

    def encode(self, image: Image.Image) -> torch.Tensor:
        """A picture of the model's size -> codes (1, h, w)."""
        return self.tokenizer.encode(to_tensor(image)[None].to(self.device))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) -> images (b, 3, H, W) in [-1, 1]. One at a time, so that no picture depends on another."""
        with autocast(self.device, self.dtype):
            return torch.cat([self.tokenizer.decode(one[None]) for one in codes.to(self.device)])

    def hole(
        self,
        image: Image.Image | str | Path,
        mask: Mask,
        *,
        coverage: float = 0.0,
        grow: int = 1,
    ) -> Hole:
        """Which tokens of `image` the painted `mask` asks to redraw; raises as `inpaint` does."""
        image = opened(image)
        painted = painted_pixels(mask, image.size)
        square, box = pad_square(image, self.image_size)
        rows = tokens_along(image.height, box[1], box[3], self.tokenizer.stride)
        columns = tokens_along(image.width, box[0], box[2], self.tokenizer.stride)
        tokens = tokens_to_redraw(painted, rows, columns, self.grid, coverage=coverage, grow=grow)
        codes = self.encode(square)
        masked = codes.masked_fill(tokens.to(codes.device), self.generator.mask_id)
        return Hole(image, box, masked, tokens, rows, columns)

    # Files.

    @classmethod
    def from_pretrained(cls, name: str | Path = "emoji-64", *, device: str = "auto", dtype: str = "auto") -> "Pipeline":
        """A bundled model by name, a directory, or a hub repository `owner/name`.

        Raises:
            ModelError: it is missing, incomplete, damaged, or made by a newer version.
        """
        bundled = BUNDLED / str(name)
        directory = bundled if str(name) in bundled_models() else files.locate(name)
        files.verify(directory)
        about = files.read_json(directory / "pipeline.json")
        if about.get("format") != FORMAT:
            raise files.ModelError(
                f"`{directory}` has format {about.get('format')}, this version reads {FORMAT}: upgrade maskimg"
            )
        about["manifest_sha256"] = files.checksum(directory / files.MANIFEST)
        device_found, dtype_found = pick_device(device), pick_dtype(dtype, pick_device(device))
        try:
            net = MaskedTransformer(files.read_config(directory / "generator", TransformerConfig))
            files.read_weights(directory / "generator", net)
            critic = None
            if (directory / "critic").is_dir():
                critic = TokenCritic(files.read_config(directory / "critic", TransformerConfig))
                files.read_weights(directory / "critic", critic)
            return cls(
                Tokenizer.from_directory(directory / "tokenizer"),
                net,
                critic,
                labels=about["labels"],
                recipe=Sampler(**about["recipe"]),
                about=about,
                device=device_found,
                dtype=dtype_found,
            )
        except files.ModelError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise files.ModelError(
                f"`{directory}` does not fit this version ({error}): upgrade maskimg, or download it again"
            ) from error

    def save_pretrained(self, directory: str | Path, *, half: bool = False, card: str | None = None, pictures=None):
        """Write a model directory, whole or not at all.

        Args:
            half: store weights as bf16, half the size.
            card: README.md of the model; a short one is written if not given.
            pictures: extra pictures {file name: PIL image} that the card shows.
        """
        dtype = torch.bfloat16 if half else None
        with files.atomic_directory(directory) as temporary:
            files.write_module(
                temporary / "tokenizer", dataclasses.asdict(self.tokenizer.config), self.tokenizer, dtype
            )
            net = self.generator.net
            files.write_module(temporary / "generator", dataclasses.asdict(net.config), net, dtype)
            if self.critic is not None:
                files.write_module(temporary / "critic", dataclasses.asdict(self.critic.config), self.critic, dtype)
            about = {key: value for key, value in self.about.items() if key != "manifest_sha256"}
            about |= {
                "format": FORMAT,
                "name": about.get("name", Path(directory).name),
                "labels": {field: list(names) for field, names in self.labels.names.items()},
                "recipe": dataclasses.asdict(self.recipe),
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
        return (
            f"# {about['name']}\n\nA maskimg model: {self.image_size} pixels, {self.grid[0]}x{self.grid[1]} tokens, "
            f"{self.tokenizer.vocab_size} codes.\n\n    maskimg demo --model {about['name']}\n\n"
            f"Labels:\n\n{fields or '- none'}\n\nTraining and measured quality: see pipeline.json.\n"
        )

    def _last(self, previews: Iterator[Preview]) -> torch.Tensor:
        codes = None
        for preview in previews:
            codes = preview.codes
        if codes is None:
            raise ValueError("there is nothing to draw: no token is masked")
        return codes

    def _finish(self, codes: torch.Tensor, recipes: list[dict[str, Any]]) -> Result:
        return Result([to_pil(image) for image in self.decode(codes)], codes, recipes)

    def _recipe_of(self, task: str, label: Label, seed: int, sampler: Sampler | None, **extra: Any) -> dict[str, Any]:
        return {
            "version": __version__,
            "model": self.name,
            "model_sha256": self.about.get("manifest_sha256"),
            "task": task,
            "label": (self.labels.decode(self.labels.encode(label)) or [{}])[0],
            "seed": seed,
            "sampler": dataclasses.asdict(sampler or self.recipe),
            "dtype": str(self.dtype).removeprefix("torch."),
            **extra,
        }


def bundled_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(path.name for path in BUNDLED.glob("*") if (path / files.MANIFEST).is_file())


def expand_seeds(seeds: int | Sequence[int], count: int) -> list[int]:
    """One seed and a count -> consecutive seeds mod 2**32; a list stays as it is.

    Raises:
        ValueError: count is not positive.
    """
    if not isinstance(seeds, int):
        return [int(seed) % SEEDS for seed in seeds]
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    return [(seeds + i) % SEEDS for i in range(count)]


def opened(image: Image.Image | str | Path) -> Image.Image:
    """A picture, or the picture in a file; raises ImageError where that cannot be read."""
    return image if isinstance(image, Image.Image) else load_image(image)
