"""Other projects' tokenizers, written from the documentation of their files: the names they use and what they compute.

None of it is maskimg's. A network is a function that asks `Weights` for its parameters by name; those that are not
there yet are drawn, so that running it once makes a file's worth. Norms and biases are far from their usual 1 and 0,
and the codebook's rows are of different lengths, because freshly initialised ones hide mistakes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

# As each project names the parts of one and the same network.
TAMING = {
    "down": "encoder.down.{level}.block.{j}",
    "down_attention": "encoder.down.{level}.attn.{j}",
    "downsample": "encoder.down.{level}.downsample.conv",
    "up": "decoder.up.{level}.block.{j}",
    "up_attention": "decoder.up.{level}.attn.{j}",
    "upsample": "decoder.up.{level}.upsample.conv",
    "middle": ("mid.block_1", "mid.attn_1", "mid.block_2"),
}
LLAMAGEN = {
    "down": "encoder.conv_blocks.{level}.res.{j}",
    "down_attention": "encoder.conv_blocks.{level}.attn.{j}",
    "downsample": "encoder.conv_blocks.{level}.downsample.conv",
    "up": "decoder.conv_blocks.{turn}.res.{j}",
    "up_attention": "decoder.conv_blocks.{turn}.attn.{j}",
    "upsample": "decoder.conv_blocks.{turn}.upsample.conv",
    "middle": ("mid.0", "mid.1", "mid.2"),
}
MAGE = TAMING | {"middle": ("mid.block_1", "mid.block_2")}
OPEN_MUSE = TAMING | {"upsample": "decoder.up.{level}.upsample_conv", "middle": ("mid.0", "mid.1")}


class Weights(dict[str, torch.Tensor]):
    """Parameters by name, drawn when they are first asked for."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int, mean: float = 0.0, deviation: float = 0.3) -> torch.Tensor:
        if name not in self:
            self[name] = mean + deviation * torch.randn(*shape, generator=self.generator)
        return self[name]

    def conv(
        self, x: torch.Tensor, name: str, out: int, size: int = 3, *, bias: bool = True, stride: int = 1, padding=None
    ) -> torch.Tensor:
        fan_in = x.shape[1] * size**2
        weight = self.draw(f"{name}.weight", out, x.shape[1], size, size, deviation=fan_in**-0.5)
        offset = self.draw(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, offset, stride, size // 2 if padding is None else padding)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = self.draw(f"{name}.weight", x.shape[1], mean=1)
        return F.group_norm(x, 32, scale, self.draw(f"{name}.bias", x.shape[1]), eps=1e-6)

    def codebook(self, name: str, codes: int, dim: int) -> torch.Tensor:
        if name not in self:
            lengths = torch.exp(0.5 * torch.randn(codes, 1, generator=self.generator))
            self[name] = lengths * torch.randn(codes, dim, generator=self.generator)
        return self[name]


def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


# ----------------------------------------------------------------------------- taming-transformers and LlamaGen


class Vqgan:
    """taming's network under the names of a project; `unit` says whether codebook and latents have length 1."""

    def __init__(
        self, names: dict[str, Any], *, unit: bool = False, widths=(32, 64, 64), stem: int = 32, seed: int = 0
    ):
        self.names, self.unit, self.widths, self.stem = names, unit, widths, stem
        self.blocks, self.latent, self.dim, self.codes = 1, 12, 4, 40
        self.weights = Weights(seed)
        self.decode(self.encode(torch.zeros(1, 3, 16, 16)))

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        w, last = self.weights, len(self.widths) - 1
        x = w.conv(x, "encoder.conv_in", self.stem)
        for level, width in enumerate(self.widths):
            for j in range(self.blocks):
                x = self.block(x, self.names["down"].format(level=level, j=j), width)
                if level == last:
                    x = self.attention(x, self.names["down_attention"].format(level=level, j=j))
            if level < last:
                padded = F.pad(x, (0, 1, 0, 1))
                x = w.conv(padded, self.names["downsample"].format(level=level), width, stride=2, padding=0)
        x = self.middle(x, "encoder")
        x = w.conv(swish(w.norm(x, "encoder.norm_out")), "encoder.conv_out", self.latent)
        return w.conv(x, "quant_conv", self.dim, 1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        latents = self.latents(x).permute(0, 2, 3, 1)
        rows = self.weights.codebook("quantize.embedding.weight", self.codes, self.dim)
        if self.unit:
            latents, rows = F.normalize(latents, dim=-1), F.normalize(rows, dim=-1)
        return torch.cdist(latents.flatten(0, 2), rows).argmin(1).view(latents.shape[:3])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        w, last = self.weights, len(self.widths) - 1
        rows = w["quantize.embedding.weight"]
        x = (F.normalize(rows, dim=-1) if self.unit else rows)[codes].permute(0, 3, 1, 2)
        x = w.conv(w.conv(x, "post_quant_conv", self.latent, 1), "decoder.conv_in", self.widths[-1])
        x = self.middle(x, "decoder")
        for turn, level in enumerate(range(last, -1, -1)):
            for j in range(self.blocks + 1):
                x = self.block(x, self.names["up"].format(level=level, turn=turn, j=j), self.widths[level])
                if level == last:
                    x = self.attention(x, self.names["up_attention"].format(level=level, turn=turn, j=j))
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = w.conv(x, self.names["upsample"].format(level=level, turn=turn), self.widths[level])
        return w.conv(swish(w.norm(x, "decoder.norm_out")), "decoder.conv_out", 3)

    def middle(self, x: torch.Tensor, part: str) -> torch.Tensor:
        first, attention, second = self.names["middle"]
        x = self.attention(self.block(x, f"{part}.{first}", x.shape[1]), f"{part}.{attention}")
        return self.block(x, f"{part}.{second}", x.shape[1])

    def block(self, x: torch.Tensor, name: str, width: int) -> torch.Tensor:
        w = self.weights
        h = w.conv(swish(w.norm(x, f"{name}.norm1")), f"{name}.conv1", width)
        h = w.conv(swish(w.norm(h, f"{name}.norm2")), f"{name}.conv2", width)
        return h + (x if x.shape[1] == width else w.conv(x, f"{name}.nin_shortcut", width, 1))

    def attention(self, x: torch.Tensor, name: str) -> torch.Tensor:
        normed, width = self.weights.norm(x, f"{name}.norm"), x.shape[1]
        q, k, v = (self.weights.conv(normed, f"{name}.{part}", width, 1).flatten(2) for part in "qkv")
        shares = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(width), dim=-1)  # (b, to, from)
        mixed = (v @ shares.transpose(1, 2)).view_as(x)
        return x + self.weights.conv(mixed, f"{name}.proj_out", width, 1)


class GumbelVqgan(Vqgan):
    """taming's Gumbel kind, whose codes are taken without its noise."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.weights.codebook("quantize.embed.weight", self.codes, self.dim)
        self.weights["quantize.embedding.weight"] = self.weights["quantize.embed.weight"]  # only for `decode`
        return self.weights.conv(self.latents(x), "quantize.proj", self.codes, 1).argmax(1)


# ----------------------------------------------------------------------------- Google's, and its copies


class MaskGitVq:
    """Google's network under the names of one of its PyTorch copies, or of flax, which numbers modules as they run."""

    def __init__(self, names: dict[str, Any] | str, *, widths=(32, 64, 64), stem: int = 32, seed: int = 0):
        self.names, self.widths, self.stem = names, widths, stem
        self.blocks, self.dim, self.codes = 2, 6, 40
        self.weights = Weights(seed)
        self.book = {"flax": "quantizer.codebook", "hmorimitsu": "quantizer.codebook.weight"}.get(
            str(names), "quantize.embedding.weight"
        )
        self.decode(self.encode(torch.zeros(1, 3, 16, 16)))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        w, part, last = self.weights, Names(self.names, "encoder", len(self.widths)), len(self.widths) - 1
        x = w.conv(x, part.conv("conv_in"), self.stem, bias=False)
        for level, width in enumerate(self.widths):
            for j in range(self.blocks):
                x = self.block(x, part.block(level, level, j), width)
            if level < last:
                x = F.avg_pool2d(x, 2)
        for j in range(self.blocks):
            x = self.block(x, part.middle(j), x.shape[1])
        latents = w.conv(swish(w.norm(x, part.norm())), part.conv("conv_out"), self.dim, 1).permute(0, 2, 3, 1)
        rows = w.codebook(self.book, self.codes, self.dim)
        return torch.cdist(latents.flatten(0, 2), rows).argmin(1).view(latents.shape[:3])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        w, part, last = self.weights, Names(self.names, "decoder", len(self.widths)), len(self.widths) - 1
        x = w.conv(w[self.book][codes].permute(0, 3, 1, 2), part.conv("conv_in"), self.widths[-1])
        for j in range(self.blocks):
            x = self.block(x, part.middle(j), x.shape[1])
        for turn, level in enumerate(range(last, -1, -1)):
            for j in range(self.blocks):
                x = self.block(x, part.block(level, turn, j), self.widths[level])
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = w.conv(x, part.upsample(level, turn, self.blocks), self.widths[level])
        return w.conv(swish(w.norm(x, part.norm())), part.conv("conv_out"), 3)

    def block(self, x: torch.Tensor, names: Callable[[str], str], width: int) -> torch.Tensor:
        """The 1x1 convolution works on what the two others made, not on what came in: so it was trained."""
        w = self.weights
        h = w.conv(swish(w.norm(x, names("norm1"))), names("conv1"), width, bias=False)
        h = w.conv(swish(w.norm(h, names("norm2"))), names("conv2"), width, bias=False)
        return h + (x if x.shape[1] == width else w.conv(h, names("shortcut"), width, 1, bias=False))


class Names:
    """The names in one half of Google's network."""

    def __init__(self, names: dict[str, Any] | str, part: str, levels: int):
        self.names, self.part, self.levels = names, part, levels
        self.convs, self.resblocks = 0, 0

    def conv(self, name: str) -> str:
        self.convs += 1
        return f"{self.part}.Conv_{self.convs - 1}" if self.names == "flax" else f"{self.part}.{name}"

    def norm(self) -> str:
        return f"{self.part}.GroupNorm_0" if self.names == "flax" else f"{self.part}.norm_out"

    def upsample(self, level: int, turn: int, blocks: int) -> str:
        if self.names == "hmorimitsu":
            return f"decoder.res_blocks.{turn + 1}.{blocks + 1}"
        return self.conv("") if isinstance(self.names, str) else self.names["upsample"].format(level=level, turn=turn)

    def block(self, level: int, turn: int, j: int) -> Callable[[str], str]:
        if isinstance(self.names, dict):
            kind = "down" if self.part == "encoder" else "up"
            return self._torch(self.names[kind].format(level=level, turn=turn, j=j))
        return self._other(turn + (self.part == "decoder"), j)

    def middle(self, j: int) -> Callable[[str], str]:
        if isinstance(self.names, dict):
            return self._torch(f"{self.part}.{self.names['middle'][j]}")
        return self._other(self.levels if self.part == "encoder" else 0, j)

    def _torch(self, block: str) -> Callable[[str], str]:
        return lambda name: f"{block}.{'nin_shortcut' if name == 'shortcut' else name}"

    def _other(self, group: int, j: int) -> Callable[[str], str]:
        if self.names == "hmorimitsu":
            kinds = {"norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "shortcut": "conv_res"}
            return lambda name: f"{self.part}.res_blocks.{group}.{j}.{kinds[name]}"
        kinds = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
        self.resblocks += 1
        block = f"{self.part}.ResBlock_{self.resblocks - 1}"
        return lambda name: f"{block}.{kinds.get(name, 'Conv_2')}"


def save_flax(weights: dict[str, torch.Tensor], path: Path) -> None:
    """As flax writes them: nested maps, kernels (y, x, in, out), arrays as extension 1."""
    import msgpack

    tree: dict[str, Any] = {}
    for name, tensor in weights.items():
        *parents, leaf = name.split(".")
        if leaf == "weight":
            leaf = "kernel" if tensor.ndim == 4 else "scale"
        array = (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor).contiguous().numpy()
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    path.write_bytes(msgpack.packb({"params": tree}))
