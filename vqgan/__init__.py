"""First stage: pictures <-> grids of discrete codes. Knows nothing of masks or transformers."""

from vqgan.images import ImageError, load_image
from vqgan.tokenizer import Tokenizer, TokenizerConfig

__all__ = ["ImageError", "Tokenizer", "TokenizerConfig", "load_image"]
