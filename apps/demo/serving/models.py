"""The models that the page offers: found by name, loaded when they are first asked for, and few of them at a time."""

import contextlib
import gc
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from maskimg.drawing.model_files import BUNDLED, bundled_models
from maskimg.pipeline import Pipeline
from vqgan import files
from vqgan.files import ModelError

MOST_LOADED = 2
PARTS = ("pipeline.json", files.MANIFEST)  # what makes a directory a model, and not a tokenizer


class Models:
    """One that was asked for, the bundled ones, and all those in a folder; of two of one name the first counts.

    Args:
        load: a bundled name, a directory or a hub repository -> its pipeline.
        chosen: the one that was asked for.
        folder: looked through anew whenever names are asked for: what is trained meanwhile is there.

    Attributes:
        first: the one that the page opens with: the chosen one, else a bundled one; None if there is neither.
    """

    def __init__(self, load: Callable[[str], Pipeline], *, chosen: str | None = None, folder: Path | None = None):
        self.load, self.folder = load, folder
        here = Path(chosen or "").expanduser()
        self._given = [str(here) if here.is_dir() else chosen] if chosen else []
        self.first = next((short_name(place) for place in [*self._given, *bundled_models()]), None)
        self._places: dict[str, str] = {}
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._stamps: dict[str, int] = {}
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """Those there are now. What was written anew since it was loaded is put away."""
        found: dict[str, str] = {}
        for place in [*self._given, *bundled_models(), *_models_in(self.folder)]:
            found.setdefault(short_name(place), place)
        with self._lock:
            self._places = found
            for name in [name for name in self._loaded if name not in found or self.stamp(name) != self._stamps[name]]:
                del self._loaded[name]
            return list(found)

    def stamp(self, name: str) -> int:
        """Changes when the model is written anew; 0 where that cannot be told."""
        place = self._places.get(name, "")
        directory = BUNDLED / place if place in bundled_models() else Path(place)
        try:
            return (directory / files.MANIFEST).stat().st_mtime_ns
        except OSError:
            return 0

    def pipeline(self, name: str) -> Pipeline:
        """The model, loaded if it is not; the one that was used longest ago makes room for it.

        Raises:
            ModelError: there is none of that name, or it cannot be read.
        """
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return self._loaded[name]
            if name not in self._places and name not in self.names():
                raise ModelError(f"there is no model `{name}`: choose another one")
            while len(self._loaded) >= MOST_LOADED:
                self._loaded.popitem(last=False)
            _free()
            loaded = self.load(self._places[name])
            self._loaded[name], self._stamps[name] = loaded, self.stamp(name)
            return loaded

    def address(self, name: str, *, seen_from: str | None) -> str:
        """Where the page of a model is, seen from the page of another one; that of the first is the root."""
        up = "./" if seen_from == self.first else "../../"
        return up if name == self.first else f"{up}model/{name}/"

    def held(self, name: str) -> Pipeline:
        """The model for a page to hold on to, loaded or not."""
        return cast(Pipeline, _Held(self, name))

    @contextlib.contextmanager
    def unplaced(self, name: str) -> Iterator[None]:
        """Errors about a model name it, and not where it lies: strangers may read them."""
        place = self._places.get(name, name)
        try:
            yield
        except ModelError as error:
            raise ModelError(str(error).replace(place, name)) from error
        except OSError as error:
            raise ModelError(f"the model `{name}` cannot be read ({error.strerror or 'no reason is known'})") from error


class _Held:
    """Whatever is asked of it is asked of the model of that name, which is loaded again if it was put away."""

    def __init__(self, models: Models, name: str):
        self._models, self._name = models, name

    def __getattr__(self, attribute: str) -> Any:
        with self._models.unplaced(self._name):
            pipeline = self._models.pipeline(self._name)
        return getattr(pipeline, attribute)


def short_name(place: str) -> str:
    """The last part of a path or repository, as it can stand in an address."""
    return re.sub(r"[^\w.-]+", "-", Path(place).name, flags=re.ASCII).strip("-.") or "model"


def _models_in(folder: Path | None) -> list[str]:
    try:
        found = sorted(folder.iterdir()) if folder else []
    except OSError:
        return []
    return [str(path) for path in found if path.name[0] != "." and _is_model(path)]


def _is_model(path: Path) -> bool:
    try:
        return all((path / part).is_file() for part in PARTS)
    except OSError:
        return False  # somebody else's, who lets nobody look into it


def _free() -> None:
    """What was put away must be gone before the next one comes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
