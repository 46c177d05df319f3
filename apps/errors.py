"""What a person reads when something goes wrong: one sentence, never a traceback."""

import contextlib
import html
import logging
import secrets
from collections.abc import Iterator

import gradio as gr
import torch

log = logging.getLogger(__name__)


@contextlib.contextmanager
def kindly() -> Iterator[None]:
    """Turn any exception into a `gr.Error` that may be shown: a ValueError says itself, others only a number."""
    try:
        yield
    except gr.Error:
        raise
    except torch.OutOfMemoryError as error:
        raise told("there is not enough memory for so many pictures: choose fewer images") from error
    except ValueError as error:
        raise told(str(error)) from error
    except Exception as error:
        number = secrets.token_hex(4)
        log.exception("error %s in the demo", number)
        raise told(f"something went wrong (id {number}). Details are in the server log") from error


def told(sentence: str) -> gr.Error:
    """An error with a capital, a full stop and nothing that a browser could take for markup."""
    sentence = sentence.strip()
    if not sentence.endswith((".", "?")):
        sentence += "."
    return gr.Error(html.escape(sentence[:1].upper() + sentence[1:], quote=False), print_exception=False)
