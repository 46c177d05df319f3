"""The sampling loop, mostly with a fake model: any object with mask_id, logits and critic_logits will do."""

import dataclasses
import itertools
import math

import pytest
import torch
from helpers import tiny_critic, tiny_net
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NETWORK

from maskimg.maskgit import MaskGit
from maskimg.masking import SCHEDULES, masked_counts
from maskimg.noise import uniform
from maskimg.sampling import ORDERS, Sampler, Step, draw, halton_order, sample, sample_steps


class FakeModel:
    """Logits (b, h, w, v) that follow from each code, its right neighbour and the cell; counts what it is asked."""

    def __init__(self, vocab: int = 12, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.mask_id = vocab
        self.tables = 2 * torch.randn(3, vocab + 1, vocab, generator=generator)
        self.seen: list[torch.Tensor] = []
        self.guidance: list[float] = []

    def logits(self, codes, condition, guidance):
        self.seen.append(codes.clone())
        self.guidance.append(guidance)
        cells = torch.arange(codes[0].numel()).reshape(codes.shape[1:]) % (self.mask_id + 1)
        return self.tables[0, codes] + self.tables[1, codes.roll(-1, -1)] + self.tables[2, cells]

    def critic_logits(self, codes, condition):
        assert (codes != self.mask_id).all()
        return self.tables[1, codes].sum(-1) + self.tables[0, codes.roll(1, -1), 0]


class ConstantModel(FakeModel):
    """Draws from the same `probs` everywhere."""

    def __init__(self, probs: list[float]):
        super().__init__(len(probs))
        self.log_probs = torch.tensor(probs).log()

    def logits(self, codes, condition, guidance):
        return self.log_probs.expand(*codes.shape, -1)


def _steps(codes: torch.Tensor, sampler: Sampler) -> list[Step]:
    """All steps of a fake model, image i with seed i."""
    return list(sample_steps(FakeModel(), codes, None, sampler, torch.arange(len(codes))))


def _masked(b: int, h: int, w: int, mask_id: int = 12) -> torch.Tensor:
    return torch.full((b, h, w), mask_id)


def _partly(unknown: list[list[bool]], h: int, w: int, mask_id: int = 12) -> torch.Tensor:
    """One grid per row of `unknown`, MASK where it says so, other codes elsewhere."""
    known = torch.arange(len(unknown) * h * w).reshape(-1, h, w) % mask_id
    return known.masked_fill(torch.tensor(unknown).reshape(-1, h, w), mask_id)


@st.composite
def _holes(draw_from):
    """Sampler and one to three grids of 3x4 with any tokens unknown."""
    rows = draw_from(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3))
    sampler = Sampler(
        steps=draw_from(st.integers(1, 15)),
        order=draw_from(st.sampled_from(ORDERS)),
        schedule=draw_from(st.sampled_from(list(SCHEDULES))),
        choice_temperature=draw_from(st.sampled_from([0.0, 1.0, 50.0])),
    )
    return _partly(rows, 3, 4), sampler


# ----------------------------------------------------------------------------- what every sample keeps to


@settings(max_examples=80, deadline=None)
@given(_holes())
def test_given_codes_never_change_and_no_code_stays_masked(holes):
    """Halton-MaskGIT changed 98 % of the codes it was given, with either of its samplers."""
    codes, sampler = holes
    given = codes != 12
    for step in _steps(codes, sampler):
        assert torch.equal(step.codes[given], codes[given])
        assert not (step.masked & given).any()
        assert 0 <= step.codes.min() <= step.codes.max() < 12
    done = sample(FakeModel(), codes, None, sampler, torch.arange(len(codes)))
    assert torch.equal(done[given], codes[given])
    assert (done < 12).all()


@settings(max_examples=80, deadline=None)
@given(_holes())
def test_after_each_step_exactly_as_many_tokens_stay_masked_as_planned_for_each_image(holes):
    codes, sampler = holes
    unknown = (codes == 12).sum((1, 2))
    planned = masked_counts(unknown, sampler.steps, sampler.schedule)
    model = FakeModel()
    steps = list(sample_steps(model, codes, None, sampler, torch.arange(len(codes))))
    for i, step in enumerate(steps):
        assert step.masked.sum((1, 2)).tolist() == planned[:, i].tolist()
    for before, seen in zip(steps, model.seen[1:], strict=False):
        assert torch.equal(seen == 12, before.masked)
    assert not steps or not steps[-1].masked.any()


