"""One command for one's own pictures: a folder in, a model directory out.

Working files live beside the model in OUT.training.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from maskimg import distributed
from maskimg.data import pictures as reading
from maskimg.data.codes import CodeCache
from maskimg.data.listing import require_training
from maskimg.data.pictures import Listing, Pictures
from maskimg.data.source_pictures import both, kind_of, read_sources
from maskimg.data.sources import text
from maskimg.evaluation.memorisation import Memorisation, compare, nearest_sheet
from maskimg.evaluation.metrics import code_usage
from maskimg.hardware import pick_device, pick_dtype
from maskimg.networks.words import FrozenWords
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import mark
from maskimg.training.evaluations import guessed_loss, masked_loss
from maskimg.training.loop.session import Session
from maskimg.training.plan import Plan
from maskimg.training.stages import encode_stage, generator_stage, tokenizer_stage
from vqgan import Tokenizer, writing
from vqgan.images import MAX_PIXELS, normalize
from vqgan.similarity import psnr


def train_folder(
    listing: Listing,
    plan: Plan,
    out: str | Path,
    session: Session = Session(),  # noqa: B008 (frozen)
    *,
    max_bad: float = 0.01,
    max_pixels: int = MAX_PIXELS,
    about: dict | None = None,
) -> Pipeline:
    """Train every stage and write a model directory to `out`; returns the finished model.

    With several processes the first alone measures and writes.

    Args:
        max_bad, max_pixels: which pictures may be left out, as in `read_pictures`.
        about: what the model is to say of itself besides what is measured, such as its licence.

    Raises:
        Stopped: interrupted; a rerun continues.
        InTheWay: `out`, or the directory of working files beside it, holds other files.
        DataError, ModelError, TrainingError: with a sentence each; among them, another process trains there.
    """
    require_training(listing)
    out = Path(out)
    require_possible(listing, plan, session)
    if distributed.is_first():
        writing.require_replaceable(out)
    work, started = working_directory(out), time.perf_counter()
    with session.working_in(work) as session:
        pictures, inputs = _read(listing, plan, work, session, max_bad, max_pixels)
        pipeline, cache = _train(pictures, inputs, plan, work, session)
        if distributed.is_first():
            held_out = int(pictures.held_out.sum())
            data = {"folder": text(listing.source.name), "pictures": len(pictures.names), "held_out": held_out}
            pipeline.about |= {"name": text(out.name), "data": data, "example": commonest_label(cache), **(about or {})}
            pipeline.about |= _measured(pipeline, cache, pictures, work)
            minutes = round((time.perf_counter() - started) / 60, 1)
            pipeline.about |= {"plan": dataclasses.asdict(plan), "minutes": minutes}
            # The first of these sheets may not have been drawn yet.
            sheets = [work / "generator" / name for name in ("samples.png", "nearest.png")]
            on_card = {path.name: Image.open(path) for path in sheets if path.is_file()}
            pipeline.save_pretrained(out, pictures=on_card)
    return pipeline


def require_possible(listing: Listing, plan: Plan, session: Session) -> None:
    """What a later stage would refuse is refused before the first.

    Raises:
        ValueError: with a sentence; among them DataError and ModelError.
    """
    pick_dtype(session.dtype, pick_device(session.device))
    with torch.random.fork_rng():
        Tokenizer(plan.tokenizer)
    if session.shard and not distributed.several():
        raise ValueError(distributed.ALONE)
    if plan.patience and not listing.held_out.any():
        raise ValueError("patience needs a held-out loss to go by, but no picture is held out: leave `--patience` out")
    if plan.source and kind_of(plan.source) == "folder":
        reading.list_pictures(plan.source)
    if plan.source_tokenizer:
        Tokenizer.from_pretrained(plan.source_tokenizer)
    if plan.words not in ("none", "pieces") and listing.captions:
        FrozenWords(plan.words)


def _read(
    listing: Listing, plan: Plan, work: Path, session: Session, max_bad: float, max_pixels: int
) -> tuple[Pictures, Pictures | None]:
    """The pictures, and the input pictures that are to be translated into them, if any."""
    progress = session.counted("pictures")
    with distributed.first_goes_ahead():
        pictures = reading.read_pictures(
            listing, plan.size, work / "pictures", max_bad=max_bad, max_pixels=max_pixels, progress=progress
        )
        if not plan.source:
            return pictures, None
        return read_sources(plan.source, pictures, work, max_bad=max_bad, max_pixels=max_pixels, progress=progress)


def _train(
    pictures: Pictures, inputs: Pictures | None, plan: Plan, work: Path, session: Session
) -> tuple[Pipeline, CodeCache]:
    """All stages, one after the other."""
    other = Tokenizer.from_pretrained(plan.source_tokenizer) if plan.source_tokenizer else None
    learnt_from = pictures if inputs is None or other else both(pictures, inputs)
    tokenizer = tokenizer_stage(learnt_from, plan, work / "tokenizer", session)
    cache = encode_stage(tokenizer, pictures, plan, work / "codes", session=session)
    if inputs is not None:
        kind, place = kind_of(plan.source), input_codes(work / "codes")
        cache = cache.translated_from(encode_stage(other or tokenizer, inputs, plan, place, kind=kind, session=session))
    return generator_stage(cache, tokenizer, plan, work, source_tokenizer=other, session=session), cache


def _measured(pipeline: Pipeline, cache: CodeCache, pictures: Pictures, work: Path) -> dict[str, Any]:
    """How good the model is, and whether it repeats its training pictures."""
    memorisation = check_memorisation(pipeline, cache, pictures, work / "generator" / "nearest.png")
    return {
        "measured": measure(pipeline, cache, pictures.part(held_out=True), work),
        "memorisation": {**dataclasses.asdict(memorisation), "in_words": memorisation.sentence},
    }


def commonest_label(cache: CodeCache) -> dict[str, str]:
    """The first field's name that most pictures have: what the demo offers first."""
    for (field, names), column in zip(cache.fields.items(), cache.labels.unbind(1), strict=True):
        return {field: names[int(column.bincount(minlength=len(names))[: len(names)].argmax())]} if names else {}
    return {}


