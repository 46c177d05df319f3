"""Tokenizer = Encoder + quantizer + Decoder, whatever architecture these three come from."""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from vqgan import files, writing
from vqgan.interop import convert
from vqgan.interop.maskgit_vq import MaskGitVqConfig
from vqgan.interop.taming import TamingConfig
from vqgan.network import Architecture, Decoder, Encoder
from vqgan.quantizer import Codebook, EvenScalar, FiniteScalar, LinearCodebook, Quantizer, Signs

SHARED = "shared.json"  # stands for a tokenizer that another model has


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer of our own architecture is made of.

    Attributes:
        quantizer: `efsq`, `fsq`, `vq`, `lfq`, `bsq` or `simvq`; see `vqgan.quantizer`.
        levels: values per latent channel of efsq and fsq; the vocabulary is their product.
        codebook_size: number of codes of the others; a power of two for lfq and bsq.
        codebook_dim: latent channels of vq and simvq.
        cosine: vq compares directions rather than distances.
        rotation: vq and simvq pass gradients by the rotation trick rather than straight through.
        channels: network width at each halving of the resolution; the stride is 2 ** len(channels), 2 to 32.
        encoder_blocks, decoder_blocks: residual blocks per resolution.
        attention: attention blocks at the lowest resolution, in encoder and decoder each.
    """

    architecture: ClassVar[str] = "maskimg"

    quantizer: str = "efsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)
    codebook_size: int = 1024
    codebook_dim: int = 8
    cosine: bool = True
    rotation: bool = False
    channels: tuple[int, ...] = (64, 128)
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    attention: int = 0

    @property
    def stride(self) -> int:
        return 2 ** len(self.channels)

    @property
    def vocab_size(self) -> int:
        return math.prod(self.levels) if self.quantizer in ("efsq", "fsq") else self.codebook_size

    def build(self) -> tuple[nn.Module, Quantizer, nn.Module]:
        quantizer = self._quantizer()
        return (
            Encoder(quantizer.dim, self.channels, self.encoder_blocks, self.attention),
            quantizer,
            Decoder(quantizer.dim, self.channels, self.decoder_blocks, self.attention),
        )

    def _quantizer(self) -> Quantizer:
        size, dim = self.codebook_size, self.codebook_dim
        match self.quantizer:
            case "efsq":
                return EvenScalar(self.levels)
            case "fsq":
                return FiniteScalar(self.levels)
            case "vq":
                return Codebook(size, dim, cosine=self.cosine, rotation=self.rotation)
            case "lfq" | "bsq":
                return Signs(size, spherical=self.quantizer == "bsq")
            case "simvq":
                return LinearCodebook(size, dim, rotation=self.rotation)
        raise ValueError(f"quantizer must be one of {', '.join(QUANTIZERS)}, got `{self.quantizer}`")


QUANTIZERS = ("efsq", "fsq", "vq", "lfq", "bsq", "simvq")
ARCHITECTURES: dict[str, type] = {kind.architecture: kind for kind in (TokenizerConfig, TamingConfig, MaskGitVqConfig)}


class Tokenizer(nn.Module):
    """Pictures <-> codes.

    `stride` is the number of pixels per token side, `vocab_size` the number of codes. Any image size divisible by
    the stride can be encoded.
    """

    def __init__(self, config: Architecture = TokenizerConfig()):
        super().__init__()
        self.config = config
        self.encoder, self.quantizer, self.decoder = config.build()
        self.to(memory_format=torch.channels_last)

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def vocab_size(self) -> int:
        return self.quantizer.vocab_size

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images (b, 3, H, W) -> reconstructions (b, 3, H, W), codes (b, h, w), quantizer loss (): for training."""
        quantized, codes, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized), codes, loss

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, H, W) in [-1, 1] -> codes (b, h, w) int64 in [0, vocab_size).

        Always in eval mode (in training mode a forward would move a VQ codebook, even without gradient) and in fp32
        whatever the autocast (bf16 changes about 1 % of the codes); weights of another format are taken in fp32, too.

        Raises:
            ValueError: the height or width is not divisible by the stride.
        """
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (b, 3, H, W), got {_shape(images)}")
        if not images.is_floating_point():
            raise ValueError(f"expected images (b, 3, H, W) of floats in [-1, 1], got {images.dtype}")
        if images.shape[2] % self.stride or images.shape[3] % self.stride:
            raise ValueError(
                f"expected a height and width divisible by the stride {self.stride}, got {tuple(images.shape[2:])}"
            )
        was_training = self.training
        self.eval()
        try:
            with torch.autocast(images.device.type, enabled=False):
                return self.quantizer(_in_fp32(self.encoder, images.float()))[1]
        finally:
            self.train(was_training)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) int64 -> images (b, 3, H, W) float32 in [-1, 1]; weights of another format are taken in fp32.

        Raises:
            ValueError: a code lies outside [0, vocab_size), such as one that is still masked.
        """
        if not isinstance(codes, torch.Tensor) or codes.ndim != 3:
            raise ValueError(f"expected codes (b, h, w), got {_shape(codes)}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"expected codes (b, h, w) of whole numbers, got {codes.dtype}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise ValueError(
                f"expected codes in [0, {self.vocab_size}), got {int(codes.min())} to {int(codes.max())}; "
                "masked codes must be filled before they are decoded"
            )
        return _in_fp32(self.decoder, self.quantizer.lookup(codes).float()).float().clamp(-1, 1).contiguous()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, model.safetensors and manifest.json to `directory`, whole or not at all."""
        with writing.atomic_directory(directory) as temporary:
            self.write(temporary)

    def write(self, directory: Path, dtype: torch.dtype | None = None) -> None:
        """config.json and model.safetensors, its floating-point numbers as `dtype`."""
        own = self.config.architecture == TokenizerConfig.architecture
        kind = {} if own else {"architecture": self.config.architecture}
        files.write_module(directory, kind | dataclasses.asdict(self.config), self, dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, trust_pickle: bool = False, pixels: str | None = None) -> "Tokenizer":
        """The tokenizer in a directory (a model's `tokenizer/`, or one of its own) or in a hub repository.

        Files and directories of other projects are read too, with `trust_pickle` and `pixels` as in
        `vqgan.interop.convert.read_foreign`.

        Raises:
            ModelError: the directory is missing, incomplete or damaged.
        """
        directory = Path(name).expanduser() if files.is_file(name) else files.locate(name)
        if convert.is_foreign(directory):
            return cls.from_weights(*convert.read_foreign(directory, trust_pickle=trust_pickle, pixels=pixels))
        if pixels is not None:
            raise files.ModelError(f"`{directory}` says itself what its pixels are: leave `pixels` out")
        files.verify(directory)
        return cls.from_directory(directory / "tokenizer" if files.has_part(directory, "tokenizer") else directory)

    @classmethod
    def from_weights(cls, config: Architecture, weights: dict[str, torch.Tensor]) -> "Tokenizer":
        """A tokenizer that holds these very tensors, in eval mode."""
        with torch.device("meta"):  # nothing is drawn that is replaced at once
            tokenizer = cls(config)
        tokenizer.load_state_dict(weights, assign=True)
        return tokenizer.to(memory_format=torch.channels_last).eval()

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """The tokenizer of an already verified directory with config.json and model.safetensors, or with a note that
        it is that of another model beside this one."""
        if (directory / SHARED).is_file():
            directory = _lender(directory)
        kind = files.read_json(directory / "config.json").get("architecture", TokenizerConfig.architecture)
        if kind not in ARCHITECTURES:
            raise files.ModelError(
                f"`{directory}` is a tokenizer of the unknown architecture `{kind}`: upgrade maskimg"
            )
        config = files.read_config(directory, ARCHITECTURES[kind])
        return files.read_weights(directory, cls(config)).eval()

    def push_to_hub(self, repository: str, **options) -> str:
        """Upload to a Hugging Face model repository; returns its address. Options as in `upload_folder`."""
        return files.push_to_hub(self.save_pretrained, repository, **options)


def _shape(thing: object) -> str:
    """In a sentence: of a tensor its shape, of anything else what it is."""
    return str(tuple(thing.shape)) if isinstance(thing, torch.Tensor) else f"a `{type(thing).__name__}`"


def _in_fp32(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`network(x)`, x in fp32, whatever format its weights are in; half-size ones are copied for it."""
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    if all(tensor.dtype == torch.float32 for tensor in tensors.values()):
        return network(x)
    return torch.func.functional_call(network, {name: tensor.float() for name, tensor in tensors.items()}, (x,))


def share_tokenizer(directory: Path, lender: Path) -> None:
    """Note in `directory` that this model's tokenizer is the one in `lender`, a model's directory beside this one.

    Raises:
        ModelError: `lender` has no tokenizer of its own.
    """
    files.write_json(directory / SHARED, {"model": lender.name, "sha256": tokenizer_checksum(lender)})


def tokenizer_checksum(model: Path) -> str:
    """Of the tokenizer's files in a model's directory.

    Raises:
        ModelError: it has none of its own.
    """
    own = [model / "tokenizer" / name for name in ("config.json", files.WEIGHTS)]
    if not all(path.is_file() for path in own):
        raise files.ModelError(f"`{model}` has no tokenizer of its own")
    return hashlib.sha256("".join(files.checksum(path) for path in own).encode()).hexdigest()


def _lender(directory: Path) -> Path:
    """The directory of the tokenizer that the note in `directory` speaks of."""
    note, directory = files.read_json(directory / SHARED), directory.absolute()
    models = directory.parent.parent
    name, known = note.get("model"), {path.name for path in models.iterdir()}
    if name not in known or name == directory.parent.name:  # among its neighbours, and nowhere else
        raise files.ModelError(
            f"`{directory.parent}` has the tokenizer of the model `{name}`, which is not beside it: copy both"
        )
    model = models / str(name)
    files.verify(model)
    if tokenizer_checksum(model) != note.get("sha256"):
        raise files.ModelError(f"the tokenizer of `{model}` is not the one that `{directory.parent}` was trained with")
    return model / "tokenizer"
