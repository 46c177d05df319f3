"""Schedules, exact counts, and painted pixels -> tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskimg.masking import SCHEDULES, mask_lowest, masked_counts, random_mask, schedule_named, token_mask

GAMMA = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: 2 * math.acos(r) / math.pi,
    "square": lambda r: 1 - r**2,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_its_formula_from_all_masked_to_none(name):
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    values = schedule_named(name)(r)
    assert values.tolist() == pytest.approx([GAMMA[name](x) for x in r.tolist()], abs=1e-12)
    assert values[0] == 1
    assert abs(values[-1]) < 1e-12
    assert (values.diff() < 0).all()


def test_a_schedule_may_be_a_function():
    assert schedule_named(torch.cos) is torch.cos
    with pytest.raises(ValueError, match="schedule must be one of cosine, linear, arccos, square or a function"):
        schedule_named("cubic")


# ----------------------------------------------------------------------------- masks to train on


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.3, 5), (0.5, 8), (1.0, 16)])
def test_so_many_tokens_are_masked_in_every_image(share, expected):
    codes = torch.zeros(500, 4, 4, dtype=torch.int64)
    masked = random_mask(codes, lambda r: torch.full_like(r, share))
    assert masked.dtype == torch.bool
    assert (masked.sum((1, 2)) == expected).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_shares_of_masked_tokens_follow_the_schedule(name):
    """Of 20,000 images, so many have k of n = 8 masked as ceil(max(1, gamma(r) n)) of a uniform r gives.

    Chi-square with 7 degrees of freedom below 45, which chance exceeds once in ten million; the seed is fixed.
    """
    n, b = 8, 20_000
    codes = torch.zeros(b, 2, 4, dtype=torch.int64)
    counts = random_mask(codes, name, torch.Generator().manual_seed(0)).sum((1, 2))

    r = torch.linspace(0, 1, 400_001, dtype=torch.float64)[:-1] + 1.25e-6
    expected = schedule_named(name)(r).mul(n).ceil().clamp(min=1).long().bincount(minlength=n + 1)[1:] / len(r) * b
    observed = counts.bincount(minlength=n + 1)[1:]
    assert observed.sum() == b
    assert ((observed - expected).square() / expected).sum() < 45


def test_every_token_is_masked_equally_often():
    """Half of 20,000 images each: 300 off would be more than four standard deviations; the seed is fixed."""
    codes = torch.zeros(20_000, 4, 4, dtype=torch.int64)
    masked = random_mask(codes, lambda r: torch.full_like(r, 0.5), torch.Generator().manual_seed(0))
    assert (masked.sum(0) - 10_000).abs().max() < 300


def test_images_of_a_batch_have_different_shares_masked():
    masked = random_mask(torch.zeros(64, 8, 8, dtype=torch.int64), "cosine", torch.Generator().manual_seed(0))
    assert len(masked.sum((1, 2)).unique()) > 10


def test_masks_come_from_the_generator_alone():
    codes = torch.zeros(8, 4, 4, dtype=torch.int64)
    before = torch.random.get_rng_state()
    masks = [random_mask(codes, "arccos", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.random.get_rng_state(), before)


# ----------------------------------------------------------------------------- counts while sampling


def _expected_counts(unknown: int, steps: int, gamma) -> list[int]:
    left, counts = unknown, []
    for i in range(1, steps + 1):
        left = max(0, min(round(unknown * gamma(i / steps)), left - 1))
        counts.append(left)
    counts[-1] = 0
    return counts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(1, 40), st.sampled_from(list(SCHEDULES)))
def test_counts_fall_by_one_or_more_to_zero_and_follow_the_schedule(unknown, steps, name):
    counts = masked_counts(torch.tensor(unknown), steps, name)
    assert counts.shape == (len(unknown), steps)
    assert (counts[:, -1] == 0).all()
    for row, start in zip(counts.tolist(), unknown, strict=True):
        before = start
        for count, expected in zip(row, _expected_counts(start, steps, GAMMA[name]), strict=True):
            assert count < before or before == count == 0
            assert abs(count - expected) <= 1  # a half goes up or down on a last bit
            before = count


def test_default_steps_keep_the_counts_of_the_paper():
    """gamma(2/3) is 1/2: rounding down gave 32 or 31 of 64, and rounding up left one masked at the end."""
    assert masked_counts(torch.tensor([64]), 12, "cosine").tolist() == [[63, 62, 59, 55, 51, 45, 39, 32, 24, 17, 8, 0]]
    assert masked_counts(torch.tensor([256]), 8, "cosine").tolist() == [[251, 237, 213, 181, 142, 98, 50, 0]]


def test_a_row_of_counts_does_not_depend_on_the_others():
    alone = masked_counts(torch.tensor([13]), 7, "cosine")
    assert torch.equal(masked_counts(torch.tensor([64, 13, 0]), 7, "cosine")[1], alone[0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_as_many_of_the_lowest_scores_are_masked_as_asked(seed, counts):
    scores = torch.randn(len(counts), 3, 4, generator=torch.Generator().manual_seed(seed))
    masked = mask_lowest(scores, torch.tensor(counts))
    assert masked.sum((1, 2)).tolist() == counts
    for row, here in zip(scores, masked, strict=True):
        if here.any() and not here.all():
            assert row[here].max() <= row[~here].min()


def test_ties_are_broken_by_position():
    scores = torch.tensor([[[0.0, 0.0], [torch.inf, 0.0]]])
    assert mask_lowest(scores, torch.tensor([2])).tolist() == [[[True, True], [False, False]]]


# ----------------------------------------------------------------------------- from paint to tokens


def test_a_single_painted_pixel_reaches_its_token():
    """Masks that are resized and thresholded lose thin strokes completely."""
    for y, x in ((0, 0), (7, 8), (31, 15), (16, 5)):
        painted = torch.zeros(1, 32, 16, dtype=torch.bool)
        painted[0, y, x] = True
        tokens = token_mask(painted, 4, grow=0)
        assert tokens.shape == (1, 8, 4)
        assert tokens.nonzero().tolist() == [[0, y // 4, x // 4]]


def test_neighbours_of_painted_tokens_are_redrawn_too():
    painted = torch.zeros(2, 20, 20, dtype=torch.bool)
    painted[0, 9, 9] = True
    painted[1, 0, 19] = True
    tokens = token_mask(painted, 4)
    assert tokens[0].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2, 3)]
    assert tokens[1].nonzero().tolist() == [[0, 3], [0, 4], [1, 3], [1, 4]]
    assert token_mask(painted, 4, grow=2).sum((1, 2)).tolist() == [25, 9]


def test_a_token_can_be_asked_to_be_covered():
    painted = torch.zeros(1, 8, 8, dtype=torch.bool)
    painted[0, :2, :4] = True  # half of the first token
    painted[0, 4:, 4:] = True
    assert token_mask(painted, 4, coverage=0.5, grow=0).tolist() == [[[False, False], [False, True]]]
    assert token_mask(painted, 4, coverage=0.49, grow=0).tolist() == [[[True, False], [False, True]]]


def test_nothing_painted_masks_nothing_and_everything_masks_all():
    painted = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert not token_mask(painted, 4).any()
    assert token_mask(~painted, 4, coverage=0.99, grow=0).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 10, 8), {}, "sides divisible by 4, got"),
        ((8, 8), {}, r"expected a mask \(b, H, W\)"),
        ((1, 8, 8), {"coverage": 1.0}, "coverage must be in"),
        ((1, 8, 8), {"coverage": float("nan")}, "coverage must be in"),
        ((1, 8, 8), {"grow": -1}, "grow 0 or more"),
    ],
)
def test_masks_that_cannot_be_served_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        token_mask(torch.zeros(shape, dtype=torch.bool), 4, **options)
