"""The sampling loop, mostly with a fake model: any object with the five methods of `paper.draws.Model` will do."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from helpers import stirred, tiny_critic, tiny_net
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NETWORK

from maskimg.conditions import null_labels
from maskimg.maskgit import MaskGit
from maskimg.masking import SCHEDULES, masked_counts
from maskimg.networks.transformer import MaskedTransformer, TransformerConfig
from maskimg.noise import gumbel, uniform
from maskimg.paper import draws
from maskimg.paper.counts import make_counts
from maskimg.paper.draws import CHOICE, draw_codes, filtered
from maskimg.paper.orders import RANKINGS, halton_order
from maskimg.sampler import BEFORE_DRAW, GUIDANCE_SCHEDULES, ORDERS, Sampler, describe, make_presets
from maskimg.sampling import Step, check_finite, first_features, sample, sample_steps

ENDLESS = "truncated_normal(0.55, 0.25, 0.5)"  # a schedule that never falls below one half


class FakeModel:
    """Logits that follow from each code, its right neighbour, the cell and the condition; they are the features too.

    It keeps what it was asked: the grids `seen` and their `guidance`, the `rows` of each step that reached the head,
    and the grids `judged` by the critic. Each row is computed on its own, to the last bit.
    """

    def __init__(self, vocab: int = 12, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.mask_id = vocab
        self.tables = 2 * torch.randn(4, vocab + 1, vocab, generator=generator)
        self.seen: list[torch.Tensor] = []
        self.judged: list[torch.Tensor] = []
        self.guidance: list[float] = []
        self.rows: list[int] = []

    def prepare(self, condition, b):
        assert condition is None or len(condition) == b
        return condition

    def features(self, codes, prepared, guidance, memory):
        self.seen.append(codes.clone())
        self.guidance.append(guidance)
        self.rows.append(0)
        return guidance * self.logits(codes, prepared), None

    def to_logits(self, features):
        self.rows[-1] += features[..., 0].numel()
        return features

    def critic_logits(self, codes, prepared):
        assert (codes != self.mask_id).all()
        self.judged.append(codes.clone())
        return self.doubts(codes)

    def logits(self, codes, condition=None):
        cells = torch.arange(codes[0].numel()).reshape(codes.shape[1:]) % (self.mask_id + 1)
        logits = self.tables[0, codes] + self.tables[1, codes.roll(-1, -1)] + self.tables[2, cells]
        return logits if condition is None else logits + self.tables[3, condition[:, 0]][:, None, None]

    def doubts(self, codes):
        return self.tables[1, codes].sum(-1) + self.tables[0, codes.roll(1, -1), 0]


class ConstantModel(FakeModel):
    """Draws from the same `probs` everywhere."""

    def __init__(self, probs: list[float]):
        super().__init__(len(probs))
        self.log_probs = torch.tensor(probs).log()

    def logits(self, codes, condition=None):
        return self.log_probs.expand(*codes.shape, -1)


class JointModel(FakeModel):
    """Knows how probable each of the 3^4 grids of 1x4 is, so each token's exact distribution, given those known."""

    def __init__(self):
        super().__init__(3)
        self.states = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
        self.joint = torch.randn(81, generator=torch.Generator().manual_seed(3)).softmax(0)

    def agree(self, codes):
        """Codes (b, 1, 4) -> which states (b, 81) they may become."""
        return ((codes == self.mask_id) | (codes == self.states)).all(-1)

    def logits(self, codes, condition=None):
        weights = self.agree(codes) * self.joint
        return (weights @ torch.eye(3)[self.states].flatten(1)).reshape(-1, 1, 4, 3).log()

    def misfit(self, grids, start):
        """Chi-square of finished grids (b, 1, 4) against the distribution of what `start` (1, 1, 4) may become."""
        expected = (self.agree(start)[0] * self.joint) / (self.agree(start)[0] * self.joint).sum()
        observed = (grids[:, 0] @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81)
        assert (observed[expected == 0] == 0).all()
        expected, observed = len(grids) * expected[expected > 0], observed[expected > 0]
        return ((observed - expected).square() / expected).sum().item()


def _steps(codes: torch.Tensor, sampler: Sampler, **options) -> list[Step]:
    """All steps of a fake model, image i with seed i."""
    return list(sample_steps(FakeModel(), codes, None, sampler, torch.arange(len(codes)), **options))


def _masked(b: int, h: int, w: int, mask_id: int = 12) -> torch.Tensor:
    return torch.full((b, h, w), mask_id)


def _partly(unknown: list[list[bool]], h: int, w: int, mask_id: int = 12) -> torch.Tensor:
    """One grid per row of `unknown`, MASK where it says so, other codes elsewhere."""
    known = torch.arange(len(unknown) * h * w).reshape(-1, h, w) % mask_id
    return known.masked_fill(torch.tensor(unknown).reshape(-1, h, w), mask_id)


def _hole(*sizes: int) -> torch.Tensor:
    """Grids of 4x4, each with so many tokens unknown, the first ones."""
    return _partly([[i < size for i in range(16)] for size in sizes], 4, 4)


def _trunk_rows(model: MaskGit) -> list[int]:
    """How many rows each forward pass of the generator has, from now on."""
    rows: list[int] = []
    model.net.trunk.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def _chi_square(codes: torch.Tensor, probs: torch.Tensor) -> float:
    observed = codes.flatten().bincount(minlength=len(probs))
    expected = codes.numel() * probs / probs.sum()
    return ((observed - expected).square() / expected).sum().item()


def _entropy(codes: torch.Tensor) -> float:
    """Of how often each code occurs, in nats."""
    shares = codes.flatten().bincount().double() / codes.numel()
    return -torch.special.xlogy(shares, shares).sum().item()


@st.composite
def _holes(draw_from):
    """One to three grids of 3x4 with any tokens unknown, a Sampler, and whether to show complete grids."""
    rows = draw_from(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3))
    sampler = Sampler(
        steps=draw_from(st.integers(1, 15)),
        order=draw_from(st.sampled_from(ORDERS)),
        schedule=draw_from(st.sampled_from([*SCHEDULES, "beta(12, 3)", ENDLESS])),
        counts=draw_from(st.sampled_from([(), (), (1,), (5, 1, 1), (1, 2, 30)])),
        choice_temperature=draw_from(st.sampled_from([0.0, 1.0, 50.0, (3.0, 1.0)])),
        critic_revises=draw_from(st.booleans()),
        revise=draw_from(st.sampled_from([0.0, 0.1, 0.9])),
    )
    return _partly(rows, 3, 4), sampler, draw_from(st.booleans())


# ----------------------------------------------------------------------------- what every sample keeps to


@settings(max_examples=150, deadline=None)
@given(_holes())
def test_given_codes_never_change_and_no_code_stays_masked(holes):
    """Halton-MaskGIT changed 98 % of the codes it was given, with either of its samplers."""
    codes, sampler, complete = holes
    given, model = codes != 12, FakeModel()
    for step in sample_steps(model, codes, None, sampler, torch.arange(len(codes)), complete=complete):
        assert torch.equal(step.codes[given], codes[given])
        assert torch.equal(model.seen[-1][given], codes[given])
        assert not (step.masked & given).any()
        shown = step.codes if complete else step.codes[~step.masked]
        assert ((shown >= 0) & (shown < 12)).all()
    done = sample(FakeModel(), codes, None, sampler, torch.arange(len(codes)))
    assert torch.equal(done[given], codes[given])
    assert (done < 12).all()


