"""How other projects name a tokenizer's parameters: for each layout its signs, its names and its sizes.

A layout turns our name of a parameter into theirs. So a file is read by asking for exactly the parameters that the
network has, and what is missing or left over is reported under the name that its authors gave it.

The decoder's levels stand in the order in which they run with us, with diffusers, LlamaGen and Google; taming and its
kin count them from full resolution, as they count the encoder's.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vqgan.files import ModelError
from vqgan.interop.foreign import Tensors
from vqgan.interop.maskgit_vq import MaskGitVqConfig
from vqgan.interop.taming import TamingConfig


class Sizes(NamedTuple):
    """Resolutions, and residual blocks at each in the encoder."""

    levels: int
    blocks: int


class Layout(NamedTuple):
    """One way to write a tokenizer down.

    Attributes:
        title: what a message calls it.
        signs: patterns that all match some of its names; `unlike` is one that matches none.
        rename: our name of a parameter, and the sizes -> theirs.
        sizes: their names -> the sizes.
        infer: their tensors -> the configuration.
        ignored: beginnings of names that the tokenizer does not need, such as those of a discriminator.
    """

    title: str
    signs: tuple[str, ...]
    unlike: str
    rename: Callable[[str, Sizes], str]
    sizes: Callable[[Iterable[str]], Sizes]
    infer: "Callable[[Layout, Tensors], TamingConfig | MaskGitVqConfig]"
    ignored: tuple[str, ...] = ()


def layout_of(tensors: Tensors) -> Layout:
    """The layout that these names belong to.

    Raises:
        ModelError: to none; the message says what they resemble instead.
    """
    for layout in LAYOUTS:
        if all(_any(sign, tensors) for sign in layout.signs) and not (layout.unlike and _any(layout.unlike, tensors)):
            return layout
    for what, signs in OTHERS:
        if all(_any(sign, tensors) for sign in signs):
            raise ModelError(f"this is {what}, not a tokenizer that maskimg can read")
    known = ", ".join(dict.fromkeys(layout.title for layout in LAYOUTS))
    example = min(tensors, default="none at all")
    raise ModelError(
        f"this is a tokenizer of none of the known kinds ({known}); the first of its parameters is `{example}`"
    )


def rows_of(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a parameter that must be there.

    Raises:
        ModelError: it is missing, or has another number of axes.
    """
    if name not in tensors:
        raise ModelError(f"its parameter `{name}` is missing")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ModelError(f"its parameter `{name}` is {shape}, expected {axes} axes")
    return shape


# ----------------------------------------------------------------------------- configurations from shapes


def infer_taming(layout: Layout, tensors: Tensors) -> TamingConfig:
    """Widths from shapes, attention from presence; `pixels` and `groups` cannot be seen and keep their defaults."""
    sizes = layout.sizes(tensors)

    def shape(ours: str, axes: int) -> tuple[int, ...]:
        return rows_of(tensors, layout.rename(ours, sizes), axes)

    def attention(part: str) -> tuple[int, ...]:
        beginnings = [_stem(layout, f"{part}.levels.{i}.attentions.0.norm.weight", sizes) for i in range(sizes.levels)]
        found = [any(name.startswith(beginning) for name in tensors) for beginning in beginnings]
        return tuple(
            level for level, is_there in enumerate(found if part == "encoder" else reversed(found)) if is_there
        )

    middle = [layout.rename(f"{part}.middle.attention.norm.weight", sizes) for part in ("encoder", "decoder")]
    codebook_size, codebook_dim = shape("quantizer.codebook", 2)
    gumbel = layout.rename("quantizer.to_logits.weight", sizes) in tensors
    _check_colours(layout, tensors, sizes)
    return TamingConfig(
        codebook_size,
        codebook_dim,
        quantizer="gumbel" if gumbel else "cosine" if layout.title == LLAMAGEN else "nearest",
        stem=shape("encoder.conv_in.weight", 4)[0],
        channels=tuple(shape(f"encoder.levels.{i}.blocks.0.conv1.weight", 4)[0] for i in range(sizes.levels)),
        blocks=sizes.blocks,
        encoder_attention=attention("encoder"),
        decoder_attention=attention("decoder"),
        middle_attention=any(name in tensors for name in middle),
        latent_channels=shape("encoder.conv_out.weight", 4)[0],
    )


