"""A clean stop: signals set a flag that the loop looks at between two steps, so that nothing is cut in half."""

import signal
import threading
from typing import Any

# SIGTERM comes before a machine is taken away, SIGUSR1 from schedulers such as SLURM, SIGINT from a keyboard.
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignals:
    """While active, these signals only set `received`; a second SIGINT interrupts at once."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