@settings(max_examples=150, deadline=None)
@given(_holes())
def test_after_each_step_exactly_as_many_tokens_stay_masked_as_planned_for_each_image(holes):
    """Giving tokens back (`revise`) changes what is drawn again, not how many are masked after the step."""
    codes, sampler, complete = holes
    unknown = (codes == 12).sum((1, 2))
    planned = masked_counts(unknown, sampler.steps, sampler.schedule, sampler.counts)
    model = FakeModel()
    steps = list(sample_steps(model, codes, None, sampler, torch.arange(len(codes)), complete=complete))
    for i, step in enumerate(steps):
        assert step.masked.sum((1, 2)).tolist() == planned[:, i].tolist()
    for before, seen in zip(steps, model.seen[1:], strict=False):
        assert ((seen == 12) | ~before.masked).all()
        assert sampler.revise or torch.equal(seen == 12, before.masked)
    assert not steps or not steps[-1].masked.any()


@settings(max_examples=80, deadline=None)
@given(_holes())
def test_no_forward_is_spent_that_reveals_nothing(holes):
    """With more steps than tokens, one forward per token; with nothing unknown, none; no critic after the last."""
    codes, sampler, _ = holes
    model = FakeModel()
    list(sample_steps(model, codes, None, sampler, torch.arange(len(codes)), complete=False))
    most = int((codes == 12).sum((1, 2)).max())
    planned = masked_counts(torch.tensor([most]), sampler.steps, sampler.schedule, sampler.counts)[0]
    assert len(model.seen) == (planned > 0).sum() + (most > 0)
    assert len(model.seen) <= min(sampler.steps, most)
    assert len(model.judged) == (max(0, len(model.seen) - 1) if sampler.order == "critic" else 0)


@settings(max_examples=80, deadline=None)
@given(_holes())
def test_showing_complete_grids_changes_no_result(holes):
    codes, sampler, _ = holes
    shown, plain = (_steps(codes, sampler, complete=complete) for complete in (True, False))
    for left, right in zip(shown, plain, strict=True):
        assert torch.equal(left.masked, right.masked)
        assert torch.equal(left.codes[~left.masked], right.codes[~right.masked])
    if plain:
        assert torch.equal(plain[-1].codes, sample(FakeModel(), codes, None, sampler, torch.arange(len(codes))))


@pytest.mark.parametrize("order", ORDERS)
def test_a_token_once_kept_stays_kept_unless_a_critic_may_revise_it(order):
    steps = _steps(_masked(2, 4, 4), Sampler(order=order, steps=6, critic_revises=False))
    for before, after in itertools.pairwise(steps):
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.codes[~before.masked], before.codes[~before.masked])


def test_a_critic_may_revise_what_was_kept():
    """In x-transformers it could not, by default: a critic that only ranks what is masked corrects nothing."""
    sampler = Sampler(order="critic", steps=8, choice_temperature=0)
    steps = _steps(_masked(4, 4, 4), sampler)
    assert any((after.masked & ~before.masked).any() for before, after in itertools.pairwise(steps))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("revise", [0.0, 0.3])
def test_an_image_depends_on_its_seed_alone_not_on_its_batch(order, revise):
    sampler = Sampler(order=order, steps=5, revise=revise)
    seeds = torch.tensor([5, 0, 2**32 - 1, 77])
    codes = _masked(4, 4, 4)
    codes[1, 0] = 3  # images with other holes beside it change nothing either
    codes[2, 1:] = 7
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
    """A single step, a single unknown token, a single cell, a single image, a long strip.

    Halton-MaskGIT divided by zero at one step and lost the batch axis of a single image.
    """
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


@pytest.mark.parametrize("order", ORDERS)
def test_the_loop_waits_for_no_value_on_the_device(order):
    """Tensors of the device `meta` have shapes and no values, so whatever asks for one raises.

    That is also what a CUDA graph needs: every shape is known from the counts, before the loop.
    """
    everything = {"revise": 0.2, "guidance": (1.0, 2.0), "top_k": 4, "top_p": 0.9, "counts": (3, 4, 9)}
    for options, complete in itertools.product(({}, everything), (False, True)):
        sampler = Sampler(**{"steps": 3, "order": order, **options})
        model = MaskGit(tiny_net(NETWORK), token_critic=tiny_critic(NETWORK), self_cond=bool(options)).to("meta").eval()
        inputs = (_masked(2, 4, 4, 64), torch.zeros(2, 2, dtype=torch.int64), torch.arange(2))
        codes, condition, seeds = (tensor.to("meta") for tensor in inputs)
        counts = make_counts(torch.tensor([16, 5]), sampler, "meta")
        steps = list(sample_steps(model, codes, condition, sampler, seeds, complete=complete, counts=counts))
        assert len(steps) == 3
        assert {(part.device.type, part.shape) for step in steps for part in step} == {("meta", (2, 4, 4))}


# ----------------------------------------------------------------------------- MASK is never drawn


def test_an_untrained_network_never_draws_mask():
    """x-transformers' drew it for half of the tokens: there, MASK has a logit like any code."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [MaskedTransformer(NETWORK), *(stirred(MaskedTransformer(NETWORK), size=size) for size in (0.1, 3, 30))]
        large = dataclasses.replace(NETWORK, vocab_size=5000)  # whose head is made of two groups
        nets.append(stirred(MaskedTransformer(large)))
    for net, order in itertools.product(nets, ORDERS):
        vocab = net.vocab_size
        model = MaskGit(net, token_critic=tiny_critic(net.config)).eval()
        assert model.logits(_masked(1, 4, 4, vocab)).shape[-1] == vocab
        done = sample(model, _masked(16, 4, 4, vocab), None, Sampler(order=order, steps=3), torch.arange(16))
        assert 0 <= done.min() <= done.max() < vocab


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([-1e30, -100.0, -1.0, 0.0, 1e-30, 1.0, 100.0, 1e30]), min_size=1, max_size=6),
    st.sampled_from(ORDERS),
    st.sampled_from([{}, {"top_k": 1}, {"top_k": 2**20}, {"top_p": 0.001}, {"token_temperature": 0.001}]),
    st.sampled_from([1, 3]),
)
def test_mask_is_not_drawn_from_any_logits(logits, order, options, steps):
    model = ConstantModel([1.0] * len(logits))
    model.log_probs = torch.tensor(logits)
    sampler = Sampler(order=order, steps=steps, **options)
    done = sample(model, _masked(2, 2, 3, len(logits)), None, sampler, torch.arange(2))
    assert ((done >= 0) & (done < len(logits))).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "options", [{"schedule": ENDLESS}, {"steps": 1}, {"top_k": 1}, {"top_k": 2**20}, {"top_p": 0.001}]
)
def test_nothing_stays_masked_at_the_extremes(order, options):
    """x-transformers left MASK where a schedule does not end at 0, and drew code 0 only where no code was allowed."""
    sampler = Sampler(**{"steps": 5, "order": order, **options})
    done = sample(FakeModel(), _masked(64, 4, 4), None, sampler, torch.arange(64))
    assert (done < 12).all()
    assert len(done.unique()) > 6


def test_a_single_step_still_draws_by_chance():
    """x-transformers' single step took the most probable code, whatever the temperature."""
    done = sample(ConstantModel([0.6, 0.4]), _masked(64, 4, 4, 2), None, Sampler(steps=1), torch.arange(64))
    assert 0.35 < done.double().mean() < 0.45  # 1,024 draws: three standard deviations; the seeds are fixed


# ----------------------------------------------------------------------------- how many tokens are revealed


