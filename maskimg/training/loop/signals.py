"""Ends that are asked for from outside: by a keyboard, a scheduler, a machine that shuts down, a terminal that closes.

In the loop of a training a signal only sets a flag, which is looked at between two steps (`StopSignals`). Everywhere
else in a command it raises `Interrupted`, so that whatever is half-written is removed on the way out (`Interruptions`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

# SIGTERM comes before a machine is taken away, SIGUSR1 from schedulers such as SLURM, SIGINT from a keyboard, SIGHUP
# from a terminal that is closed; SIGBREAK is Windows' own.
NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
STOPS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
ALARM = getattr(signal, "SIGALRM", None)  # Windows has none

SECOND = 0.5  # seconds after which another signal is a second one: a terminal and a launcher may both send the first
RETRY = 0.1  # seconds between two looks at whether the first signal was heard
PATIENCE = 1.0  # seconds that an import may take to end by itself


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def by(self) -> str:
        """What it came from, in a word."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name


class _Handlers:
    """Handlers of all stops, put back at the end; `nohup` has SIGHUP ignored, and so it stays."""

    def __init__(self):
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class StopSignals(_Handlers):
    """While active, these signals only set `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        super().__init__()
        self.received = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class Interruptions(_Handlers):
    """While active, the first of these signals raises `Interrupted`, and a second one ends the process at once.

    Args:
        end: says that the command was interrupted, and returns its exit code: for where nothing can be raised.

    Attributes:
        heard: what the first signal raises, once there was one.
    """

    def __init__(self, end: Callable[[KeyboardInterrupt], int]):
        super().__init__()
        self.end = end
        self.heard: Interrupted | None = None
        self._at, self._process = 0.0, os.getpid()

    def __enter__(self):
        super().__enter__()
        if self._previous and ALARM:
            self._previous[ALARM] = signal.signal(ALARM, self._insist)
        return self

    def __exit__(self, *_: object) -> None:
        if self.heard and ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        super().__exit__()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or (self.heard and time.monotonic() - self._at > SECOND):
            signal.signal(number, signal.SIG_DFL)  # a child that was forked has nothing to say either
            signal.raise_signal(number)
        elif not self.heard:
            self.heard, self._at = Interrupted(number), time.monotonic()
            self._insist(number, frame)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        """Raise it, and again where somebody swallowed it, as destructors and extension modules do."""
        if self.heard is None or _on_its_way(self.heard):
            return
        if ALARM:
            signal.setitimer(signal.ITIMER_REAL, RETRY)
            # Extension modules that import others turn what is raised there into errors and tracebacks of their own.
            if _imports(frame) and time.monotonic() - self._at < PATIENCE:
                return
        if _imports(frame):
            os._exit(self.end(self.heard))
        raise self.heard


def _on_its_way(raised: BaseException) -> bool:
    """Whether what runs now runs because of `raised`: it is being cleaned up after."""
    error = sys.exception()
    while error is not None and error is not raised:
        error = error.__cause__ or error.__context__
    return error is not None


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
