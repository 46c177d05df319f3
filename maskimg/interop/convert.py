"""Other people's class-conditional generators -> a Pipeline, together with the tokenizer each was trained on.

Google's MaskGIT (flax, `maskgit_imagenet256_checkpoint`, with `tokenizer_imagenet256_checkpoint`) and Halton-MaskGIT
(`ImageNet_384_large.pth`, with LlamaGen's `vq_ds16_c2i.pt`). Which of them a file is, and how large, is read from the
names and shapes of its tensors; each tensor is used exactly once.

Shapes: n = h * w tokens, v codes, c classes, d features, r registers.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from einops import rearrange

from maskimg.interop.imagenet import class_names
from maskimg.network import Network
from maskimg.networks.google import GoogleConfig, GoogleMaskGit
from maskimg.networks.halton import HaltonConfig, HaltonMaskGit
from maskimg.pipeline import Pipeline
from maskimg.sampler import Sampler
from vqgan import Tokenizer
from vqgan.files import ModelError
from vqgan.interop.foreign import read_tensors

Tensors = dict[str, torch.Tensor]

CLASSES = 1000
HALTON_HEADS = {(384, 6): 6, (512, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 28): 16}  # by (dim, depth)

# As in the published examples. Google's: 16 steps, Gumbel noise of 4.5. Halton's: 32 steps, weight 2 (it counts from
# 0, guidance from 1), and logits multiplied by 1 at first and by 1.2 at last.
GOOGLE_RECIPE = Sampler(steps=16, schedule="cosine", order="confidence", choice_temperature=4.5)
HALTON_RECIPE = Sampler(
    steps=32, schedule="arccos", order="halton", guidance=3.0, token_temperature=(1.0, 0.9091, 0.8333)
)


def convert_pair(
    tokenizer: Tokenizer,
    generator_file: str | Path,
    *,
    name: str | None = None,
    trust_pickle: bool = False,
    heads: int | None = None,
    classes: int = CLASSES,
    device: str = "cpu",
) -> Pipeline:
    """A generator's file and the tokenizer it was trained on -> a model with the recipe of its authors.

    Args:
        name: of the model; the file's own if not given.
        trust_pickle, heads, classes: as in `read_generator`.

    Raises:
        ModelError: the file is not one of these, is damaged, or does not belong to the tokenizer.
    """
    net = read_generator(generator_file, trust_pickle=trust_pickle, heads=heads, classes=classes)
    if net.vocab_size != tokenizer.vocab_size:
        raise ModelError(
            f"`{generator_file}` draws {net.vocab_size} codes, but the tokenizer has {tokenizer.vocab_size}: give the "
            "tokenizer that it was trained on"
        )
    google = isinstance(net, GoogleMaskGit)
    return Pipeline(
        tokenizer,
        net,
        labels={"class": class_names(net.label_sizes[0])},
        recipe=GOOGLE_RECIPE if google else HALTON_RECIPE,
        about={
            "name": name or Path(generator_file).stem,
            "data": {"converted_from": Path(generator_file).name, "architecture": net.architecture},
        },
        device=device,
    )


def read_generator(
    path: str | Path, *, trust_pickle: bool = False, heads: int | None = None, classes: int = CLASSES
) -> Network:
    """The network in a file of Google's MaskGIT or of Halton-MaskGIT.

    Args:
        trust_pickle: read a pickle's tensors, in a process of their own; without this word it is not opened.
        heads: attention heads of a Halton-MaskGIT of another size than the published ones.
        classes: of a Google MaskGIT, whose one vocabulary does not tell them from the codes.

    Raises:
        ModelError: the file is something else, cut off, incomplete, or holds numbers that are not finite.
    """
    tensors = _without_prefixes(read_tensors(Path(path), trust_pickle=trust_pickle))
    readers: dict[str, Callable[[_Reader], Network]] = {
        "google": lambda reader: read_google(reader, classes),
        "halton": lambda reader: read_halton(reader, heads),
    }
    kind = resemblance(tensors)
    if kind not in readers:
        raise ModelError(
            f"`{path}` is not a generator that can be converted (Google's MaskGIT or Halton-MaskGIT): it looks like "
            f"{kind}"
        )
    reader = _Reader(path, tensors)
    net = readers[kind](reader)
    reader.finish()
    return net.eval()


def resemblance(names: Iterable[str]) -> str:
    """`google`, `halton`, or words for what else a file with tensors of these names looks like."""
    names = set(names)
    if any(name.startswith(("TransformerLayer_", "MlmLayer_0.", "Embed_0.")) for name in names):
        return "google"
    if "first_layer.0.weight" in names and "bias" in names:
        return "the older Maskgit-pytorch 1.0, whose successor Halton-MaskGIT can be converted"
    if {"cls_emb.weight", "reg_tokens.weight"} & names or "transformer.layers.0.attn.wq.weight" in names:
        return "halton"
    if "mlm_layer.conv1.weight" in names or "encoder_proj.weight" in names:
        return "aMUSEd's text transformer"
    if {"quantizer.codebook", "quantize.embedding.weight"} & names or any("quant_conv" in name for name in names):
        return "a tokenizer: give it as --tokenizer"
    if "trunk.embed.weight" in names:
        return "a network of maskimg's own, whose model directory is used as it is"
    return f"nothing known (its first tensor is `{min(names)}`)" if names else "nothing: it holds no tensors"


def read_google(reader: "_Reader", classes: int) -> GoogleMaskGit:
    """Flax: kernels are (in, out), attention's (d, heads, d / heads) and back."""
    words, d = reader.shape("Embed_0.word_embeddings.embedding", 2)
    tokens, _ = reader.shape("Embed_0.position_embeddings.embedding", 2)
    first = "TransformerLayer_0.Attention_0.self_attention.query.kernel"
    _, heads, head = reader.shape(first, 3)
    _, hidden = reader.shape("TransformerLayer_0.Mlp_0.intermediate_output.kernel", 2)
    if not 0 < classes < words - 1:
        raise reader.error(f"has {words} words for codes, classes and MASK, too few for {classes} classes")
    if heads * head != d:
        raise reader.error(f"is damaged: {heads} heads of {head} features do not make {d}")
    config = GoogleConfig(
        words - classes - 1, reader.square(tokens - 1), (classes,), d, reader.depth("TransformerLayer_"), heads, hidden
    )
    with torch.device("meta"):  # the weights are the file's
        net = GoogleMaskGit(config)

    embed, last = "Embed_0.", "MlmLayer_0."
    found = {
        "trunk.words.weight": reader.take(embed + "word_embeddings.embedding"),
        "trunk.positions": reader.take(embed + "position_embeddings.embedding"),
        **_flax_norm(reader, "trunk.norm", embed + "embeddings_ln"),
        **_flax_dense(reader, "trunk.last", last + "mlm_dense"),
        **_flax_norm(reader, "trunk.last_norm", last + "mlm_ln"),
        "bias": reader.take(last + "mlm_bias.bias"),
    }
    for i in range(config.depth):
        ours, attention = f"trunk.blocks.{i}.", f"TransformerLayer_{i}.Attention_0."
        parts = [attention + f"self_attention.{name}." for name in ("query", "key", "value")]
        kernels = [rearrange(reader.take(part + "kernel", 3), "d head e -> (head e) d") for part in parts]
        biases = [rearrange(reader.take(part + "bias", 2), "head e -> (head e)") for part in parts]
        out = attention + "self_attention.out."
        found |= {
            ours + "to_qkv.weight": torch.cat(kernels),
            ours + "to_qkv.bias": torch.cat(biases),
            ours + "to_out.weight": rearrange(reader.take(out + "kernel", 3), "head e d -> d (head e)"),
            ours + "to_out.bias": reader.take(out + "bias"),
            **_flax_norm(reader, ours + "norm1", attention + "attention_output_ln"),
            **_flax_dense(reader, ours + "up", f"TransformerLayer_{i}.Mlp_0.intermediate_output"),
            **_flax_dense(reader, ours + "down", f"TransformerLayer_{i}.Mlp_0.layer_output"),
            **_flax_norm(reader, ours + "norm2", f"TransformerLayer_{i}.Mlp_0.layer_output_ln"),
        }
    reader.fill(net, found)
    return net


