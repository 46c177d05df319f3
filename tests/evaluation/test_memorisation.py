"""Whether samples are copies of training pictures: counted in equal tokens, beside what unseen pictures share."""

import pytest
import torch

from maskimg.evaluation.memorisation import compare, nearest_grids, nearest_sheet
from vqgan.images import to_tensor


def _grids(count: int, seed: int, v: int = 64) -> torch.Tensor:
    return torch.randint(0, v, (count, 4, 4), generator=torch.Generator().manual_seed(seed))


def _nearly(grids: torch.Tensor, wrong: int) -> torch.Tensor:
    """The same grids, their first `wrong` tokens changed."""
    changed = grids.clone()
    changed.view(len(grids), -1)[:, :wrong] += 64
    return changed


def test_the_nearest_grid_is_the_one_that_shares_most_tokens():
    references = _grids(5000, 0)  # more than one part
    found = nearest_grids(_nearly(references[[7, 4321, 0]], 4), references)
    assert found.index.tolist() == [7, 4321, 0]
    assert found.shares.tolist() == [0.75] * 3


def test_it_does_not_matter_in_how_many_parts_one_looks(monkeypatch):
    codes, references = _grids(700, 1, v=4), _grids(900, 2, v=4)  # parts of 374 grids
    found = nearest_grids(codes, references)
    equal = (codes[:, None] == references[None]).flatten(2).float().mean(-1)
    assert torch.equal(found.shares, equal.max(-1).values)
    assert torch.equal(found.index, equal.argmax(-1))


def test_copies_raise_an_alarm_and_new_pictures_do_not():
    training = _grids(300, 0).view(3, 100, 4, 4)
    unseen, new = _grids(100, 1), _grids(32, 2)
    report, found = compare(new, unseen, training)
    assert (report.samples, report.unseen, report.alarming) == (32, 100, False)
    assert "no sign of memorisation" in report.sentence
    assert report.shared == pytest.approx(report.unseen_shared, abs=0.05)

    copies = torch.cat((_nearly(training[2, :10], 2), new[:22]))
    report, found = compare(copies, unseen, training)
    assert found.index[:10].tolist() == list(range(10))  # the picture, whichever of its versions it is
    assert report.near >= 10 and report.alarming
    assert report.most == 0.875
    assert "32 samples share" in report.sentence and "some may be copies, see nearest.png" in report.sentence


def test_without_held_out_pictures_only_near_copies_count():
    training = _grids(100, 0)[None]
    report, _ = compare(_nearly(training[0, :8], 2), training[0, :0], training)  # 14 of 16 tokens
    assert (report.near, report.alarming, report.unseen) == (0, False, 0)
    assert "none of them is a copy (nothing was held out to compare with)" in report.sentence
    report, _ = compare(_nearly(training[0, :8], 1), training[0, :0], training)
    assert (report.near, report.alarming) == (8, True)
    assert "8 of them share 90 % or more" in report.sentence


def test_with_nothing_to_compare_with_that_is_said():
    with pytest.raises(ValueError, match="no training grids to compare with"):
        nearest_grids(_grids(2, 0), _grids(0, 0))


def test_samples_stand_above_their_nearest_pictures_the_nearest_first():
    tones = torch.tensor([-1.0, 0.0, 1.0])
    samples = tones[:, None, None, None].expand(3, 3, 8, 8)
    page = to_tensor(nearest_sheet(samples, -samples, torch.tensor([0.1, 0.3, 0.2])))
    assert page.shape == (3, 22, 32)
    assert [page[0, 5, 5 + 10 * i].round().item() for i in range(3)] == [0, 1, -1]
    assert [page[0, 15, 5 + 10 * i].round().item() for i in range(3)] == [0, -1, 1]