def measure(pipeline: Pipeline, cache: CodeCache, unseen: Pictures, directory: Path) -> dict[str, float]:
    """Figures on held-out pictures, kept in pipeline.json; what has to be kept for it goes to `directory`."""
    if pipeline.words is not None:
        cache = cache.with_words(pipeline.words, directory)
    usage, entropy = code_usage(cache.codes[:], cache.vocab_size)
    figures = {"codes_used": round(usage, 4), "code_entropy_bits": round(entropy, 3)}
    if len(unseen.names):
        images = normalize(unseen.pixels[:512])
        restored = torch.cat([pipeline.decode(pipeline.tokenizer.encode(part.to(pipeline.device))).cpu()
                              for part in images.split(64)])  # fmt: skip
        figures["held_out_psnr_db"] = round(psnr(restored, images).mean().item(), 2)
        figures["held_out_nats_per_masked_token"] = round(masked_loss(pipeline.generator, cache.part(held_out=True)), 3)
        figures["held_out_nats_by_guessing"] = round(guessed_loss(cache), 3)
    return figures


def check_memorisation(
    pipeline: Pipeline, cache: CodeCache, pictures: Pictures, path: Path, count: int = 32
) -> Memorisation:
    """Draw samples with the model's own recipe and hold them against the training grids; writes a sheet to `path`.

    The labels are those of training pictures at even distances, so samples and pictures are of one kind.
    """
    training, unseen = cache.part(held_out=False), cache.part(held_out=True)
    chosen = torch.linspace(0, len(training.names) - 1, count).long()
    if pipeline.words is not None:
        training = training.with_words(pipeline.words, path.parent)
    condition = training.condition(chosen).to(pipeline.device)
    samples = pipeline.generator.generate(count, condition, sampler=pipeline.recipe, seeds=torch.arange(count)).cpu()
    report, found = compare(samples, unseen.codes[0, :1024], training.codes[:4, :100_000])
    originals = normalize(pictures.part(held_out=False).pixels[found.index])
    page = nearest_sheet(pipeline.decode(samples).cpu(), originals, found.shares)
    write_png(page, mark("train"), path, force=True)
    return report


def input_codes(codes: Path) -> Path:
    """Where the codes of the input pictures live that are to be translated into those in `codes`."""
    return codes.with_name(f"{codes.name}.source")


def working_directory(out: Path) -> Path:
    """Where logs, checkpoints and intermediate files of the model `out` live."""
    return out.with_name(out.name + ".training")
