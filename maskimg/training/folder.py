"""One command for one's own pictures: a folder in, a model directory out.

`plan_for` picks sizes from the pictures, their number and the preset; `train_folder` runs the stages. Working files
live beside the model in OUT.training; a stage that is finished is not run again, one that was stopped continues.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from maskimg import distributed
from maskimg.data import pictures as reading
from maskimg.data.codes import PICTURE, CodeCache, encode_pictures, read_codes
from maskimg.data.crops import Versions
from maskimg.data.listing import require_training
from maskimg.data.pictures import Listing, Pictures
from maskimg.data.source_pictures import both, kind_of, read_sources
from maskimg.data.sources import size_of, text
from maskimg.evaluation.memorisation import Memorisation, compare, nearest_sheet
from maskimg.evaluation.metrics import code_usage
from maskimg.hardware import pick_device, pick_dtype
from maskimg.networks.context_encoder import SourceConfig
from maskimg.networks.transformer import TransformerConfig
from maskimg.networks.words import FrozenWords, WordPieces, Words
from maskimg.outputs import write_png
from maskimg.pipeline import Pipeline
from maskimg.recipe import mark
from maskimg.sampler import Sampler
from maskimg.training.generator import GeneratorTraining, guessed_loss, held_out_loss, train_critic, train_generator
from maskimg.training.loop.alone import working_in
from maskimg.training.loop.ranges import MOST, require_ranges
from maskimg.training.loop.run import Budget, Run
from maskimg.training.tokenizer import TokenizerTraining, train_tokenizer
from vqgan import Tokenizer, TokenizerConfig, files, writing
from vqgan.images import MAX_PIXELS, ImageError, normalize
from vqgan.similarity import psnr

CHANNELS = {1: (64,), 2: (64, 96), 3: (48, 96, 192), 4: (48, 96, 192, 256)}  # by log2 of the stride


@dataclasses.dataclass(frozen=True)
class NetworkSize:
    """Sizes of the generator; vocabulary, grid and labels follow from the tokenizer and the pictures."""

    dim: int = 256
    depth: int = 6
    heads: int = 4
    registers: int = 1
    dropout: float = 0.0
    critic_depth: int = 2

    def __post_init__(self):
        require_ranges(self, dict.fromkeys(("dim", "depth", "heads"), (1, MOST)))
        require_ranges(self, {"registers": (0, MOST), "dropout": (0, 0.99), "critic_depth": (0, MOST)})
        if self.dim % self.heads or (self.dim // self.heads) % 4:
            raise ValueError(f"dim / heads must be a multiple of 4, got {self.dim} / {self.heads}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about a training run that is decided before it starts; a YAML file holds what differs.

    Attributes:
        size: side of the pictures in pixels.
        versions: how often each picture is encoded, each time moved a little.
        flip: mirror half of the pictures for the generator too; off where left and right mean something.
        patience: end the generator's training after so many of its ten evaluations without a better held-out loss,
            and keep its best weights; 0 does not.
        source: what pictures are drawn from: `grey`, `edges` or `lowres`, made from themselves, or a folder (or
            archive) of pictures of the same names. The finished model translates such pictures.
        source_tokenizer: directory of the tokenizer of the sources; if not given, one learns both kinds of pictures.
        words: what reads captions, where there are any: `pieces`, learnt along; `none`; or the name or directory of a
            T5 or CLIP text encoder.
        recipe: the finished model's sampler.
        tokenizer_training, generator_training, generator and the budgets: as in their own classes.
    """

    size: int = 32
    versions: int = 4
    flip: bool = False
    tokenizer: TokenizerConfig = TokenizerConfig()
    tokenizer_training: TokenizerTraining = TokenizerTraining()
    tokenizer_budget: Budget = Budget(minutes=3)
    generator: NetworkSize = NetworkSize()
    generator_training: GeneratorTraining = GeneratorTraining()
    generator_budget: Budget = Budget(minutes=6.5)
    critic_budget: Budget = Budget(minutes=1)
    patience: int = 0
    source: str = ""
    source_tokenizer: str = ""
    words: str = "pieces"
    recipe: Sampler = Sampler()

    def __post_init__(self):
        require_ranges(self, {"patience": (0, MOST), "versions": (1, MOST), "size": (0, 512)})
        if self.size % self.tokenizer.stride:
            raise ValueError(
                f"size must be a multiple of the tokenizer's stride {self.tokenizer.stride}, got {self.size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // self.tokenizer.stride
        return side, side


PRESETS = {
    "cpu": Plan(size=32, generator_training=GeneratorTraining(batch_size=64)),  # more steps from the same minutes
    "gpu": Plan(
        size=64,
        tokenizer_budget=Budget(minutes=8),
        generator=NetworkSize(dim=512, depth=12, heads=8, dropout=0.1, critic_depth=3),
        generator_training=GeneratorTraining(batch_size=256, learning_rate=1e-3, ema_decay=0.9995),
        generator_budget=Budget(minutes=16),
        critic_budget=Budget(minutes=3),
    ),
}


class Stopped(Exception):
    """The person stopped the run; the message says how to go on."""


def plan_for(
    count: int,
    usual_side: int,
    *,
    preset: str = "auto",
    labelled: bool = False,
    minutes: float | None = None,
    size: int = 0,
) -> Plan:
    """Sizes for `count` pictures of about `usual_side` pixels.

    Args:
        preset: `cpu` or `gpu`, or `auto` for the one this machine suits.
        minutes: of training in all, shared out as in the preset.
        size: side in pixels, a multiple of 8; 16, 32 or 64 as the pictures and the preset ask, if 0.
    """
    if preset == "auto":
        preset = "cpu" if pick_device().type == "cpu" else "gpu"
    plan = PRESETS[preset]
    side = size or min(plan.size, next((side for side in (16, 32, 64) if usual_side <= side), plan.size))
    if side % 8 or not 16 <= side <= 512:
        raise ValueError(f"size must be a multiple of 8 from 16 to 512, got {side}")

    # Quantizer and codes: benchmarks/results/README.md, "Reading `tokenizers.md`".
    # A grid of 8x8 tokens up to 64 pixels: fewer tokens learn faster and draw faster than anything else tried.
    halvings = min(4, max(1, (side // 8).bit_length() - 1))
    while side % 2**halvings:
        halvings -= 1
    tokenizer = TokenizerConfig(
        levels=(8, 8, 8, 8) if side >= 64 else (8, 5, 5, 5), channels=CHANNELS[halvings], decoder_blocks=2
    )
    network = plan.generator
    if count < 1000:
        network = dataclasses.replace(network, dim=192, heads=3, depth=4, critic_depth=1, dropout=0.1)
    tokenizer_training = dataclasses.replace(plan.tokenizer_training, shift=side // 16)
    if labelled:  # a classifier of these very pictures judges better than random features what must be kept
        tokenizer_training = dataclasses.replace(
            tokenizer_training, perceptual="classifier", perceptual_weight=0.3, classifier_steps=300
        )
    batch = max(8, min(plan.generator_training.batch_size, count // 2))
    plan = dataclasses.replace(
        plan,
        size=side,
        tokenizer=tokenizer,
        tokenizer_training=tokenizer_training,
        generator=network,
        generator_training=dataclasses.replace(plan.generator_training, batch_size=batch),
        recipe=Sampler(guidance=2.5 if labelled else 1.0),
    )
    if minutes is not None:
        whole = sum(
            budget.minutes or 0 for budget in (plan.tokenizer_budget, plan.generator_budget, plan.critic_budget)
        )
        plan = dataclasses.replace(
            plan,
            **{
                name: Budget(minutes=minutes * (getattr(plan, name).minutes or 0) / whole)
                for name in ("tokenizer_budget", "generator_budget", "critic_budget")
            },
        )
    return plan


def train_folder(
    listing: Listing,
    plan: Plan,
    out: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_bad: float = 0.01,
    max_pixels: int = MAX_PIXELS,
    about: dict | None = None,
    track: str | None = None,
    progress=None,
    shard: bool = False,
    allow_data_change: bool = False,
) -> Pipeline:
    """Train every stage and write a model directory to `out`; returns the finished model.

    With several processes the first alone measures and writes.

    Args:
        max_bad, max_pixels: which pictures may be left out, as in `read_pictures`.
        track: `tensorboard`, `trackio` or `wandb`, told of figures and pictures beside the log.
        allow_data_change: continue a training that began with other pictures, too.

    Raises:
        Stopped: interrupted; a rerun continues.
        InTheWay: `out`, or the directory of working files beside it, holds other files.
        DataError, ModelError, TrainingError: with a sentence each; among them, another process trains there.
    """
    require_training(listing)
    out = Path(out)
    require_possible(listing, plan, device=device, dtype=dtype, shard=shard)
    if distributed.is_first():
        writing.require_replaceable(out)
    with working_in(working_directory(out), active=distributed.is_first()):
        return _train_stages(
            listing, plan, out, about or {},
            max_bad=max_bad, max_pixels=max_pixels, progress=progress, shard=shard,
            track=track, device=device, dtype=dtype, allow_data_change=allow_data_change,
        )  # fmt: skip


def require_possible(listing: Listing, plan: Plan, *, device: str, dtype: str, shard: bool) -> None:
    """What a later stage would refuse is refused before the first.

    Raises:
        ValueError: with a sentence; among them DataError and ModelError.
    """
    pick_dtype(dtype, pick_device(device))
    with torch.random.fork_rng():
        Tokenizer(plan.tokenizer)
    if shard and not distributed.several():
        raise ValueError(distributed.ALONE)
    if plan.patience and not listing.held_out.any():
        raise ValueError("patience needs a held-out loss to go by, but no picture is held out: leave `--patience` out")
    if plan.source and kind_of(plan.source) == "folder":
        reading.list_pictures(plan.source)
    if plan.source_tokenizer:
        Tokenizer.from_pretrained(plan.source_tokenizer)
    if plan.words not in ("none", "pieces") and listing.captions:
        FrozenWords(plan.words)


def _train_stages(
    listing: Listing,
    plan: Plan,
    out: Path,
    about: dict,
    *,
    device: str,
    dtype: str,
    max_bad: float,
    max_pixels: int,
    track: str | None,
    progress,
    shard: bool,
    allow_data_change: bool,
) -> Pipeline:
    work = working_directory(out)
    started = time.perf_counter()
    sources = None
    with distributed.first_goes_ahead():
        limits: Any = {"max_bad": max_bad, "max_pixels": max_pixels}
        pictures = reading.read_pictures(listing, plan.size, work / "pictures", progress=progress, **limits)
        if plan.source:
            pictures, sources = read_sources(plan.source, pictures, work, progress=progress, **limits)
    other = Tokenizer.from_pretrained(plan.source_tokenizer) if plan.source_tokenizer else None
    tokenizer = tokenizer_stage(
        pictures if sources is None or other else both(pictures, sources), plan, work / "tokenizer",
        track=track, device=device, dtype=dtype, allow_data_change=allow_data_change,
    )  # fmt: skip
    cache = encode_stage(tokenizer, pictures, plan, work / "codes", progress=progress)
    if sources is not None:
        cache = cache.drawn_from(
            encode_stage(
                other or tokenizer, sources, plan, work / "codes.source", kind=kind_of(plan.source), progress=progress
            )
        )
    pipeline = generator_stage(
        cache, tokenizer, plan, work, source_tokenizer=other,
        track=track, device=device, dtype=dtype, shard=shard, allow_data_change=allow_data_change,
    )  # fmt: skip
    if not distributed.is_first():
        return pipeline

    unseen = pictures.part(held_out=True)
    memorisation = check_memorisation(pipeline, cache, pictures, work / "generator" / "nearest.png")
    pipeline.about.update(
        {
            "name": text(out.name),
            "data": {
                "folder": text(listing.source.name),
                "pictures": len(pictures.names),
                "held_out": len(unseen.names),
            },
            "example": commonest_label(cache),
            **about,
            "measured": measure(pipeline, cache, unseen, work),
            "memorisation": {**dataclasses.asdict(memorisation), "in_words": memorisation.sentence},
            "plan": dataclasses.asdict(plan),
            "minutes": round((time.perf_counter() - started) / 60, 1),
        }
    )
    sheets = [work / "generator" / name for name in ("samples.png", "nearest.png")]  # the first may not be drawn yet
    pipeline.save_pretrained(out, pictures={path.name: Image.open(path) for path in sheets if path.is_file()})
    return pipeline


def tokenizer_stage(
    pictures: Pictures,
    plan: Plan,
    directory: Path,
    *,
    track: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_data_change: bool = False,
) -> Tokenizer:
    """Train the tokenizer, or read the one that is already finished in `directory`/model."""
    finished = _finished(directory, (plan.tokenizer, plan.tokenizer_training, pictures.fingerprint))
    if distributed.of_first(finished is not None and files.is_whole(finished)) and finished:
        return Tokenizer.from_pretrained(finished).to(pick_device(device))
    tokenizer, run = train_tokenizer(
        pictures, plan.tokenizer, plan.tokenizer_training, plan.tokenizer_budget, directory,
        track=track, device=device, dtype=dtype, allow_data_change=allow_data_change,
    )  # fmt: skip
    _require_finished(run)
    if distributed.is_first():
        writing.make_way(directory / "model")
        tokenizer.save_pretrained(directory / "model")
        _mark_finished(directory, (plan.tokenizer, plan.tokenizer_training, pictures.fingerprint))
    return tokenizer


def encode_stage(
    tokenizer: Tokenizer, pictures: Pictures, plan: Plan, directory: Path, *, kind: str = "", progress=None
) -> CodeCache:
    """Encode the pictures, or read the codes that are already in `directory`."""
    distributed.as_first_has(tokenizer)
    weights = sum(p.detach().double().abs().sum().item() for p in tokenizer.parameters())
    key = (plan.versions, plan.flip, pictures.fingerprint, round(weights, 6))
    state = directory.with_name(f"{directory.name}-state")
    if distributed.of_first(_finished(state, key) is not None and files.is_whole(directory)):
        return read_codes(directory)
    cache = encode_pictures(
        tokenizer, pictures, directory, views=Versions(plan.versions, plan.flip), kind=kind, progress=progress
    )
    if distributed.is_first():
        state.mkdir(exist_ok=True)
        _mark_finished(state, key)
    return cache


def generator_stage(
    cache: CodeCache,
    tokenizer: Tokenizer,
    plan: Plan,
    work: Path,
    *,
    source_tokenizer: Tokenizer | None = None,
    track: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    shard: bool = False,
    allow_data_change: bool = False,
) -> Pipeline:
    """Train generator and critic on cached codes; continues what `work` holds."""
    size = dataclasses.asdict(plan.generator)
    critic_depth = size.pop("critic_depth")
    words = learn_words(plan.words, cache)
    sources = []
    if words is not None:
        cache = cache.with_words(words, work)
        sources.append(words.source)
    if cache.source is not None:
        sources.append(SourceConfig(PICTURE, cache.source.vocab_size, grid=cache.source.grid, over=True))
    config = TransformerConfig(cache.vocab_size, cache.grid, cache.label_sizes, **size, sources=tuple(sources))
    generator, run = train_generator(
        cache,
        config,
        plan.generator_training,
        plan.generator_budget,
        work / "generator",
        decode=tokenizer.decode,
        sampler=plan.recipe,
        patience=plan.patience,
        track=track,
        device=device,
        dtype=dtype,
        shard=shard,
        allow_data_change=allow_data_change,
    )
    _require_finished(run)
    if critic_depth and not plan.generator_training.self_token_critic:
        critic_config = dataclasses.replace(config, depth=critic_depth)
        _, run = train_critic(
            cache, generator, critic_config, plan.generator_training, plan.critic_budget, work / "critic",
            sampler=plan.recipe, track=track, device=device, dtype=dtype, allow_data_change=allow_data_change,
        )  # fmt: skip
        _require_finished(run)
    return Pipeline(
        tokenizer,
        generator,
        labels=cache.fields,
        words=words,
        source_tokenizer=source_tokenizer,
        recipe=plan.recipe,
        about={"source": cache.source.kind} if cache.source else None,
        device=device,
        dtype=dtype,
    )


def learn_words(name: str, cache: CodeCache) -> Words | None:
    """What reads the captions: `pieces` learnt from the training pictures', `none`, or a frozen encoder."""
    if name == "none" or not cache.captions:
        return None
    if name != "pieces":
        return FrozenWords(name)
    training = cache.part(held_out=False)
    return WordPieces.learn([caption for several in training.captions for caption in several])


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
        figures["held_out_nats_per_masked_token"] = round(
            held_out_loss(pipeline.generator, cache.part(held_out=True)), 3
        )
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


def usual_side(listing: Listing) -> int:
    """The middle of about a hundred pictures' shorter sides, in pixels."""
    sides = []
    for _, content in listing.source.read(listing.entries[:: max(1, len(listing) // 100)]):
        try:
            sides.append(min(size_of(content)))
        except ImageError:
            continue  # unreadable files are reported when they are read
    return int(statistics.median(sides)) if sides else 64


def source_codes(codes: Path) -> Path:
    """Where the codes of the sources of those in `codes` live."""
    return codes.with_name(f"{codes.name}.source")


def working_directory(out: Path) -> Path:
    """Where logs, checkpoints and intermediate files of the model `out` live."""
    return out.with_name(out.name + ".training")


def _require_finished(run: Run) -> None:
    if run.stopped:  # also at its last step: what comes next can wait
        raise Stopped(f"stopped at step {run.step} of the {run.describe}; run the same command again to continue")


def _mark_finished(directory: Path, key: tuple) -> None:
    files.write_json(directory / "finished.json", {"key": repr(key)})


def _finished(directory: Path, key: tuple) -> Path | None:
    """The stage's model directory, if it was finished with the same settings and data."""
    try:
        same = files.read_json(directory / "finished.json").get("key") == repr(key)
    except files.ModelError:
        return None
    return directory / "model" if same else None
