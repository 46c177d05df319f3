"""What a person reads when something goes wrong: one sentence, never a traceback."""

import contextlib
import html
import logging
import secrets
from collections.abc import Iterator

import gradio as gr

from maskimg.cli.endings import is_full_disk
from maskimg.training.loop.guards import SMALL_MEMORY, memory_ran_out

log = logging.getLogger(__name__)


@contextlib.contextmanager
def kindly() -> Iterator[None]:
    """Turn any exception into a `gr.Error` to be shown: a ValueError says itself, a full disk is named, and others
    get a number under which the log has them."""
    try:
        yield
    except gr.Error:
        raise
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise _unexpected(error) from error
        raise as_error(SMALL_MEMORY) from error
    except ValueError as error:
        raise as_error(str(error)) from error
    except Exception as error:
        if is_full_disk(error):
            raise as_error("the server's disk is full: free some space, then try again") from error
        raise _unexpected(error) from error


def _unexpected(error: Exception) -> gr.Error:
    """What it was is for the log; a person is told its number there."""
    number = secrets.token_hex(4)
    log.error("error %s in the demo", number, exc_info=error)
    return as_error(f"something went wrong (id {number}). Details are in the server log")


def as_error(sentence: str) -> gr.Error:
    """An error in a sentence."""
    return gr.Error(in_a_sentence(sentence), print_exception=False)


def in_a_sentence(words: str) -> str:
    """With a capital, a full stop and nothing that a browser could take for markup, or that cannot be sent to one."""
    words = words.strip()
    if not words.endswith((".", "?")):
        words += "."
    words = words.encode("utf-8", "backslashreplace").decode()
    return html.escape(words[:1].upper() + words[1:], quote=False)