@settings(max_examples=40, deadline=None)
@given(_holes())
def test_no_forward_is_spent_that_reveals_nothing(holes):
    """With more steps than tokens, one forward per token; with nothing unknown, none."""
    codes, sampler = holes
    model = FakeModel()
    list(sample_steps(model, codes, None, sampler, torch.arange(len(codes))))
    assert len(model.seen) == min(sampler.steps, int((codes == 12).sum((1, 2)).max()))


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_a_token_once_kept_stays_kept_without_a_critic(order):
    steps = _steps(_masked(2, 4, 4), Sampler(order=order, steps=6))
    for before, after in itertools.pairwise(steps):
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.codes[~before.masked], before.codes[~before.masked])


def test_a_critic_may_revise_what_was_kept():
    sampler = Sampler(order="critic", steps=8, choice_temperature=0)
    steps = _steps(_masked(4, 4, 4), sampler)
    assert any((after.masked & ~before.masked).any() for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("order", ORDERS)
def test_an_image_depends_on_its_seed_alone_not_on_its_batch(order):
    sampler = Sampler(order=order, steps=5)
    seeds = torch.tensor([5, 0, 2**32 - 1, 77])
    codes = _masked(4, 4, 4)
    codes[1, 0] = 3  # images with other holes beside it change nothing either
    together = sample(FakeModel(), codes, None, sampler, seeds)
    again = sample(FakeModel(), codes, None, sampler, seeds)
    assert torch.equal(together, again)
    for i in range(4):
        assert torch.equal(sample(FakeModel(), codes[i : i + 1], None, sampler, seeds[i : i + 1])[0], together[i])
    order_of_rows = torch.tensor([2, 3, 0, 1])
    shuffled = sample(FakeModel(), codes[order_of_rows], None, sampler, seeds[order_of_rows])
    assert torch.equal(shuffled, together[order_of_rows])
    assert len(together.unique(dim=0)) == 4


@pytest.mark.parametrize("order", ORDERS)
def test_real_networks_draw_the_same_images_in_any_batch_and_never_mask(order):
    """Untrained, in fp32: their logits differ in the last bits from batch to batch, which moves no draw here."""
    model = MaskGit(tiny_net(NETWORK), token_critic=tiny_critic(NETWORK)).eval()
    sampler = Sampler(order=order, steps=4, guidance=2.0)
    condition, seeds = torch.tensor([[0, 0], [1, 2], [3, 1]]), torch.tensor([1, 2, 3])
    together = sample(model, _masked(3, 4, 4, 64), condition, sampler, seeds)
    assert 0 <= together.min() <= together.max() < 64
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(sample(model, _masked(1, 4, 4, 64), condition[one], sampler, seeds[one])[0], together[i])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_the_limits_work(order, steps):
    """A single step, a single unknown token, a single cell, a single image, a long strip."""
    sampler = Sampler(order=order, steps=steps)
    one_unknown = _partly([[i == 5 for i in range(16)]], 4, 4)
    for codes in (one_unknown, _masked(1, 1, 1), _masked(1, 4, 4), _masked(2, 1, 9)):
        done = sample(FakeModel(), codes, None, sampler, torch.arange(len(codes)))
        assert done.shape == codes.shape
        assert (done < 12).all()
        assert torch.equal(done[codes < 12], codes[codes < 12])


@pytest.mark.parametrize("order", ORDERS)
def test_grids_without_a_hole_come_back_without_a_forward(order):
    model, codes = FakeModel(), _partly([[False] * 16] * 2, 4, 4)
    assert torch.equal(sample(model, codes, None, Sampler(order=order), torch.arange(2)), codes)
    assert model.seen == []


def test_the_grids_given_are_not_written_to():
    codes = _masked(2, 4, 4)
    sample(FakeModel(), codes, None, Sampler(), torch.arange(2))
    assert (codes == 12).all()


def test_a_step_shows_whole_grids_their_scores_and_what_will_be_masked():
    step = next(sample_steps(FakeModel(), _masked(2, 3, 4), None, Sampler(steps=3), torch.arange(2)))
    assert Step._fields == ("codes", "scores", "masked")
    assert {part.shape for part in step} == {(2, 3, 4)}
    assert step.masked.dtype == torch.bool


# ----------------------------------------------------------------------------- which tokens are kept first


def test_without_noise_the_most_probable_tokens_are_kept():
    sampler = Sampler(order="confidence", steps=4, choice_temperature=0)
    first = next(sample_steps(FakeModel(), _masked(3, 4, 4), None, sampler, torch.arange(3)))
    for scores, masked in zip(first.scores, first.masked, strict=True):
        assert scores[masked].max() <= scores[~masked].min()
    probs = FakeModel().logits(_masked(3, 4, 4), None, 1.0).softmax(-1)
    expected = probs.gather(-1, first.codes[..., None])[..., 0].log()
    torch.testing.assert_close(first.scores, expected)


def test_without_noise_the_tokens_that_the_critic_doubts_most_are_masked():
    sampler = Sampler(order="critic", steps=4, choice_temperature=0)
    for step in _steps(_masked(3, 4, 4), sampler):
        torch.testing.assert_close(step.scores, -FakeModel().critic_logits(step.codes, None))
        for scores, masked in zip(step.scores, step.masked, strict=True):
            if masked.any():
                assert scores[masked].max() <= scores[~masked].min()


def test_choice_noise_changes_what_is_kept():
    masks = {}
    for temperature in (0.0, 100.0):
        sampler = Sampler(order="confidence", steps=4, choice_temperature=temperature)
        masks[temperature] = [
            s.masked for s in sample_steps(FakeModel(), _masked(8, 4, 4), None, sampler, torch.arange(8))
        ]
    assert not torch.equal(masks[0.0][0], masks[100.0][0])


def test_halton_keeps_cells_along_one_path_from_a_start_of_its_own():
    order = halton_order(4, 4)
    steps = list(
        sample_steps(FakeModel(), _masked(32, 4, 4), None, Sampler(order="halton", steps=16), torch.arange(32))
    )
    starts = set()
    for image in range(32):
        left = [step.masked[image].flatten() for step in steps]
        revealed = [int((~left[0]).nonzero())] + [int((b & ~a).nonzero()) for b, a in itertools.pairwise(left)]
        start = order.tolist().index(revealed[0])
        assert revealed == order.roll(-start).tolist()
        starts.add(start)
    assert len(starts) > 8  # of 16


def test_halton_passes_over_given_cells():
    codes = _partly([[i % 3 == 0 for i in range(16)]], 4, 4)
    order = halton_order(4, 4).tolist()
    steps = _steps(codes, Sampler(order="halton", steps=16))
    left = [(codes[0] == 12).flatten()] + [step.masked[0].flatten() for step in steps]
    revealed = [order.index(int((before & ~after).nonzero())) for before, after in itertools.pairwise(left)]
    turns = sum(after < before for before, after in itertools.pairwise(revealed))
    assert len(revealed) == 6
    assert turns <= 1  # along the path, once past its end


@pytest.mark.parametrize(("h", "w"), [(1, 1), (4, 4), (8, 8), (16, 16), (4, 6), (5, 3), (1, 7), (32, 8)])
def test_the_halton_path_visits_every_cell_once(h, w):
    assert sorted(halton_order(h, w).tolist()) == list(range(h * w))


@pytest.mark.parametrize("side", [8, 16])
def test_the_halton_path_is_evenly_spread_from_the_start(side):
    """Its first quarter puts about as many cells into each quadrant; a raster scan would put none into two of them."""
    first = halton_order(side, side)[: side * side // 4]
    quadrants = (first // side >= side // 2).long() * 2 + (first % side >= side // 2).long()
    share = len(first) / 4
    assert all(0.6 * share <= count <= 1.4 * share for count in quadrants.bincount(minlength=4))
    points = torch.stack((first // side, first % side), dim=1)[: side * side // 16].float()
    assert (torch.cdist(points, points) + 99 * torch.eye(len(points))).min() > 1.5  # no two are neighbours


# ----------------------------------------------------------------------------- drawing codes


def test_codes_are_drawn_as_often_as_they_are_probable():
    """40,000 draws of 8 codes: chi-square with 6 degrees of freedom below 40, beyond which chance goes once in 10^6.

    The seeds are fixed, so the outcome is always the same.
    """
    probs = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.04, 0.01, 0.0])
    codes = draw(probs.expand(400, 100, -1), uniform(torch.arange(400), 0, 0, 100))
    observed, expected = codes.flatten().bincount(minlength=8)[:7], probs[:7] * 40_000
    assert codes.max() <= 6
    assert ((observed - expected).square() / expected).sum() < 40


def test_a_large_vocabulary_is_drawn_from_evenly():
    """20,000 draws of 1,000 codes alike: chi-square per degree of freedom is within 0.7 to 1.3; the seeds are fixed."""
    codes = draw(torch.full((20, 1000, 1000), 0.001), uniform(torch.arange(20), 0, 0, 1000))
    counts = codes.flatten().bincount(minlength=1000).double()
    assert 0.7 < ((counts - 20).square() / 20).sum() / 999 < 1.3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9).filter(lambda ps: sum(ps) > 1e-3),
    st.sampled_from([2**-24, 0.25, 0.5, 1 - 2**-23, 1 - 2**-24]),
)
def test_a_code_of_probability_zero_is_never_drawn(weights, u):
    probs = torch.tensor(weights) / sum(weights)
    code = draw(probs, torch.tensor(u))
    assert 0 <= code < len(weights)
    assert probs[code] > 0


def test_low_temperatures_draw_the_most_probable_code():
    sampler = Sampler(token_temperature=0.01, steps=1)
    model = FakeModel()
    done = sample(model, _masked(8, 4, 4), None, sampler, torch.arange(8))
    assert torch.equal(done, FakeModel().logits(_masked(8, 4, 4), None, 1.0).argmax(-1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.001}, {1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.93}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.88}, {0, 1}),  # of the three that are left, two hold more than 0.88
    ],
)
def test_codes_are_drawn_among_the_most_probable_ones_only(options, expected):
    """1,600 draws: missing a code of probability 0.06 has a chance of 10^-43."""
    model = ConstantModel([0.3, 0.54, 0.1, 0.06])
    done = sample(model, _masked(100, 4, 4, 4), None, Sampler(**options), torch.arange(100))
    assert set(done.flatten().tolist()) == expected


