"""What is found out about a model later goes into its directory: into pipeline.json and, in words, into its card."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqgan import files, writing


def amend(directory: str | Path, change: Callable[[dict[str, Any]], None], title: str, text: str) -> None:
    """Let `change` alter what pipeline.json holds, and put `text` under `title` into README.md; all else stays.

    What somebody wrote into the card or put beside it is kept, too.

    Raises:
        ModelError: it is no model directory, or a damaged one.
    """
    directory = Path(directory)
    files.verify(directory)
    about = files.read_json(directory / "pipeline.json")
    change(about)
    card = directory / "README.md"
    before = card.read_text(encoding="utf-8") if card.is_file() else f"# {about.get('name', directory.name)}\n"
    changes = {"pipeline.json": files.json_text(about), "README.md": with_section(before, title, text)}
    writing.amend_directory(directory, changes)


def weights_in(directory: str | Path) -> dict[str, str]:
    """The checksum of each file of weights in a model directory: what makes two models the same, whatever is said."""
    listed = files.read_json(Path(directory) / files.MANIFEST)["files"]
    return {name: entry["sha256"] for name, entry in sorted(listed.items()) if name.endswith(".safetensors")}


def with_section(card: str, title: str, text: str) -> str:
    """A markdown text with `text` under the heading `title`, instead of what stood there, or at the end."""
    section = f"## {title}\n\n{text.strip()}\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    if old.search(card):
        return old.sub(lambda found: section + ("\n" if found.end() < len(card) else ""), card, count=1)
    return f"{card.rstrip()}\n\n{section}"


def plainly(value: Any) -> str:
    """A value of a model's directory or a recipe without the marks of a programming language."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plainly(each)}" for key, each in value.items())
    return ", ".join(map(plainly, value)) if isinstance(value, list | tuple) else str(value)
