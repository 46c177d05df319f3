"""What the figures of a run say about its health, in words: overfitting, too high a learning rate, nothing learnt.

Functions of logged figures only; in a series each value is the mean of some fifty steps.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskimg.training.tracking.logs import Log, read_log

RISES = 3  # evaluations in a row, after which a rising held-out loss is no accident
RISE = 0.01  # and by at least this share of the best
HARDLY = 0.95  # of the loss of guessing, above which a generator has hardly learnt
WINDOW = 5  # logged lines that one look averages over
FEWEST = 12  # logged lines below which nothing is said of the learning rate
ABOVE = 0.1  # share by which a loss may stand, or swing, above its best
SPIKE = 5.0  # times the usual gradient norm


def health_warnings(directory: Path, rate: float, *, loss: str = "loss") -> Iterator[str]:
    """The warnings that the log in a run's directory calls for, if any.

    Args:
        rate: the learning rate, of which a lower one is proposed.
        loss: the figure to judge by; one that does not change its meaning during the run.
    """
    log = read_log(directory / "log.jsonl")
    for sentence in (
        overfitting_warning(*_evaluations(log, loss)),
        learning_rate_warning(log.series(loss)[1], log.series("gradient_norm")[1], rate),
    ):
        if sentence:
            yield sentence


def overfitting_warning(held_out: Sequence[float], training: Sequence[float]) -> str | None:
    """Says that the held-out loss has risen for some evaluations while the training loss fell; else None.

    Args:
        held_out, training: both losses at each evaluation, oldest first.
    """
    rises = 0
    while rises + 1 < len(held_out) and held_out[-1 - rises] > held_out[-2 - rises]:
        rises += 1
    if rises < RISES:
        return None
    start, now = held_out[-1 - rises], held_out[-1]
    before, after = training[-1 - rises], training[-1]
    if now - start < RISE * abs(start) or after >= before:
        return None
    return (
        f"the held-out loss has risen for {rises} evaluations, from {start:.3f} to {now:.3f}, while that of training "
        f"fell from {before:.3f} to {after:.3f}: the pictures are being memorised; stop earlier (`--patience "
        f"{RISES}` does for the generator), use a smaller network or more dropout, or add pictures"
    )


def learning_rate_warning(losses: Sequence[float], norms: Sequence[float], rate: float) -> str | None:
    """Says that the loss stands or swings well above its best, or that gradients have spiked; else None.

    Args:
        losses, norms: training loss and gradient norm before clipping, oldest first; the first of them, where the
            rate is still warming up, are not judged.
    """
    losses, norms = losses[1:], norms[1:]
    if len(losses) < FEWEST:
        return None
    smooth = [statistics.fmean(losses[i : i + WINDOW]) for i in range(len(losses) - WINDOW + 1)]
    best, now = min(smooth), smooth[-1]
    # Neighbouring lines differ by twice the variance of one.
    recent = losses[-2 * WINDOW :]
    swing = statistics.median(abs(b - a) for a, b in zip(recent, recent[1:], strict=False)) / 2**0.5
    faults = []
    if now - best > max(ABOVE * abs(best), 4 * swing / WINDOW**0.5):
        faults.append(f"the loss stands at {now:.3f}, above its best of {best:.3f}")
    elif swing > ABOVE * abs(best):
        faults.append(f"the loss swings by {swing:.3f} around {now:.3f}")
    if len(norms) >= FEWEST:
        usual, highest = statistics.median(norms[:-WINDOW]), max(norms[-WINDOW:])
        if highest > SPIKE * usual > 0:
            faults.append(f"the gradient norm has reached {highest:.2g}, usually {usual:.2g}")
    if not faults:
        return None
    return f"the learning rate {rate:g} may be too high: {' and '.join(faults)}; try {rate / 3:.1g}"


def unlearnt_warning(held_out: float, guessing: float) -> str | None:
    """Says that a finished generator is hardly better than guessing; else, and without a held-out loss, None.

    Args:
        held_out: its loss in nats a token; `guessing`: that of `metrics.guessing_loss` on the same pictures.
    """
    if not held_out > HARDLY * guessing:
        return None
    return (
        f"the generator has hardly learnt: its held-out loss is {held_out:.2f} nats a token, and guessing by how often "
        f"each code occurs gives {guessing:.2f}, so what it draws is little more than noise: train longer "
        "(`--minutes`), or on more pictures"
    )


def _evaluations(log: Log, loss: str) -> tuple[list[float], list[float]]:
    """The held-out losses, and the mean training loss between each and the one before, where both are known."""
    held_out, training, since = [], [], []
    steps, values = log.series("held_out_loss")
    losses = list(zip(*log.series(loss), strict=True))
    before = -1
    for step, value in zip(steps, values, strict=True):
        since = [each for at, each in losses if before < at <= step] or since
        before = step
        if since:
            held_out.append(value)
            training.append(statistics.fmean(since))
    return held_out, training
