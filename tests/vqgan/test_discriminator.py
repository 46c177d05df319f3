"""The patch discriminator's losses against their formulas, and a watchdog that can be told apart from none."""

import pytest
import torch
from torch import nn

from maskimg.training.code_usage import CodeUsage
from vqgan.discriminator import (
    LeCam,
    PatchDiscriminator,
    Watchdog,
    adversarial_loss,
    discriminator_loss,
    r1_penalty,
)


def test_a_patch_has_one_logit():
    assert PatchDiscriminator()(torch.zeros(2, 3, 64, 32)).shape == (2, 1, 8, 4)


def test_the_hinge_stops_beyond_the_margin():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert discriminator_loss(torch.tensor([1.0]), torch.tensor([-1.0])) == 0
    assert adversarial_loss(fake).item() == pytest.approx(1.25)


def test_r1_is_half_the_squared_slope():
    """A linear discriminator of weight w has slope w everywhere."""
    weight = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, images):
            return (images * self.weight).sum((1, 2, 3))[:, None, None, None]

    discriminator = Linear()
    penalty = r1_penalty(discriminator, torch.rand(4, 3, 8, 8))
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(discriminator.weight.grad, weight)


def test_lecam_compares_logits_with_the_average_of_the_other_kind():
    lecam = LeCam(decay=0.5)
    lecam.averages.copy_(torch.tensor([1.0, -1.0]))
    real, fake = torch.tensor([3.0]), torch.tensor([-2.0])
    # The averages become 2 and -1.5: (3 + 1.5)^2 + (2 + 2)^2.
    assert lecam(real, fake).item() == pytest.approx(4.5**2 + 4**2)
    assert lecam.averages.tolist() == [2.0, -1.5]


def test_logits_that_are_not_finite_do_not_stay_in_lecams_averages():
    lecam = LeCam()
    lecam(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert lecam.averages.isfinite().all()
    assert lecam(torch.tensor([1.0]), torch.tensor([-1.0])).isfinite()


def test_the_watchdog_lets_the_discriminator_be_while_reconstruction_holds():
    watchdog = Watchdog()
    assert all(watchdog.notice(1.0 + 0.05 * (i % 2)) for i in range(500))


def test_the_watchdog_pauses_it_when_reconstruction_worsens_and_lets_it_back():
    watchdog = Watchdog()
    assert all(watchdog.notice(1.0) for _ in range(100))
    worse = [watchdog.notice(1.5) for _ in range(200)]
    assert worse[0]
    assert not worse[-1]
    assert watchdog.paused
    better = [watchdog.notice(1.0) for _ in range(400)]
    assert not better[0]
    assert better[-1]
    # Back only well below the limit, so that it does not go in and out at every step.
    assert sum(a != b for a, b in zip(worse + better, (worse + better)[1:], strict=False)) == 2


def test_a_loss_that_is_not_finite_does_not_blind_the_watchdog():
    watchdog = Watchdog()
    assert watchdog.notice(float("nan"))
    assert all(watchdog.notice(1.0) for _ in range(100))
    watchdog.notice(float("nan"))
    watchdog.notice(float("inf"))
    assert not [watchdog.notice(1.5) for _ in range(200)][-1]


def test_the_watchdog_goes_on_from_a_saved_state():
    one, other = Watchdog(), Watchdog()
    for _ in range(50):
        one.notice(1.0)
    other.load_state_dict(one.state_dict())
    decisions = [[dog.notice(1.4) for _ in range(60)] for dog in (one, other)]
    assert decisions[0] == decisions[1]
    assert not all(decisions[0])


def test_usage_counts_recent_codes_only():
    usage = CodeUsage(4)
    usage.add(torch.zeros(2, 40, dtype=torch.int64))
    assert usage.share == 0.25
    assert usage.entropy == 0
    for _ in range(2):
        usage.add(torch.tensor([1, 2, 3]).repeat(40))
    usage.add(torch.tensor([1, 2, 3]))
    assert usage.share == 0.75  # code 0 is forgotten
    assert usage.entropy == pytest.approx(torch.tensor(3.0).log2().item(), abs=1e-6)


def test_counting_codes_makes_no_host_wait_for_a_device():
    """A tensor without values stands for one whose values are not there yet: to look at them is an error."""
    usage = CodeUsage(4).to("meta")
    usage.add(torch.zeros(2, 40, dtype=torch.int64, device="meta"))
    assert usage.now.is_meta
