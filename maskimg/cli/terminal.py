"""Standard output and error as they are found: closed, full, abandoned, or of an encoding that lacks a letter."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, whatever is printed can be printed.

    A closed stream is replaced by one that leads nowhere. Letters that the encoding lacks, and bytes of file names that
    are no letters, are written as escapes. What is said on standard error is only talk: where it cannot be written,
    because the terminal is gone or the disk full, the work goes on without it.
    """
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _escaping(sys.stdout) if sys.stdout else _nowhere()
    sys.stderr = _talking(sys.stderr) if sys.stderr else _nowhere()
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def silence_stdout() -> None:
    """Nobody can read what is still to be printed; Python itself would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next file that is opened would get the number, and what others print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 (open until the process ends)


def _escaping(stream: TextIO) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _talking(stream: TextIO) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # PYTHONUNBUFFERED leaves out what is between
    if not isinstance(raw, io.RawIOBase):
        return _escaping(stream)
    return io.TextIOWrapper(
        io.BufferedWriter(_Unheard(raw)), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


class _Unheard(io.RawIOBase):
    """A stream to write to, whose errors are nobody's concern."""

    def __init__(self, raw: io.RawIOBase):
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data, /) -> int:
        with contextlib.suppress(OSError):
            return self._raw.write(data) or len(data)
        return len(data)

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()
