"""Pictures from the browser, all through the door of `vqgan.images`.

Gradio's components would open files themselves: without a limit on pixels, and with an error that says nothing. The
functions here take their place (`component.preprocess = ...`). They are set on the instance: a subclass would make
Gradio write a .pyi file beside this module.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from maskimg_apps.demo.serving.errors import kindly
from vqgan import ImageError
from vqgan.images import OR_RAISE, read_image
from vqgan.original import Original, load_original

MAX_BLOBS = 32
Opened = TypeVar("Opened")


class Drawing(NamedTuple):
    """What is on the canvas: the picture, and bool (H, W), True where it is painted.

    The picture is what the browser makes of the file on its canvas: it keeps transparency, and colours in sRGB.
    """

    picture: Original | None
    painted: np.ndarray | None


class RecentBlobs(OrderedDict):
    """The canvas contents that browsers sent, the newest MAX_BLOBS.

    Gradio keeps each until it is used, so anyone who can reach the page could fill the memory. And it looks one up,
    adds a layer, and puts it back, in several threads at once: what is looked up must be in here already, or all but
    the last layer are lost.
    """

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def get(self, key, default=None):
        with self.lock:
            if key not in self and default is not None:
                super().__setitem__(key, default)
                while len(self) > MAX_BLOBS:
                    self.popitem(last=False)
            return super().get(key)

    def __setitem__(self, key, value):
        if self.get(key, value) is not value:
            super().__setitem__(key, value)


def guard_editor(editor: Any) -> Any:
    """Let a `gr.ImageEditor` hand over a `Drawing`."""
    editor.blob_storage = RecentBlobs()

    def preprocess(payload: Any) -> Drawing:
        if payload is not None and payload.id is not None:
            payload = editor.blob_storage.get(payload.id)  # kept: one stroke may start several events
        if payload is None or payload.background is None:
            return Drawing(None, None)
        with kindly():
            layers = [_alpha(_file(layer)) for layer in payload.layers if layer is not None]
            return Drawing(load_original(_file(payload.background)), _union(layers))

    editor.preprocess = preprocess
    return editor


def guard_image(image: Any) -> Any:
    """Let a `gr.Image` hand over the path of the upload, unopened."""
    image.preprocess = lambda payload: payload.path if payload is not None else None
    return image


def open_upload(path: str | None) -> Original:
    """The uploaded picture at `path`; errors do not name its path on the server.

    Raises:
        ImageError: there is none, or it cannot be used.
    """
    return _open(path, "picture", load_original)


def open_mask(path: str | None) -> Image.Image:
    """The uploaded mask at `path` as its file has it, for `maskimg.drawing.paint`; errors as of `open_upload`."""
    return _open(path, "mask", read_image)


def _open(path: str | None, what: str, read: Callable[[io.BytesIO], Opened]) -> Opened:
    if not path:
        raise ImageError(f"there is no {what}: choose a file first")
    try:
        return read(io.BytesIO(Path(path).read_bytes()))
    except ImageError as error:
        raise ImageError(str(error).replace("the picture", f"the {what}").replace(OR_RAISE, "")) from error
    except FileNotFoundError as error:  # kept for a day
        raise ImageError(f"the {what} is no longer on the server: choose or draw it again") from error


def _file(data: Any) -> io.BytesIO:
    return io.BytesIO(data if isinstance(data, bytes) else Path(data.path).read_bytes())


def _alpha(file: io.BytesIO) -> np.ndarray:
    """Where a layer is painted, bool (H, W)."""
    return np.asarray(read_image(file).convert("RGBA").getchannel("A")) > 0


def _union(layers: list[np.ndarray]) -> np.ndarray | None:
    """Several layers as one; those of another size than the first are left over from another picture."""
    return np.logical_or.reduce([layer for layer in layers if layer.shape == layers[0].shape]) if layers else None
