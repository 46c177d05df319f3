"""A finished model: its networks on a device, and what its labels, words, pictures and presets mean.

Shapes: b images, h w tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image

from maskimg.conditions import LabelFields
from maskimg.data.codes import PICTURE
from maskimg.data.source_pictures import transform
from maskimg.drawing.request import Request, RequestReader
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.maskgit import MaskGit
from maskimg.network import Network
from maskimg.networks.transformer import TokenCritic
from maskimg.networks.words import Words
from maskimg.sampler import ORDERS, Sampler, make_presets
from maskimg.values import WrongType, instance, shown
from vqgan import Tokenizer
from vqgan.images import to_tensor


class Model:
    """A tokenizer, a generator and (if any) a critic that belong together.

    Attributes:
        tokenizer, generator, critic: the networks; `critic` is None where the model has none.
        recipe: the model's own Sampler, used wherever none is given.
        presets: Samplers by name, `fast`, `balanced` and `best`; a name may be given wherever a Sampler may.
        labels: its label fields.
        words: what reads its prompts; None where it was trained without captions.
        source_tokenizer: of the pictures that it translates; its own, unless they have another.
        about: name, data, licence and measured quality, as in pipeline.json.
    """

    # What a finished model consists of: nothing of it can be left to somebody else.
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
        self.labels = LabelFields(labels or {}, required=not generator.net.has_null)
        if self.labels.sizes != generator.net.label_sizes:
            raise ValueError(
                f"the generator knows {generator.net.label_sizes} labels per field, but {self.labels.sizes} are named"
            )
        sources = {source.name: source for source in generator.net.sources}
        if words is not None and sources.get(words.source.name) != words.source:
            raise ValueError("the generator was trained with other words")
        self.words, self.source_tokenizer = words, (source_tokenizer or tokenizer).to(self.device).eval()
        self.reader = RequestReader(self.labels, words, list(sources))
        self.recipe, self.about = recipe, about or {}
        self.presets = {**make_presets(recipe, self.generator.has_critic), **(presets or {})}

    @property
    def net(self) -> Network:
        return cast(Network, self.generator.net)

    @property
    def critic(self) -> TokenCritic | None:
        return cast(TokenCritic | None, self.generator.token_critic)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (h, w) of a picture."""
        return self.generator.grid

    @property
    def mask_id(self) -> int:
        """The code that stands for MASK."""
        return self.generator.mask_id

    @property
    def stride(self) -> int:
        """Pixels per token side."""
        return self.tokenizer.stride

    @property
    def image_size(self) -> int:
        """Side of the model's pictures, in pixels."""
        return self.grid[0] * self.stride

    @property
    def name(self) -> str:
        return self.about.get("name", "unnamed")

    @property
    def example(self) -> dict[str, str]:
        """A label that the model draws well, to begin with; may be empty."""
        example = self.about.get("example")
        return example if isinstance(example, dict) else {}

    @property
    def source_kind(self) -> str:
        """What the input pictures of a model that translates are: `grey`, `edges`, `lowres` or `folder`; else empty."""
        return self.about.get("source", "folder") if PICTURE in self.reader.sources else ""

    # What a request asks of it.

    def sampler(self, sampler: Sampler | str | None) -> Sampler:
        """A preset by its name; a Sampler as it is; None is the model's recipe.

        Raises:
            WrongType: it is none of the three. ValueError: there is no preset of that name, or it asks for guidance
                that the model cannot give.
        """
        instance("sampler", sampler, (Sampler, str, type(None)), "a Sampler, the name of a preset or None")
        if isinstance(sampler, str):
            if sampler not in self.presets:
                raise ValueError(f"there is no preset {shown(sampler)}: choose {', '.join(self.presets)}")
            sampler = self.presets[sampler]
        sampler = sampler or self.recipe
        self.net.check_guidance(*(each for i in range(sampler.steps) for each in sampler.guidances_at(i).values()))
        self.reader.check_fields([name for name, _ in sampler.field_guidance])
        return sampler

    def check_critic(self, request: Request) -> None:
        """Raises ValueError where a request needs a critic and the model has none."""
        if self.generator.has_critic:
            return
        if request.best_of > 1:
            raise ValueError("best_of needs a critic, and this model has none")
        if self.sampler(request.sampler).order == "critic":
            others = [order for order in ORDERS if order != "critic"]
            raise ValueError(
                f"this model has no critic: choose another order ({', '.join(others[:-1])} or {others[-1]})"
            )

    # Pictures <-> codes.

    def encode(self, image: Image.Image) -> torch.Tensor:
        """A picture, of the model's size or any other that the stride divides -> codes (1, h, w)."""
        return self.tokenizer.encode(to_tensor(image)[None].to(self.device))

    def encode_input(self, image: Image.Image) -> torch.Tensor:
        """A picture to translate, of the model's size -> codes (1, h, w) of what the model translates from.

        Raises:
            ValueError: the model was trained without input pictures.
        """
        if not self.source_kind:
            raise ValueError("this model was trained without source pictures, so it cannot translate one")
        return self.source_tokenizer.encode(transform(self.source_kind, to_tensor(image)[None]).to(self.device))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) -> images (b, 3, H, W) in [-1, 1]. One at a time, so that no picture depends on another."""
        instance("codes", codes, torch.Tensor, "a tensor (b, h, w)")
        with autocast(self.device, self.dtype):
            images = torch.cat([self.tokenizer.decode(one[None]) for one in codes.to(self.device)])
        self.require_finite(images, "pictures")
        return images

    def check_codes(self, codes: torch.Tensor, highest: int) -> None:
        """Raises WrongType or ValueError where `codes` are no grids (b, h, w) of codes from 0 to `highest`."""
        instance("codes", codes, torch.Tensor, f"grids (b, h, w) of {self.grid} codes")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise WrongType(f"codes must be integers, got {codes.dtype}")
        if codes.ndim != 3 or tuple(codes.shape[1:]) != self.grid:
            raise ValueError(f"expected grids (b, h, w) of {self.grid} codes, got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) <= highest:
            raise ValueError(f"expected codes in [0, {highest}], got {int(codes.min())} to {int(codes.max())}")

    def require_finite(self, numbers: torch.Tensor, what: str) -> None:
        """Raises ValueError where a network computed NaN or infinity, of which a picture could be made all the same."""
        if not bool(numbers.isfinite().all()):
            plain = self.dtype == torch.float32
            raise ValueError(
                f"the model's {what} are not finite in {'fp32' if plain else 'bf16'}: "
                + ("it has to be trained again" if plain else "try dtype `fp32`, or train it again")
            )
