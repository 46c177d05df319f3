"""How good are a tokenizer's reconstructions? PSNR, SSIM, the use of codes, and what the judge sees in them.

The Fréchet distance here is no FID: it is in the features of our own classifier (`judge`), and means something only
beside its floor (real pictures against real ones). LPIPS and rFID join in where their networks are at hand.

Shapes: n pictures, h w tokens.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image

from maskimg.data.pictures import Pictures
from maskimg.evaluation.judge import FEW, WEAK, Judge, judged_field
from maskimg.evaluation.metrics import code_usage, codebook_warning, frechet_distance, monochrome_warning
from maskimg.evaluation.outside import LPIPS_SMALLEST, Compare, Features, NotMeasured
from vqgan import Tokenizer
from vqgan.images import error_map, normalize, paired_sheet, to_pil, to_uint8
from vqgan.similarity import psnr, ssim

COUNTED = 4000  # training pictures over which the use of codes is counted


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """What was measured of a tokenizer, on pictures rounded to 8 bits as they would be saved.

    Attributes:
        pictures, size, grid: how many pictures of what height and width, and of how many tokens.
        held_out: the pictures were held out; False where none was, so that training may have seen them.
        psnr_db, psnr_worst_db: the mean, and the mean of the worst twentieth.
        codes_used, entropy_bits, codes_counted: share of the vocabulary in use and its entropy, over so many codes of
            training pictures.
        bits_per_picture: tokens times log2 of the vocabulary; entropy_bits_per_picture: tokens times the entropy.
        frechet_distance: of reconstructions to their originals in the judge's features, which is no FID;
            frechet_floor: of as many training pictures to the originals.
        accuracy_real, accuracy_reconstructed, accuracy_kept: of the judge on originals and reconstructions, and their
            ratio.
        encode_per_second, decode_per_second: pictures, in fp32.
        lpips, rfid: with other people's networks.
        not_measured: why a figure is None, in words.
        warnings: what looks wrong, in words.
    """

    pictures: int
    held_out: bool
    size: tuple[int, int]
    grid: tuple[int, int]
    vocab_size: int
    parameters_million: float
    psnr_db: float
    psnr_worst_db: float
    ssim: float
    codes_used: float
    entropy_bits: float
    codes_counted: int
    bits_per_picture: float
    entropy_bits_per_picture: float
    encode_per_second: float
    decode_per_second: float
    frechet_distance: float | None = None
    frechet_floor: float | None = None
    accuracy_real: float | None = None
    accuracy_reconstructed: float | None = None
    accuracy_kept: float | None = None
    lpips: float | None = None
    rfid: float | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    pictures: Pictures,
    *,
    judge: Judge | NotMeasured = NotMeasured("no classifier was given"),  # noqa: B008 (frozen)
    lpips: Compare | NotMeasured = NotMeasured("was not asked for"),  # noqa: B008 (frozen)
    inception: Features | NotMeasured = NotMeasured("was not asked for"),  # noqa: B008 (frozen)
    progress=None,
) -> TokenizerReport:
    """Measure a tokenizer on the held-out pictures; on all, where none is held out.

    Args:
        pictures: of any height and width that the stride divides.
        judge: as `judge.judge_for` gives it.
        lpips, inception: as `maskimg.evaluation.outside` loads them.
        progress: wraps the iteration, such as `tqdm`.

    Raises:
        ValueError: there are no pictures, or the stride does not divide their size.
    """
    unseen, train = pictures.part(held_out=True), pictures.part(held_out=False)
    measured = unseen if len(unseen.names) else train
    if not len(measured.names):
        raise ValueError("there are no pictures to measure")
    counted = _spread(train.pixels, COUNTED) if len(train.names) else measured.pixels

    codes, encode_seconds = _timed(tokenizer.encode, measured.pixels, tokenizer, progress, "encoding")
    restored, decode_seconds = _timed(tokenizer.decode, codes, tokenizer, progress, "decoding")
    used, _ = _timed(tokenizer.encode, counted, tokenizer, progress, "counting codes")
    usage, entropy = code_usage(used, tokenizer.vocab_size)
    closeness = _closeness(restored, measured.pixels, lpips)
    tokens = codes[0].numel()
    figures: dict[str, Any] = {
        "pictures": len(codes),
        "held_out": measured is unseen,
        "size": tuple(measured.pixels.shape[2:]),
        "grid": tuple(codes.shape[1:]),
        "vocab_size": tokenizer.vocab_size,
        "parameters_million": sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        "psnr_db": closeness["psnr"].mean().item(),
        "psnr_worst_db": closeness["psnr"].sort().values[: math.ceil(len(codes) / 20)].mean().item(),
        "ssim": closeness["ssim"].mean().item(),
        "lpips": closeness["lpips"].mean().item() if "lpips" in closeness else None,
        "codes_used": usage,
        "entropy_bits": entropy,
        "codes_counted": used.numel(),
        "bits_per_picture": tokens * math.log2(tokenizer.vocab_size),
        "entropy_bits_per_picture": tokens * entropy,
        "encode_per_second": len(codes) / encode_seconds,
        "decode_per_second": len(codes) / decode_seconds,
        **_judged(restored, measured, train, judge),
        "rfid": _rfid(restored, measured.pixels, inception),
    }
    return TokenizerReport(
        **figures,
        not_measured=_reasons(figures, judge, lpips, inception),
        warnings=tuple(_warnings(figures, restored, measured.pixels)),
    )


def reconstruction_sheet(
    tokenizer: Tokenizer, pictures: Pictures, *, count: int = 24, columns: int = 12
) -> Image.Image:
    """Originals above reconstructions above error maps, the worst reconstruction first.

    Of `count` pictures that are spread evenly over those that `evaluate_tokenizer` measures.
    """
    unseen = pictures.part(held_out=True)
    pixels = _spread(unseen.pixels if len(unseen.names) else pictures.pixels, count)
    codes, _ = _timed(tokenizer.encode, pixels, tokenizer)
    restored, _ = _timed(tokenizer.decode, codes, tokenizer)
    order = psnr(normalize(restored), normalize(pixels)).argsort()
    groups = []
    for i in order.tolist():
        image, back = to_pil(normalize(pixels[i])), to_pil(normalize(restored[i]))
        groups.append((image, back, error_map(image, back)))
    return paired_sheet(groups, min(columns, len(groups)))


def summary(report: TokenizerReport) -> str:
    """The report as a table for people, and its warnings."""
    h, w = report.grid
    used = f"of {report.vocab_size:,} codes, over {report.codes_counted:,} counted"
    plain = (
        f"{h}x{w} tokens of {math.log2(report.vocab_size):.1f} bits; {report.entropy_bits_per_picture:,.0f} by entropy"
    )
    rows = [
        ("PSNR", f"{report.psnr_db:.2f} dB", f"worst twentieth {report.psnr_worst_db:.2f} dB"),
        ("SSIM", f"{report.ssim:.4f}", ""),
        ("LPIPS", _number(report.lpips, ".4f"), "in VGG16; lower is closer"),
        ("rFID", _number(report.rfid, ".2f"), "in Inception-v3"),
        ("Fréchet distance", _number(report.frechet_distance, ".2f"), "in our own classifier's features: not FID"),
        ("  its floor", _number(report.frechet_floor, ".2f"), "training pictures against the originals"),
        ("accuracy kept", _number(report.accuracy_kept, ".1%"), _accuracies(report)),
        ("codes used", f"{report.codes_used:.1%}", used),
        ("entropy", f"{report.entropy_bits:.2f} bits", f"of {math.log2(report.vocab_size):.2f}"),
        ("bits per picture", f"{report.bits_per_picture:,.0f}", plain),
        ("encode", f"{report.encode_per_second:,.1f} pictures/s", "fp32"),
        ("decode", f"{report.decode_per_second:,.1f} pictures/s", "fp32"),
        ("parameters", f"{report.parameters_million:.2f} million", ""),
    ]
    measured = [row for row in rows if row[1]]
    wide, wider = (max(len(row[i]) for row in measured) for i in (0, 1))
    lines = [f"{name:<{wide}}  {value:>{wider}}  {note}".rstrip() for name, value, note in measured]
    lines += [f"{name}: not measured: {reason}" for name, reason in report.not_measured.items()]
    return "\n".join(lines + [f"warning: {each}" for each in report.warnings])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _accuracies(report: TokenizerReport) -> str:
    if report.accuracy_kept is None:
        return ""
    return f"our classifier is right on {report.accuracy_reconstructed:.1%}, on {report.accuracy_real:.1%} of originals"


def encode_all(tokenizer: Tokenizer, pixels: torch.Tensor, progress=None) -> torch.Tensor:
    """uint8 pictures (n, 3, H, W) -> codes (n, h, w), batch by batch."""
    return _timed(tokenizer.encode, pixels, tokenizer, progress, "encoding")[0]


def _timed(
    step: Callable[[torch.Tensor], torch.Tensor],
    given: torch.Tensor,
    tokenizer: Tokenizer,
    progress=None,
    words: str = "",
) -> tuple[torch.Tensor, float]:
    """`step` over uint8 pixels or codes, batch by batch -> uint8 images or codes, and the seconds it took."""
    device = next(tokenizer.parameters()).device
    side = tokenizer.stride if given.dtype == torch.int64 else 1
    size = max(1, min(64, 2**22 // (given.shape[-2] * given.shape[-1] * side**2)))

    def run(part: torch.Tensor) -> torch.Tensor:
        done = step((normalize(part) if part.dtype == torch.uint8 else part).to(device))
        return (to_uint8(done) if done.is_floating_point() else done).cpu()

    parts = given.split(size)
    run(parts[0])  # the first call also prepares the machine
    found: list[torch.Tensor] = []

    def each_picture() -> Iterator[int]:
        for part in parts:
            found.append(run(part))
            yield from range(len(part))

    started = time.perf_counter()
    for _ in progress(each_picture(), total=len(given), desc=words, unit=" pictures") if progress else each_picture():
        pass
    return torch.cat(found), time.perf_counter() - started


def _closeness(restored: torch.Tensor, pixels: torch.Tensor, lpips: Compare | NotMeasured) -> dict[str, torch.Tensor]:
    """PSNR, SSIM and, where it can be had, LPIPS of uint8 pictures (n, 3, H, W) twice -> (n,) each."""
    measures: dict[str, Compare] = {"psnr": psnr, "ssim": ssim}
    if not isinstance(lpips, NotMeasured) and min(pixels.shape[2:]) >= LPIPS_SMALLEST:
        measures["lpips"] = lpips
    pairs = [(normalize(a), normalize(b)) for a, b in zip(restored.split(16), pixels.split(16), strict=True)]
    return {name: torch.cat([compare(*pair) for pair in pairs]) for name, compare in measures.items()}


def _judged(
    restored: torch.Tensor, measured: Pictures, train: Pictures, judge: Judge | NotMeasured
) -> dict[str, float | None]:
    """The figures that need the judge; the floor compares as many training pictures as there are reconstructions."""
    field = judged_field(measured)
    if isinstance(judge, NotMeasured) or field is None:
        return {}
    real = judge.features(measured.pixels)
    figures: dict[str, float | None] = {"frechet_distance": _distance(judge.features(restored), real)}
    if len(train.names) and train is not measured:
        figures["frechet_floor"] = _distance(judge.features(_spread(train.pixels, len(real))), real)
    labels = measured.labels[:, field]
    known = labels < len(list(measured.fields.values())[field])
    if known.any():
        before = judge.accuracy(measured.pixels[known], labels[known])
        after = judge.accuracy(restored[known], labels[known])
        figures |= {"accuracy_real": before, "accuracy_reconstructed": after}
        figures["accuracy_kept"] = after / before if before else None
    return figures


def _rfid(restored: torch.Tensor, pixels: torch.Tensor, inception: Features | NotMeasured) -> float | None:
    if isinstance(inception, NotMeasured):
        return None
    left, right = (torch.cat([inception(part)[0] for part in each.split(16)]) for each in (restored, pixels))
    return _distance(left, right)


def _distance(left: torch.Tensor, right: torch.Tensor) -> float | None:
    """One picture has no covariance."""
    return frechet_distance(left, right) if min(len(left), len(right)) > 1 else None


def _spread(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` rows, evenly over all: folders are often sorted by class."""
    return pixels[torch.linspace(0, len(pixels) - 1, min(count, len(pixels))).round().long()]


