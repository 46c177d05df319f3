"""Which part of a data set something belongs to, by the words that people call the parts."""

from collections.abc import Sequence

TRAINING = ("train", "training", "tr", "trn")
HELD_OUT = ("val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "holdout", "heldout")


def is_held_out(word: str) -> bool | None:
    """`Train` -> False, `val` or `Test` -> True, None for a word that names no part."""
    plain = word.strip().casefold().replace("-", "").replace("_", "").replace(" ", "")
    return True if plain in HELD_OUT else False if plain in TRAINING else None


def find_level(names: Sequence[str]) -> int | None:
    """The level at which folders are parts of a data set, as in `train/cat/1.png` (0) or `cat/train/1.png` (1).

    At the outermost level it is enough that training and held-out parts stand side by side (what lies elsewhere
    belongs to no part), or that there is nothing else; below it every picture must lie in a part.
    """
    folders = [name.split("/")[:-1] for name in names]
    outer = {parts[0] if parts else "" for parts in folders}
    found = {is_held_out(name) for name in outer}
    if found >= {True, False} or (len(outer) > 1 and None not in found):
        return 0
    if all(len(parts) > 1 for parts in folders) and {is_held_out(parts[1]) for parts in folders} == {True, False}:
        return 1
    return None


def common_folder(names: Sequence[str], stop: Sequence[str] = ()) -> str:
    """The folder, with a `/`, that all of `names` lie in; no deeper than one that is named in `stop`."""
    root = ""
    while names and root not in stop:
        first = names[0][len(root) :].partition("/")
        if not first[1] or not all(name.startswith(root + first[0] + "/") for name in names):
            break
        root += first[0] + "/"
    return root