@pytest.mark.parametrize("order", ORDERS)
def test_explicit_counts_are_kept_to_and_scaled_to_a_hole(order):
    sampler = Sampler(order=order, counts=(2, 6, 8))
    assert sampler.steps == 3
    steps = _steps(_hole(16, 8, 4, 1), sampler)
    assert [step.masked.sum((1, 2)).tolist() for step in steps] == [[14, 7, 3, 0], [8, 4, 2, 0], [0, 0, 0, 0]]


def test_a_small_hole_is_filled_as_evenly_as_a_whole_grid():
    """Elsewhere counts come from the whole grid: one token a step in a small hole, and the rest at the end."""
    steps = _steps(_hole(16, 8), Sampler(schedule="linear", steps=4))
    assert [step.masked.sum((1, 2)).tolist() for step in steps] == [[12, 6], [8, 4], [4, 2], [0, 0]]


@pytest.mark.parametrize("order", ORDERS)
def test_tokens_given_back_are_drawn_again(order):
    """In each step a share `revise` of the tokens drawn so far, rounded, any of them, none of those given; but no more
    than will be masked after it (ReMDM's cap), so nothing is given back to be drawn at once with all the rest."""
    sampler = Sampler(order=order, steps=8, revise=0.4, schedule="linear", choice_temperature=4.0)
    model, codes = FakeModel(), _hole(*[16, 12] * 8)
    steps = list(sample_steps(model, codes, None, sampler, torch.arange(16)))
    redrawn, changed = torch.zeros(codes.shape, dtype=torch.bool), 0
    for i in range(1, 8):
        back = (model.seen[i] == 12) & ~steps[i - 1].masked
        drawn = (codes == 12).sum((1, 2)) - steps[i - 1].masked.sum((1, 2))
        left = steps[i].masked.sum((1, 2))
        assert back.sum((1, 2)).tolist() == (0.4 * drawn).round().long().minimum(left).tolist()
        redrawn |= back
        changed += int((steps[i].codes != steps[i - 1].codes)[back].sum())
    assert torch.equal(redrawn.any(0), torch.ones(4, 4, dtype=torch.bool))
    assert changed > 60  # of the 16 * (1 + 2 + 2 + 3 + 3 + 2) or so that were given back


def test_in_random_order_tokens_given_back_are_revealed_as_soon_as_any_other():
    """Of 16 tokens, 8 drawn, 4 of these given back: of the 12 then masked, 8 are revealed, whichever they are.

    2,000 images: the share of those given back is 2/3 to within six standard errors of 0.0053; the seeds are fixed.
    """
    model, sampler = FakeModel(), Sampler(order="random", counts=(8, 4, 4), revise=0.5)
    steps = sample_steps(model, _masked(2000, 4, 4), None, sampler, torch.arange(2000))
    first, second = next(steps), next(steps)
    back = (model.seen[1] == 12) & ~first.masked
    assert (back.sum((1, 2)) == 4).all()
    assert abs((back & ~second.masked).sum() / back.sum() - 2 / 3) < 6 * 0.0053


@pytest.mark.parametrize("steps", [3, 4])
def test_giving_back_much_does_not_end_in_drawing_it_all_at_once(steps):
    """Without ReMDM's cap the last step drew 3 of 4 tokens apart: total variation 0.32 and 0.31 from the exact joint.

    With it 0.19 and 0.10, of which 0.04 is the noise of 8,000 images in 81 states; the seeds are fixed.
    """
    model, sampler = JointModel(), Sampler(order="random", schedule="linear", steps=steps, revise=0.6)
    done = sample(model, _masked(8000, 1, 4, 3), None, sampler, torch.arange(8000))
    shares = (done[:, 0] @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81) / 8000
    assert (shares - model.joint).abs().sum() / 2 < (0.22 if steps == 3 else 0.13)


def test_without_revise_no_token_is_given_back():
    model = FakeModel()
    steps = list(sample_steps(model, _masked(2, 4, 4), None, Sampler(steps=6), torch.arange(2)))
    assert all(torch.equal(seen == 12, step.masked) for seen, step in zip(model.seen[1:], steps, strict=False))


def test_the_counts_of_every_step_are_known_beforehand():
    counts = make_counts(torch.tensor([16, 8, 0]), Sampler(schedule="linear", steps=4, revise=0.25))
    assert counts.returned.tolist() == [[0, 0, 0], [1, 0, 0], [2, 1, 0], [0, 0, 0]]  # halves to even: 0.5 is 0
    assert counts.after.tolist() == [[12, 6, 0], [8, 4, 0], [4, 2, 0], [0, 0, 0]]
    assert counts.most_masked == [16, 13, 10, 4]
    assert counts.most_revealed == [4, 5, 6, 4]
    assert counts.steps == 4
    assert make_counts(torch.tensor([2, 0]), Sampler(schedule="linear", steps=4)).steps == 2


# ----------------------------------------------------------------------------- which tokens are kept first


def test_without_noise_the_most_probable_tokens_are_kept():
    sampler = Sampler(order="confidence", steps=4, choice_temperature=0)
    first = next(sample_steps(FakeModel(), _masked(3, 4, 4), None, sampler, torch.arange(3)))
    for scores, masked in zip(first.scores, first.masked, strict=True):
        assert scores[masked].max() <= scores[~masked].min()
    probs = FakeModel().logits(_masked(3, 4, 4)).softmax(-1)
    expected = probs.gather(-1, first.codes[..., None])[..., 0].log()
    torch.testing.assert_close(first.scores, expected)


@pytest.mark.parametrize("order", ["confidence", "critic"])
def test_noise_is_added_to_the_scores_and_fades(order):
    sampler = Sampler(order=order, steps=4, choice_temperature=3.0)
    seeds = torch.arange(3)
    kept = torch.zeros(3, 4, 4, dtype=torch.bool)
    for i, step in enumerate(_steps(_masked(3, 4, 4), sampler)):
        noisy = step.scores + 3.0 * (1 - (i + 1) / 4) * gumbel(uniform(seeds, i, CHOICE, 16)).reshape(3, 4, 4)
        if order == "confidence":
            noisy, kept = noisy.masked_fill(kept, torch.inf), ~step.masked
        for scores, masked in zip(noisy, step.masked, strict=True):
            assert not masked.any() or scores[masked].max() <= scores[~masked].min()


def test_without_noise_the_tokens_that_the_critic_doubts_most_are_masked():
    sampler = Sampler(order="critic", steps=4, choice_temperature=0)
    for step in _steps(_masked(3, 4, 4), sampler):
        torch.testing.assert_close(step.scores, -FakeModel().doubts(step.codes))
        for scores, masked in zip(step.scores, step.masked, strict=True):
            if masked.any():
                assert scores[masked].max() <= scores[~masked].min()


@pytest.mark.parametrize("order", ["confidence", "critic", "moment"])
def test_choice_noise_changes_what_is_kept(order):
    masks = {}
    for temperature in (0.0, 100.0):
        sampler = Sampler(order=order, steps=4, choice_temperature=temperature)
        masks[temperature] = [
            s.masked for s in sample_steps(FakeModel(), _masked(8, 4, 4), None, sampler, torch.arange(8))
        ]
    assert not torch.equal(masks[0.0][0], masks[100.0][0])


