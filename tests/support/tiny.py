"""Models small enough to test with: a 16-pixel tokenizer and a 4x4-token generator of width 32, untrained."""

import dataclasses
from typing import Any

import torch

from maskimg.drawing import edits
from maskimg.drawing.request import Asked, make_request
from maskimg.drawing.runner import Progress
from maskimg.networks.context_encoder import SourceConfig
from maskimg.networks.transformer import MaskedTransformer, TokenCritic, TransformerConfig
from maskimg.networks.words import WordPieces
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan import Tokenizer, TokenizerConfig

LABELS = {"class": ["bird", "bug", "cat"], "style": ["flat", "round"]}
TOKENIZER = TokenizerConfig(levels=(4, 4, 4), channels=(16, 16), encoder_blocks=1, decoder_blocks=1)
NETWORK = TransformerConfig(vocab_size=64, grid=(4, 4), label_sizes=(3, 2), dim=32, depth=2, heads=2)


def tiny_pipeline(*, labels: bool = True, critic: bool = True, seed: int = 0, dtype: str = "fp32") -> Pipeline:
    """A whole untrained model whose weights depend on `seed` only; its logits are far from uniform."""
    config = NETWORK if labels else TransformerConfig(64, (4, 4), dim=32, depth=2, heads=2)
    net, judge, tokenizer = _untrained(config, seed)
    return Pipeline(
        tokenizer,
        net,
        judge if critic else None,
        labels=LABELS if labels else {},
        recipe=Sampler(steps=4),
        about={"name": "tiny"},
        device="cpu",
        dtype=dtype,
    )


WORDS = WordPieces(("apple", "dog", "red"), 8, 1)
PICTURE = SourceConfig("picture", 64, grid=(4, 4), over=True, depth=1)


def listening_pipeline() -> Pipeline:
    """A whole untrained model that knows labels, words, and grey pictures to translate."""
    config = dataclasses.replace(NETWORK, sources=(WORDS.source, PICTURE))
    net, critic, tokenizer = _untrained(config, seed=0)
    return Pipeline(
        tokenizer,
        net,
        critic,
        labels=LABELS,
        words=WORDS,
        recipe=Sampler(steps=4, guidance=2.0),
        about={"name": "tiny", "source": "grey"},
        device="cpu",
        dtype="fp32",
    )


def _untrained(config: TransformerConfig, seed: int) -> tuple[MaskedTransformer, TokenCritic, Tokenizer]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net, critic, tokenizer = MaskedTransformer(config), TokenCritic(config), Tokenizer(TOKENIZER)
        for module in (net, critic):
            for parameter in module.parameters():
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    return net, critic, tokenizer


def watched(
    pipeline: Pipeline, label: Asked = None, *, codes: torch.Tensor | None = None, complete: bool = True, **request: Any
) -> list[Progress]:
    """Every step of a drawing from nothing, or from grids (b, h, w) with MASK; what is chosen in the end left out."""
    edit = edits.generation(pipeline) if codes is None else edits.completion(pipeline, codes)
    steps = pipeline.steps(edit, make_request(label, **request), complete=complete)
    return [step for step in steps if not step.chosen]
