"""Noise depends on an image's seed, the step and the position, and on nothing else."""

import math

import pytest
import torch

from maskimg.noise import SEEDS, gumbel, philox, uniform


def _words(counter: tuple[int, ...], key: tuple[int, int]) -> list[str]:
    words = philox([torch.tensor([word]) for word in counter], (torch.tensor([key[0]]), torch.tensor([key[1]])))
    return [f"{word.item():08x}" for word in words]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    assert " ".join(_words(counter, key)) == expected


def test_uniforms_lie_strictly_between_0_and_1():
    """Exact: 23 bits and a half can be neither. A 0 would draw a code of probability 0, a 1 none at all."""
    u = uniform(torch.arange(200), 0, 0, 5000)
    assert u.dtype == torch.float32
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1


def test_uniforms_are_uniform():
    """Chi-square over 64 equal bins, 63 degrees of freedom; the seeds are fixed, so the outcome is always the same.

    With other seeds a false alarm would have a chance of one in a million.
    """
    for u in (uniform(torch.arange(100), 3, 1, 1000), uniform(torch.arange(10_000), 0, 0, 10)):
        counts = (u.flatten() * 64).long().bincount(minlength=64).double()
        expected = u.numel() / 64
        assert ((counts - expected).square() / expected).sum() < 130


def test_neighbours_are_independent():
    """Correlations of 100,000 pairs: beyond 0.02 (six standard deviations) once in 500 million; the seeds are fixed."""
    here = uniform(torch.arange(100), 0, 0, 1000)
    others = {
        "next position": here.roll(1, 1),
        "next seed": here.roll(1, 0),
        "next step": uniform(torch.arange(100), 1, 0, 1000),
        "other stream": uniform(torch.arange(100), 0, 1, 1000),
    }
    for name, other in others.items():
        correlation = torch.corrcoef(torch.stack((here.flatten(), other.flatten())))[0, 1]
        assert abs(correlation) < 0.02, name


def test_noise_of_an_image_does_not_depend_on_its_batch():
    seeds = torch.tensor([7, 0, 2**32 - 1, 12])
    together = uniform(seeds, 5, 1, 16)
    for i, seed in enumerate(seeds):
        assert torch.equal(uniform(seed[None], 5, 1, 16)[0], together[i])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(uniform(seeds[order], 5, 1, 16), together[order])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64])
def test_a_larger_grid_begins_with_the_same_noise(count):
    u = uniform(torch.arange(3), 0, 0, count)
    assert u.shape == (3, count)
    assert torch.equal(u, uniform(torch.arange(3), 0, 0, 100)[:, :count])


def test_the_upper_half_of_a_seed_numbers_candidates_that_are_independent():
    """The lower half alone draws what it always drew. Correlations as above: beyond 0.02 once in 500 million."""
    first = uniform(torch.arange(100), 0, 0, 1000)
    for candidate in (1, 2, 2**31 - 1):
        other = uniform(torch.arange(100) + candidate * SEEDS, 0, 0, 1000)
        assert abs(torch.corrcoef(torch.stack((first.flatten(), other.flatten())))[0, 1]) < 0.02
    golden = torch.tensor([0.7660, 0.0697, 0.9837, 0.9657])  # as version 0.1 drew them
    torch.testing.assert_close(uniform(torch.tensor([5]), 0, 0, 4)[0], golden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [5, SEEDS - 1, SEEDS + 5, 2 * SEEDS + 5, 2**63 - 1, -1])
def test_all_64_bits_of_a_seed_are_its_key(seed):
    """Word by word: a block is Philox of (block, step, stream, 0) under the key (lower, upper half)."""
    key = (torch.tensor([seed % SEEDS]), torch.tensor([seed // SEEDS % SEEDS]))
    words = torch.cat(philox([torch.tensor([word]) for word in (1, 7, 2, 0)], key))
    expected = ((words >> 9).double() + 0.5) / 2**23
    assert torch.equal(uniform(torch.tensor([seed]), 7, 2, 8)[0, 4:].double(), expected)


def test_gumbel_noise_has_the_mean_and_spread_of_its_distribution():
    """Euler's constant and pi / sqrt(6), to within six standard errors of 100,000 draws; the seeds are fixed."""
    noise = gumbel(uniform(torch.arange(100), 0, 0, 1000))
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 6 * 1.2825 / math.sqrt(1e5)
    assert abs(noise.std() - 1.2825) < 0.03