@pytest.mark.parametrize("order", ["confidence", "halton", "random", "moment"])
@pytest.mark.parametrize("revise", [0.0, 0.3])
def test_scores_are_what_the_model_gave_each_code_when_it_was_drawn(order, revise):
    """At temperature 1 and before top_k, so that a cold draw does not make every token look certain. 0 if given.

    x-transformers scored kept tokens by a code that it drew anew for them, and all by the filtered logits.
    """
    sampler = Sampler(order=order, steps=6, token_temperature=0.3, top_k=3, revise=revise)
    model, codes = FakeModel(), _hole(16, 10)
    expected = torch.zeros(2, 4, 4)
    for step in sample_steps(model, codes, None, sampler, torch.arange(2)):
        seen = model.seen[-1]
        logs = model.logits(seen).log_softmax(-1).gather(-1, step.codes[..., None])[..., 0]
        expected = torch.where(seen == 12, logs, expected)
        torch.testing.assert_close(step.scores, expected)
    assert (step.scores[codes != 12] == 0).all()


def test_every_order_has_a_ranking_function():
    assert set(RANKINGS) == set(ORDERS) > set(BEFORE_DRAW)


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


def test_random_order_reveals_every_cell_first_equally_often():
    """1,600 images of 16 cells: chi-square with 15 degrees of freedom below 57, once in 10^6; the seeds are fixed."""
    sampler = Sampler(order="random", counts=(1, 15))
    first = next(sample_steps(FakeModel(), _masked(1600, 4, 4), None, sampler, torch.arange(1600)))
    assert _chi_square((~first.masked).flatten(1).nonzero()[:, 1], torch.ones(16)) < 57


# ----------------------------------------------------------------------------- choosing before drawing (moment)


@pytest.mark.parametrize("choice", [0.5, 1.0, 4.0])
def test_moment_draws_the_chosen_tokens_from_a_power_of_the_probabilities_and_the_last_ones_as_they_are(choice):
    """p^beta with beta = 1 + 1 / choice temperature: what confidence with that noise amounts to.

    16,000 draws each: chi-square with 3 degrees of freedom below 31, beyond which chance goes once in 10^6. The
    seeds are fixed.
    """
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])
    sampler = Sampler(order="moment", counts=(8, 8), choice_temperature=(choice,))
    first, last = sample_steps(
        ConstantModel(probs.tolist()), _masked(2000, 4, 4, 4), None, sampler, torch.arange(2000), complete=False
    )
    assert _chi_square(first.codes[~first.masked], probs ** (1 + 1 / choice)) < 31
    assert _chi_square(last.codes[first.masked], probs) < 31


def test_moment_draws_colder_at_a_lower_token_temperature():
    """By q p^(1 / choice temperature), q = p^(1 / temperature); it was p^(beta / temperature), the choice too cold.

    The same numbers as above.
    """
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])
    sampler = Sampler(order="moment", counts=(8, 8), choice_temperature=(1.0,), token_temperature=0.5)
    steps = sample_steps(ConstantModel(probs.tolist()), _masked(2000, 4, 4, 4), None, sampler, torch.arange(2000))
    first, last = list(steps)
    assert _chi_square(first.codes[~first.masked], probs**3) < 31
    assert _chi_square(last.codes[first.masked], probs**2) < 31


@pytest.mark.parametrize("choice", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {"token_temperature": 0.5},
        {"token_temperature": 2.0},
        {"top_k": 2},
        {"top_p": 0.7},
        {"token_temperature": 0.5, "top_k": 3, "top_p": 0.8},
    ],
)
def test_moment_keeps_places_and_codes_as_confidence_does_whatever_the_temperature_and_filters(options, choice):
    """One of 64 places is kept, of four kinds: the shares of kind and code, against every case of confidence's law.

    Confidence keeps place and code in proportion to q(v) p(v)^(1/a), up to what the other 63 draws happen to be. It
    was so for moment at temperature 1 without filters only. 4,000 images each, 15 degrees of freedom: chi-square below
    53 but for one case in 10^5 (the seeds are fixed), and total variation to confidence's own draws below 0.06.
    """
    logs = torch.tensor([[2.0, 1.0, 0.5, 0.0], [1.0, 0.9, 0.8, 0.0], [3.0, 0.0, 0.0, -1.0], [0.5, 0.4, -0.5, 0.3]])
    model = ConstantModel([0.25] * 4)
    model.logits = lambda codes, condition=None: logs.repeat(16, 1).expand(len(codes), 1, 64, 4)
    sampler = Sampler(counts=(1, 63), choice_temperature=(choice,), **options)
    p, q = logs.softmax(-1), filtered(logs / sampler.temperature_at(0), sampler).softmax(-1)
    law = (q * p ** (1 / choice)).flatten()

    found = {}
    for order in ("moment", "confidence"):
        steps = sample_steps(
            model, _masked(4000, 1, 64, 4), None, dataclasses.replace(sampler, order=order), torch.arange(4000)
        )
        first = next(steps)
        place = (~first.masked[:, 0]).nonzero()[:, 1]
        found[order] = (place % 4) * 4 + first.codes[torch.arange(4000), 0, place]
    seen = law > 0
    assert seen[found["moment"]].all()
    assert _chi_square(seen.cumsum(0)[found["moment"]] - 1, law[seen]) < 53
    shares = [codes.bincount(minlength=16) / 4000 for codes in found.values()]
    assert (shares[0] - shares[1]).abs().sum() / 2 < 0.06


@pytest.mark.parametrize("choice", [0.5, 2.0])
def test_moment_chooses_each_token_as_often_as_its_moment_is_large(choice):
    """The first of 4 tokens, with chance proportional to sum_v p(v)^beta, in 8,000 images.

    Chi-square with 3 degrees of freedom below 31, beyond which chance goes once in 10^6; the seeds are fixed.
    """
    model = FakeModel(6)
    moments = model.logits(_masked(1, 1, 4, 6)).softmax(-1).pow(1 + 1 / choice).sum(-1)[0, 0]
    sampler = Sampler(order="moment", counts=(1, 3), choice_temperature=(choice,))
    first = next(sample_steps(model, _masked(8000, 1, 4, 6), None, sampler, torch.arange(8000)))
    assert _chi_square((~first.masked[:, 0]).nonzero()[:, 1], moments) < 31


def test_moment_without_noise_takes_the_tokens_where_a_draw_will_be_most_probable():
    """Then beta is 101, so a moment is as good as the probability of the likeliest code."""
    sampler = Sampler(order="moment", counts=(5, 11), choice_temperature=0)
    model = FakeModel()
    first = next(sample_steps(model, _masked(1, 4, 4), None, sampler, torch.arange(1)))
    best = model.logits(_masked(1, 4, 4)).softmax(-1).amax(-1)[0]
    assert best[first.masked[0]].max() <= best[~first.masked[0]].min()
    assert torch.equal(first.codes, model.logits(_masked(1, 4, 4)).argmax(-1))


# ----------------------------------------------------------------------------- drawing codes


def test_codes_are_drawn_as_often_as_they_are_probable():
    """40,000 draws of 8 codes: chi-square with 6 degrees of freedom below 40, beyond which chance goes once in 10^6.

    The seeds are fixed, so the outcome is always the same.
    """
    probs = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.04, 0.01, 0.0])
    codes = draw_codes(probs.expand(400, 100, -1), uniform(torch.arange(400), 0, 0, 100))
    observed, expected = codes.flatten().bincount(minlength=8)[:7], probs[:7] * 40_000
    assert codes.max() <= 6
    assert ((observed - expected).square() / expected).sum() < 40


def test_a_large_vocabulary_is_drawn_from_evenly():
    """20,000 draws of 1,000 codes alike: chi-square per degree of freedom is within 0.7 to 1.3; the seeds are fixed."""
    codes = draw_codes(torch.full((20, 1000, 1000), 0.001), uniform(torch.arange(20), 0, 0, 1000))
    counts = codes.flatten().bincount(minlength=1000).double()
    assert 0.7 < ((counts - 20).square() / 20).sum() / 999 < 1.3


