"""Batch sampling: seeds -> PNGs, each with its recipe inside. Stopped and started again, it draws what is missing."""

from pathlib import Path

from tqdm import tqdm

from maskimg.noise import SEEDS
from maskimg.pipeline import Pipeline
from maskimg.prompt import Asked
from maskimg.recipe import read_recipe
from maskimg.sampler import Sampler
from vqgan import ImageError


def sample_folder(
    pipeline: Pipeline,
    folder: str | Path,
    *,
    count: int,
    seed: int = 0,
    label: Asked = None,
    sampler: Sampler | str | None = None,
    best_of: int = 1,
    batch_size: int = 16,
) -> int:
    """Draw `count` pictures with seeds seed, seed + 1, ... into FOLDER/SEED.png; returns how many were missing.

    A picture that is already there with the same recipe is kept; one that is damaged is drawn again.

    Raises:
        ValueError: a number is out of range, or the folder holds pictures of another recipe.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count and batch size must be 1 or more, got {count} and {batch_size}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be between 0 and {SEEDS - 1}, got {seed}")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{folder}` is a file, not a folder")
    pipeline.reader.condition(label)  # what the model does not know is refused before anything is written

    seeds = [(seed + i) % SEEDS for i in range(count)]
    wanted = {each: pipeline.recipe_for(label, each, sampler, best_of=best_of) for each in seeds}
    todo = [each for each, recipe in wanted.items() if not _already_there(folder, each, recipe)]
    with tqdm(total=len(todo), desc="sampling", unit="picture") as bar:
        for start in range(0, len(todo), batch_size):
            seeds = todo[start : start + batch_size]
            pipeline.generate(label, seeds=seeds, sampler=sampler, best_of=best_of).save(folder)
            bar.update(len(seeds))
    return len(todo)


def _already_there(folder: Path, seed: int, recipe: dict) -> bool:
    path = folder / f"{seed:06d}.png"
    if not path.exists():
        return False
    try:
        found = read_recipe(path)
    except ImageError:
        return False  # cut off by a full disk, say: draw it again
    if found != recipe:
        raise ValueError(f"`{path}` was drawn with another recipe: choose another folder")
    return True
