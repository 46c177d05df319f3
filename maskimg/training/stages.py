"""The stages of a training, each from what the one before has left: tokenizer, codes, generator and critic.

A stage that is finished is not run again, one that was stopped continues.
"""

import dataclasses
from pathlib import Path

from maskimg import distributed
from maskimg.data.codes import PICTURE, CodeCache, encode_pictures, read_codes
from maskimg.data.crops import Versions
from maskimg.data.pictures import Pictures
from maskimg.networks.context_encoder import SourceConfig
from maskimg.networks.transformer import TransformerConfig
from maskimg.networks.words import FrozenWords, WordPieces, Words
from maskimg.pipeline import Pipeline
from maskimg.training.critic import train_critic
from maskimg.training.evaluations import Preview
from maskimg.training.generator import train_generator
from maskimg.training.loop.errors import Stopped
from maskimg.training.loop.run import Run
from maskimg.training.loop.session import Session
from maskimg.training.plan import Plan
from maskimg.training.tokenizer import train_tokenizer
from vqgan import Tokenizer, files, writing

NOTE = "finished.json"


def tokenizer_stage(
    pictures: Pictures,
    plan: Plan,
    directory: Path,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> Tokenizer:
    """Train the tokenizer, or read the one that is already finished in `directory`/model.

    Raises:
        Stopped: it was stopped before its end.
    """
    settings = (plan.tokenizer, plan.tokenizer_training, pictures.fingerprint)
    if distributed.of_first(is_finished(directory, settings, result=directory / "model")):
        return Tokenizer.from_pretrained(directory / "model").to(session.place)
    tokenizer, run = train_tokenizer(
        pictures, plan.tokenizer, plan.tokenizer_training, plan.tokenizer_budget, directory, session=session
    )
    _require_end(run)
    if distributed.is_first():
        writing.make_way(directory / "model")
        tokenizer.save_pretrained(directory / "model")
        _note_finished(directory, settings)
    return tokenizer


def encode_stage(
    tokenizer: Tokenizer,
    pictures: Pictures,
    plan: Plan,
    directory: Path,
    *,
    kind: str = "",
    session: Session = Session(),  # noqa: B008 (frozen)
) -> CodeCache:
    """Encode the pictures, or read the codes that are already in `directory`."""
    distributed.as_first_has(tokenizer)
    weights = sum(p.detach().double().abs().sum().item() for p in tokenizer.parameters())
    settings = (plan.versions, plan.flip, pictures.fingerprint, round(weights, 6))
    notes = directory.with_name(f"{directory.name}-state")  # beside the codes, whose directory is replaced as a whole
    if distributed.of_first(is_finished(notes, settings, result=directory)):
        return read_codes(directory)
    cache = encode_pictures(
        tokenizer, pictures, directory,
        views=Versions(plan.versions, plan.flip), kind=kind, progress=session.counted("codes"),
    )  # fmt: skip
    if distributed.is_first():
        notes.mkdir(exist_ok=True)
        _note_finished(notes, settings)
    return cache


def generator_stage(
    cache: CodeCache,
    tokenizer: Tokenizer,
    plan: Plan,
    work: Path,
    *,
    source_tokenizer: Tokenizer | None = None,
    session: Session = Session(),  # noqa: B008 (frozen)
) -> Pipeline:
    """Train generator and critic on cached codes; continues what `work` holds.

    Raises:
        Stopped: one of them was stopped before its end.
    """
    size = dataclasses.asdict(plan.generator)
    critic_depth = size.pop("critic_depth")
    words = learn_words(plan.words, cache)
    contexts = []
    if words is not None:
        cache = cache.with_words(words, work)
        contexts.append(words.source)
    if cache.inputs is not None:
        contexts.append(SourceConfig(PICTURE, cache.inputs.vocab_size, grid=cache.inputs.grid, over=True))
    config = TransformerConfig(cache.vocab_size, cache.grid, cache.label_sizes, **size, sources=tuple(contexts))
    training = plan.generator_training
    generator, run = train_generator(
        cache, config, training, plan.generator_budget, work / "generator",
        preview=Preview(tokenizer.decode, plan.recipe), patience=plan.patience, session=session,
    )  # fmt: skip
    _require_end(run)
    if critic_depth and not training.self_token_critic:
        critic_config = dataclasses.replace(config, depth=critic_depth)
        _, run = train_critic(
            cache, generator, critic_config, training, plan.critic_budget, work / "critic",
            sampler=plan.recipe, session=session,
        )  # fmt: skip
        _require_end(run)
    return Pipeline(
        tokenizer,
        generator,
        labels=cache.fields,
        words=words,
        source_tokenizer=source_tokenizer,
        recipe=plan.recipe,
        about={"source": cache.inputs.kind} if cache.inputs else None,
        device=session.device,
        dtype=session.dtype,
    )


def learn_words(name: str, cache: CodeCache) -> Words | None:
    """What reads the captions: `pieces` learnt from the training pictures', `none`, or a frozen encoder."""
    if name == "none" or not cache.captions:
        return None
    if name != "pieces":
        return FrozenWords(name)
    training = cache.part(held_out=False)
    return WordPieces.learn([caption for several in training.captions for caption in several])


def is_finished(directory: Path, settings: tuple, *, result: Path) -> bool:
    """Whether the stage of `directory` was run to its end with these settings and data, and its result is whole.

    The stages that train a generator or critic leave no result but their last checkpoint, and are asked for more steps
    each time: whether there are any left their `Run` knows.
    """
    try:
        same = files.read_json(directory / NOTE).get("key") == repr(settings)
    except files.ModelError:
        return False
    return same and files.is_whole(result)


def _note_finished(directory: Path, settings: tuple) -> None:
    files.write_json(directory / NOTE, {"key": repr(settings)})


def _require_end(run: Run) -> None:
    if run.stopped:  # also at its last step: what comes next can wait
        raise Stopped(f"stopped at step {run.step} of the {run.stage}; run the same command again to continue")