@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_a_network_in_bf16_draws_evenly_from_even_logits(order):
    """20,480 draws of 1,024 codes. x-transformers drew noise in bf16: its first 64 codes came four times too often.

    Chi-square per degree of freedom below 1.5 (chance: 0.04 above 1; the seeds are fixed), and the first 64 alike.
    """
    net = MaskedTransformer(TransformerConfig(1024, (16, 16), dim=8, depth=1, heads=2))
    for parameter in net.parameters():
        parameter.data.zero_()
    model = MaskGit(net).to(torch.bfloat16).eval()
    sampler = Sampler(order=order, steps=2)
    codes = sample(model, _masked(80, 16, 16, 1024), None, sampler, torch.arange(80))
    assert _chi_square(codes, torch.ones(1024)) / 1023 < 1.5
    assert 0.055 < (codes < 64).double().mean() < 0.07  # 0.0625, and 0.0017 standard deviation


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9).filter(lambda ps: sum(ps) > 1e-3),
    st.sampled_from([2**-24, 0.25, 0.5, 1 - 2**-23, 1 - 2**-24]),
)
def test_a_code_of_probability_zero_is_never_drawn(weights, u):
    probs = torch.tensor(weights) / sum(weights)
    code = draw_codes(probs, torch.tensor(u))
    assert 0 <= code < len(weights)
    assert probs[code] > 0


def test_low_temperatures_draw_the_most_probable_code():
    sampler = Sampler(token_temperature=0.01, steps=1)
    model = FakeModel()
    done = sample(model, _masked(8, 4, 4), None, sampler, torch.arange(8))
    assert torch.equal(done, FakeModel().logits(_masked(8, 4, 4)).argmax(-1))


def test_the_temperature_is_the_same_at_every_step():
    """open-MUSE multiplied it with (1 - r) again and again. 8,000 draws a step, 2 degrees of freedom, 10^-6; fixed."""
    probs = torch.tensor([0.5, 0.3, 0.2])
    sampler = Sampler(order="random", counts=(4, 4, 4, 4), token_temperature=2.0)
    masked = torch.ones(2000, 4, 4, dtype=torch.bool)
    for step in sample_steps(ConstantModel(probs.tolist()), _masked(2000, 4, 4, 3), None, sampler, torch.arange(2000)):
        assert _chi_square(step.codes[masked & ~step.masked], probs.sqrt()) < 28
        masked = step.masked


def test_a_list_of_temperatures_is_taken_step_by_step():
    """Hot at first, cold at the end."""
    sampler = Sampler(order="halton", counts=(8, 8), token_temperature=(10.0, 0.01))
    model = ConstantModel([0.5, 0.3, 0.2])
    first, last = sample_steps(model, _masked(200, 4, 4, 3), None, sampler, torch.arange(200), complete=False)
    assert (first.codes[~first.masked].bincount() > 400).all()  # about a third of 1,600 each
    assert (last.codes[first.masked] == 0).all()


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


def test_filtering_keeps_the_logits_of_what_may_be_drawn():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 0.0, -1.0]])
    expected = torch.tensor([[-torch.inf, 3.0, -torch.inf, 2.0], [5.0, 4.0, -torch.inf, -torch.inf]])
    assert torch.equal(filtered(logits, Sampler(top_k=2)), expected)
    assert torch.equal(filtered(logits, Sampler(top_p=0.8)), expected)
    assert torch.equal(filtered(logits, Sampler()), logits)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_so_many_codes_are_kept_as_asked_whatever_ties_the_lowest_first(k):
    """`top_k=1` kept every code that was as probable as the best, so `greedy` drawing was by chance there."""
    logits = torch.tensor([[2.0, 3.0, 2.0, 3.0, 2.0, 3.0, -1.0, 2.0], [0.0] * 8, [5.0] + [-torch.inf] * 7])
    kept = filtered(logits, Sampler(top_k=k))
    best = logits.argsort(dim=-1, descending=True, stable=True)[:, :k].sort(-1).values
    assert torch.equal(kept.gather(-1, best), logits.gather(-1, best))
    assert torch.isinf(kept.scatter(-1, best, -torch.inf)).all()
    if k == 1:
        assert torch.equal(kept.argmax(-1), logits.argmax(-1))


def test_of_equally_probable_codes_the_lowest_hold_the_probability_asked_for():
    kept = filtered(torch.zeros(3, 200), Sampler(top_p=0.0975))
    assert torch.equal(kept.isfinite(), (torch.arange(200) < 20).expand(3, -1))


# ----------------------------------------------------------------------------- known distributions


@pytest.mark.parametrize("order", BEFORE_DRAW)
@pytest.mark.parametrize("start", [(3, 3, 3, 3), (3, 1, 3, 3)])
def test_one_token_a_step_draws_whole_grids_as_often_as_they_are_probable(order, start):
    """From the exact conditional of each token, 20,000 grids have the joint distribution of all 81, or of those left.

    Chi-square with 80 (26) degrees of freedom below 155 (75), beyond which chance goes once in 10^6; fixed seeds.
    """
    model, start = JointModel(), torch.tensor(start).reshape(1, 1, 4)
    sampler = Sampler(order=order, steps=4)
    done = sample(model, start.expand(20_000, -1, -1), None, sampler, torch.arange(20_000))
    assert model.misfit(done, start) < (155 if (start == 3).all() else 75)


def test_drawing_several_tokens_at_once_is_what_distorts_the_distribution():
    """All four in one step: each token's marginal, but not their joint. (So the test above can tell.)"""
    model, start = JointModel(), torch.full((1, 1, 4), 3)
    done = sample(model, start.expand(20_000, -1, -1), None, Sampler(steps=1), torch.arange(20_000))
    assert model.misfit(done, start) > 1000


