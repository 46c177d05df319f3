"""How a command ends that cannot do what it was asked. Imports nothing, so that it is there from the very start."""

import errno
import sys
from typing import NoReturn

BAD_INPUT, CANNOT_GO_ON, DISK_FULL = 2, 3, 4  # exit codes
MOST_SAID = 1000  # characters


class Refused(Exception):
    """Bad input; the message is shown on one line and the exit code is 2."""


def fail(message: str, code: int = BAD_INPUT) -> NoReturn:
    """Print one line and exit."""
    message = " ".join(message.split())
    if len(message) > MOST_SAID:  # somebody's value, ten thousand characters long
        message = f"{message[: MOST_SAID // 2]} … {message[-MOST_SAID // 2 :]}"
    _close_bars()
    print(f"maskimg: {message}", file=sys.stderr)
    raise SystemExit(code)


def _close_bars() -> None:
    """Progress bars that an error left open: the sentence would stand behind one, on the same line."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; safetensors says so only in its message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if f"os error {errno.ENOSPC}" in str(error):
            return True
        error = error.__cause__
    return False
