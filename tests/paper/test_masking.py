"""Schedules, exact counts, and painted pixels -> tokens."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc, ndtr

from maskimg.masking import (
    SCHEDULES,
    beta,
    elbo_weights,
    mask_lowest,
    masked_counts,
    random_mask,
    schedule_named,
    token_mask,
    truncated_normal,
)

GAMMA = {
    "cosine": lambda r: math.cos(math.pi * r / 2),
    "linear": lambda r: 1 - r,
    "arccos": lambda r: 2 * math.acos(r) / math.pi,
    "square": lambda r: 1 - r**2,
}


def _normal_share(mean, std, low, high):
    """The distribution function of a normal distribution cut to [low, high]."""
    bottom, top = (ndtr((end - mean) / std) for end in (low, high))
    return lambda ratio: (ndtr((ratio.clip(low, high) - mean) / std) - bottom) / (top - bottom)


# A family by name -> the share of mask ratios that are at most so large, and the ratios' ends.
FAMILIES = {
    "beta(12, 3)": (lambda ratio: betainc(12, 3, ratio), 0, 1),
    "beta(1, 2.5)": (lambda ratio: betainc(1, 2.5, ratio), 0, 1),
    "truncated_normal(0.55, 0.25, 0.5)": (_normal_share(0.55, 0.25, 0.5, 1), 0.5, 1),
    "truncated_normal(1, 0.25, 0.7)": (_normal_share(1, 0.25, 0.7, 1), 0.7, 1),
    "truncated_normal(0.3, 0.1, 0.2, 0.6)": (_normal_share(0.3, 0.1, 0.2, 0.6), 0.2, 0.6),
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


@pytest.mark.parametrize("name", ["cubic", "beta", "gamma(1, 2)", "beta(a, b)", "beta[1, 2]"])
def test_a_schedule_that_does_not_exist_is_refused(name):
    message = (
        "schedule must be one of cosine, linear, arccos, square, `beta(a, b)`, "
        f"`truncated_normal(mean, std, low, high)` or a function, got `{name}`"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule_named(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_the_quantile_function_of_its_distribution(name):
    """To 1e-7, the error of 20,000 trapezoids; the other libraries' functions are exact."""
    share, low, high = FAMILIES[name]
    r = torch.linspace(0, 1, 1001, dtype=torch.float64)
    ratios = schedule_named(name)(r)
    assert share(ratios.numpy()).tolist() == pytest.approx((1 - r).tolist(), abs=1e-7)
    assert (ratios.diff() < 0).all()
    assert (ratios[0].item(), ratios[-1].item()) == pytest.approx((high, low), abs=1e-4)


def test_the_flat_beta_is_the_linear_schedule():
    r = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(beta(1, 1)(r), 1 - r, rtol=0, atol=1e-12)
    torch.testing.assert_close(truncated_normal(0.5, 1e6)(r), 1 - r, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beta(0.5, 3)", "beta needs two numbers of 1 or more, got 0.5 and 3.0"),
        ("beta(12)", r"`beta\(12\)` has the wrong number of numbers in its brackets"),
        ("beta(1, 2, 3)", "wrong number of numbers"),
        ("truncated_normal(0.5)", "wrong number of numbers"),
        ("truncated_normal(0.5, 0)", r"truncated_normal needs std > 0 and 0 <= low < high <= 1, got 0.0, 0.0 and 1.0"),
        ("truncated_normal(0.5, 1, 0.7, 0.2)", "got 1.0, 0.7 and 0.2"),
        ("truncated_normal(0.5, 1, 0, 1.5)", "got 1.0, 0.0 and 1.5"),
    ],
)
def test_a_family_with_numbers_that_make_no_sense_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        schedule_named(name)


# ----------------------------------------------------------------------------- masks to train on


@pytest.mark.parametrize("schedule", ["linear", "cosine", "arccos", "square", "beta(12, 3)", lambda r: 1 - r**3])
def test_a_mask_has_exactly_the_tokens_that_its_r_asks_for(schedule):
    """20,000 images: ceil(max(1, gamma(r) n)), so at least one token and at most all."""
    codes = torch.zeros(20_000, 5, 7, dtype=torch.int64)
    masked, r = random_mask(codes, schedule, torch.Generator().manual_seed(0))
    shares = (schedule_named(schedule)(r) * 35).tolist()
    assert masked.sum((1, 2)).tolist() == [math.ceil(max(1, share)) for share in shares]
    assert r.dtype == torch.float64
    assert 0 <= r.min() <= r.max() < 1


@pytest.mark.parametrize("name", FAMILIES)
def test_shares_of_masked_tokens_are_distributed_as_the_family_says(name):
    """Kolmogorov-Smirnov on 20,000 images of 256 tokens: beyond 0.0138 once in a thousand; the seed is fixed."""
    share, _, _ = FAMILIES[name]
    masked, _ = random_mask(torch.zeros(20_000, 16, 16, dtype=torch.int64), name, torch.Generator().manual_seed(0))
    counts = masked.sum((1, 2)).bincount(minlength=257)[1:]
    expected = torch.from_numpy(share(torch.arange(1, 257).double().numpy() / 256))
    assert (counts.cumsum(0) / 20_000 - expected).abs().max() < 0.0138


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.3, 5), (0.5, 8), (1.0, 16)])
def test_so_many_tokens_are_masked_in_every_image(share, expected):
    codes = torch.zeros(500, 4, 4, dtype=torch.int64)
    masked, _ = random_mask(codes, lambda r: torch.full_like(r, share))
    assert masked.dtype == torch.bool
    assert (masked.sum((1, 2)) == expected).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_shares_of_masked_tokens_follow_the_schedule(name):
    """Of 20,000 images, so many have k of n = 8 masked as ceil(max(1, gamma(r) n)) of a uniform r gives.

    Chi-square with 7 degrees of freedom below 45, which chance exceeds once in ten million; the seed is fixed.
    """
    n, b = 8, 20_000
    codes = torch.zeros(b, 2, 4, dtype=torch.int64)
    masked, _ = random_mask(codes, name, torch.Generator().manual_seed(0))
    counts = masked.sum((1, 2))

    r = torch.linspace(0, 1, 400_001, dtype=torch.float64)[:-1] + 1.25e-6
    expected = schedule_named(name)(r).mul(n).ceil().clamp(min=1).long().bincount(minlength=n + 1)[1:] / len(r) * b
    observed = counts.bincount(minlength=n + 1)[1:]
    assert observed.sum() == b
    assert ((observed - expected).square() / expected).sum() < 45


