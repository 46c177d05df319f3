"""Other people's transformers in miniature: random weights in their own file layout, and their arithmetic in NumPy.

Written from the published layouts and papers, in double precision, and without a line of ours: what the importers and
networks of maskimg must agree with. Every norm, bias and table is random, so that none can be forgotten.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import torch
from safetensors.torch import save_file


class Sizes(NamedTuple):
    """Of a miniature; `halton` has heads that do not fill the width."""

    codes: int = 12
    classes: int = 5
    side: int = 4
    dim: int = 24
    depth: int = 2
    heads: int = 3
    hidden: int = 40
    registers: int = 1


SIZES = Sizes()


# ----------------------------------------------------------------------------- Google's MaskGIT


def google_params(sizes: Sizes = SIZES, *, seed: int = 0, scale: float = 0.3) -> dict[str, Any]:
    """The tree below `params` of a flax file."""
    draw = _Draws(seed, scale)
    d, head = sizes.dim, sizes.dim // sizes.heads
    words = sizes.codes + sizes.classes + 1

    def norm() -> dict:
        return {"scale": 1 + draw(d), "bias": draw(d)}

    def dense(*shape: int) -> dict:
        return {"kernel": draw(*shape), "bias": draw(shape[-1])}

    def layer() -> dict:
        attention: dict[str, Any] = {
            name: {"kernel": draw(d, sizes.heads, head), "bias": draw(sizes.heads, head)}
            for name in ("query", "key", "value")
        }
        attention["out"] = {"kernel": draw(sizes.heads, head, d), "bias": draw(d)}
        mlp = {"intermediate_output": dense(d, sizes.hidden), "layer_output": dense(sizes.hidden, d)}
        return {
            "Attention_0": {"self_attention": attention, "attention_output_ln": norm()},
            "Mlp_0": {**mlp, "layer_output_ln": norm()},
        }

    return {
        "Embed_0": {
            "word_embeddings": {"embedding": draw(words, d)},
            "position_embeddings": {"embedding": draw(sizes.side**2 + 1, d)},
            "embeddings_ln": norm(),
        },
        **{f"TransformerLayer_{i}": layer() for i in range(sizes.depth)},
        "MlmLayer_0": {"mlm_dense": dense(d, d), "mlm_ln": norm(), "mlm_bias": {"bias": draw(words)}},
    }


def google_logits(
    params: dict[str, Any], words: np.ndarray, *, epsilon: float = 1e-12, exact_gelu: bool = False
) -> np.ndarray:
    """Words (b, 1 + n), the class first and -1 for MASK -> logits (b, 1 + n, all words)."""
    gelu = _gelu_exact if exact_gelu else _gelu_tanh
    embed, last = params["Embed_0"], params["MlmLayer_0"]
    table = _double(embed["word_embeddings"]["embedding"])
    x = _layer_norm(table[words] + embed["position_embeddings"]["embedding"], embed["embeddings_ln"], epsilon)
    for i in range(sum(name.startswith("TransformerLayer_") for name in params)):
        attention, mlp = params[f"TransformerLayer_{i}"]["Attention_0"], params[f"TransformerLayer_{i}"]["Mlp_0"]
        parts = attention["self_attention"]
        q, k, v = (
            np.einsum("bnd,dhe->bhne", x, _double(parts[name]["kernel"])) + parts[name]["bias"][:, None]
            for name in ("query", "key", "value")
        )
        mixed = np.einsum("bhnm,bhme->bhne", _softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])), v)
        out = np.einsum("bhne,hed->bnd", mixed, _double(parts["out"]["kernel"])) + parts["out"]["bias"]
        x = _layer_norm(out + x, attention["attention_output_ln"], epsilon)
        hidden = gelu(x @ _double(mlp["intermediate_output"]["kernel"]) + mlp["intermediate_output"]["bias"])
        out = hidden @ _double(mlp["layer_output"]["kernel"]) + mlp["layer_output"]["bias"]
        x = _layer_norm(out + x, mlp["layer_output_ln"], epsilon)
    x = gelu(x @ _double(last["mlm_dense"]["kernel"]) + last["mlm_dense"]["bias"])
    return _layer_norm(x, last["mlm_ln"], epsilon) @ table.T + last["mlm_bias"]["bias"]


def write_flax(params: dict[str, Any], path: Path) -> Path:
    """As `flax.serialization.to_bytes` has it: maps of names, arrays as extension 1 of (shape, dtype, bytes)."""

    def packed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: packed(each) for name, each in value.items()}
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True))

    path.write_bytes(msgpack.packb(packed({"params": params}), use_bin_type=True))
    return path


# ----------------------------------------------------------------------------- Halton-MaskGIT


def halton_state(sizes: Sizes = SIZES, *, seed: int = 0, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """The state dict of the class-conditional network; heads * (dim // heads) may be less than dim."""
    draw = _Draws(seed, scale)
    d, width = sizes.dim, sizes.heads * (sizes.dim // sizes.heads)
    state = {
        "cls_emb.weight": draw(sizes.classes + 1, d),
        "tok_emb.weight": draw(sizes.codes + 1, d),
        "pos_emb.weight": draw(sizes.side**2, d),
        "reg_tokens.weight": draw(sizes.registers, d),
    }
    for i in range(sizes.depth):
        state |= {
            f"transformer.layers.{i}.{name}": value
            for name, value in {
                "mlp.1.weight": draw(6 * d, d),
                "mlp.1.bias": draw(6 * d),
                "ln1.weight": 1 + draw(d),
                "attn.wq.weight": draw(width, d),
                "attn.wk.weight": draw(width, d),
                "attn.wv.weight": draw(width, d),
                "attn.wo.weight": draw(d, width),
                "ln2.weight": 1 + draw(d),
                "ff.w1.weight": draw(sizes.hidden, d),
                "ff.w2.weight": draw(d, sizes.hidden),
                "ff.w3.weight": draw(sizes.hidden, d),
            }.items()
        }
    state |= {
        "last_norm.norm_final.weight": 1 + draw(d),
        "last_norm.norm_final.bias": draw(d),
        "last_norm.mlp.1.weight": draw(2 * d, d),
        "last_norm.mlp.1.bias": draw(2 * d),
        "head.weight": state["tok_emb.weight"],
        "head.bias": draw(sizes.codes + 1),
    }
    return {name: torch.from_numpy(value.copy()) for name, value in state.items()}


def halton_logits(
    state: dict[str, torch.Tensor], codes: np.ndarray, classes: np.ndarray, heads: int, *, epsilon: float = 1e-5
) -> np.ndarray:
    """Codes (b, n), the last one MASK, and classes (b,), the last one null -> logits (b, n, codes + 1)."""
    w = {name: value.double().numpy() for name, value in state.items()}
    b, n = codes.shape
    condition = _silu(w["cls_emb.weight"][classes])
    x = w["tok_emb.weight"][codes] + w["pos_emb.weight"]
    x = np.concatenate((x, np.broadcast_to(w["reg_tokens.weight"], (b, *w["reg_tokens.weight"].shape))), axis=1)

    def rms(value: np.ndarray) -> np.ndarray:
        return value / np.sqrt((value**2).mean(-1, keepdims=True) + epsilon)

    def split(value: np.ndarray) -> np.ndarray:
        return value.reshape(b, -1, heads, value.shape[-1] // heads).transpose(0, 2, 1, 3)

    for i in range(len([name for name in w if name.endswith("attn.wq.weight")])):
        p = f"transformer.layers.{i}."
        moved = condition @ w[p + "mlp.1.weight"].T + w[p + "mlp.1.bias"]
        shift1, scale1, gate1, shift2, scale2, gate2 = (part[:, None] for part in np.split(moved, 6, axis=1))
        seen = rms(x) * w[p + "ln1.weight"] * (1 + scale1) + shift1
        q, k, v = (seen @ w[p + f"attn.w{name}.weight"].T for name in "qkv")
        q, k, v = split(rms(q)), split(rms(k)), split(v)
        mixed = _softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v
        x = x + gate1 * (mixed.transpose(0, 2, 1, 3).reshape(b, x.shape[1], -1) @ w[p + "attn.wo.weight"].T)
        seen = rms(x) * w[p + "ln2.weight"] * (1 + scale2) + shift2
        hidden = _silu(seen @ w[p + "ff.w1.weight"].T) * (seen @ w[p + "ff.w3.weight"].T)
        x = x + gate2 * (hidden @ w[p + "ff.w2.weight"].T)

    moved = condition @ w["last_norm.mlp.1.weight"].T + w["last_norm.mlp.1.bias"]
    shift, scale = (part[:, None] for part in np.split(moved, 2, axis=1))
    x = rms(x[:, :n]) * w["last_norm.norm_final.weight"] + w["last_norm.norm_final.bias"]
    return (x * (1 + scale) + shift) @ w["head.weight"].T + w["head.bias"]


def write_pth(state: dict[str, torch.Tensor], path: Path, *, prefix: str = "") -> Path:
    """As its trainer saves it; `prefix` is what distributed training and compiling put before the names."""
    weights = {prefix + name: value for name, value in state.items()}
    torch.save({"iter": 7, "global_epoch": 1, "model_state_dict": weights, "optimizer_state_dict": None}, path)
    return path


def write_safetensors(state: dict[str, torch.Tensor], path: Path) -> Path:
    """The same tensors without a pickle, which is read without a process of its own."""
    save_file({name: value.clone() for name, value in state.items()}, path)
    return path


# ----------------------------------------------------------------------------- arithmetic


class _Draws:
    """Normal numbers of `scale`, as float32; the same for the same seed."""

    def __init__(self, seed: int, scale: float):
        self.generator, self.scale = np.random.default_rng(seed), scale

    def __call__(self, *shape: int) -> np.ndarray:
        return (self.scale * self.generator.standard_normal(shape)).astype(np.float32)


def _double(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64)


def _layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weights["scale"] + weights["bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _gelu_exact(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + torch.erf(torch.from_numpy(x / np.sqrt(2))).numpy())
