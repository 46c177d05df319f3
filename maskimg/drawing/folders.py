"""Batch sampling: labels and seeds -> PNGs, each with its recipe inside. Started again, it draws what is missing.

Picture i has the seed `seed + i` and the name of that seed. Several processes, as torchrun starts them, share the
pictures out: process r of W draws r, r + W, ... and none needs to hear of the others until the end.
"""

import contextlib
import dataclasses
import itertools
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskimg import distributed
from maskimg.conditions import LabelFields
from maskimg.data import tables
from maskimg.data.sources import DataError
from maskimg.drawing import edits
from maskimg.drawing.claims import claimed, note, note_complete, recipe_of, require_drawable
from maskimg.drawing.request import Asked, Request, RequestReader, as_request
from maskimg.drawing.runner import TOGETHER, Result, Runner
from maskimg.hardware import compile_fault
from maskimg.noise import SEEDS
from maskimg.recipe import is_whole, mark_in
from maskimg.sampler import Sampler
from maskimg.values import WrongType, shown, whole_number

NOTHING = Request()
LONG = 5e13  # multiplications and additions: minutes of a CPU, many times what compiling takes
WASTE = 1.1  # what a compiled run may draw for each picture that is kept


def sample_folder(
    runner: Runner,
    folder: str | Path,
    labels: Sequence[Asked],
    *,
    seed: int = 0,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    batch_size: int = 16,
) -> int:
    """Draw a picture of each label, with seeds seed, seed + 1, ..., as FOLDER/SEED.png -> how many were missing.

    A picture that is already there with the same recipe is kept; one of ours that is damaged is drawn again. `run.json`
    in the folder says what its pictures have in common and, when all are there, one checksum of all. A PromptWarning
    tells once of all words that the model never saw.

    Raises:
        WrongType: a value is of another type. ValueError: a number or label is wrong, another run is at work there, or
            the folder holds pictures of another recipe, or files of other people's under the names of pictures.
    """
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence):
        raise WrongType(f"labels must be a list, one label for each picture, got {shown(labels)}")
    whole_number("batch size", batch_size, 1)
    if not labels:
        raise ValueError("count must be 1 or more, got 0")
    seed = whole_number("seed", seed, 0, SEEDS - 1)
    folder = Path(folder)
    require_drawable(folder)
    # A wrong label is refused here, before anything is written.
    requests = _requests(labels, sampler, best_of)
    distinct = _distinct(requests)
    common = _common([runner.recipe_for(request, 0) for request in distinct])
    if distributed.is_first():
        runner.reader.warn(distinct)
    paths = picture_paths(folder, len(labels), seed)

    with claimed(folder, common):
        mine = range(distributed.rank(), len(labels), distributed.world())
        if recipe_of(folder) == common:
            _remove_empty(paths[i] for i in mine)
        with _bar(mine, "looking") as bar:  # closed before a sentence that says why not
            todo = [i for i in bar if not _already_there(paths[i], runner.recipe_for(requests[i], seed_of(i, seed)))]
        missing, seeds = [labels[i] for i in todo], [seed_of(i, seed) for i in todo]
        batches = draw_each(runner, missing, seeds, sampler=sampler, best_of=best_of, batch_size=batch_size)
        begun = list(itertools.islice(batches, 1))  # what cannot be drawn at all is refused before it is noted
        if distributed.is_first():
            note(folder, common)
        words = f"sampling, process 1 of {distributed.world()}" if distributed.several() else "sampling"
        with _bar(None, words, total=len(mine), initial=len(mine) - len(todo)) as bar:
            for positions, result in itertools.chain(begun, batches):
                result.save(folder)
                bar.update(len(positions))
        drawn = int(distributed.total(torch.tensor(len(todo))))  # which also waits for the others
        if distributed.is_first():
            note_complete(folder, paths)
    return drawn


def draw_each(
    runner: Runner,
    labels: Sequence[Asked],
    seeds: Sequence[int],
    *,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    batch_size: int = 16,
) -> Iterator[tuple[list[int], Result]]:
    """A picture of each label with its seed -> the positions of those just drawn, and what was drawn.

    Those that ask for the same are drawn together. Where a label is a whole Request, its own seeds, sampler and number
    of candidates do not count.
    """
    requests = _requests(labels, sampler, best_of)
    alike: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        alike.setdefault(request_key(request), []).append(i)
    nothing_given = edits.generation(runner)
    for positions in alike.values():
        for start in range(0, len(positions), batch_size):
            batch = positions[start : start + batch_size]
            request = dataclasses.replace(requests[batch[0]], seeds=[seeds[i] for i in batch])
            yield batch, runner.draw(nothing_given, request)


def request_key(asked: Asked) -> str:
    """The same for all that ask for the same but for their seeds, in whatever order they name the fields."""
    request = dataclasses.replace(as_request(asked), seeds=(0,))
    if isinstance(request.label, Mapping):
        request = dataclasses.replace(request, label=dict(sorted(request.label.items())))
    return repr(request)