def test_guidance_starts_when_enough_is_revealed():
    for start, expected in ((0.0, [3, 3, 3, 3]), (0.3, [1, 1, 3, 3]), (1.0, [1, 1, 1, 1])):
        model = FakeModel()
        sampler = Sampler(steps=4, schedule="linear", guidance=3.0, guidance_start=start)
        sample(model, _masked(1, 4, 4), None, sampler, torch.tensor([0]))
        assert model.guidance == expected


def test_guidance_costs_a_doubled_batch_only_while_it_is_on():
    net = tiny_net(NETWORK)
    rows = []
    net.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    model, condition = MaskGit(net).eval(), torch.tensor([[0, 0]] * 3)
    for guidance, expected in ((1.0, [3, 3]), (2.0, [6, 6])):
        rows.clear()
        sample(model, _masked(3, 4, 4, 64), condition, Sampler(steps=2, guidance=guidance), torch.arange(3))
        assert rows == expected


# ----------------------------------------------------------------------------- the sampler's numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be between 1 and 1024, got 0"),
        ({"steps": -3}, "steps must be between"),
        ({"steps": 5000}, "steps must be between"),
        ({"steps": 2.5}, "must be whole numbers, got 2.5"),
        ({"steps": math.nan}, "steps must be between"),
        ({"token_temperature": 0}, "token_temperature must be between"),
        ({"token_temperature": math.nan}, "token_temperature must be between"),
        ({"token_temperature": math.inf}, "token_temperature must be between"),
        ({"choice_temperature": -1}, "choice_temperature must be between"),
        ({"choice_temperature": math.nan}, "choice_temperature must be between"),
        ({"guidance": -1}, "guidance must be between"),
        ({"guidance": math.nan}, "guidance must be between 0 and 20, got nan"),
        ({"guidance_start": 1.1}, "guidance_start must be between"),
        ({"top_k": -1}, "top_k must be between"),
        ({"top_k": 1.5}, "must be whole numbers"),
        ({"top_p": 0}, "top_p must be between"),
        ({"top_p": math.nan}, "top_p must be between"),
        ({"order": "raster"}, "order must be one of confidence, halton, random, critic, got `raster`"),
        ({"schedule": "cubic"}, "schedule must be one of cosine, linear, arccos, square, got `cubic`"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_a_sampler_survives_the_way_through_a_file():
    sampler = Sampler(steps=3, order="random", guidance=2.5, top_p=0.9)
    assert Sampler(**dataclasses.asdict(sampler)) == sampler