def test_orders_that_do_not_look_at_what_is_drawn_do_not_collapse():
    """Independent tokens of entropy 1.748, drawn by a model that knows their distribution. 16,384 of them.

    x-transformers' own sampler drew the most frequent one everywhere, entropy 0. The standard error is 0.006.
    """
    probs = [0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    for order in BEFORE_DRAW:
        done = sample(
            ConstantModel(probs), _masked(256, 8, 8, 8), None, Sampler(order=order, steps=18), torch.arange(256)
        )
        assert abs(_entropy(done) - 1.748) < 0.03


def test_noise_keeps_confidence_from_collapsing():
    """The same tokens: the most confident draws are the most frequent code, unless noise is stronger than that."""
    probs = [0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    entropies = {}
    for order, temperature in itertools.product(("confidence", "moment"), (0.0, 1.0, 4.5, 100.0)):
        sampler = Sampler(order=order, steps=18, choice_temperature=temperature)
        entropies[order, temperature] = _entropy(
            sample(ConstantModel(probs), _masked(256, 8, 8, 8), None, sampler, torch.arange(256))
        )
    for order in ("confidence", "moment"):
        falling = [entropies[order, temperature] for temperature in (100.0, 4.5, 1.0, 0.0)]
        assert falling == sorted(falling, reverse=True)
        assert entropies[order, 4.5] > 1.2
        assert entropies[order, 100.0] > 1.7


# ----------------------------------------------------------------------------- what is computed, and what is not


@pytest.mark.parametrize("order", ORDERS)
def test_the_head_runs_only_where_a_code_is_drawn(order):
    """Where the order is known beforehand, only at the tokens that will be kept."""
    model, sampler = FakeModel(), Sampler(order=order, counts=(2, 6, 8))
    list(sample_steps(model, _masked(3, 4, 4), None, sampler, torch.arange(3), complete=False))
    assert model.rows == ([3 * 2, 3 * 6, 3 * 8] if order in BEFORE_DRAW else [3 * 16, 3 * 14, 3 * 8])


def test_a_batch_too_large_for_its_logits_is_drawn_in_parts(monkeypatch):
    for order in ORDERS:
        sampler = Sampler(order=order, steps=4)
        whole = sample(FakeModel(), _masked(3, 4, 4), None, sampler, torch.arange(3))
        calls = []
        model = FakeModel()
        model.to_logits = lambda features, calls=calls: calls.append(features.shape[1]) or features
        with monkeypatch.context() as patch:
            patch.setattr(draws, "LARGEST", 3 * 12 * 2)
            assert torch.equal(sample(model, _masked(3, 4, 4), None, sampler, torch.arange(3)), whole)
        assert max(calls) == 2


@pytest.mark.parametrize(("guidance", "expected"), [(1.0, [3, 8, 8]), (2.0, [6, 16, 16])])
def test_the_first_step_runs_one_row_for_each_distinct_condition(guidance, expected):
    """From a grid that is all MASK, what is predicted depends on the condition only."""
    model = MaskGit(tiny_net(NETWORK)).eval()
    rows = _trunk_rows(model)
    condition = torch.tensor([[0, 0], [1, 2], [3, 1], [1, 2], [0, 0], [0, 0], [3, 1], [1, 2]])
    sampler = Sampler(steps=3, guidance=guidance)
    sample(model, _masked(8, 4, 4, 64), condition, sampler, torch.arange(8))
    assert rows == expected


def test_the_first_step_runs_one_row_without_a_condition_and_all_rows_where_something_is_given():
    for codes, expected in ((_masked(8, 4, 4), [1, 8, 8]), (_hole(*[12] * 8), [8, 8, 8])):
        model = FakeModel()
        sample(model, codes, None, Sampler(steps=3), torch.arange(8))
        assert [len(seen) for seen in model.seen] == expected


@pytest.mark.parametrize("order", ORDERS)
def test_sharing_the_first_step_changes_no_image(order):
    condition = torch.tensor([[0, 5], [1, 2], [3, 1], [1, 2], [0, 5], [1, 3]])
    sampler = Sampler(order=order, steps=4, guidance=1.5)
    *_, last = sample_steps(FakeModel(), _masked(6, 4, 4), condition, sampler, torch.arange(6))
    shared = FakeModel()
    assert torch.equal(sample(shared, _masked(6, 4, 4), condition, sampler, torch.arange(6)), last.codes)
    assert len(shared.seen[0]) == 4


def test_counts_and_a_first_step_at_hand_change_no_image():
    model, codes, sampler = FakeModel(), _masked(4, 4, 4), Sampler(steps=4)
    expected = sample(FakeModel(), codes, None, sampler, torch.arange(4))
    counts, first = make_counts(torch.full((4,), 16), sampler), first_features(model, None, sampler, codes)
    *_, last = sample_steps(FakeModel(), codes, None, sampler, torch.arange(4), counts=counts)
    assert torch.equal(last.codes, expected)
    *_, last = sample_steps(model, codes, None, sampler, torch.arange(4), counts=counts, first=first)
    assert torch.equal(last.codes, expected)
    assert len(model.seen) == 4


def test_what_a_condition_does_is_computed_once_for_all_steps():
    """The modulation of the blocks: once for the label and once for no label, and once for the critic."""
    model = MaskGit(tiny_net(NETWORK), token_critic=tiny_critic(NETWORK)).eval()
    calls = {"generator": 0, "critic": 0}

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    model.net.trunk.modulate.register_forward_hook(count("generator"))
    model.token_critic.trunk.modulate.register_forward_hook(count("critic"))
    sampler = Sampler(steps=6, order="critic", guidance=2.0)
    list(sample_steps(model, _masked(2, 4, 4, 64), torch.zeros(2, 2, dtype=torch.int64), sampler, torch.arange(2)))
    assert calls == {"generator": 2, "critic": 1}


def test_a_critic_judges_once_a_step_but_not_after_the_last():
    """x-transformers asked it after the last step too, for nothing. Shown step by step, the last has scores as well."""
    for complete, expected in ((False, 3), (True, 4)):
        model, sampler = FakeModel(), Sampler(order="critic", steps=4)
        list(sample_steps(model, _masked(2, 4, 4), None, sampler, torch.arange(2), complete=complete))
        assert len(model.judged) == expected


def test_a_critic_is_told_the_condition():
    critic = tiny_critic(NETWORK)
    model = MaskGit(tiny_net(NETWORK), token_critic=critic).eval()
    condition = torch.tensor([[0, 1], [2, 0]])
    *_, last = sample_steps(model, _masked(2, 4, 4, 64), condition, Sampler(order="critic", steps=3), torch.arange(2))
    with torch.no_grad():
        torch.testing.assert_close(last.scores, -critic(last.codes, condition), rtol=1e-4, atol=1e-5)
        assert (critic(last.codes, condition) - critic(last.codes, None)).abs().max() > 0.1


# ----------------------------------------------------------------------------- guidance


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"guidance": 3.0}, [3, 3, 3, 3, 3]),
        ({"guidance": 0.0}, [0, 0, 0, 0, 0]),
        ({"guidance": 3.0, "guidance_schedule": "linear"}, [1, 1.5, 2, 2.5, 3]),
        (
            {"guidance": 3.0, "guidance_schedule": "power-cosine", "guidance_power": 1.0},
            [1, 1.292893, 2, 2.707107, 3],
        ),
        (
            {"guidance": 3.0, "guidance_schedule": "power-cosine", "guidance_power": 2.0},
            [1, 1.019215, 1.292893, 2.195090, 3],
        ),
        ({"guidance": (1.0, 3.0)}, [1, 1.5, 2, 2.5, 3]),
        ({"guidance": (1.0, 4.0, 1.0)}, [1, 2.5, 4, 2.5, 1]),
        ({"guidance": (2.0, 1.0, 3.0, 5.0, 1.0)}, [2, 1, 3, 5, 1]),
        ({"guidance": (1.0, 3.0), "guidance_schedule": "linear"}, [1, 1.125, 1.5, 2.125, 3]),
        ({"guidance": 3.0, "guidance_start": 0.3}, [1, 1, 3, 3, 3]),
        ({"guidance": 3.0, "guidance_end": 0.3}, [3, 3, 1, 1, 1]),
        ({"guidance": 3.0, "guidance_start": 0.1, "guidance_end": 0.7}, [1, 3, 3, 3, 1]),
        ({"guidance": 3.0, "guidance_start": 1.0}, [1, 1, 1, 1, 1]),
        ({"guidance": 3.0, "guidance_start": 0.3, "counts": (1, 1, 2, 6, 6)}, [1, 1, 1, 1, 3]),
    ],
)
def test_guidance_has_its_value_at_each_step(options, expected):
    """Of 5 steps, that begin with 0, 1/5, 2/5, 3/5 and 4/5 revealed, if not told otherwise."""
    sampler = Sampler(**{"steps": 5, "schedule": "linear", **options})
    assert [sampler.guidance_at(i) for i in range(5)] == pytest.approx(expected, abs=1e-6)
    model = FakeModel()
    sample(model, _masked(1, 4, 4), None, sampler, torch.tensor([0]))
    assert model.guidance == [sampler.guidance_at(i) for i in range(5)]


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_a_single_step_has_all_of_the_guidance(schedule):
    assert Sampler(steps=1, guidance=3.0, guidance_schedule=schedule).guidance_at(0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [3, 3, 3, 3]),
        ({"guidance": 2.0}, [6, 6, 6, 6]),
        ({"guidance": 2.0, "guidance_start": 0.3}, [3, 3, 6, 6]),
        ({"guidance": 2.0, "guidance_start": 0.1, "guidance_end": 0.6}, [3, 6, 6, 3]),
        ({"guidance": 2.0, "guidance_schedule": "linear"}, [3, 6, 6, 6]),
        ({"guidance": (1.0, 2.0, 1.0, 1.0)}, [3, 6, 3, 3]),
    ],
)
def test_guidance_costs_a_doubled_batch_only_where_it_is_on(options, expected):
    """And `forwards` tells, for one image."""
    model = MaskGit(tiny_net(NETWORK)).eval()
    rows = _trunk_rows(model)
    condition, sampler = torch.tensor([[0, 0]] * 3), Sampler(steps=4, schedule="linear", **options)
    list(sample_steps(model, _masked(3, 4, 4, 64), condition, sampler, torch.arange(3)))
    assert rows == expected
    assert 3 * sampler.forwards == sum(expected)