def _reasons(
    figures: dict[str, Any],
    judge: Judge | NotMeasured,
    lpips: Compare | NotMeasured,
    inception: Features | NotMeasured,
) -> dict[str, str]:
    """Why a figure is None, by its name for people."""
    too_few = "needs two pictures or more"
    reasons = {}
    for name, figure, measure, otherwise in (
        ("Fréchet distance", "frechet_distance", judge, too_few),
        ("accuracy kept", "accuracy_kept", judge, "the classifier recognises none of the pictures themselves"),
        ("LPIPS", "lpips", lpips, f"needs pictures of {LPIPS_SMALLEST} pixels or more"),
        ("rFID", "rfid", inception, too_few),
    ):
        if figures.get(figure) is None:
            reasons[name] = measure.reason if isinstance(measure, NotMeasured) else otherwise
    return reasons


def _warnings(figures: dict[str, Any], restored: torch.Tensor, pixels: torch.Tensor) -> list[str]:
    sample = torch.linspace(0, len(pixels) - 1, min(256, len(pixels))).long()
    found = [
        codebook_warning(
            figures["codes_used"], figures["entropy_bits"], figures["vocab_size"], counted=figures["codes_counted"]
        ),
        monochrome_warning(normalize(restored[sample]), normalize(pixels[sample])),
    ]
    if not figures["held_out"]:
        found.append("no picture is held out, so that the tokenizer may have been trained on these")
    if figures["pictures"] < FEW and (figures.get("frechet_distance"), figures["rfid"]) != (None, None):
        found.append(f"{figures['pictures']} pictures are few for a Fréchet distance, then mostly chance: give {FEW}")
    accuracy = figures.get("accuracy_real")
    if accuracy is not None and accuracy < WEAK:
        found.append(
            f"our classifier is right on only {accuracy:.0%} of the originals, so that its figures say little: train "
            "it longer (`--classifier-steps`)"
        )
    return [each for each in found if each]