def test_every_token_is_masked_equally_often():
    """Half of 20,000 images each: 300 off would be more than four standard deviations; the seed is fixed."""
    codes = torch.zeros(20_000, 4, 4, dtype=torch.int64)
    masked, _ = random_mask(codes, lambda r: torch.full_like(r, 0.5), torch.Generator().manual_seed(0))
    assert (masked.sum(0) - 10_000).abs().max() < 300


def test_images_of_a_batch_have_different_shares_masked():
    masked, _ = random_mask(torch.zeros(64, 8, 8, dtype=torch.int64), "cosine", torch.Generator().manual_seed(0))
    assert len(masked.sum((1, 2)).unique()) > 10


def test_masks_come_from_the_generator_alone():
    codes = torch.zeros(8, 4, 4, dtype=torch.int64)
    before = torch.random.get_rng_state()
    masks = [random_mask(codes, "arccos", torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.random.get_rng_state(), before)


# ----------------------------------------------------------------------------- weights of the bound

# A schedule -> the r at which it has fallen to a share, by its formula.
WHEN = {
    "linear": lambda share: 1 - share,
    "cosine": lambda share: 2 / math.pi * math.acos(share),
    "arccos": lambda share: math.cos(math.pi / 2 * share),
    "square": lambda share: math.sqrt(1 - share),
}


@pytest.mark.parametrize("n", [1, 4, 64])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_weight_makes_up_for_how_often_so_many_tokens_are_masked(name, n):
    """w_k = 1 / (k P(k)): whatever the schedule, each number of tokens then counts 1 / k."""
    weights = elbo_weights(n, name)
    assert weights.shape == (n + 1,)
    assert weights[0] == 0
    for k in range(1, n + 1):
        probability = WHEN[name]((k - 1) / n) - WHEN[name](k / n)
        assert (weights[k] * k * probability).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "beta(1, 2.5)", lambda r: (1 - r) ** 2, lambda r: 1.5 * (1 - r)])
@pytest.mark.parametrize("n", [1, 16, 256])
def test_weights_are_positive_and_finite_and_expect_one_over_k(schedule, n):
    """The weight of x-transformers is negative, and infinite where a mask ratio is near 1."""
    weights = elbo_weights(n, schedule)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()
    assert (weights[1:] > 0).all()
    # The probabilities that they imply are those of all the counts there are.
    assert (1 / (weights[1:] * torch.arange(1, n + 1))).sum().item() == pytest.approx(1, abs=1e-9)


def test_weights_of_many_tokens_tend_to_the_continuous_one():
    """-gamma'/gamma of MDLM, here pi/2 tan(pi r/2), for shares that are not near 0 or 1."""
    n = 100_000
    for share in (0.1, 0.5, 0.9):
        continuous = math.pi / 2 * math.tan(math.pi / 2 * WHEN["cosine"](share))
        assert elbo_weights(n, "cosine")[int(share * n)].item() == pytest.approx(continuous, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "never"), [("truncated_normal(0.55, 0.25, 0.5)", 1), ("beta(12, 3)", 1), (torch.ones_like, 1)]
)
def test_a_schedule_that_never_masks_few_tokens_has_no_weights(schedule, never):
    with pytest.raises(ValueError, match=rf"never masks {never} of 16 tokens: choose another for `elbo`"):
        elbo_weights(16, schedule)


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


def test_counts_may_be_given_step_by_step_and_are_scaled_to_what_is_unknown():
    counts = masked_counts(torch.tensor([16, 8, 3, 0]), 3, "cosine", (2, 6, 8))
    assert counts.tolist() == [[14, 8, 0], [7, 4, 0], [2, 1, 0], [0, 0, 0]]  # 3: at least one token a step


@pytest.mark.parametrize("schedule", ["beta(12, 3)", torch.ones_like, lambda r: 1 - 0.9 * r])
def test_counts_end_at_0_although_the_schedule_does_not(schedule):
    """x-transformers left tokens masked where a schedule did not end at 0."""
    counts = masked_counts(torch.tensor([16]), 5, schedule)[0].tolist()
    assert counts[-1] == 0
    assert all(before > after for before, after in itertools.pairwise([16, *counts]))


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


@pytest.mark.parametrize("shape", [(2, 12), (2, 3, 4), (2, 1, 12)])
def test_scores_may_have_any_shape_behind_their_images(shape):
    scores = torch.arange(24.0).reshape(shape)
    masked = mask_lowest(scores, torch.tensor([0, 5]))
    assert masked.shape == shape
    assert masked.flatten(1).nonzero().tolist() == [[1, i] for i in range(5)]


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