def compiles_itself(
    runner: Runner,
    folder: str | Path,
    labels: Sequence[Asked],
    sampler: Sampler | str | None = None,
    best_of: int = 1,
) -> bool:
    """Whether a run that does not say so should compile: always as the pictures that are in `folder` already.

    Into a new folder, where it takes a CPU long enough, and pictures of each label fill whole loops. That depends on
    nothing that a later run into the same folder would find otherwise, since compiled sums are rounded differently.

    Raises:
        ValueError: the folder's pictures are compiled, and that cannot be done here.
    """
    found = recipe_of(Path(folder))
    if isinstance(found, dict):
        if found.get("compiled") and (fault := compile_fault(runner.device)):
            raise ValueError(
                f"the pictures in `{folder}` are compiled, which is not possible here, because {fault}: choose another "
                "folder"
            )
        return bool(found.get("compiled"))
    h, w = runner.generator.grid
    weights = sum(weight.numel() for weight in runner.generator.net.parameters())
    work = 2 * weights * h * w * runner.sampler(sampler).forwards * best_of * len(labels)
    if runner.device.type != "cpu" or work < LONG:
        return False
    of_each = Counter(map(request_key, labels)).values()
    if sum(-(-count // TOGETHER) * TOGETHER for count in of_each) >= WASTE * len(labels):
        return False
    if fault := compile_fault(runner.device):
        print(f"not compiled, which takes two or three times as long: {fault}", file=sys.stderr)
    return not fault


def seed_of(i: int, seed: int) -> int:
    return (seed + i) % SEEDS


def picture_paths(folder: Path, count: int, seed: int) -> list[Path]:
    """Where `sample_folder` puts its pictures, in their order."""
    return [folder / f"{seed_of(i, seed):06d}.png" for i in range(count)]


def each_name(fields: LabelFields, asked: Request, count: int) -> Sequence[Asked]:
    """Labels that ask for `count` pictures of each name of the first field, the names in turn; the rest as asked.

    Raises:
        ValueError: there are no names, or the label names one already.
    """
    if not fields.names:
        raise ValueError("this model was trained without labels: give --count, not --per-class")
    first = next(iter(fields.names))
    others = fields.by_field(asked.label)
    if first in others:
        raise ValueError(f"--per-class draws every {first}: leave that one label out")
    each = [dataclasses.replace(asked, label={**others, first: name}) for name in fields.names[first]]
    return each * count


def read_table(path: str | Path, reader: RequestReader, asked: Request = NOTHING) -> list[Asked]:
    """What a CSV asks for, a row each: its columns are label fields, `prompt`, `negative`; empty cells say nothing.

    Args:
        asked: holds for every row that does not say otherwise.

    Raises:
        DataError: it is no such table, or asks for what there is not; the message names the line.
    """
    always = reader.labels.by_field(asked.label)
    table = tables.read_table(Path(path).read_bytes(), str(path))
    if table.nameless:
        raise DataError(
            f"`{path}`, line {table.nameless}: it has a cell below no name: name its column in the first line"
        )
    known = {name.casefold(): name for name in (*reader.labels.names, "prompt", "negative")}
    rows: list[Asked] = []
    for row in table.rows:
        cells = {known.get(name.casefold(), name): cell for name, cell in row.cells.items() if cell}
        prompt, negative = cells.pop("prompt", asked.prompt), cells.pop("negative", asked.negative)
        rows.append(dataclasses.replace(asked, label={**always, **cells}, prompt=prompt, negative=negative))
        try:
            reader.condition(rows[-1])
        except ValueError as error:
            raise DataError(f"`{path}`, line {row.line}: {error}") from error
    if not rows:
        raise DataError(f"`{path}` holds no rows: give a line of column names, and below it a line for each picture")
    return rows


def _bar(items: Iterable[int] | None, words: str, **options) -> Any:
    """A progress bar with rate and time left; of several processes the first has one."""
    return tqdm(items, desc=words, unit="picture", disable=not distributed.is_first(), **options)


def _distinct(requests: Sequence[Request]) -> list[Request]:
    objects = {id(request): request for request in requests}.values()
    return list({request_key(request): request for request in objects}.values())


def _requests(labels: Sequence[Asked], sampler: Sampler | str | None, best_of: int) -> list[Request]:
    """Each label with the options of the whole run; one object for all places of one object."""
    found: dict[int, Request] = {}
    for label in labels:
        if id(label) not in found:
            found[id(label)] = dataclasses.replace(as_request(label), sampler=sampler, best_of=best_of)
    return [found[id(label)] for label in labels]


def _common(recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """What every picture's recipe says, but for the seed; what differs is a sentence."""
    keys = {key for recipe in recipes for key in recipe} - {"seed"}
    several = {key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)}
    return {key: "each picture's own" if key in several else recipes[0][key] for key in sorted(keys)}


def _remove_empty(paths: Iterable[Path]) -> None:
    """Files without content, as a power cut leaves them: in a folder of ours nobody can lose anything by that."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            there = path.lstat()
            if stat.S_ISREG(there.st_mode) and there.st_size == 0:
                path.unlink()


def _already_there(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a picture is there and whole.

    Raises:
        ValueError: something else has its name. Only the text in front of the pixels says whose a damaged file is.
    """
    if not os.path.lexists(path):
        return False
    found = mark_in(path) if path.is_file() else None
    if found is None:
        raise ValueError(f"`{path}` was not made by maskimg: choose another folder")
    if found == {}:
        return False  # ours, and damaged before the first pixel
    if found != recipe:
        raise ValueError(f"`{path}` was drawn with another recipe: choose another folder")
    return is_whole(path)
