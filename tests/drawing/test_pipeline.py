"""What a person with a finished model is promised: labels and holes in, pictures and their recipes out."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import differing, tiny_net
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from tiny import LABELS, NETWORK, tiny_pipeline, watched
from torch import nn

from maskimg.drawing import edits
from maskimg.drawing.request import Request, expand_seeds
from maskimg.drawing.runner import Progress
from maskimg.maskgit import MaskGit
from maskimg.networks.transformer import MaskedTransformer
from maskimg.networks.wrapper import ForeignNet
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import caption, read_recipe
from maskimg.sampler import Sampler, make_presets
from vqgan import ImageError, Tokenizer
from vqgan.files import ModelError, write_json, write_manifest
from vqgan.tokenizer import share_tokenizer

SIZES = [(16, 16), (32, 32), (64, 48), (100, 37), (37, 100), (200, 10), (10, 7), (5, 16), (3, 3)]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def _same(left: Image.Image, right: Image.Image) -> bool:
    return np.array_equal(np.array(left), np.array(right))


def _photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def _paint(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Image.Image:
    """A mask, white in the boxes (left, top, right, bottom)."""
    mask = Image.new("L", size, 0)
    for box in boxes:
        mask.paste(255, box)
    return mask


# ----------------------------------------------------------------------------- drawing


def test_a_label_becomes_pictures_of_the_models_size(pipeline):
    result = pipeline.generate("cat", seeds=7, count=3)
    assert [image.size for image in result.images] == [(16, 16)] * 3
    assert {image.mode for image in result.images} == {"RGB"}
    assert result.codes.shape == (3, 4, 4)
    assert [recipe["seed"] for recipe in result.recipes] == [7, 8, 9]
    assert (pipeline.image_size, pipeline.grid, pipeline.name) == (16, (4, 4), "tiny")


@pytest.mark.parametrize("order", ["halton", "critic"])
def test_a_seed_draws_the_same_picture_in_any_batch(pipeline, order):
    sampler = Sampler(steps=4, order=order, guidance=2.0)
    together = pipeline.generate("bird", seeds=[3, 9, 4, 2**32 - 1], sampler=sampler)
    for i, seed in enumerate((3, 9, 4, 2**32 - 1)):
        alone = pipeline.generate("bird", seeds=seed, sampler=sampler)
        assert torch.equal(alone.codes[0], together.codes[i])
        assert _same(alone.images[0], together.images[i])
    assert len({image.tobytes() for image in together.images}) == 4


def test_other_seeds_and_labels_draw_other_pictures(pipeline):
    results = [pipeline.generate(label, seeds=seed) for label in ("cat", "bug", None) for seed in (0, 1)]
    assert len({result.images[0].tobytes() for result in results}) == 6


def test_seeds_run_on_from_the_last_one_to_the_first():
    assert expand_seeds(2**32 - 1, 3) == [2**32 - 1, 0, 1]
    assert expand_seeds([5, 2**32 - 1, 5]) == [5, 2**32 - 1, 5]
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        expand_seeds(0, 0)


def test_the_recipe_in_each_file_draws_its_picture_again(tmp_path, pipeline):
    sampler = Sampler(steps=3, order="confidence", guidance=1.5, top_p=0.9)
    paths = pipeline.generate({"class": "bug", "style": "round"}, seeds=40, count=3, sampler=sampler).save(tmp_path)
    assert [path.name for path in paths] == ["000040.png", "000041.png", "000042.png"]
    assert len(list(tmp_path.iterdir())) == 3
    for path in paths:
        recipe = read_recipe(path)
        again = pipeline.generate(recipe["label"], seeds=recipe["seed"], sampler=Sampler(**recipe["sampler"]))
        assert _same(again.images[0], Image.open(path))
        assert again.recipes[0] == recipe


def test_drawing_can_be_watched_step_by_step(pipeline):
    previews = watched(pipeline, "cat", seeds=[5, 6])
    assert [(preview.step, preview.steps) for preview in previews] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(preview.part.max() < 64 for preview in previews)
    assert [preview.masked.any().item() for preview in previews] == [True, True, True, False]
    assert torch.equal(previews[-1].part, pipeline.generate("cat", seeds=[5, 6]).codes)


def test_watching_in_bf16_leaves_no_number_format_behind():
    pipeline = tiny_pipeline(dtype="bf16")
    for _ in pipeline.steps(edits.generation(pipeline), Request("cat"), complete=True):
        assert not torch.is_autocast_enabled("cpu")
    assert pipeline.generate("cat").recipes[0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.generate("bagel"), "there is no class `bagel`"),
        (lambda p: p.generate("brid"), "there is no class `brid`; did you mean `bird`?"),
        (lambda p: p.generate({"colour": "red"}), "there is no label field `colour`"),
        (lambda p: p.generate(count=0), "count must be 1 or more"),
        (lambda p: tiny_pipeline(labels=False).generate("cat"), "trained without labels"),
        (
            lambda p: tiny_pipeline(critic=False).generate(sampler=Sampler(order="critic")),
            "this model has no critic: choose another order",
        ),
    ],
)
def test_what_cannot_be_drawn_is_answered_with_a_sentence(pipeline, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(pipeline)


def test_grids_without_a_hole_are_refused(pipeline):
    with pytest.raises(ValueError, match="there is nothing to draw: no token is masked"):
        watched(pipeline, codes=torch.zeros(2, 4, 4, dtype=torch.int64), seeds=[0, 1])


HOLES = torch.tensor([16, 4, 0, 12])  # unknown tokens of four images


def _grids(pipeline: Pipeline) -> torch.Tensor:
    """Four grids, each with another hole."""
    known = torch.arange(64).reshape(4, 4, 4)
    hole = torch.arange(16).reshape(4, 4) * 7 % 16 < HOLES[:, None, None]
    return known.masked_fill(hole, pipeline.generator.mask_id)


@pytest.mark.parametrize("order", ["halton", "critic", "confidence"])
@pytest.mark.parametrize("complete", [True, False])
def test_images_with_holes_of_any_size_are_drawn_side_by_side(pipeline, order, complete):
    """The image without a hole and those that are finished early stay as they are until the last one is."""
    codes, sampler = _grids(pipeline), Sampler(steps=6, order=order, schedule="linear")
    previews = watched(pipeline, "cat", codes=codes, seeds=[5, 6, 7, 8], sampler=sampler, complete=complete)
    assert len(previews) == 6
    for preview in previews:
        assert {preview.part.shape, preview.scores.shape, preview.masked.shape} == {(4, 4, 4)}
        assert (preview.part[~preview.masked] < 64).all()
        assert not complete or (preview.part < 64).all()
        assert torch.equal(preview.part[codes < 64], codes[codes < 64])
    left = [preview.masked.sum((1, 2)).tolist() for preview in previews]
    assert left == [[13, 3, 0, 10], [11, 2, 0, 8], [8, 1, 0, 6], [5, 0, 0, 4], [3, 0, 0, 2], [0, 0, 0, 0]]

    # Each is what it is alone.
    for i, hole in enumerate(HOLES):
        if not hole:
            assert torch.equal(codes[i], previews[-1].part[i])
            continue
        alone = watched(pipeline, "cat", codes=codes[i : i + 1], seeds=5 + i, sampler=sampler, complete=complete)
        assert len(alone) == (6 if hole > 4 else hole)
        assert torch.equal(alone[-1].part[0], previews[-1].part[i])


def test_showing_complete_grids_changes_no_picture(pipeline):
    for order in ("halton", "moment", "critic"):
        whole, plain = (
            watched(pipeline, "bug", seeds=[1, 2], sampler=Sampler(steps=4, order=order), complete=complete)
            for complete in (True, False)
        )
        assert torch.equal(whole[-1].part, plain[-1].part)
        assert all(torch.equal(one.masked, other.masked) for one, other in zip(whole, plain, strict=True))


def test_parts_that_do_not_belong_together_are_refused():
    one = tiny_pipeline()
    other = MaskedTransformer(dataclasses.replace(NETWORK, vocab_size=60))
    with pytest.raises(ValueError, match="the tokenizer has 64 codes but the generator 60"):
        Pipeline(one.tokenizer, other, labels=LABELS, device="cpu", dtype="fp32")
    with pytest.raises(ValueError, match=r"the generator knows \(3, 2\) labels per field, but \(\) are named"):
        Pipeline(one.tokenizer, one.generator.net, device="cpu", dtype="fp32")


class Foreign(nn.Module):
    """A network as other libraries have them: flat codes (b, n) -> logits (b, n, v)."""

    num_tokens, max_seq_len = 65, 16

    def forward(self, codes):
        return torch.zeros(*codes.shape, 65)


def test_a_network_that_cannot_be_saved_is_refused():
    with pytest.raises(ValueError, match="a pipeline needs a Network and, if any, a TokenCritic"):
        Pipeline(tiny_pipeline().tokenizer, MaskGit(ForeignNet(Foreign(), 64, (4, 4))), device="cpu", dtype="fp32")


# ----------------------------------------------------------------------------- presets


def test_a_preset_may_be_named_wherever_a_sampler_may_be_given(pipeline):
    fast = pipeline.presets["fast"]
    assert pipeline.sampler("fast") == fast != pipeline.recipe
    assert pipeline.sampler(None) == pipeline.presets["balanced"] == pipeline.recipe
    named, given_whole = (pipeline.generate("cat", seeds=3, sampler=sampler) for sampler in ("fast", fast))
    assert torch.equal(named.codes, given_whole.codes)
    assert named.recipes == given_whole.recipes == [pipeline.recipe_for(Request("cat", sampler="fast"), 3)]
    assert Sampler(**named.recipes[0]["sampler"]) == fast
    assert len(watched(pipeline, "cat", sampler="fast")) == fast.steps
    painted = pipeline.inpaint(_photo((16, 16)), _paint((16, 16), (0, 0, 8, 8)), sampler="best")
    assert Sampler(**painted.recipes[0]["sampler"]) == pipeline.presets["best"]


def test_a_preset_that_does_not_exist_is_answered_with_those_that_do(pipeline):
    for ask in (pipeline.generate, lambda sampler: watched(pipeline, sampler=sampler)):
        with pytest.raises(ValueError, match="there is no preset `quick`: choose fast, balanced, best"):
            ask(sampler="quick")


def test_a_model_keeps_its_own_presets(tmp_path):
    parts = tiny_pipeline()
    mine = {"fast": Sampler(steps=2, order="random"), "sketch": Sampler(counts=(4, 12), guidance=(1.0, 2.5))}
    own = Pipeline(parts.tokenizer, parts.generator, labels=LABELS, recipe=Sampler(steps=3), presets=mine, device="cpu")
    assert own.presets == {**make_presets(Sampler(steps=3), has_critic=True), **mine}
    own.save_pretrained(tmp_path / "model")
    assert _load(tmp_path / "model").presets == own.presets
    about = json.loads((tmp_path / "model" / "pipeline.json").read_text())
    assert about["presets"]["sketch"]["guidance"] == [1.0, 2.5]


def test_a_model_from_before_presets_gets_the_usual_ones(saved, tmp_path):
    directory = _copy(saved, tmp_path)
    about = json.loads((directory / "pipeline.json").read_text())
    del about["presets"], about["heads"]
    write_json(directory / "pipeline.json", about)
    write_manifest(directory)
    assert _load(directory).presets == make_presets(Sampler(steps=4), has_critic=True)


# ----------------------------------------------------------------------------- the critic's opinion


def _candidates(pipeline: Pipeline, label: str, seed: int, count: int) -> list[Progress]:
    """The finished candidates of one picture."""
    steps = watched(pipeline, label, seeds=seed, best_of=count, complete=False)
    return [step for step in steps if step.step == step.steps]


def test_doubts_are_the_critics_logits_for_each_token(pipeline):
    codes = pipeline.generate("cat", seeds=1, count=3).codes
    doubts = pipeline.doubts("cat", codes)
    assert (doubts.shape, doubts.dtype) == ((3, 4, 4), torch.float32)
    condition = pipeline.labels.encode("cat", 3)
    with torch.no_grad():
        torch.testing.assert_close(doubts, pipeline.critic(codes, condition), rtol=1e-4, atol=1e-5)
    assert torch.equal(doubts[1:2], pipeline.doubts("cat", codes[1:2]))
    assert not torch.allclose(doubts, pipeline.doubts("bug", codes))


def test_the_best_of_one_is_the_plain_picture(pipeline):
    plain, best = pipeline.generate("cat", seeds=4, count=2), pipeline.generate("cat", seeds=4, count=2, best_of=1)
    assert torch.equal(plain.codes, best.codes)
    assert plain.recipes == best.recipes
    assert "best_of" not in best.recipes[0]
    assert torch.equal(_candidates(pipeline, "cat", 4, 1)[0].part[0], plain.codes[0])


def test_the_best_of_several_is_the_one_that_the_critic_doubts_least(pipeline):
    result = pipeline.generate("cat", seeds=10, count=6, best_of=4)
    chosen = []
    for i in range(6):
        candidates = [preview.part[0] for preview in _candidates(pipeline, "cat", 10 + i, 4)]
        assert len({tuple(codes.flatten().tolist()) for codes in candidates}) == 4
        doubts = [pipeline.doubts("cat", codes[None]).mean().item() for codes in candidates]
        chosen.append(doubts.index(min(doubts)))
        assert torch.equal(result.codes[i], candidates[chosen[-1]])
    assert len(set(chosen)) > 1


def test_a_recipe_with_candidates_draws_the_same_file_again(pipeline, tmp_path):
    paths = pipeline.generate("bug", seeds=7, count=3, best_of=3).save(tmp_path / "first")
    for path in paths:
        recipe = read_recipe(path)
        assert recipe["best_of"] == 3
        again = pipeline.generate(
            recipe["label"], seeds=recipe["seed"], sampler=Sampler(**recipe["sampler"]), best_of=recipe["best_of"]
        )
        assert again.save(tmp_path / "again")[0].read_bytes() == path.read_bytes()


def test_a_hole_may_have_candidates_too(pipeline):
    photo, mask = _photo((16, 16)), _paint((16, 16), (4, 4, 12, 12))
    plain, best = (pipeline.inpaint(photo, mask, "cat", seeds=2, count=4, grow=0, best_of=n) for n in (1, 3))
    known = ~pipeline.hole(photo, mask, grow=0).tokens[0]
    assert torch.equal(best.codes[:, known], plain.codes[:, known])
    assert best.recipes[0]["best_of"] == 3
    doubts = [pipeline.doubts("cat", result.codes).mean((1, 2)) for result in (plain, best)]
    assert (doubts[1] <= doubts[0]).all()
    assert (doubts[1] < doubts[0]).any()


def test_candidates_and_doubts_need_a_critic():
    pipeline = tiny_pipeline(critic=False)
    with pytest.raises(ValueError, match="best_of needs a critic, and this model has none"):
        pipeline.generate(best_of=2)
    with pytest.raises(ValueError, match="this model has no critic"):
        pipeline.doubts(None, torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="best_of must be 1 or more, got 0"):
        pipeline.generate(best_of=0)


# ----------------------------------------------------------------------------- number formats


def test_pictures_are_drawn_with_weights_in_bf16_and_the_model_stays_exact(tmp_path):
    pipeline, exact = tiny_pipeline(dtype="bf16"), tiny_pipeline()
    pipeline.generate("cat", sampler=Sampler(steps=3, order="critic"), best_of=2)
    assert {parameter.dtype for parameter in pipeline.running.parameters()} == {torch.bfloat16}
    assert pipeline.running is pipeline.running
    assert {parameter.dtype for parameter in pipeline.generator.parameters()} == {torch.float32}
    pipeline.save_pretrained(tmp_path / "model")
    assert differing(_load(tmp_path / "model").generator, exact.generator) == []


@pytest.mark.filterwarnings("ignore")  # torch's compiler has deprecations of its own
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_pipeline_draws_the_same_pictures_up_to_rounding_and_says_that_it_was_compiled():
    plain, compiled = tiny_pipeline(), _again(tiny_pipeline(), compile=True)
    sampler = Sampler(steps=3, order="halton")
    wanted, found = (pipeline.generate("cat", count=4, sampler=sampler) for pipeline in (plain, compiled))
    torch.compiler.reset()
    assert (wanted.codes == found.codes).float().mean() > 0.9
    assert found.recipes[0]["compiled"] is True
    assert "compiled" not in wanted.recipes[0]


@pytest.mark.filterwarnings("ignore")  # torch's compiler has deprecations of its own
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("order", ["confidence", "critic", "halton"])
def test_a_compiled_picture_does_not_depend_on_those_drawn_with_it(order):
    """On a CPU they are drawn sixteen at a time, filled up where there are fewer."""
    compiled = _again(tiny_pipeline(), compile=True, dtype="bf16")
    sampler = Sampler(steps=3, order=order, guidance=2.0, guidance_end=0.7)
    together = compiled.generate("cat", seeds=list(range(20)), sampler=sampler)
    assert len(together.images) == len(together.codes) == 20
    for some in ([3], [18, 2, 17], list(range(20))[::-1]):
        alone = compiled.generate("cat", seeds=some, sampler=sampler)
        assert torch.equal(alone.codes, together.codes[some])
        assert all(_same(left, together.images[seed]) for left, seed in zip(alone.images, some, strict=True))
    torch.compiler.reset()


def test_without_a_compiler_nobody_is_told_that_it_was_compiled(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="compiling is not possible here, because there is no C\\+\\+ compiler"):
        _again(tiny_pipeline(), compile=True)


def _again(pipeline: Pipeline, **options) -> Pipeline:
    """A pipeline of the same networks, made with other options."""
    return Pipeline(
        pipeline.tokenizer,
        pipeline.net,
        pipeline.critic,
        labels=pipeline.labels.names,
        **{"device": "cpu", "dtype": "fp32", **options},
    )


def test_in_fp32_there_is_no_second_copy_of_the_weights(pipeline):
    assert pipeline.running is pipeline.generator


@pytest.mark.parametrize("order", ["confidence", "halton", "critic", "moment"])
def test_bf16_moves_few_codes(order):
    """Rounding to 8 bits turns a draw where chance falls near a border; then what follows may differ too."""
    sampler = Sampler(steps=4, order=order, guidance=2.0)
    exact, rounded = (
        tiny_pipeline(dtype=dtype).generate("cat", count=16, sampler=sampler).codes for dtype in ("fp32", "bf16")
    )
    assert (exact == rounded).double().mean() > 0.5


# ----------------------------------------------------------------------------- inpainting


def _redrawn(hole, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of the original surely lie in redrawn tokens, and which surely do not, (H, W) each.

    A pixel lies where its centre does on the model's square; one whose centre is on a border may go either way.
    """
    left, top, right, bottom = hole.box
    redrawn = []
    for shift in (-1e-6, 1e-6):
        columns = left + np.floor((np.arange(size[0]) + 0.5) * (right - left) / size[0] + shift).astype(int)
        rows = top + np.floor((np.arange(size[1]) + 0.5) * (bottom - top) / size[1] + shift).astype(int)
        redrawn += [hole.tokens[0].numpy()[rows[:, None] // 4, columns[None] // 4]]
    return redrawn[0] & redrawn[1], ~redrawn[0] & ~redrawn[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("grow", [0, 1])
def test_every_pixel_outside_the_redrawn_tokens_stays_bit_for_bit(pipeline, size, grow):
    photo = _photo(size)
    mask = _paint(size, (0, 0, max(1, size[0] // 3), max(1, size[1] // 3)))
    result = pipeline.inpaint(photo, mask, "cat", seeds=3, count=2, grow=grow)
    redrawn, kept = _redrawn(pipeline.hole(photo, mask, grow=grow), size)
    assert not kept[np.array(mask) > 127].any()
    for image in result.images:
        assert image.size == size
        assert np.array_equal(np.array(image)[kept], np.array(photo)[kept])
        assert not np.array_equal(np.array(image)[redrawn], np.array(photo)[redrawn])


@settings(max_examples=60, deadline=None)
@example(65, 1, 0.5, 0.0)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_single_painted_pixel_is_redrawn_wherever_it_lies(width, height, right, down):
    """A mask that is shrunk and thresholded loses thin strokes; this one keeps each pixel, even without growing.

    In the middle of 65 pixels, a line on the border of two tokens had the wrong one of them redrawn.
    """
    pipeline = _shared()
    x, y = int(right * width), int(down * height)
    hole = pipeline.hole(_photo((width, height)), _paint((width, height), (x, y, x + 1, y + 1)), grow=0)
    assert hole.tokens.any()
    assert np.array(hole.pixels())[y, x] == 255


_PIPELINES: list[Pipeline] = []


def _shared() -> Pipeline:
    """Built once: hypothesis runs a test many times."""
    if not _PIPELINES:
        _PIPELINES.append(tiny_pipeline())
    return _PIPELINES[0]


def test_a_hair_across_a_large_picture_is_redrawn_along_its_whole_length(pipeline):
    size = (400, 300)
    hole = pipeline.hole(_photo(size), _paint(size, (0, 150, 400, 151)), grow=0)
    assert (np.array(hole.pixels())[150] == 255).all()
    assert hole.tokens.sum() == 4


def test_given_tokens_reach_the_finished_codes(pipeline):
    photo, mask = _photo((16, 16)), _paint((16, 16), (4, 4, 8, 8))
    hole = pipeline.hole(photo, mask, grow=0)
    assert hole.tokens.nonzero().tolist() == [[0, 1, 1]]
    codes = pipeline.inpaint(photo, mask, grow=0).codes
    assert torch.equal(codes[~hole.tokens], pipeline.encode(photo)[~hole.tokens])


def test_painting_everything_draws_a_new_picture(pipeline):
    result = pipeline.inpaint(_photo((16, 16)), _paint((16, 16), (0, 0, 16, 16)), "cat", seeds=5)
    assert _same(result.images[0], pipeline.generate("cat", seeds=5).images[0])
    assert result.recipes[0]["task"] == "inpaint"
    assert result.recipes[0]["tokens_redrawn"] == 16


@pytest.mark.parametrize("coverage", [0.0, 0.5])
def test_tokens_can_be_asked_to_be_covered(pipeline, coverage):
    mask = _paint((16, 16), (0, 0, 5, 4))  # a whole token and a quarter of its neighbour
    hole = pipeline.hole(_photo((16, 16)), mask, grow=0, coverage=coverage)
    assert hole.tokens.sum() == (2 if coverage == 0 else 1)


def test_masks_may_be_files_pictures_and_arrays(pipeline, tmp_path):
    photo, mask = _photo((20, 12)), _paint((20, 12), (3, 3, 9, 9))
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    expected = pipeline.inpaint(photo, mask, seeds=1).images[0]
    values = np.array(mask)
    for given_mask in (tmp_path / "mask.png", str(tmp_path / "mask.png"), values, values > 0, mask.convert("RGB")):
        assert _same(pipeline.inpaint(tmp_path / "photo.png", given_mask, seeds=1).images[0], expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_pictures_of_any_mode_may_be_inpainted_and_reconstructed(pipeline, mode):
    """Those from files come in as RGB; those that a program hands over may not."""
    photo = _photo((20, 12)).convert("RGB").convert(mode)
    mask = _paint((20, 12), (3, 3, 9, 9))
    image = pipeline.inpaint(photo, mask).images[0]
    _, kept = _redrawn(pipeline.hole(photo, mask), photo.size)
    assert kept.any()
    assert np.array_equal(np.array(image.convert("RGB"))[kept], np.array(photo.convert("RGB"))[kept])
    assert pipeline.reconstruct(photo).image.mode == "RGB"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (16, 16), 0), "nothing is painted: paint the part to redraw"),
        (np.zeros((16, 16), bool), "nothing is painted"),
        (Image.new("L", (16, 15), 255), "the mask is 16x15 but the image is 16x16: make them equal"),
        (np.ones((8, 16), bool), "the mask is 16x8 but the image is 16x16"),
        (np.ones((16, 16, 5), bool), "expected a mask of shape"),
    ],
)
def test_masks_that_ask_for_nothing_or_do_not_fit_are_refused(pipeline, mask, message):
    with pytest.raises(ValueError, match=message):
        pipeline.inpaint(_photo((16, 16)), mask)


def test_a_mask_too_thin_for_the_coverage_asked_is_refused(pipeline):
    with pytest.raises(ValueError, match="no token is covered enough to be redrawn"):
        pipeline.inpaint(_photo((16, 16)), _paint((16, 16), (0, 0, 1, 1)), coverage=0.5)


def test_a_file_that_is_no_picture_is_refused(pipeline, tmp_path):
    (tmp_path / "a.png").write_text("nothing")
    with pytest.raises(ImageError, match="is not a readable PNG"):
        pipeline.inpaint(tmp_path / "a.png", _paint((16, 16), (0, 0, 4, 4)))
    with pytest.raises(ImageError, match="there is no such file"):
        pipeline.reconstruct(tmp_path / "nowhere.png")


# ----------------------------------------------------------------------------- reconstructing


@pytest.mark.parametrize("size", [(16, 16), (40, 20), (5, 30)])
def test_a_reconstruction_stands_beside_its_original(pipeline, size):
    result = pipeline.reconstruct(_photo(size))
    assert result.original.size == result.image.size == result.error.size == result.code_picture.size
    assert max(result.image.size) == 16
    assert result.codes.shape == (1, 4, 4)
    assert 0 < result.psnr_db < 60
    assert -1 < result.ssim < 1


@pytest.mark.parametrize(
    ("photo", "size", "encoded"),
    [((40, 20), 24, (24, 12)), ((40, 20), 1000, (40, 20)), ((3, 200), 64, (4, 64)), ((7, 9), 8, (8, 8))],
)
def test_a_whole_picture_is_encoded_at_the_size_asked_for_and_never_enlarged_to_it(pipeline, photo, size, encoded):
    result = pipeline.reconstruct(_photo(photo), size=size)
    assert result.image.size == encoded
    assert result.codes.shape == (1, encoded[1] // 4, encoded[0] // 4)


@pytest.mark.parametrize("size", [-1, 0, 3, 2049])
def test_a_size_out_of_range_is_refused(pipeline, size):
    with pytest.raises(ValueError, match=f"size must be between the stride 4 and 2048 pixels, got {size}"):
        pipeline.reconstruct(_photo((16, 16)), size=size)


def test_what_is_padded_counts_neither_for_nor_against_a_reconstruction(pipeline):
    photo = _photo((64, 16))
    result = pipeline.reconstruct(photo)
    by_hand = (np.asarray(result.image, float) - np.asarray(result.original, float)) ** 2
    assert by_hand.shape == (4, 16, 3)
    assert result.psnr_db == pytest.approx(10 * np.log10(255**2 / by_hand.mean()), abs=1e-3)


def test_the_figures_of_a_reconstruction_are_counted_from_its_codes(pipeline):
    result = pipeline.reconstruct(_photo((40, 20)), size=40)
    facts = result.facts()
    assert result.tokens == 50 and result.bits == 50 * 6
    assert result.distinct == len(set(result.codes.flatten().tolist()))
    file = io.BytesIO()
    result.original.save(file, format="PNG", optimize=True)
    assert result.png_bytes == len(file.getvalue())
    assert facts["tokens"] == "50 (5x10)" and facts["as codes"] == "300 bits"
    assert facts["different codes"] == f"{result.distinct} of 64"
    assert facts["PSNR"] == f"{result.psnr_db:.1f} dB"
    assert dataclasses.replace(result, image=result.original).facts()["PSNR"] == "identical"
    # One colour for each code, on the pixels of its token.
    colours = np.asarray(result.code_picture)[::4, ::4].reshape(-1, 3)
    assert len({tuple(colour) for colour in colours.tolist()}) == result.distinct


def test_a_picture_is_reconstructed_upright_and_with_white_for_what_was_transparent(pipeline, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # a phone held upright
    _photo((40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert pipeline.reconstruct(tmp_path / "turned.jpg").image.size == (8, 16)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(pipeline.reconstruct(tmp_path / "clear.png").original).min() == 255


# ----------------------------------------------------------------------------- recipes


def test_a_recipe_says_everything_in_a_line(pipeline, tmp_path):
    recipe = pipeline.recipe_for({"class": "cat"}, 12)
    assert caption(recipe) == "class: cat; seed 12, 4 steps, halton order, guidance 1.0, model tiny"
    assert caption(pipeline.recipe_for(None, 1)).startswith("no label; seed 1,")
    write_png(_photo((8, 8)), recipe, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"] == caption(recipe)
    assert read_recipe(tmp_path / "a.png") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("text", [None, "{nonsense", "[1, 2]", "3", '"x"', json.dumps({"a": "x" * 70_000})])
def test_a_picture_without_a_recipe_of_ours_has_none(tmp_path, text):
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt("maskimg", text)
    _photo((8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_recipe(tmp_path / "a.png") is None


def test_pictures_of_other_kinds_have_no_recipe_and_damaged_ones_are_refused(tmp_path):
    _photo((8, 8)).save(tmp_path / "a.jpg")
    assert read_recipe(tmp_path / "a.jpg") is None
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(ImageError):
        read_recipe(tmp_path / "b.png")


# ----------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pipeline):
    directory = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(directory, pictures={"samples.png": _photo((8, 8))})
    return directory


def _copy(saved, tmp_path):
    directory = tmp_path / "model"
    for path in saved.rglob("*"):
        if path.is_file():
            (directory / path.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
            (directory / path.relative_to(saved)).write_bytes(path.read_bytes())
    return directory


def _load(directory) -> Pipeline:
    return Pipeline.from_pretrained(directory, device="cpu", dtype="fp32")


@pytest.mark.parametrize("options", [{}, {"labels": False}, {"critic": False}])
def test_a_saved_model_draws_the_same_pictures(tmp_path, options):
    pipeline = tiny_pipeline(**options)
    pipeline.save_pretrained(tmp_path / "model")
    again = _load(tmp_path / "model")

    assert differing(again.generator, pipeline.generator) == []
    assert differing(again.tokenizer, pipeline.tokenizer) == []
    assert (again.critic is None) == (pipeline.critic is None)
    assert again.labels.names == pipeline.labels.names
    assert again.recipe == pipeline.recipe
    assert again.name == "tiny"
    assert _same(again.generate(seeds=4).images[0], pipeline.generate(seeds=4).images[0])
    # Its recipes name the very model.
    assert len(again.generate(seeds=4).recipes[0]["model_sha256"]) == 64


def test_a_model_may_have_the_tokenizer_of_the_one_beside_it(tmp_path, monkeypatch):
    first = tiny_pipeline()
    second = _again(first)
    first.save_pretrained(tmp_path / "first", half=True)
    second.save_pretrained(tmp_path / "second", half=True, tokenizer_of="first")
    assert [path.name for path in (tmp_path / "second" / "tokenizer").iterdir()] == ["shared.json"]
    lent = _load(tmp_path / "second")
    assert differing(lent.tokenizer, _load(tmp_path / "first").tokenizer) == []
    assert differing(Tokenizer.from_pretrained(tmp_path / "second"), lent.tokenizer) == []

    monkeypatch.chdir(tmp_path / "second")
    assert _load(Path()).labels.names == second.labels.names
    lent.save_pretrained(tmp_path / "own")  # elsewhere, it is whole again
    assert (tmp_path / "own" / "tokenizer" / "model.safetensors").is_file()

    other = tiny_pipeline()
    with torch.no_grad():
        next(other.tokenizer.parameters()).add_(1)
    with pytest.raises(ValueError, match="first` has another tokenizer"):
        other.save_pretrained(tmp_path / "third", half=True, tokenizer_of="first")
    with pytest.raises(ModelError, match="second` has no tokenizer of its own"):
        first.save_pretrained(tmp_path / "third", half=True, tokenizer_of="second")
    for name in ("third", "", "..", "../first", "first/../first"):
        with pytest.raises(ValueError, match="must be the name of another model beside this one"):
            first.save_pretrained(tmp_path / "third", half=True, tokenizer_of=name)
    assert not (tmp_path / "third").exists()
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ModelError, match="tokenizer of the model `first`, which is not beside it: copy both"):
        _load(tmp_path / "second")
    other.save_pretrained(tmp_path / "first", half=True)
    with pytest.raises(ModelError, match="is not the one that `.*second` was trained with"):
        _load(tmp_path / "second")
    first.save_pretrained(tmp_path / "first", half=True)
    assert _load(tmp_path / "second")
    config = tmp_path / "first" / "tokenizer" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"levels": [4, 4, 2, 2]})
    write_manifest(tmp_path / "first")
    with pytest.raises(ModelError, match="is not the one that `.*second` was trained with"):
        _load(tmp_path / "second")


@pytest.mark.parametrize("name", ["../first", "..", "", "/etc", "second", "no" * 200, 3, None])
def test_a_model_cannot_send_anyone_elsewhere_for_its_tokenizer(tmp_path, name):
    for place in ("first", "models/first", "models/second"):
        tiny_pipeline().save_pretrained(tmp_path / place)
    own = tmp_path / "models" / "second" / "tokenizer"
    share_tokenizer(own, tmp_path / "first")
    write_json(own / "shared.json", json.loads((own / "shared.json").read_text()) | {"model": name})
    write_manifest(tmp_path / "models" / "second")
    with pytest.raises(ModelError, match="which is not beside it"):
        _load(tmp_path / "models" / "second")


@pytest.mark.parametrize("options", [{"self_cond": True}, {"self_token_critic": True}, None])
def test_the_small_heads_of_a_model_are_saved_with_it(tmp_path, options):
    """None: both, drawn in the order `critic`."""
    options = options or {"self_cond": True, "self_token_critic": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = MaskGit(tiny_net(NETWORK), **options)
    pipeline = Pipeline(
        tiny_pipeline().tokenizer,
        generator,
        labels=LABELS,
        recipe=Sampler(steps=4, guidance=1.5, order="critic" if generator.has_critic else "halton"),
        device="cpu",
        dtype="fp32",
    )
    pipeline.save_pretrained(tmp_path / "model")
    again = _load(tmp_path / "model")
    assert set(again.generator.heads) == {name.replace("self_token", "self") for name in options}
    assert differing(again.generator, generator) == []
    assert not (tmp_path / "model" / "critic").exists()
    assert torch.equal(again.generate("cat", count=2).codes, pipeline.generate("cat", count=2).codes)
    if generator.has_critic:
        results = [one.generate("cat", count=2, best_of=3).codes for one in (again, pipeline)]
        assert torch.equal(*results)


def test_a_saved_model_can_be_saved_again(saved, tmp_path):
    _load(saved).save_pretrained(tmp_path / "again")
    assert differing(_load(tmp_path / "again").generator, _load(saved).generator) == []


def test_a_model_saved_in_half_the_size_is_nearly_the_same(pipeline, saved, tmp_path):
    pipeline.save_pretrained(tmp_path / "half", half=True, card="# Mine")
    again = _load(tmp_path / "half")
    size = [(directory / "generator" / "model.safetensors").stat().st_size for directory in (tmp_path / "half", saved)]
    assert size[0] < 0.7 * size[1]
    codes = pipeline.generate("cat").codes
    near = again.generator.logits(codes) - pipeline.generator.logits(codes)
    assert near.abs().max() < 0.05 * pipeline.generator.logits(codes).abs().max()
    assert (tmp_path / "half" / "README.md").read_text() == "# Mine"


def test_a_saved_model_explains_itself(saved):
    card = (saved / "README.md").read_text()
    assert "16 pixels, 4x4 tokens, 64 codes" in card
    assert "- class: bird, bug, cat" in card
    assert (saved / "samples.png").is_file()


def test_the_tokenizer_of_a_model_can_be_read_alone(saved, pipeline):
    assert differing(Tokenizer.from_pretrained(saved), pipeline.tokenizer) == []


@pytest.mark.parametrize(
    "name",
    [
        "pipeline.json",
        "generator/model.safetensors",
        "generator/config.json",
        "tokenizer/model.safetensors",
        "critic/model.safetensors",
    ],
)
def test_one_flipped_bit_in_anything_that_is_read_is_noticed(saved, tmp_path, name):
    directory = _copy(saved, tmp_path)
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 4
    (directory / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name}` is damaged"):
        _load(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1: upgrade maskimg"),
        ({"format": None}, "has format None, this version reads 1"),
        ({"labels": None}, r"` does not fit this version"),
        ({"recipe": None}, r"` does not fit this version"),
        ({"recipe": {"steps": 4, "magic": 1}}, r"` does not fit this version \(.*magic"),
        ({"recipe": {"steps": 0}}, "steps must be between 1 and 1024"),
        ({"presets": {"fast": {"steps": 0}}}, "steps must be between 1 and 1024"),
        ({"presets": {"fast": {"magic": 1}}}, r"` does not fit this version \(.*magic"),
        ({"labels": {"class": ["one"]}}, "labels per field"),
    ],
)
def test_a_model_of_another_version_is_refused(saved, tmp_path, changes, message):
    directory = _copy(saved, tmp_path)
    about = json.loads((directory / "pipeline.json").read_text()) | changes
    write_json(directory / "pipeline.json", {key: value for key, value in about.items() if value is not None})
    write_manifest(directory)
    with pytest.raises(ModelError, match=message):
        _load(directory)


@pytest.mark.parametrize("change", [{"vocab_size": None}, {"dim": 30}, {"dim": "wide"}, {"quantizer": "lfq"}])
def test_a_model_whose_networks_make_no_sense_is_refused(saved, tmp_path, change):
    directory = _copy(saved, tmp_path)
    path = directory / ("tokenizer" if "quantizer" in change else "generator") / "config.json"
    values = json.loads(path.read_text()) | change
    write_json(path, {key: value for key, value in values.items() if value is not None})
    write_manifest(directory)
    with pytest.raises(ModelError):
        _load(directory)


def test_a_model_that_is_nowhere_is_reported(tmp_path):
    for name in ("no-such-model", tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="there is no model directory"):
            _load(name)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 5), 64), r"expected grids \(b, h, w\) of \(4, 4\) codes, got \(1, 4, 5\)"),
        (torch.full((4, 4), 64), r"expected grids \(b, h, w\) of \(4, 4\) codes, got \(4, 4\)"),
        (torch.full((3, 4, 4), 64), "expected one seed for each of 3 grids, got 1"),
        (torch.full((1, 4, 4), 65), r"expected codes in \[0, 64\], got 65 to 65"),
    ],
)
def test_grids_that_do_not_fit_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        watched(tiny_pipeline(), codes=codes, seeds=1)


def test_the_critic_judges_complete_grids_only():
    with pytest.raises(ValueError, match=r"expected codes in \[0, 63\]"):
        tiny_pipeline().doubts(None, torch.full((1, 4, 4), 64))


def test_a_drawing_needs_a_seed():
    with pytest.raises(ValueError, match="give at least one seed"):
        tiny_pipeline().generate(seeds=[])


def test_predictions_that_are_not_finite_are_reported():
    pipeline = tiny_pipeline()
    next(pipeline.net.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="predictions are not finite"):
        pipeline.generate()
