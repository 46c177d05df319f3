"""What a model directory holds: pipeline.json, and tokenizer, generator and critic with their weights."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from maskimg import __version__
from maskimg.data.sources import text
from maskimg.drawing.model import Model
from maskimg.maskgit import MaskGit
from maskimg.networks.architectures import read_network, write_network
from maskimg.networks.transformer import TokenCritic, TransformerConfig
from maskimg.networks.words import read_words
from maskimg.sampler import Sampler
from vqgan import Tokenizer, files
from vqgan.tokenizer import share_tokenizer, tokenizer_checksum

FORMAT = 1
BUNDLED = Path(__file__).parents[1] / "bundled"


def bundled_models() -> list[str]:
    """Names of the models that came with the package."""
    return sorted(path.name for path in BUNDLED.glob("*") if (path / files.MANIFEST).is_file())


def locate_model(name: str | Path) -> Path:
    """The directory of a bundled model, or as `files.locate` finds it.

    Raises:
        ModelError: there is none.
    """
    return BUNDLED / name if isinstance(name, str) and name in bundled_models() else files.locate(name)


def read_parts(directory: Path) -> dict[str, Any]:
    """A model directory -> the arguments of Model by their names, those of the machine left out.

    Raises:
        ModelError: it is incomplete, damaged, or made by a newer version.
    """
    files.verify(directory)
    about = files.read_json(directory / "pipeline.json")
    if about.get("format") != FORMAT:
        raise files.ModelError(
            f"`{directory}` has format {about.get('format')}, this version reads {FORMAT}: upgrade maskimg"
        )
    about["manifest_sha256"] = files.checksum(directory / files.MANIFEST)
    try:
        other = files.has_part(directory, "source_tokenizer")
        return {
            "tokenizer": Tokenizer.from_directory(directory / "tokenizer"),
            "net": _read_generator(directory, about.get("heads", [])),
            "labels": about["labels"],
            "words": read_words(about.get("words")),
            "source_tokenizer": Tokenizer.from_directory(directory / "source_tokenizer") if other else None,
            "recipe": Sampler(**about["recipe"]),
            "presets": {name: Sampler(**numbers) for name, numbers in about.get("presets", {}).items()},
            "about": about,
        }
    except files.ModelError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise no_fit(directory, error) from error


def no_fit(directory: Path, error: Exception) -> files.ModelError:
    """What is said of a directory whose parts do not belong together, or not to this version."""
    return files.ModelError(f"`{directory}` does not fit this version ({error}): upgrade maskimg, or download it again")


def write_parts(directory: Path, model: Model, *, name: str, dtype: torch.dtype | None) -> dict[str, Any]:
    """Write networks and pipeline.json to `directory` -> what pipeline.json holds.

    Args:
        name: of the model, where it has none yet.
        dtype: of the weights; as they are, if not given.
    """
    model.tokenizer.write(directory / "tokenizer", dtype)
    if model.source_tokenizer is not model.tokenizer:
        model.source_tokenizer.write(directory / "source_tokenizer", dtype)
    write_network(directory / "generator", model.net, dtype)
    if model.critic is not None:
        files.write_module(directory / "critic", dataclasses.asdict(model.critic.config), model.critic, dtype)
    heads = list(model.generator.heads)
    if heads:
        files.write_module(directory / "heads", {"heads": heads}, model.generator.heads, dtype)
    about = {key: value for key, value in model.about.items() if key != "manifest_sha256"}
    about |= {
        "format": FORMAT,
        "name": text(about.get("name", name)),
        "labels": {field: list(names) for field, names in model.labels.names.items()},
        "words": model.words.numbers if model.words else None,
        "recipe": model.recipe.numbers(),
        "presets": {name: sampler.numbers() for name, sampler in model.presets.items()},
        "heads": heads,
        "image_size": model.image_size,
        "versions": {"maskimg": __version__, "torch": torch.__version__},
    }
    files.write_json(directory / "pipeline.json", about)
    return about


def short_card(model: Model, about: dict[str, Any]) -> str:
    """README.md of a model about which nobody has written more."""
    fields = "".join(f"- {field}: {', '.join(names)}\n" for field, names in about["labels"].items())
    sentence = about.get("memorisation", {}).get("in_words")
    learnt = f"Memorisation: {sentence}.\n\n" if sentence else ""
    words = f"Prompts: {model.words.summary}.\n\n" if model.words else ""
    source = f"Translates pictures: {model.source_kind}.\n\n" if model.source_kind else ""
    return (
        f"# {about['name']}\n\nA maskimg model: {model.image_size} pixels, {model.grid[0]}x{model.grid[1]} tokens, "
        f"{model.tokenizer.vocab_size} codes.\n\n    maskimg demo --model {about['name']}\n\n"
        f"Labels:\n\n{fields or '- none'}\n\n{words}{source}{learnt}"
        "Training and measured quality: see pipeline.json.\n"
    )


def check_lender(directory: Path, lender: str) -> None:
    """Raises ValueError where `lender` cannot be the name of another model beside `directory`."""
    if lender in ("", "..", directory.name) or Path(lender).name != lender:
        raise ValueError(f"tokenizer_of must be the name of another model beside this one, got `{lender}`")


def lend_tokenizer(lender: Path, directory: Path) -> None:
    """Replace the tokenizer in the unfinished model `directory` by a note that it is that of the model `lender`.

    Raises:
        ModelError: `lender` is damaged, or no model. ValueError: its tokenizer is another one.
    """
    files.verify(lender)
    if tokenizer_checksum(lender) != tokenizer_checksum(directory):
        raise ValueError(f"`{lender}` has another tokenizer, or in another precision: leave `tokenizer_of` out")
    for part in (directory / "tokenizer").iterdir():
        part.unlink()
    share_tokenizer(directory / "tokenizer", lender)


def _read_generator(directory: Path, heads: list[str]) -> MaskGit:
    critic = None
    if files.has_part(directory, "critic"):
        critic = TokenCritic(files.read_config(directory / "critic", TransformerConfig))
        files.read_weights(directory / "critic", critic)
    generator = MaskGit(
        read_network(directory / "generator"),
        token_critic=critic,
        self_cond="self_cond" in heads,
        self_token_critic="self_critic" in heads,
    )
    if heads:
        files.read_weights(directory / "heads", generator.heads)
    return generator
