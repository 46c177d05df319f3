"""What a tokenizer keeps of one picture: the round trip, and its figures for people."""

import dataclasses
import io
import math
from collections.abc import Callable

import torch
from PIL import Image

from maskimg.values import whole_number
from vqgan.images import code_map, error_map, fit_stride, pad_square, to_pil, to_tensor
from vqgan.similarity import psnr, ssim

LARGEST = 2048  # longer sides ask for more memory than a laptop has
GAIN = 5  # by which the picture of the errors is amplified


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture after the round trip through the tokenizer, and how close it came.

    Attributes:
        original, image: before and after, equally large; what was padded around them is cut off again.
        codes: (1, h, w), those of the padding included.
        code_picture: a colour for each code, as large as the picture.
        psnr_db, ssim: of the two pictures in 8 bits.
    """

    original: Image.Image
    image: Image.Image
    codes: torch.Tensor
    code_picture: Image.Image
    vocab_size: int
    psnr_db: float
    ssim: float

    @property
    def error(self) -> Image.Image:
        """Where the two differ, GAIN times as bright."""
        return error_map(self.original, self.image, gain=GAIN)

    @property
    def tokens(self) -> int:
        return self.codes.numel()

    @property
    def distinct(self) -> int:
        """How many different codes there are."""
        return len(self.codes.unique())

    @property
    def bits(self) -> float:
        """Of the codes, each as long as the vocabulary asks."""
        return self.tokens * math.log2(self.vocab_size)

    @property
    def png_bytes(self) -> int:
        """Of the original as a PNG."""
        file = io.BytesIO()
        self.original.save(file, format="PNG", optimize=True)
        return file.tell()

    def facts(self) -> dict[str, str]:
        """The figures in words, in the order in which people read them."""
        _, h, w = self.codes.shape
        same = self.original.tobytes() == self.image.tobytes()
        png = 8 * self.png_bytes
        return {
            "PSNR": "identical" if same else f"{self.psnr_db:.1f} dB",
            "SSIM": f"{self.ssim:.3f}",
            "size": f"{self.image.width}x{self.image.height} pixels",
            "tokens": f"{self.tokens:,} ({h}x{w})",
            "different codes": f"{self.distinct:,} of {self.vocab_size:,}",
            "as codes": f"{self.bits:,.0f} bits",
            "as PNG": f"{png:,} bits, {png / max(1.0, self.bits):,.0f} times as many",
        }


def reconstruct(
    image: Image.Image,
    encode: Callable[[Image.Image], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    *,
    stride: int,
    vocab_size: int,
    square: int,
    size: int | None = None,
) -> Reconstruction:
    """Encode a picture and decode it again.

    Args:
        encode, decode: RGB picture -> codes (1, h, w) -> images (1, 3, H, W).
        square: side of the white square on which the picture is laid, if no size is given.
        size: the longer side, in pixels, at which the whole picture is encoded instead; it is never enlarged to that.

    Raises:
        ValueError: the size is out of range.
    """
    if size is None:
        given, box = pad_square(image, square)
    elif not stride <= whole_number("size", size) <= LARGEST:
        raise ValueError(f"size must be between the stride {stride} and {LARGEST} pixels, got {size}")
    else:
        given = fit_stride(image, min(size, max(image.size)), stride)
        box = (0, 0, *given.size)
    codes = encode(given)
    original, restored = given.crop(box), to_pil(decode(codes)[0]).crop(box)
    pair = to_tensor(restored)[None], to_tensor(original)[None]
    return Reconstruction(
        original,
        restored,
        codes,
        code_map(codes[0]).resize(given.size, Image.Resampling.NEAREST).crop(box),
        vocab_size,
        psnr_db=psnr(*pair).item(),
        ssim=ssim(*pair).item(),
    )
