"""Figures that papers quote: right on cases where the answer is known."""

import math

import numpy as np
import pytest
import torch

from maskimg.evaluation.metrics import (
    code_usage,
    codebook_warning,
    frechet_distance,
    frechet_interval,
    inception_score,
    losses_by_mask_ratio,
    monochrome_warning,
    nearest,
    overlap,
    token_accuracy,
)
from vqgan.similarity import psnr, ssim


def _gaussian(mean: torch.Tensor, root: torch.Tensor, count: int = 200, seed: int = 0) -> torch.Tensor:
    """Rows (count, d) whose mean is `mean` and whose covariance is `root` @ `root`.T, exactly."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return mean + white @ root.T


def test_equal_features_are_at_distance_zero():
    features = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    # Fewer rows than columns: the covariance has no full rank, and roots of its rounding errors remain.
    assert frechet_distance(features[:8], features[:8]) == pytest.approx(0, abs=1e-5)


def test_a_shift_costs_its_square():
    features = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25, rel=1e-5)


def test_gaussians_with_known_variances_have_the_known_distance():
    """With diagonal covariances: |mean difference|^2 + sum of (sqrt(a) - sqrt(b))^2."""
    means = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 2.0]], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.1]], dtype=torch.float64)
    left, right = (_gaussian(m, s.diag(), seed=i) for i, (m, s) in enumerate(zip(means, deviations, strict=True)))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(left, right) == pytest.approx(expected.item(), rel=1e-9)


def test_correlated_gaussians_have_the_distance_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator)
    left, right = (_gaussian(torch.zeros(5, dtype=torch.float64), root, seed=i) for i, root in enumerate(roots))
    a, b = ((root @ root.T).numpy() for root in roots)
    # tr (A B)^(1/2) from the eigenvalues of A B itself, which is not symmetric.
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(left, right) == pytest.approx(frechet_distance(right, left), rel=1e-6)


def test_psnr_is_measured_for_each_image_against_the_whole_range():
    images = torch.zeros(3, 3, 4, 4)
    targets = torch.stack((torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)))
    expected = [10 * math.log10(4 / 1e-10), 10 * math.log10(4 / 0.04), 0.0]
    assert psnr(images, targets).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("codes", "share", "bits"),
    [([0, 1, 2, 3], 1.0, 2.0), ([5, 5, 5, 5], 0.125, 0.0), ([0, 0, 1, 2], 0.375, 1.5), ([7] * 9 + [0] * 9, 0.25, 1.0)],
)
def test_usage_counts_codes_and_the_bits_they_carry(codes, share, bits):
    vocabulary = 4 if share == 1 else 8
    assert code_usage(torch.tensor(codes), vocabulary) == pytest.approx((share, bits))
    assert code_usage(torch.tensor([codes, codes]), vocabulary) == pytest.approx((share, bits))


def test_the_nearest_reference_is_found():
    references = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    assert nearest(torch.tensor([[0.9, 0.2], [0.1, 2.0], [-5.0, -5.0]]), references).tolist() == [1, 2, 0]


# ----------------------------------------------------------------------------- SSIM


def _ssim_by_hand(x: np.ndarray, y: np.ndarray, size: int = 11) -> float:
    """SSIM of two channels (H, W) of 0 to 255, straight from equation 13 of Wang et al. 2004, window by window."""
    offsets = np.arange(size) - size // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(x.shape[0] - size + 1):
        for left in range(x.shape[1] - size + 1):
            a, b = (z[top : top + size, left : left + size].astype(np.float64) for z in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            # Deviations from the mean, not squares less the squared mean: another way to the same numbers.
            spread_a, spread_b = a - mean_a, b - mean_b
            top_half = (2 * mean_a * mean_b + c1) * (2 * (weights * spread_a * spread_b).sum() + c2)
            bottom = (weights * (spread_a**2 + spread_b**2)).sum() + c2
            values.append(top_half / ((mean_a**2 + mean_b**2 + c1) * bottom))
    return float(np.mean(values))


def _noisy_pair(height: int, width: int, count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 4, generator=generator), (height, width)) * 2 - 1
    return images, (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(("height", "width", "window"), [(24, 17, 11), (11, 30, 11), (9, 16, 9), (8, 8, 7)])
def test_ssim_is_that_of_the_paper(height, width, window):
    images, others = _noisy_pair(height, width)
    expected = [
        np.mean([_ssim_by_hand(a, b, window) for a, b in zip(one, other, strict=True)])
        for one, other in zip(127.5 * (images.numpy() + 1), 127.5 * (others.numpy() + 1), strict=True)
    ]
    assert ssim(images, others).tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.1 and max(expected) < 0.99


def test_ssim_is_one_for_equal_pictures_and_symmetric():
    images, others = _noisy_pair(32, 32)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert ssim(images, others).tolist() == pytest.approx(ssim(others, images).tolist(), abs=1e-6)
    assert (ssim(images, -images) < 0).all()  # turned to the negative, every structure is its opposite


def test_ssim_of_flat_pictures_is_the_luminance_term_alone():
    """(2 a b + C1) / (a^2 + b^2 + C1) for pixels a and b of 0 to 255."""
    dark, grey = torch.full((1, 3, 16, 16), 51 / 127.5 - 1), torch.full((1, 3, 16, 16), 204 / 127.5 - 1)
    c1 = 2.55**2
    expected = (2 * 51 * 204 + c1) / (51**2 + 204**2 + c1)
    assert ssim(dark, grey).item() == pytest.approx(expected, abs=1e-5)
    assert ssim(grey, -grey).item() < 1


def test_ssim_of_pictures_of_two_sizes_is_refused():
    with pytest.raises(ValueError, match="expected two batches of one shape"):
        ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 12))


# ----------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("usage", "entropy", "words"),
    [
        (0.97, 7.7, None),
        (0.5, 6.0, None),
        (0.41, 7.7, "only 41 % of 1,024 codes are used;"),
        (0.004, 1.5, "only 0.4 % of 1,024 codes are used and their use carries 1.5 of 10.0 bits"),
        (1.0, 3.0, "carries 3.0 of 10.0 bits, as much as 8 codes would"),
    ],
)
def test_a_collapsed_codebook_is_told_in_words(usage, entropy, words):
    told = codebook_warning(usage, entropy, 1024)
    assert told is None if words is None else words in (told or "")


def test_few_pictures_cannot_use_a_large_vocabulary_and_are_not_blamed():
    codes = torch.randint(0, 16384, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    usage, entropy = code_usage(codes, 16384)
    assert codebook_warning(usage, entropy, 16384) is not None
    assert codebook_warning(usage, entropy, 16384, counted=codes.numel()) is None
    alike = code_usage(codes % 20, 16384)
    assert codebook_warning(*alike, 16384, counted=codes.numel()) is not None


def test_flat_pictures_and_pictures_that_are_all_alike_are_told_in_words():
    real, _ = _noisy_pair(16, 16, count=8)
    flat = real.mean((2, 3), keepdim=True).expand_as(real)
    faint = 0.02 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    assert monochrome_warning(real, real) is None
    assert "nearly of one colour" in (monochrome_warning(flat + faint, real) or "")
    assert "nearly of one colour" in (monochrome_warning(flat + faint) or "")
    assert "nearly all alike" in (monochrome_warning(real[:1].expand_as(real) + faint, real) or "")
    assert monochrome_warning(real) is None
    assert monochrome_warning(real[:1], real) is None  # one picture cannot be like the others


def test_flat_data_makes_flat_pictures_no_fault():
    flat = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 8, 8)
    assert monochrome_warning(flat, flat) is None


def test_losses_are_told_apart_by_how_much_of_a_grid_is_masked():
    """Grids of 2x4 tokens with 1, 2, 3 and 8 of them masked: 12.5, 25, 37.5 and 100 %; a bound belongs below."""
    masked = torch.zeros(4, 8, dtype=torch.bool)
    for row, count in zip(masked, (1, 2, 3, 8), strict=True):
        row[:count] = True
    losses = torch.tensor([4.0, 1, 3, 5, 5, 8, *[2.0] * 8])
    means = losses_by_mask_ratio(losses, masked.view(4, 2, 4))
    assert {name: value.item() for name, value in means.items()} == {
        "loss_masked_0_25": pytest.approx(8 / 3),
        "loss_masked_25_50": 6.0,
        "loss_masked_75_100": 2.0,
    }


def test_the_accuracy_of_calibrated_probabilities_lies_in_its_band_19_times_in_20():
    """Codes drawn from the probabilities themselves, 400 times: 95 % +- 3 sd of a binomial is 92 to 98; seeds fixed."""
    chance = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        probs = torch.rand(300, 5, generator=chance).pow(3)
        probs = probs / probs.sum(-1, keepdim=True)
        codes = torch.multinomial(probs, 1, generator=chance)[:, 0]
        seen = token_accuracy(probs, codes)
        inside += bool(seen.low <= seen.measured <= seen.high)
    assert 0.917 * 400 <= inside <= 0.983 * 400


def test_probabilities_that_claim_too_much_are_above_their_accuracy():
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 8, generator=chance)
    codes = torch.multinomial(logits.softmax(-1), 1, generator=chance)[:, 0]
    seen = token_accuracy((3 * logits).softmax(-1), codes)
    assert seen.measured < seen.low < seen.expected < seen.high


# ----------------------------------------------------------------------------- samples beside references


def _features(count: int, seed: int, *, d: int = 4, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_what_is_the_same_overlaps_wholly_and_what_is_far_away_not_at_all():
    features = _features(600, 0)
    same = overlap(features, features)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert overlap(features, _features(600, 1, shift=50)) == (0, 0, 0, 0)
    alike = overlap(features, _features(600, 1))
    assert 0.85 < alike.precision < 1 and 0.85 < alike.recall < 1 and 0.85 < alike.coverage <= 1
    assert alike.density == pytest.approx(1, abs=0.15)


def test_a_mode_that_is_never_drawn_costs_recall_and_coverage_and_an_odd_one_precision_and_density():
    near, far = _features(300, 0), _features(300, 1, shift=50)
    other_near, other_far = _features(300, 2), _features(300, 3, shift=50)
    narrow = overlap(other_near, torch.cat((near, far)))
    assert narrow.precision > 0.8
    assert 0.4 < narrow.recall <= 0.5 and 0.4 < narrow.coverage <= 0.5
    broad = overlap(torch.cat((other_near, other_far)), near)
    assert 0.4 < broad.precision <= 0.5 and broad.density < 0.6
    assert broad.recall > 0.8 and broad.coverage > 0.8


def test_overlap_is_what_its_definitions_say_pair_by_pair():
    """More rows than one part holds, against loops over the definitions; d = 2 and 530 by 520 rows."""
    samples, references = _features(530, 0, d=2), _features(520, 1, d=2, shift=0.5)

    def radius(rows, i, k):
        return (rows - rows[i]).norm(dim=1).sort().values[k].item()

    apart = torch.cdist(samples.double(), references.double())
    near = torch.tensor([radius(references.double(), i, 3) for i in range(520)])
    more = torch.tensor([radius(references.double(), i, 5) for i in range(520)])
    own = torch.tensor([radius(samples.double(), i, 3) for i in range(530)])
    found = overlap(samples, references)
    assert found.precision == pytest.approx((apart <= near).any(1).double().mean().item(), abs=3e-3)
    assert found.recall == pytest.approx((apart <= own[:, None]).any(0).double().mean().item(), abs=3e-3)
    assert found.density == pytest.approx((apart <= more).sum().item() / (5 * 530), abs=3e-3)
    assert found.coverage == pytest.approx((apart <= more).any(0).double().mean().item(), abs=3e-3)


def test_a_handful_of_pictures_is_refused():
    with pytest.raises(ValueError, match="need six pictures or more, got 5 and 9"):
        overlap(_features(5, 0), _features(9, 1))


def test_the_interval_of_a_frechet_distance_holds_the_mean_of_many_nearly_always():
    """19 times in 20, so below 34 of 40 once in 300 tries; seeds fixed."""
    references = _features(4000, 99)
    drawn = [_features(200, seed, shift=0.3) for seed in range(40)]
    distances = [frechet_distance(each, references) for each in drawn]
    intervals = [frechet_interval(each, references) for each in drawn]
    mean = sum(distances) / 40
    assert all(low < distance < high for distance, (low, high) in zip(distances, intervals, strict=True))
    assert 34 <= sum(low < mean < high for low, high in intervals) < 40
    wide = frechet_interval(drawn[0][:60], references)
    assert wide[1] - wide[0] > intervals[0][1] - intervals[0][0]
    assert frechet_interval(drawn[0], references) == intervals[0]


def test_the_inception_score_counts_the_classes_that_are_drawn_evenly_and_surely():
    sure = 50 * torch.nn.functional.one_hot(torch.arange(200) % 7, 10).float()
    assert inception_score(sure, splits=1) == (pytest.approx(7, rel=1e-3), 0)
    assert inception_score(torch.zeros(20, 10))[0] == pytest.approx(1)
    assert inception_score(sure[:1].expand(20, 10))[0] == pytest.approx(1)