# ----------------------------------------------------------------------------- self-conditioning


def _self_conditioned(seed: int = 2) -> MaskGit:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MaskGit(tiny_net(NETWORK), self_cond=True, token_critic=tiny_critic(NETWORK)).eval()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guidance", [(1.0,), (2.0,), (1.0, 2.0, 2.0, 1.0, 1.0, 3.0)])
@torch.no_grad()
def test_a_self_conditioned_model_is_told_its_features_of_the_step_before(order, guidance):
    """A learned null at first, and where guidance was just switched on; the label's half where it is switched off.

    Compared with the same loop written out, one half at a time: the two halves of a doubled batch have memories of
    their own. The tolerance is that of fp32 sums in another order.
    """
    model, condition = _self_conditioned(), torch.tensor([[0, 1], [2, 0], [3, 2]])
    sampler = Sampler(order=order, steps=6, guidance=guidance)
    seen, features = [], []
    inner = model.features

    def recorded(codes, prepared, guidance, memory):
        seen.append(codes.clone())
        found = inner(codes, prepared, guidance, memory)
        features.append(found[0])
        return found

    model.features = recorded
    list(sample_steps(model, _masked(3, 4, 4, 64), condition, sampler, torch.arange(3)))
    assert len(seen) == 6

    null, remember = model.self_cond.null_embed.expand(3, 4, 4, -1), model.self_cond.to_self_cond
    with_label = without = null
    for i in range(6):
        with_label = model.net.trunk(seen[i], condition, remember(with_label))
        expected = with_label
        if sampler.guidance_at(i) != 1:
            nobody = null_labels(condition, NETWORK.label_sizes)
            without = model.net.trunk(seen[i], nobody, remember(without))
            expected = without + sampler.guidance_at(i) * (with_label - without)
        else:
            without = null
        torch.testing.assert_close(features[i], expected, rtol=1e-3, atol=1e-3)
    again = model.net.trunk(seen[5], condition, remember(null))
    assert (again - with_label).abs().max() > 0.1  # what is remembered matters


@pytest.mark.parametrize("guidance", [1.0, 2.0, (2.0, 1.0), (1.0, 2.0)])
def test_self_conditioned_images_that_share_their_first_step_are_the_same(guidance):
    """In fp32, whose last bits differ from batch to batch, which moves no draw here."""
    model = _self_conditioned()
    condition = torch.tensor([[0, 1], [2, 0], [0, 1], [3, 2], [2, 0]])
    sampler, codes = Sampler(steps=4, guidance=guidance), _masked(5, 4, 4, 64)
    rows = _trunk_rows(model)
    shared = sample(model, codes, condition, sampler, torch.arange(5))
    assert rows[0] == (6 if sampler.guidance_at(0) != 1 else 3)
    *_, last = sample_steps(model, codes, condition, sampler, torch.arange(5))
    assert torch.equal(shared, last.codes)


# ----------------------------------------------------------------------------- MaskGit.generate


def test_an_error_while_drawing_leaves_every_module_in_the_mode_it_was_in():
    """x-transformers' stays in eval mode then, and trains on without dropout."""
    model = MaskGit(tiny_net(NETWORK), token_critic=tiny_critic(NETWORK)).train()
    model.token_critic.eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}

    def fail(features):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("out of memory")

    model.to_logits = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(2)
    assert [module.training for module in model.modules()] == modes
    del model.to_logits
    model.generate(2, sampler=Sampler(steps=2))
    assert [module.training for module in model.modules()] == modes


