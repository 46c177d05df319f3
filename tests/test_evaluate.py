"""Figures that papers quote: right on cases where the answer is known."""

import math

import numpy as np
import pytest
import torch

from maskimg.evaluate import code_usage, frechet_distance, nearest, psnr, train_judge


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


def test_a_judge_tells_dark_pictures_from_bright_ones_and_is_the_same_for_the_same_seed():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    noise = torch.randint(0, 40, (24, 3, 8, 8), generator=generator)
    pixels = (noise + 200 * labels[:, None, None, None]).to(torch.uint8)
    before = torch.random.get_rng_state()

    judge, again = (train_judge(pixels, labels, 2, 15) for _ in range(2))

    assert judge.accuracy(pixels, labels) == 1.0
    features = judge.features(pixels)
    assert features.shape == (24, 128)
    assert features.dtype == torch.float32
    assert torch.equal(features, again.features(pixels))
    assert torch.equal(torch.random.get_rng_state(), before)
