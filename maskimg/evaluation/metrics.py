"""Figures that need nothing but tensors: use of codes, distance of features, and warnings.

Shapes: n pictures, c channels, y x pixels, d features; b grids of h w tokens, m masked ones in all, v codes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

LOW_USAGE = 0.5  # below this share of the codes there is a warning
LOW_ENTROPY = 0.6  # below this share of the bits that even use would carry
MASK_RATIOS = (0, 25, 50, 75, 100)  # per cent; the bounds between which losses are told apart
LOW_SPREAD = 0.25  # below this share of the data's spread pictures count as flat, or as all alike


def frechet_distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (n, d) and (m, d): >= 0, 0 for equal ones.

    ||mean difference||^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982), in float64. The trace of the root is
    the sum of the roots of the eigenvalues of B^(1/2) A B^(1/2), which is symmetric.
    """
    return _distance_to(right.double())(left.double())


def frechet_interval(
    samples: torch.Tensor, references: torch.Tensor, *, draws: int = 50, seed: int = 0
) -> tuple[float, float]:
    """Where `frechet_distance` of other samples of the same model would lie 19 times in 20: a bootstrap over samples.

    1.96 standard deviations to either side of the distance itself. The bootstrap's own percentiles lie too high:
    rows that are drawn twice make a covariance of lower rank, and with that the distance larger.
    """
    samples, generator = samples.double(), torch.Generator().manual_seed(seed)
    distance = _distance_to(references.double())
    rows = torch.randint(len(samples), (draws, len(samples)), generator=generator)
    margin = 1.96 * torch.tensor([distance(samples[chosen]) for chosen in rows]).std().item()
    centre = distance(samples)
    return max(0.0, centre - margin), centre + margin


def _distance_to(right: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """The Fréchet distance to features (m, d), whose root is taken once."""
    mean, covariance = right.mean(0), right.T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(left: torch.Tensor) -> float:
        other = left.T.cov()
        trace_of_root = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
        squares = (left.mean(0) - mean).square().sum() + other.trace() + covariance.trace()
        return max(0.0, (squares - 2 * trace_of_root).item())

    return distance


class Overlap(NamedTuple):
    """How two sets of features share their space.

    Attributes:
        precision: share of samples that lie among the references; recall: share of references among the samples.
        density: how many references' neighbourhoods a sample lies in, beside what references themselves would;
        coverage: share of references with a sample in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


NEIGHBOURS, NEIGHBOURS_OF_DENSITY = 3, 5


def overlap(samples: torch.Tensor, references: torch.Tensor) -> Overlap:
    """Features (n, d) and (m, d) -> precision and recall as in Kynkäänniemi et al. 2019, density and coverage as in
    Naeem et al. 2020: balls around each row up to its 3rd nearest neighbour of its own set, for the latter to its 5th.

    Raises:
        ValueError: a set has fewer than six rows.
    """
    if min(len(samples), len(references)) <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(f"precision and recall need six pictures or more, got {len(samples)} and {len(references)}")
    samples, references = samples.double(), references.double()  # float32 loses small distances in large squares
    around_samples = _radii(samples, NEIGHBOURS)
    around, around_more = _radii(references, NEIGHBOURS), _radii(references, NEIGHBOURS_OF_DENSITY)
    within, counted = [], 0
    reached, recalled = torch.zeros(len(references), dtype=torch.bool), torch.zeros(len(references), dtype=torch.bool)
    for part, radii in zip(samples.split(512), around_samples.split(512), strict=True):
        apart = torch.cdist(part, references)
        within.append((apart <= around).any(1))
        counted += int((apart <= around_more).sum())
        reached |= (apart <= around_more).any(0)
        recalled |= (apart <= radii[:, None]).any(0)
    return Overlap(
        precision=torch.cat(within).double().mean().item(),
        recall=recalled.double().mean().item(),
        density=counted / (NEIGHBOURS_OF_DENSITY * len(samples)),
        coverage=reached.double().mean().item(),
    )


def _radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Of each row (n, d) the distance to its k-th nearest other row: (n,)."""
    # The nearest of all is the row itself.
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(512)])


def inception_score(logits: torch.Tensor, splits: int = 10) -> tuple[float, float]:
    """Logits (n, classes) of samples -> the score of Salimans et al. 2016 and its spread over `splits` parts."""
    scores = []
    for part in logits.double().log_softmax(-1).chunk(splits):
        common = part.exp().mean(0).log()
        scores.append((part.exp() * (part - common)).sum(-1).mean().exp())
    return torch.stack(scores).mean().item(), torch.stack(scores).std(correction=0).item()


def code_usage(codes: torch.Tensor, vocab_size: int) -> tuple[float, float]:
    """Of codes of any shape: the share of the vocabulary that occurs, and the entropy of its use in bits."""
    shares = codes.flatten().bincount(minlength=vocab_size).double() / codes.numel()
    entropy = -(shares * shares.clamp(min=1e-300).log2()).sum()
    return (shares > 0).double().mean().item(), entropy.item()