def infer_maskgit(layout: Layout, tensors: Tensors) -> MaskGitVqConfig:
    sizes = layout.sizes(tensors)
    _check_colours(layout, tensors, sizes)
    widths = (layout.rename(f"encoder.levels.{i}.blocks.0.conv1.weight", sizes) for i in range(sizes.levels))
    size, dim = rows_of(tensors, layout.rename("quantizer.codebook", sizes), 2)
    return MaskGitVqConfig(
        size,
        dim,
        stem=rows_of(tensors, layout.rename("encoder.conv_in.weight", sizes), 4)[0],
        channels=tuple(rows_of(tensors, name, 4)[0] for name in widths),
        blocks=sizes.blocks,
    )


def _check_colours(layout: Layout, tensors: Tensors, sizes: Sizes) -> None:
    name = layout.rename("encoder.conv_in.weight", sizes)
    channels = rows_of(tensors, name, 4)[1]
    if channels != 3:
        raise ModelError(f"its pictures have {channels} channels (`{name}`), expected 3: it is not for photographs")


def _stem(layout: Layout, ours: str, sizes: Sizes) -> str:
    """What all parameters of one attention block begin with in their names."""
    return layout.rename(ours, sizes).rsplit(".", 2)[0] + "."


# ----------------------------------------------------------------------------- names


def rename_taming(ours: str, sizes: Sizes) -> str:
    return _taming_tail(_from_full_resolution(ours, sizes))


def rename_gumbel(ours: str, sizes: Sizes) -> str:
    name = _replace(
        ours, (r"^quantizer\.codebook$", "quantize.embed.weight"), (r"^quantizer\.to_logits", "quantize.proj")
    )
    return rename_taming(name, sizes)


def rename_llamagen(ours: str, sizes: Sizes) -> str:
    name = _replace(ours, (r"\.levels\.", ".conv_blocks."), (r"\.blocks\.", ".res."))
    name = _replace(name, (r"middle\.first", "mid.0"), (r"middle\.attention", "mid.1"), (r"middle\.second", "mid.2"))
    return _taming_tail(name)


def rename_diffusers(ours: str, sizes: Sizes) -> str:
    name = _replace(
        ours,
        (r"^encoder\.levels", "encoder.down_blocks"),
        (r"^decoder\.levels", "decoder.up_blocks"),
        (r"^(encoder.*)\.resample", r"\1.downsamplers.0.conv"),
        (r"^(decoder.*)\.resample", r"\1.upsamplers.0.conv"),
        (r"\.blocks\.", ".resnets."),
        (r"middle\.first", "mid_block.resnets.0"),
        (r"middle\.attention", "mid_block.attentions.0"),
        (r"middle\.second", "mid_block.resnets.1"),
        (r"norm_out", "conv_norm_out"),
        (r"shortcut", "conv_shortcut"),
        (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"(attentions\.\d+)\.query", r"\1.to_q"),
        (r"(attentions\.\d+)\.key", r"\1.to_k"),
        (r"(attentions\.\d+)\.value", r"\1.to_v"),
        (r"(attentions\.\d+)\.out", r"\1.to_out.0"),
    )
    return _codebook(name)


def rename_flax(ours: str, sizes: Sizes) -> str:
    """Google's: flax numbers the modules of a kind in the order in which they are run."""
    levels, blocks = sizes
    path = ours.split(".")
    part, is_encoder = path[0], path[0] == "encoder"
    if part == "quantizer":
        return "quantizer.codebook"

    if path[1] == "middle":
        block = int(path[3]) + (levels * blocks if is_encoder else 0)
    else:
        block = int(path[2]) * blocks + int(path[4]) + (0 if is_encoder else blocks) if "blocks" in path else -1
    inner = {"norm1": "GroupNorm_0", "norm2": "GroupNorm_1", "conv1": "Conv_0", "conv2": "Conv_1", "shortcut": "Conv_2"}
    outer = {"conv_in": "Conv_0", "conv_out": f"Conv_{1 if is_encoder else levels}", "norm_out": "GroupNorm_0"}
    if path[-2] == "resample":
        module = f"Conv_{int(path[2]) + 1}"
    else:
        module = f"ResBlock_{block}.{inner[path[-2]]}" if block >= 0 else outer[path[-2]]
    leaf = "bias" if path[-1] == "bias" else "scale" if "GroupNorm" in module else "kernel"
    return f"{part}.{module}.{leaf}"