def test_seeds_that_are_not_given_come_from_torchs_own():
    model, drawn = MaskGit(tiny_net(NETWORK)), []
    with torch.random.fork_rng():
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            drawn.append(model.generate(3, sampler=Sampler(steps=3)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# ----------------------------------------------------------------------------- the sampler's numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be between 1 and 1024, got 0"),
        ({"steps": -3}, "steps must be between"),
        ({"steps": 5000}, "steps must be between"),
        ({"steps": 2.5}, "must be a whole number between 1 and 1024, got 2.5"),
        ({"steps": math.nan}, "steps must be a whole number between"),
        ({"counts": (3, 0)}, "each of the counts must be between 1 and 1048576, got 0"),
        ({"counts": (3, -1, 2)}, "each of the counts must be between 1 and 1048576, got -1"),
        ({"counts": (1.5, 2)}, "each of the counts must be a whole number between 1 and 1048576, got 1.5"),
        ({"counts": (1,) * 1025}, "steps must be between 1 and 1024, got 1025"),
        ({"token_temperature": 0}, "token_temperature must be between"),
        ({"token_temperature": math.nan}, "token_temperature must be between"),
        ({"token_temperature": math.inf}, "token_temperature must be between"),
        ({"token_temperature": (1.0, 0.0)}, "token_temperature must be between 0.001 and 10, got 0.0"),
        ({"token_temperature": ()}, "token_temperature is an empty list: give a number"),
        ({"choice_temperature": -1}, "choice_temperature must be between"),
        ({"choice_temperature": math.nan}, "choice_temperature must be between"),
        ({"choice_temperature": [1.0, math.nan]}, "choice_temperature must be between"),
        ({"guidance": -1}, "guidance must be between"),
        ({"guidance": math.nan}, "guidance must be between 0 and 20, got nan"),
        ({"guidance": (1.0, 21.0)}, "guidance must be between 0 and 20, got 21.0"),
        ({"guidance": []}, "guidance is an empty list"),
        (
            {"guidance_schedule": "cosine"},
            "guidance_schedule must be one of constant, linear, power-cosine, got `cosine`",
        ),
        ({"guidance_power": 0}, "guidance_power must be between"),
        ({"guidance_start": 1.1}, "guidance_start must be between"),
        ({"guidance_end": -0.1}, "guidance_end must be between"),
        ({"top_k": -1}, "top_k must be between"),
        ({"top_k": 1.5}, "top_k must be a whole number between 0 and 1048576, got 1.5"),
        ({"top_p": 0}, "top_p must be between"),
        ({"top_p": math.nan}, "top_p must be between"),
        ({"revise": 0.95}, "revise must be between 0 and 0.9, got 0.95"),
        ({"revise": -0.1}, "revise must be between"),
        ({"order": "raster"}, "order must be one of confidence, halton, random, critic, moment, got `raster`"),
        ({"schedule": "cubic"}, r"schedule must be one of cosine, linear, arccos, square, `beta\(a, b\)`.*got `cubic`"),
        ({"schedule": "beta(12)"}, r"`beta\(12\)` has the wrong number of numbers"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_a_list_is_spread_over_the_steps_with_straight_lines():
    sampler = Sampler(steps=5, token_temperature=(3.0, 1.0, 0.5), choice_temperature=(4.0, 0.0))
    assert [sampler.temperature_at(i) for i in range(5)] == pytest.approx([3, 2, 1, 0.75, 0.5])
    assert [sampler.choice_at(i) for i in range(5)] == pytest.approx([4, 3, 2, 1, 0])
    many = Sampler(steps=3, token_temperature=(5.0, 4.0, 3.0, 2.0, 1.0))
    assert [many.temperature_at(i) for i in range(3)] == pytest.approx([5, 3, 1])
    assert Sampler(steps=1, token_temperature=(2.0, 1.0)).temperature_at(0) == 2


def test_a_number_of_choice_temperature_fades_to_nothing_and_one_of_token_temperature_stays():
    sampler = Sampler(steps=4, token_temperature=0.7, choice_temperature=2.0)
    assert [sampler.choice_at(i) for i in range(4)] == pytest.approx([1.5, 1, 0.5, 0])
    assert {sampler.temperature_at(i) for i in range(4)} == {0.7}


def test_explicit_counts_set_the_number_of_steps():
    assert Sampler(steps=12, counts=(3, 5)).steps == 2


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(steps=3, order="random", guidance=2.5, top_p=0.9),
        Sampler(counts=(2, 6, 8), token_temperature=(2.0, 1.0), choice_temperature=(3.0, 0.0), guidance=(1.0, 3.0)),
        Sampler(order="moment", schedule="beta(12, 3)", revise=0.2, critic_revises=False, guidance_schedule="linear"),
    ],
)
def test_a_sampler_survives_the_way_through_a_file(sampler):
    assert Sampler(**json.loads(json.dumps(dataclasses.asdict(sampler)))) == sampler
    assert json.loads(json.dumps(sampler.numbers())) == sampler.numbers()
    assert Sampler(**sampler.numbers()) == sampler
    assert hash(Sampler(**sampler.numbers())) == hash(sampler)


def test_a_sampler_in_words_leaves_out_what_is_as_usual():
    assert describe(Sampler(steps=4)) == "steps 4, schedule cosine, order halton, guidance 1.0"
    assert describe(Sampler(steps=4, top_k=5, guidance=(1.0, 2.0))).endswith("guidance (1.0, 2.0), top k 5")


@pytest.mark.parametrize("has_critic", [True, False])
def test_presets_are_the_recipe_at_other_costs(has_critic):
    recipe = Sampler(counts=(4, 4, 8), top_p=0.9, guidance=2.0)
    presets = make_presets(recipe, has_critic)
    assert list(presets) == ["fast", "balanced", "best"]
    assert presets["balanced"] == recipe
    assert (presets["fast"].steps, presets["best"].steps) == (8, 24)
    assert {preset.top_p for preset in presets.values()} == {0.9}
    assert presets["best"].order == ("critic" if has_critic else recipe.order)
    assert make_presets(Sampler(steps=40), has_critic)["best"].steps == 40


# ----------------------------------------------------------------------------- odd input


def test_not_even_nan_draws_mask():
    assert draw_codes(torch.full((3, 5), torch.nan), torch.tensor([0.1, 0.5, 0.9])).max() < 5


class BrokenModel(FakeModel):
    """Gives NaN for one of several images, in one step; or its critic does."""

    def __init__(self, step: int, critic: bool = False):
        super().__init__()
        self.step, self.critic = step, critic

    def logits(self, codes, condition=None):
        logits = super().logits(codes, condition)
        if len(self.seen) - 1 == self.step and not self.critic:
            logits[-1] = torch.nan
        return logits

    def doubts(self, codes):
        doubts = super().doubts(codes)
        if len(self.judged) - 1 == self.step and self.critic:
            doubts[-1, 0, 0] = torch.nan
        return doubts


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("hole", [16, 3])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("order", [*ORDERS, "its critic"])
def test_no_grid_is_finished_from_predictions_that_are_not_finite(order, step, hole, complete):
    """A hole of fewer tokens than steps was filled with any codes without a word, and so was what a critic redraws."""
    sampler = Sampler(order="critic" if order == "its critic" else order, steps=4)
    codes = _hole(hole, hole)
    last = min(hole, 4) - 1
    if order == "its critic" and step >= last and not complete:
        step = last - 1  # the critic is not asked about the last step
    model = BrokenModel(step, critic=order == "its critic")
    shown = []
    with pytest.raises(ValueError, match="predictions are not finite in fp32: it has to be trained again"):
        for each in sample_steps(model, codes, None, sampler, torch.arange(2), complete=complete):
            shown.append(each)
    assert len(shown) == last
    if not complete:
        with pytest.raises(ValueError, match="predictions are not finite"):
            sample(BrokenModel(step, critic=model.critic), codes, None, sampler, torch.arange(2))


def test_with_counts_at_hand_the_caller_checks_what_is_finite():
    """As a CUDA graph needs it, which cannot be refused while it is recorded."""
    codes, sampler = _masked(2, 4, 4), Sampler(steps=4, order="critic")
    counts = make_counts(torch.full((2,), 16), sampler)
    *_, last = sample_steps(BrokenModel(1), codes, None, sampler, torch.arange(2), counts=counts, complete=False)
    with pytest.raises(ValueError, match="not finite in bf16: try dtype `fp32`, or train it again"):
        check_finite(last.scores, torch.bfloat16)
    assert last.scores[0].isfinite().all()


def test_a_real_network_that_has_diverged_draws_nothing():
    model = MaskGit(tiny_net(NETWORK)).eval()
    next(model.net.parameters()).data.fill_(torch.nan)
    codes = _hole(2) % 64
    codes[codes == 12] = 64
    for start in (None, codes):
        with pytest.raises(ValueError, match="predictions are not finite in fp32"):
            model.generate(1, codes=start)


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_incomplete_steps_show_mask_where_tokens_stay_masked(order):
    for step in _steps(_masked(2, 4, 4), Sampler(order=order, steps=4), complete=False):
        assert ((step.codes == 12) == step.masked).all()


def test_guidance_begins_at_exactly_the_share_that_is_named():
    """1 - 0.8 is a little less than 0.2 in binary."""
    sampler = Sampler(steps=5, schedule="linear", guidance=2.0, guidance_start=0.2, guidance_end=0.6)
    assert [sampler.guidance_at(i) for i in range(5)] == [1.0, 2.0, 2.0, 2.0, 1.0]


def test_no_images_are_no_work():
    model = FakeModel()
    assert sample(model, _masked(0, 4, 4), None, Sampler(), torch.arange(0)).shape == (0, 4, 4)
    assert not model.seen


def test_whole_numbers_may_come_as_floats():
    sampler = Sampler(counts=(2.0, 14.0), top_k=3.0)
    assert [type(value) for value in (sampler.steps, sampler.top_k, *sampler.counts)] == [int] * 4


def test_seeds_and_grids_must_be_as_many():
    model = MaskGit(tiny_net()).eval()
    with pytest.raises(ValueError, match="expected a seed for each of 2 grids, got 3"):
        model.generate(2, seeds=torch.arange(3))
    with pytest.raises(ValueError, match=r"expected codes in \[0, 12\], MASK being 12"):
        model.generate(codes=torch.full((1, 4, 4), 13))
