"""How good are reconstructions and samples? Measured with a small classifier trained on the same pictures.

No pretrained weights are needed, and the Fréchet distance here is no FID: it is in the features of our own classifier,
and means something only beside its floor (real pictures against real ones). `evaluate_tokenizer` puts it beside what
needs no network (PSNR, SSIM, the use of codes) and beside LPIPS and rFID, where their networks are at hand.

Shapes: n pictures, h w tokens.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from PIL import Image
from torch import nn

from maskimg.data.pictures import Pictures, move
from maskimg.evaluation.metrics import code_usage, codebook_warning, frechet_distance, monochrome_warning
from maskimg.evaluation.outside import LPIPS_SMALLEST, Compare, Features, NotMeasured
from maskimg.hardware import autocast, pick_device, pick_dtype
from maskimg.training.loop.run import learning_rate_scale, step_generator
from vqgan import Tokenizer, files, writing
from vqgan.images import error_map, normalize, paired_sheet, to_pil, to_uint8
from vqgan.network import ResBlock, norm
from vqgan.similarity import psnr, ssim

FEATURES = 128
COUNTED = 4000  # training pictures over which the use of codes is counted
WEAK = 0.2  # a classifier that is right on fewer of the held-out pictures judges little
FEW = 2 * FEATURES  # below so many pictures a Fréchet distance is mostly chance


class Classifier(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> logits (b, classes); `features` are its 128 penultimate activations."""

    def __init__(self, classes: int):
        super().__init__()
        self.stages = nn.ModuleList()
        previous = 3
        for width in (32, 64, 128):
            fold = nn.Conv2d(4 * previous, width, 3, padding=1)
            self.stages.append(nn.Sequential(nn.PixelUnshuffle(2), fold, ResBlock(width)))
            previous = width
        self.finish = nn.Sequential(norm(previous), nn.SiLU())
        self.head = nn.Linear(previous, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return reduce(self.finish(x).float(), "b c y x -> b c", "mean")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.features(images), 0.2, self.training))


@dataclasses.dataclass(frozen=True)
class Judge:
    """A trained classifier and the device and format it runs in."""

    classifier: Classifier
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, H, W), uint8 or float in [-1, 1] -> features (n, 128) float32."""
        parts = []
        for part in images.split(256):
            part = (normalize(part) if part.dtype == torch.uint8 else part).to(self.device)
            with autocast(self.device, self.dtype):
                parts.append(self.classifier.features(part).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of images (n, 3, H, W) whose most probable class is `labels` (n,)."""
        logits = self.classifier.head(self.features(images).to(self.device))
        return (logits.argmax(-1).cpu() == labels).float().mean().item()


def train_judge(
    pixels: torch.Tensor, labels: torch.Tensor, classes: int, steps: int, *, seed: int = 0, progress=None
) -> Judge:
    """Train the classifier on uint8 pixels (n, 3, H, W) and labels (n,), evenly over the classes."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(classes).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        model.train()
        # Rare classes are drawn as often as common ones.
        weights = 1 / labels.bincount(minlength=classes).clamp(min=1)[labels].float()
        for step in progress(range(steps), desc="classifier") if progress else range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * learning_rate_scale(step / steps)
            generator = step_generator(seed, step)
            chosen = torch.multinomial(weights, 128, replacement=True, generator=generator)
            images = normalize(move(pixels[chosen], pixels.shape[-1] // 8, generator)).to(device)
            with autocast(device, dtype):
                loss = F.cross_entropy(model(images).float(), labels[chosen].to(device), label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return Judge(model.eval(), device, dtype)


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
        judge: as `judge_for` gives it.
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


def describe(report: TokenizerReport) -> str:
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


def judge_for(pictures: Pictures, steps: int, *, seed: int = 0, progress=None) -> Judge | NotMeasured:
    """A classifier of the training pictures' labels, or why there can be none. See `judged_field` for which labels."""
    if not steps:
        return NotMeasured("the classifier was left out")
    field = judged_field(pictures)
    if field is None:
        return NotMeasured("needs a folder with labels, to train a classifier on")
    train = pictures.part(held_out=False)
    labels, classes = train.labels[:, field], len(list(pictures.fields.values())[field])
    known = labels < classes
    if len(labels[known].unique()) < 2:
        return NotMeasured("needs training pictures of two classes or more")
    if pictures.size % 8:
        return NotMeasured("needs pictures whose size is a multiple of 8")
    return train_judge(train.pixels[known], labels[known], classes, steps, seed=seed, progress=progress)


def kept_judge(kept: Path, pictures: Pictures, steps: int, *, progress=None) -> Judge | NotMeasured:
    """`judge_for`, trained once and kept in the directory `kept`.

    Raises:
        ModelError: what is kept there knows other classes.
    """
    field = judged_field(pictures)
    if field is None or not files.is_whole(kept):
        writing.make_way(kept)
        judge = judge_for(pictures, steps, progress=progress)
        if not isinstance(judge, NotMeasured):
            with writing.atomic_directory(kept) as directory:
                about = {"classes": judge.classifier.head.out_features, "steps": steps}
                files.write_module(directory, about, judge.classifier)
        return judge
    device = pick_device()
    classifier = files.read_weights(kept, Classifier(len(list(pictures.fields.values())[field])))
    return Judge(classifier.to(device).eval(), device, pick_dtype("auto", device))


def encode_all(tokenizer: Tokenizer, pixels: torch.Tensor, progress=None) -> torch.Tensor:
    """uint8 pictures (n, 3, H, W) -> codes (n, h, w), batch by batch."""
    return _timed(tokenizer.encode, pixels, tokenizer, progress, "encoding")[0]


def judged_field(pictures: Pictures) -> int | None:
    """Which column of labels the judge knows: the field `class`, else the first; None without labels."""
    fields = list(pictures.fields)
    return (fields.index("class") if "class" in fields else 0) if fields else None


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
    for name, figure, source, otherwise in (
        ("Fréchet distance", "frechet_distance", judge, too_few),
        ("accuracy kept", "accuracy_kept", judge, "the classifier recognises none of the pictures themselves"),
        ("LPIPS", "lpips", lpips, f"needs pictures of {LPIPS_SMALLEST} pixels or more"),
        ("rFID", "rfid", inception, too_few),
    ):
        if figures.get(figure) is None:
            reasons[name] = source.reason if isinstance(source, NotMeasured) else otherwise
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