def rename_mage(ours: str, sizes: Sizes) -> str:
    name = _replace(ours, (r"middle\.blocks\.0", "mid.block_1"), (r"middle\.blocks\.1", "mid.block_2"))
    return _taming_tail(_from_full_resolution(name, sizes))


def rename_open_muse(ours: str, sizes: Sizes) -> str:
    name = _replace(ours, (r"middle\.blocks\.", "mid."), (r"\.resample", ".upsample_conv"))
    return _taming_tail(_from_full_resolution(name, sizes))


def rename_hmorimitsu(ours: str, sizes: Sizes) -> str:
    """Its decoder begins with the middle, so each level stands one later; nearest upsampling takes a place, too."""
    later = re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.res_blocks.{int(match[1]) + 1}", ours)
    return _replace(
        later,
        (r"^encoder\.levels", "encoder.res_blocks"),
        (r"^encoder\.middle", f"encoder.res_blocks.{sizes.levels}"),
        (r"^decoder\.middle", "decoder.res_blocks.0"),
        (r"\.resample", f".{sizes.blocks + 1}"),
        (r"\.blocks\.", "."),
        (r"norm1", "norm0"),
        (r"norm2", "norm1"),
        (r"conv1", "conv0"),
        (r"conv2", "conv1"),
        (r"shortcut", "conv_res"),
        (r"^quantizer\.codebook$", "quantizer.codebook.weight"),
    )


def _from_full_resolution(ours: str, sizes: Sizes) -> str:
    name = re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.up.{sizes.levels - 1 - int(match[1])}", ours)
    name = _replace(name, (r"^encoder\.levels", "encoder.down"), (r"\.blocks\.", ".block."))
    return _replace(name, (r"middle\.first", "mid.block_1"), (r"middle\.second", "mid.block_2"))


def _taming_tail(name: str) -> str:
    """What taming, LlamaGen and the PyTorch copies of Google's tokenizer have in common."""
    name = _replace(name, (r"middle\.attention", "mid.attn_1"), (r"shortcut", "nin_shortcut"), (r"attentions", "attn"))
    attention = r"(attn\.\d+|attn_1|mid\.1)"
    name = _replace(
        name,
        (rf"{attention}\.query", r"\1.q"),
        (rf"{attention}\.key", r"\1.k"),
        (rf"{attention}\.value", r"\1.v"),
        (rf"{attention}\.out", r"\1.proj_out"),
        (r"^(encoder.*)\.resample", r"\1.downsample.conv"),
        (r"^(decoder.*)\.resample", r"\1.upsample.conv"),
    )
    return _codebook(name)