def guessing_loss(codes: torch.Tensor, known: torch.Tensor, vocab_size: int) -> float:
    """Nats a token that guessing `codes` takes by how often each occurs in `known`, both of any shape.

    Each code counts once more than it occurs, or one that is new would be impossible.
    """
    counts = known.flatten().bincount(minlength=vocab_size).double() + 1
    return -(counts / counts.sum()).log()[codes.flatten()].mean().item()


def losses_by_mask_ratio(losses: torch.Tensor, masked: torch.Tensor) -> dict[str, torch.Tensor]:
    """Losses of the m masked tokens and where they are (b, h, w) -> the mean loss of grids masked alike.

    Named `loss_masked_25_50` for the tokens of grids of which more than 25 and up to 50 % are masked; a range in which
    there is no grid is left out. How hard a token is depends on what else is missing, so a mean over all hides much.
    """
    count = masked.sum((1, 2))
    share = (100 * count).repeat_interleave(count)  # in per cent of a token: whole numbers have exact bounds
    tokens = masked[0].numel()
    means = {}
    for low, high in zip(MASK_RATIOS, MASK_RATIOS[1:], strict=False):
        chosen = (share > low * tokens) & (share <= high * tokens)
        if chosen.any():
            means[f"loss_masked_{low}_{high}"] = losses[chosen].float().mean()
    return means


class TokenAccuracy(NamedTuple):
    """How often the most probable code was right; and for how often that is so if the probabilities can be trusted."""

    measured: torch.Tensor
    expected: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def token_accuracy(probs: torch.Tensor, codes: torch.Tensor) -> TokenAccuracy:
    """Probabilities (m, v) and the right codes (m,) -> accuracy, and the band in which it lies 19 times in 20.

    A calibrated model's most probable code is right with just that probability p, so m of them are right in mean p
    of all cases, with a variance of sum p (1 - p) / m^2 where tokens are independent. Those of one picture are not
    quite, which widens the true band a little.
    """
    confidence, guesses = probs.float().max(-1)
    expected = confidence.mean()
    margin = 1.96 * (confidence * (1 - confidence)).sum().sqrt() / len(codes)
    return TokenAccuracy((guesses == codes).float().mean(), expected, expected - margin, expected + margin)


def nearest(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """For each feature row (n, d), the row of references (m, d) that is closest: (n,) int64."""
    return torch.cdist(images, references).argmin(-1)


def codebook_warning(usage: float, entropy: float, vocab_size: int, *, counted: int | None = None) -> str | None:
    """What `code_usage` says in words where the codebook has collapsed, or is about to; else None.

    Args:
        counted: over how many codes it was measured: few codes cannot use a large vocabulary, which is no fault.
    """
    reachable = 1.0 if counted is None else 1 - (1 - 1 / vocab_size) ** counted
    bits = math.log2(vocab_size if counted is None else max(1, min(vocab_size, counted)))
    faults = []
    if usage < LOW_USAGE * reachable:
        faults.append(f"only {_percent(usage)} of {vocab_size:,} codes are used")
    if entropy < LOW_ENTROPY * bits:
        faults.append(f"their use carries {entropy:.1f} of {bits:.1f} bits, as much as {2**entropy:,.0f} codes would")
    if not faults:
        return None
    mend = (
        "train longer, at a lower learning rate, or use a smaller codebook (or the quantizer `efsq`, if it is another)"
    )
    return f"the codebook may have collapsed: {' and '.join(faults)}; {mend}"


def monochrome_warning(images: torch.Tensor, references: torch.Tensor | None = None) -> str | None:
    """Says in words that pictures (n, 3, H, W) in [-1, 1] are flat, or all alike, where real ones are not; else None.

    Args:
        references: real pictures (m, 3, H, W), against whose spread that of `images` is held. Without them pictures
            count as flat below a spread of 0.05, and are not compared with each other.
    """
    within, between = _spreads(images)
    real_within, real_between = (0.05 / LOW_SPREAD, 0.0) if references is None else _spreads(references)
    if within < LOW_SPREAD * real_within:
        beside = "" if references is None else f", that of real ones {real_within:.3f}"
        return f"the pictures are nearly of one colour: the spread within one is {within:.3f}{beside}"
    if len(images) > 1 and between < LOW_SPREAD * real_between:
        return f"the pictures are nearly all alike: they differ by {between:.3f}, real ones by {real_between:.3f}"
    return None


def _spreads(images: torch.Tensor) -> tuple[float, float]:
    """Standard deviation over the pixels of one picture, and over the pictures at one pixel; the mean of each."""
    images = images.float()
    within = images.flatten(2).std(2, correction=0).mean()
    return within.item(), images.std(0, correction=0).mean().item()


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"