def read_halton(reader: "_Reader", heads: int | None) -> HaltonMaskGit:
    """The head's weight is the embedding's, and in the file twice."""
    if reader.has("in_proj.weight"):
        raise reader.error("folds its tokens two by two, which is not supported: take one trained with `proj: 1`")
    codes, d = reader.shape("tok_emb.weight", 2)
    classes, _ = reader.shape("cls_emb.weight", 2)
    tokens, _ = reader.shape("pos_emb.weight", 2)
    registers = reader.shape("reg_tokens.weight", 2)[0] if reader.has("reg_tokens.weight") else 0
    depth = reader.depth("transformer.layers.")
    width, _ = reader.shape("transformer.layers.0.attn.wq.weight", 2)
    hidden, _ = reader.shape("transformer.layers.0.ff.w1.weight", 2)
    heads = heads or HALTON_HEADS.get((d, depth))
    if heads is None:
        raise reader.error(f"has {depth} layers of {d} features, no published size: give its number of heads (--heads)")
    if not 1 <= heads <= d or heads * (d // heads) != width:
        raise reader.error(f"cannot have {heads} heads: its attention is {width} features wide, of {d}")
    config = HaltonConfig(codes - 1, reader.square(tokens), (classes - 1,), d, depth, heads, hidden, registers)
    with torch.device("meta"):
        net = HaltonMaskGit(config)

    embed = reader.take("tok_emb.weight")
    if not torch.equal(embed, reader.take("head.weight")):
        raise reader.error("has a head that is not the embedding's: it is no Halton-MaskGIT, or damaged")
    found = {
        "trunk.embed.weight": embed,
        "trunk.classes.weight": reader.take("cls_emb.weight"),
        "trunk.positions": reader.take("pos_emb.weight"),
        "trunk.registers": reader.take("reg_tokens.weight") if registers else torch.zeros(0, d),
        "trunk.gain": reader.take("last_norm.norm_final.weight"),
        "trunk.offset": reader.take("last_norm.norm_final.bias"),
        "trunk.modulate.weight": reader.take("last_norm.mlp.1.weight"),
        "trunk.modulate.bias": reader.take("last_norm.mlp.1.bias"),
        "bias": reader.take("head.bias"),
    }
    same = {"modulate.weight": "mlp.1.weight", "modulate.bias": "mlp.1.bias", "gain1": "ln1.weight"}
    same |= {"gain2": "ln2.weight", "to_out.weight": "attn.wo.weight"}
    same |= {"gate.weight": "ff.w1.weight", "down.weight": "ff.w2.weight", "up.weight": "ff.w3.weight"}
    for i in range(depth):
        ours, theirs = f"trunk.blocks.{i}.", f"transformer.layers.{i}."
        found |= {ours + name: reader.take(theirs + other) for name, other in same.items()}
        found[ours + "to_qkv.weight"] = torch.cat([reader.take(theirs + f"attn.w{part}.weight") for part in "qkv"])
    reader.fill(net, found)
    return net


class _Reader:
    """The tensors of a file, each of which is to be taken once; what is wrong is said with the file's name."""

    def __init__(self, path: str | Path, tensors: Tensors):
        self.path, self.left = path, dict(tensors)

    def error(self, what: str) -> ModelError:
        return ModelError(f"`{self.path}` {what}")

    def has(self, name: str) -> bool:
        return name in self.left

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that is still to be taken."""
        if name not in self.left:
            raise self.error(f"is incomplete or of another kind: there is no `{name}`")
        found = tuple(self.left[name].shape)
        if len(found) != axes or not all(found):
            raise self.error(f"is damaged: `{name}` is {found}, expected {axes} axes")
        return found

    def take(self, name: str, axes: int | None = None) -> torch.Tensor:
        """A tensor in fp32, finite, which cannot be taken again."""
        self.shape(name, axes if axes is not None else self.left[name].ndim if name in self.left else 0)
        tensor = self.left.pop(name)
        if not tensor.is_floating_point():
            raise self.error(f"is damaged: `{name}` is of {tensor.dtype}, expected floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise self.error(f"holds numbers that are not finite in `{name}`: it is damaged, or its training failed")
        return tensor.float()

    def square(self, tokens: int) -> tuple[int, int]:
        side = math.isqrt(max(tokens, 0))
        if side < 1 or side * side != tokens:
            raise self.error(f"has {tokens} positions, which are no square grid")
        return side, side

    def depth(self, prefix: str) -> int:
        """How many layers there are: names are PREFIX0..., PREFIX1... and so on, with no gap."""
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in self.left if name.startswith(prefix)}
        missing = sorted({str(i) for i in range(len(numbers))} - numbers, key=int)
        if missing or not numbers:
            raise self.error(f"is incomplete: there is no layer `{prefix}{missing[0] if missing else 0}`")
        return len(numbers)

    def fill(self, net: Network, found: Tensors) -> None:
        """Every tensor of `net` from the file, of its very shape."""
        expected = net.state_dict()
        for name, tensor in found.items():
            if tensor.shape != expected[name].shape:
                shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
                raise self.error(f"is damaged: what becomes `{name}` is {shapes}")
        net.load_state_dict(found, assign=True)

    def finish(self) -> None:
        """Refuse a file of which something is left over."""
        if self.left:
            raise self.error(f"holds {len(self.left)} tensors that are not expected, such as `{min(self.left)}`")


def _flax_dense(reader: _Reader, ours: str, theirs: str) -> Tensors:
    kernel = rearrange(reader.take(theirs + ".kernel", 2), "i o -> o i").contiguous()
    return {ours + ".weight": kernel, ours + ".bias": reader.take(theirs + ".bias")}


def _flax_norm(reader: _Reader, ours: str, theirs: str) -> Tensors:
    return {ours + ".weight": reader.take(theirs + ".scale"), ours + ".bias": reader.take(theirs + ".bias")}


def _without_prefixes(tensors: Tensors) -> Tensors:
    """Names without what distributed training (`module.`) and compiling (`_orig_mod.`) put before them."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