def _codebook(name: str) -> str:
    return _replace(
        name,
        (r"^encoder\.to_codebook", "quant_conv"),
        (r"^decoder\.from_codebook", "post_quant_conv"),
        (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    )


def _replace(name: str, *rules: tuple[str, str]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# ----------------------------------------------------------------------------- sizes


def sizes_taming(names: Iterable[str]) -> Sizes:
    return Sizes(_count(names, r"^encoder\.down\.(\d+)\."), _count(names, r"^encoder\.down\.0\.block\.(\d+)\."))


def sizes_llamagen(names: Iterable[str]) -> Sizes:
    levels = _count(names, r"^encoder\.conv_blocks\.(\d+)\.")
    return Sizes(levels, _count(names, r"^encoder\.conv_blocks\.0\.res\.(\d+)\."))


def sizes_diffusers(names: Iterable[str]) -> Sizes:
    levels = _count(names, r"^encoder\.down_blocks\.(\d+)\.")
    return Sizes(levels, _count(names, r"^encoder\.down_blocks\.0\.resnets\.(\d+)\."))


def sizes_flax(names: Iterable[str]) -> Sizes:
    """The decoder has a convolution at each end and one after each level but the last."""
    levels = _count(names, r"^decoder\.Conv_(\d+)\.") - 1
    return Sizes(levels, _count(names, r"^encoder\.ResBlock_(\d+)\.") // (levels + 1))


def sizes_hmorimitsu(names: Iterable[str]) -> Sizes:
    levels = _count(names, r"^encoder\.res_blocks\.(\d+)\.") - 1
    return Sizes(levels, _count(names, r"^encoder\.res_blocks\.0\.(\d+)\."))


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the highest number: a gap then shows as a parameter that is missing."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _any(sign: str, tensors: Tensors) -> bool:
    return any(re.search(sign, name) for name in tensors)


# ----------------------------------------------------------------------------- the tables

LLAMAGEN = "LlamaGen's VQ tokenizer"
GOOGLE = "Google's MaskGIT tokenizer"
BIASED = r"^encoder\.down\.\d+\.block\.\d+\.conv1\.bias$"  # Google's has none; all of a taming encoder's do

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "a taming VQGAN", (BIASED, r"^quantize\.embedding\."), "", rename_taming, sizes_taming, infer_taming, ("loss.",)
    ),
    Layout(
        "a taming Gumbel VQGAN", (BIASED, r"^quantize\.embed\."), "", rename_gumbel, sizes_taming, infer_taming,
        ("loss.",),
    ),
    Layout(
        LLAMAGEN, (r"^encoder\.conv_blocks\.", r"^quantize\."), "", rename_llamagen, sizes_llamagen, infer_taming,
        ("quantize.codebook_used",),
    ),
    Layout(
        "a diffusers VQModel", (r"^encoder\.down_blocks\.", r"^quantize\."), "", rename_diffusers, sizes_diffusers,
        infer_taming,
    ),
    Layout(
        GOOGLE, (r"^encoder\.ResBlock_\d+\.", r"^decoder\.Conv_\d+\."), "", rename_flax, sizes_flax, infer_maskgit
    ),
    Layout(
        GOOGLE, (r"^encoder\.down\.\d+\.block\.", r"^encoder\.mid\.block_", r"^quantize\."), BIASED, rename_mage,
        sizes_taming, infer_maskgit, ("loss.",),
    ),
    Layout(
        GOOGLE, (r"^encoder\.down\.\d+\.block\.", r"^encoder\.mid\.\d+\.", r"^quantize\."), BIASED, rename_open_muse,
        sizes_taming, infer_maskgit,
    ),
    Layout(GOOGLE, (r"^encoder\.res_blocks\.\d+\.",), "", rename_hmorimitsu, sizes_hmorimitsu, infer_maskgit),
)  # fmt: skip

# What else people have at hand, and the names by which one knows it.
OTHERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("aMUSEd's transformer (UVit2DModel)", (r"^mlm_layer\.conv2\.", r"^embed\.embeddings\.")),
    ("a Halton-MaskGIT generator", (r"^(module\.)?tok_emb\.", r"^(module\.)?transformer\.layers\.")),
    ("Google's MaskGIT transformer", (r"^Embed_0\.",)),
    ("a taming transformer with a tokenizer inside", (r"^transformer\.tok_emb\.", r"^first_stage_model\.")),
    ("a whole Stable Diffusion model", (r"^model\.diffusion_model\.",)),
    ("a TiTok or MaskBit model", (r"bits_to_indices|^latent_tokens$|^model\.embeddings\.word_embeddings",)),
    (
        "a KL autoencoder, such as Stable Diffusion's VAE, or a VQGAN without its codebook",
        (r"^encoder\.(down|conv_blocks)", r"^decoder\.(up|mid|conv_blocks)"),
    ),
    ("a diffusion model's UNet", (r"^down_blocks\.|^input_blocks\.", r"^time_embed")),
    ("a file from a directory of maskimg (give the directory)", (r"^quantizer\.", r"^encoder\.l")),
)
