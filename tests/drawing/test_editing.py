"""Edits: what is given stays, what is new joins it, and the model's grid slides over what is larger than itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_pipeline

from maskimg.drawing import edits
from maskimg.drawing.hole import lay_out, make_hole
from maskimg.drawing.places import plan_places
from maskimg.drawing.request import Request
from maskimg.pipeline import Pipeline
from maskimg.recipe import read_recipe
from maskimg.sampler import Sampler
from vqgan.images import pad_square

GRID, STRIDE = (4, 4), 4  # of the tiny pipeline: 16 pixels


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def paint(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def each_edit(pipeline: Pipeline) -> list[edits.Edit]:
    """One of each kind, the grid sliding over the first three."""
    return [
        edits.inpainting(pipeline, photo((40, 24)), paint((40, 24), (6, 6, 30, 18)), window=16),
        edits.outpainting(pipeline, photo((16, 16)), (2, 1, 2, 1)),
        edits.outpainting(pipeline, photo((50, 20)), (0, 0, 2, 2), window=16),
        edits.inpainting(pipeline, photo((40, 24)), paint((40, 24), (6, 6, 20, 18)), grow=0),
        edits.variation(pipeline, photo((40, 24)), 0.4, [5, 6]),
    ]


# ----------------------------------------------------------------------------- what all of them promise


@pytest.mark.parametrize("kind", range(5))
def test_a_given_code_never_changes_and_none_is_left_masked(pipeline, kind):
    edit = each_edit(pipeline)[kind]
    result = pipeline.draw(edit, Request("cat", seeds=[5, 6]))
    given = (~edit.masked).expand_as(result.codes)
    assert given.any() and not given.all()
    assert torch.equal(result.codes[given], edit.codes.expand_as(result.codes)[given])
    assert (result.codes < pipeline.generator.mask_id).all()


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "vary"])
def test_a_seed_draws_the_same_picture_in_any_batch(pipeline, task):
    def draw(**options) -> list[bytes]:
        picture = photo((20, 16))
        if task == "inpaint":
            result = pipeline.inpaint(picture, paint((20, 16), (0, 0, 8, 16)), "cat", window=10, **options)
        elif task == "outpaint":
            result = pipeline.outpaint(picture, (2, 0, 1, 0), "cat", **options)
        else:
            result = pipeline.vary(picture, 0.6, "cat", **options)
        return [image.tobytes() for image in result.images]

    several = draw(seeds=7, count=3)
    assert len(set(several)) == 3
    assert draw(seeds=9) == several[2:]
    assert draw(seeds=[8, 7]) == [several[1], several[0]]


def test_each_place_of_the_grid_draws_with_noise_of_its_own(pipeline):
    """Two places that see the same codes must not draw the same ones: the picture would repeat itself."""
    codes = torch.full((1, 4, 20), 7)
    codes[..., 3] = codes[..., 17] = pipeline.generator.mask_id
    wide = edits.Edit("outpaint", {}, codes, GRID, pipeline.generator.mask_id)
    assert wide.places == [(0, 1), (0, 15)]  # either sees its own column third
    drawn = pipeline.draw(wide, Request(seeds=[3])).codes
    assert not torch.equal(drawn[..., 3], drawn[..., 17])


def test_the_best_of_several_is_chosen_at_each_place(pipeline):
    edit = edits.outpainting(pipeline, photo((16, 16)), (0, 0, 2, 2))
    seen = [step.candidate for step in pipeline.steps(edit, Request("cat", seeds=[1], best_of=2)) if step.chosen]
    assert len(seen) == len(edit.places) > 1
    assert not torch.equal(
        pipeline.draw(edit, Request(seeds=[1])).codes, pipeline.draw(edit, Request(seeds=[1], best_of=4)).codes
    )


def test_the_steps_lead_to_the_result_and_their_share_to_one(pipeline):
    edit = edits.outpainting(pipeline, photo((16, 16)), (2, 0, 2, 0))
    steps = list(pipeline.steps(edit, Request("cat", seeds=[4, 5])))
    assert torch.equal(steps[-1].codes, pipeline.draw(edit, Request("cat", seeds=[4, 5])).codes)
    shares = [step.share for step in steps]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    left = [int(step.masked.sum()) for step in steps]
    assert left == sorted(left, reverse=True) and left[-1] == 0


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "vary"])
def test_a_recipe_holds_what_draws_its_picture_again(pipeline, task, tmp_path):
    picture, mask = photo((40, 24)), paint((40, 24), (0, 0, 12, 12))
    if task == "inpaint":
        result = pipeline.inpaint(picture, mask, "cat", seeds=3, window=20, grow=2, feather=0.25)
    elif task == "outpaint":
        result = pipeline.outpaint(picture, (0, 1, 2, 0), "cat", seeds=3, window=20)
    else:
        result = pipeline.vary(picture, 0.3, "cat", seeds=3)
    recipe = read_recipe(result.save(tmp_path)[0]) or {}
    assert recipe["task"] == task and recipe["tokens_redrawn"] > 0
    again = {"label": recipe["label"], "seeds": recipe["seed"], "sampler": Sampler(**recipe["sampler"])}
    if task == "inpaint":
        again |= {name: recipe[name] for name in ("window", "grow", "feather", "coverage")}
        repeated = pipeline.inpaint(picture, mask, **again)
    elif task == "outpaint":
        repeated = pipeline.outpaint(picture, tuple(recipe["margins"]), window=recipe["window"], **again)
    else:
        repeated = pipeline.vary(picture, recipe["strength"], **again)
    assert repeated.images[0].tobytes() == result.images[0].tobytes()
    assert repeated.recipes == result.recipes


# ----------------------------------------------------------------------------- where the grid is laid


def covered(masked: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """What is still masked."""
    left = masked.clone()
    for top, start in places:
        here = left[top : top + 4, start : start + 4]
        assert here.any(), "a place completes something"
        here[:] = False
    return left


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 12), st.integers(4, 12), st.integers(0, 2**32))
def test_every_masked_token_is_completed_wherever_it_lies(h, w, seed):
    chance = torch.rand(h, w, generator=torch.Generator().manual_seed(seed))
    masked = chance < chance.flatten()[0]
    masked[0, 0] = True
    places = plan_places(masked, torch.zeros_like(masked), GRID)
    assert not covered(masked, places).any()
    assert all(0 <= top <= h - 4 and 0 <= left <= w - 4 for top, left in places)


def test_the_grid_sees_as_much_as_it_draws_and_never_draws_up_to_a_neighbour_that_it_does_not_see():
    masked = torch.zeros(12, 12, dtype=torch.bool)
    masked[2:9, 3:10] = True
    left = masked.clone()
    for top, start in plan_places(masked, torch.zeros_like(masked), GRID):
        here = left[top : top + 4, start : start + 4]
        assert here.sum() <= 8
        around = torch.zeros(14, 14, dtype=torch.bool)
        around[1:-1, 1:-1] = ~left  # known; nothing is outside
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            y, x = torch.nonzero(here, as_tuple=True)
            ny, nx = y + dy, x + dx
            unseen = (ny < 0) | (ny > 3) | (nx < 0) | (nx > 3)
            assert not (unseen & around[1 + top + ny, 1 + start + nx]).any()
        here[:] = False
    assert not left.any()


def test_a_canvas_of_the_models_size_takes_one_place():
    masked = torch.ones(4, 4, dtype=torch.bool)
    assert plan_places(masked, torch.zeros_like(masked), GRID) == [(0, 0)]


def test_corners_are_drawn_after_the_sides(pipeline):
    edit = edits.outpainting(pipeline, photo((16, 16)), (2, 2, 2, 2))
    left = edit.masked[0].clone()
    corners = torch.zeros_like(left)
    corners[:2, :2] = corners[:2, -2:] = corners[-2:, :2] = corners[-2:, -2:] = True
    for top, start in edit.places:
        here = left[top : top + 4, start : start + 4]
        if (here & corners[top : top + 4, start : start + 4]).any():
            # Half of what it sees is there, and that lies on two sides of the corner.
            assert here.sum() <= 8 and not left[2:-2, :2].any() and not left[2:-2, -2:].any()
        here[:] = False
    assert not left.any()


# ----------------------------------------------------------------------------- outpainting


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (50, 37), (9, 30), (120, 80)])
def test_a_picture_grows_and_all_its_own_pixels_stay(pipeline, size):
    picture = photo(size)
    result = pipeline.outpaint(picture, (1, 0, 2, 2), "cat", seeds=2).images[0]
    token = min(size) / 4
    left, right, below = round(token), round(2 * token), round(2 * token)
    assert abs(result.width - size[0] - left - right) <= 4 and abs(result.height - size[1] - below) <= 4
    # Where the picture lies: beside the left margin.
    start = result.width - size[0] - right
    for x in range(start - 4, start + 5):
        kept = result.crop((x, 0, x + size[0], size[1]))
        if kept.tobytes() == picture.tobytes():
            return
    pytest.fail("the picture is not in the result as it was")


def test_outpainting_can_be_repeated_at_the_same_scale(pipeline, tmp_path):
    first = pipeline.outpaint(photo((16, 16)), (0, 0, 2, 0), seeds=1)
    assert first.images[0].size == (24, 16) and first.recipes[0]["window"] == 16
    path = first.save(tmp_path / "a")[0]
    second = pipeline.outpaint(path, (0, 2, 0, 0), seeds=1)
    assert second.images[0].size == (24, 24)
    third = pipeline.outpaint(second.save(tmp_path / "b")[0], (1, 0, 0, 0), seeds=1)
    assert third.recipes[0]["window"] == 16 and third.images[0].size == (28, 24)
    assert third.images[0].crop((4, 0, 28, 24)).tobytes() == second.images[0].tobytes()
    # Without the file's recipe the picture's shorter side would be the window.
    assert pipeline.outpaint(second.images[0], (1, 0, 0, 0)).recipes[0]["window"] == 24


@pytest.mark.parametrize(
    ("size", "margins", "window", "words"),
    [
        ((16, 16), (3, 0, 0, 0), None, "margins must be between 0 and 2 tokens, .* got 3,0,0,0"),
        ((16, 16), (0, -1, 0, 0), None, "margins must be between 0 and 2 tokens"),
        ((16, 16), (0, 0, 0, 0), None, "not all 0"),
        ((40, 16), (1, 0, 0, 0), 20, "the window must be at most the picture's shorter side, 16, got 20"),
        ((16, 16), (1, 0, 0, 0), 0, "the window must be 1 pixel or more, got 0"),
        ((4000, 30), (1, 0, 0, 0), 16, "a window of 16 pixels is too small for a picture of 4000x30: use 32 or more"),
        ((1, 9), (1, 0, 0, 0), None, "too small to be extended by single tokens"),
    ],
)
def test_margins_that_cannot_be_drawn_are_refused(pipeline, size, margins, window, words):
    with pytest.raises(ValueError, match=words):
        pipeline.outpaint(photo(size), margins, window=window)


# ----------------------------------------------------------------------------- large pictures, and the edge of a hole


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90) | st.none())
def test_a_canvas_has_whole_tokens_and_at_least_the_models_grid(width, height, window):
    canvas, box = lay_out(photo((width, height)), GRID, STRIDE, window)
    assert canvas.width % STRIDE == canvas.height % STRIDE == 0 and min(canvas.size) >= 16
    left, top, right, bottom = box
    assert 0 <= left < right <= canvas.width and 0 <= top < bottom <= canvas.height
    if window is None or window >= max(width, height):
        square, fills = pad_square(photo((width, height)), 16)
        assert canvas.tobytes() == square.tobytes() and box == fills


def test_with_a_window_a_large_picture_has_more_tokens_and_keeps_every_other_pixel(pipeline):
    picture, mask = photo((100, 60)), paint((100, 60), (30, 20, 60, 40))
    hole = pipeline.hole(picture, mask, window=20)
    assert hole.tokens.shape == (1, 12, 20)
    result = pipeline.inpaint(picture, mask, "cat", window=20).images[0]
    changed = (np.array(result) != np.array(picture)).any(-1)
    inside = np.array(hole.pixels()) == 255
    assert result.size == picture.size
    assert not changed[~inside].any() and changed[inside].mean() > 0.9
    assert inside[mask].all() and inside.mean() < 0.4


def test_a_window_too_small_for_a_large_picture_is_refused_with_one_that_is_not(pipeline):
    picture, mask = photo((3000, 20)), paint((3000, 20), (0, 0, 9, 9))
    with pytest.raises(ValueError, match="a window of 16 pixels is too small .* use 24 or more"):
        pipeline.hole(picture, mask, window=16)
    assert pipeline.hole(picture, mask, window=24).canvas.width <= 2048


def test_the_edge_of_a_hole_fades_in_the_ring_and_paint_is_never_seen_through(pipeline):
    white, black = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64))
    mask = paint((64, 64), (16, 16, 32, 32))
    hole = make_hole(white, mask, GRID, STRIDE, window=64, grow=1, feather=0.5)
    drawn = 255 - np.array(hole.paste(black.resize((16, 16))))[..., 0]  # 255 where only what is drawn shows
    inside = np.array(hole.pixels()) == 255
    assert (drawn[~inside] == 0).all() and (drawn[mask] == 255).all()
    across = drawn[24, 32:48].astype(int)  # through the ring, outwards
    assert (np.diff(across) <= 0).all() and across[0] == 255 and 0 < across[-1] < 40
    assert 0 < drawn[45, 45] < 255
    assert (drawn[20, :16] == 255).all()  # no seam at the picture's own edge
    wide = Image.new("RGB", (64, 32), "white")  # padded above and below: nothing is kept there
    hole = make_hole(wide, paint((64, 32), (16, 0, 32, 9)), GRID, STRIDE, grow=1, feather=0.5)
    drawn = 255 - np.array(hole.paste(black.resize((16, 16))))[..., 0]
    assert (drawn[:, 8:32] == 255).all() and 0 < drawn[16, 47] < 255
    hard = make_hole(white, mask, GRID, STRIDE, grow=1, feather=0).paste(black.resize((16, 16)))
    assert set(np.unique(np.array(hard))) == {0, 255}
    bare = make_hole(white, mask, GRID, STRIDE, grow=0, feather=1)
    assert ((255 - np.array(bare.paste(black.resize((16, 16))))[..., 0])[mask] == 255).all()
    with pytest.raises(ValueError, match=r"feather must be between 0 and 1, got 1.5"):
        make_hole(white, mask, GRID, STRIDE, feather=1.5)


# ----------------------------------------------------------------------------- variations


def test_strength_is_the_share_redrawn_and_more_of_it_redraws_the_same_and_more(pipeline):
    before = torch.zeros(3, 4, 4, dtype=torch.bool)
    for strength, count in ((0.01, 1), (0.25, 4), (0.5, 8), (1.0, 16)):
        masked = edits.variation(pipeline, photo((16, 16)), strength, [1, 2, 3]).masked
        assert masked.sum((1, 2)).tolist() == [count] * 3
        assert (masked | ~before).all()
        before = masked
    half = edits.variation(pipeline, photo((16, 16)), 0.5, [1, 2]).masked
    assert not torch.equal(half[0], half[1])


def test_at_full_strength_nothing_is_left_of_the_picture(pipeline):
    result = pipeline.vary(photo((16, 16)), 1.0, "cat", seeds=5)
    assert result.images[0].tobytes() == pipeline.generate("cat", seeds=5).images[0].tobytes()


def test_a_variation_is_as_large_as_the_model_sees_the_picture(pipeline):
    result = pipeline.vary(photo((40, 20)), 0.5, seeds=1)
    assert result.images[0].size == (16, 8)
    assert result.recipes[0]["tokens_redrawn"] == 4  # half of those that the picture fills


def test_a_brushed_region_is_rolled_again_and_the_rest_keeps_its_pixels(pipeline):
    picture, mask = photo((16, 16)), paint((16, 16), (4, 4, 12, 12))
    result = pipeline.vary(picture, 1.0, "cat", mask=mask, seeds=1, count=3)
    for image, codes in zip(result.images, result.codes, strict=True):
        changed = (np.array(image) != np.array(picture)).any(-1)
        assert changed[mask].any() and not changed[~mask].any()
        kept = torch.ones(4, 4, dtype=torch.bool)
        kept[1:3, 1:3] = False
        assert torch.equal(codes[kept], pipeline.encode(picture)[0][kept])
    assert len({image.tobytes() for image in result.images}) == 3
    assert result.recipes[0]["tokens_redrawn"] == 4


@pytest.mark.parametrize("strength", [0, -0.5, 1.01])
def test_a_strength_out_of_range_is_refused(pipeline, strength):
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
        pipeline.vary(photo((16, 16)), strength)
