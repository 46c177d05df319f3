"""Sixty requests whose codes and pixels are written down: whoever rebuilds the engine must draw the same.

`python tests/support/golden_requests.py` draws them and writes data/golden.npz beside this file. That is done once, on
the engine that is known to be right; `tests/paper/test_golden.py` compares with it ever after. A request here is the
name of a model, the name of a method of its Pipeline, and that method's arguments.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import listening_pipeline, tiny_pipeline

from maskimg import Pipeline, Sampler
from maskimg.drawing.request import Request

RECORD = Path(__file__).parent / "data" / "golden.npz"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft waves and one hard disc, by a formula."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * ((1 + seed) * x + (k + 1) * y + k / 3)) for k in range(3)]
    pixels = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    pixels[(x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05] = (230, 40 + 20 * seed, 30)
    return Image.fromarray(pixels)


def painted(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A mask (height, width), True inside a box: left, top, right, bottom."""
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request: `method` of `model`'s Pipeline with these arguments."""

    name: str
    model: str
    method: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def asked(name: str, model: str, method: str, *arguments: Any, **options: Any) -> Asked:
    return Asked(name, model, method, arguments, options)


def requests() -> Iterator[Asked]:
    tiny, hears, emoji, captions = "tiny", "hears", "emoji-64", "emoji-64-captions"
    both = {"class": "cat", "style": "round"}

    # Generate: labels, seeds, batches.
    yield asked("anything", tiny, "generate")
    yield asked("one label", tiny, "generate", "bird", seeds=7)
    yield asked("two labels", tiny, "generate", both, seeds=7, count=3)
    yield asked("a list of seeds", tiny, "generate", "bug", seeds=[9, 4, 2**32 - 1])
    yield asked("seeds that wrap around", tiny, "generate", "bug", seeds=2**32 - 1, count=2)
    yield asked("between two labels", tiny, "generate", "bird", towards="cat", share=0.3, count=2)
    yield asked("between two pairs", tiny, "generate", both, towards={"class": "bug", "style": "flat"}, share=0.7)
    yield asked("twenty at a time", tiny, "generate", "bird", count=20)

    # Every order, schedule and number of the loop.
    for order in ("confidence", "halton", "random", "critic", "moment"):
        yield asked(f"order {order}", tiny, "generate", both, seeds=3, count=2, sampler=Sampler(steps=6, order=order))
    for schedule in ("linear", "arccos", "square", "beta(2, 3)"):
        yield asked(f"schedule {schedule}", tiny, "generate", sampler=Sampler(steps=5, schedule=schedule))
    confident = Sampler(steps=6, order="confidence", choice_temperature=3.0)
    yield asked("counts", tiny, "generate", "cat", sampler=Sampler(counts=(1, 2, 4, 9)))
    yield asked("one step", tiny, "generate", "cat", sampler=Sampler(steps=1))
    yield asked("more steps than tokens", tiny, "generate", "cat", sampler=Sampler(steps=40, order="confidence"))
    yield asked("temperatures as lists", tiny, "generate", "cat", sampler=dataclasses.replace(
        confident, token_temperature=(1.5, 0.5), choice_temperature=(2.0, 1.0, 0.0)))  # fmt: skip
    yield asked("top k", tiny, "generate", "cat", sampler=dataclasses.replace(confident, top_k=5))
    yield asked("top p", tiny, "generate", "cat", sampler=dataclasses.replace(confident, top_p=0.6))
    yield asked("revise", tiny, "generate", "cat", sampler=Sampler(steps=8, order="random", revise=0.3))
    yield asked("a critic that keeps", tiny, "generate", "cat", sampler=Sampler(
        steps=6, order="critic", critic_revises=False))  # fmt: skip

    # Guidance.
    for name, numbers in {
        "constant": {"guidance": 3.0},
        "linear": {"guidance": 3.0, "guidance_schedule": "linear"},
        "power-cosine": {"guidance": 3.0, "guidance_schedule": "power-cosine", "guidance_power": 2.0},
        "in an interval": {"guidance": 3.0, "guidance_start": 0.2, "guidance_end": 0.7},
        "as a list": {"guidance": (4.0, 1.0)},
        "of a field": {"field_guidance": (("style", 2.5),)},
        "of all and of a field": {"guidance": 2.0, "field_guidance": (("class", 1.5), ("style", 0.5))},
    }.items():
        yield asked(f"guidance {name}", tiny, "generate", both, seeds=5, count=2, sampler=Sampler(steps=6, **numbers))

    # Best of several, and presets.
    yield asked("best of 3", tiny, "generate", "bird", count=2, best_of=3)
    yield asked("best of 2, fast", tiny, "generate", both, seeds=[5, 1], best_of=2, sampler="fast")
    yield asked("preset best", tiny, "generate", "bug", sampler="best")

    # Words, negatives, pictures.
    yield asked("words", hears, "generate", prompt="red apple", seeds=1, count=2)
    yield asked("a label and words", hears, "generate", "cat", prompt="dog", seeds=1)
    yield asked("words and a negative", hears, "generate", prompt="red apple", negative="dog", seeds=1)
    yield asked("guided by words", hears, "generate", "bird", prompt="red dog",
                sampler=Sampler(steps=5, field_guidance=(("words", 2.0),)))  # fmt: skip
    yield asked("a whole prompt", hears, "generate", Request(label="bug", prompt="red", negative="apple"), count=2)
    yield asked("translate", hears, "translate", picture(40, 28), seeds=2, count=2)
    yield asked("translate with words", hears, "translate", picture(16, 16), "bug", prompt="red", best_of=2)

    # Inpainting: sizes, windows, rings, edges.
    small, wide = picture(16, 16), picture(60, 36, 1)
    yield asked("inpaint", tiny, "inpaint", small, painted(16, 16, (4, 4, 9, 9)), "bird", seeds=3, count=2)
    yield asked("inpaint without a ring", tiny, "inpaint", small, painted(16, 16, (0, 0, 8, 8)), grow=0)
    yield asked("inpaint by coverage", tiny, "inpaint", wide, painted(60, 36, (10, 9, 33, 20)), both, coverage=0.4)
    yield asked("inpaint with a window", tiny, "inpaint", wide, painted(60, 36, (5, 5, 50, 30)), "cat", window=24)
    yield asked("inpaint a sharp edge", tiny, "inpaint", wide, painted(60, 36, (20, 9, 33, 20)), feather=0.0)
    yield asked("inpaint everything", tiny, "inpaint", small, painted(16, 16, (0, 0, 16, 16)), best_of=2)
    yield asked("inpaint with words", hears, "inpaint", small, painted(16, 16, (4, 4, 9, 9)), prompt="dog",
                negative="red")  # fmt: skip

    # Outpainting and variations.
    yield asked("outpaint to the right", tiny, "outpaint", small, (0, 0, 2, 0), "bird", seeds=3, count=2)
    yield asked("outpaint all around", tiny, "outpaint", wide, (1, 2, 1, 1), both)
    yield asked("outpaint with a window", tiny, "outpaint", wide, (0, 0, 2, 1), window=20)
    yield asked("vary", tiny, "vary", small, 0.4, "bird", seeds=3, count=3)
    yield asked("vary all", tiny, "vary", wide, 1.0, best_of=2)
    yield asked("vary under a mask", tiny, "vary", wide, 0.5, "cat", mask=painted(60, 36, (10, 9, 33, 30)), count=2)

    # The bundled models.
    yield asked("emoji by its recipe", emoji, "generate", {"class": "happy face", "style": "noto"}, seeds=7)
    yield asked("emoji by its critic", emoji, "generate", "bird", sampler="fast", seeds=3, best_of=2)
    yield asked("emoji mended", emoji, "inpaint", picture(90, 64), painted(90, 64, (30, 20, 50, 44)), "bird")
    yield asked("emoji from words", captions, "generate", {"style": "noto"}, prompt="red apple", seeds=7)
    yield asked("emoji away from words", captions, "generate", prompt="dog", negative="red", sampler="fast", seeds=1)


@functools.cache
def model(name: str) -> Pipeline:
    made = {"tiny": tiny_pipeline, "hears": listening_pipeline}
    return made[name]() if name in made else Pipeline.from_pretrained(name, device="cpu", dtype="fp32")


def draw(request: Asked) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes (b, h, w), and the pixels (H, W, 3) of each picture."""
    pipeline = model(request.model)
    method = getattr(pipeline, request.method, None) or pipeline.variations  # what `vary` was called
    result = method(*request.arguments, **request.options)
    return result.codes.cpu().numpy().astype(np.int32), [np.asarray(image) for image in result.images]


def record() -> None:
    arrays = {}
    for request in requests():
        codes, pictures = draw(request)
        arrays[f"{request.name}: codes"] = codes
        for i, pixels in enumerate(pictures):
            arrays[f"{request.name}: {i}"] = pixels
    np.savez_compressed(RECORD, **arrays)
    print(f"{len(list(requests()))} requests in {RECORD}")


if __name__ == "__main__":
    record()
