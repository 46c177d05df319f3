"""Is a value what was asked for? Checks whose sentences name the parameter, what it must be, and what came.

A bool is no number here, and a string is no list: Python would take both without a word.
"""

import math
import numbers
import operator
import reprlib
import unicodedata
from typing import Any

MOST_SHOWN = 60  # characters of a value in a sentence


class WrongType(TypeError, ValueError):
    """A value of another type than was asked for.

    A ValueError as well: whoever tells people what is wrong with a value tells this, too.
    """


class PromptWarning(UserWarning):
    """What is drawn may not be what was asked for: the model does not know the words."""


def whole_number(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number from `low` to `high`, both included; those of numpy and torch are taken, 2.0 is not.

    Raises:
        WrongType: it is no whole number. ValueError: it is out of range.
    """
    try:
        found = None if _is_bool(value) or getattr(value, "ndim", 0) else operator.index(value)
    except TypeError:
        found = None
    if found is None:
        raise WrongType(f"{name} must be a whole number{_range(low, high, ', ')}, got {shown(value)}")
    if (low is not None and found < low) or (high is not None and found > high):
        raise ValueError(f"{name} must be{_range(low, high)}, got {shown(found)}")
    return found


def written_whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`whole_number` of what was read from JSON, or comes from a browser, where 4.0 and 4 are the same."""
    return whole_number(name, int(value) if isinstance(value, float) and value.is_integer() else value, low, high)


def real_number(name: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """A finite number from `low` to `high`, both included; those of numpy and torch are taken.

    Raises:
        WrongType: it is no number. ValueError: it is out of range, infinite or NaN.
    """
    single = getattr(value, "ndim", None) == 0  # of numpy or torch
    if _is_bool(value) or not (isinstance(value, numbers.Real) or single):
        raise WrongType(f"{name} must be a number{_range(low, high, ', ')}, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) and low is None and high is None:
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    if not math.isfinite(found) or (low is not None and found < low) or (high is not None and found > high):
        raise ValueError(f"{name} must be{_range(low, high)}, got {shown(value)}")
    return found


def truth(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        WrongType: it is something else.
    """
    if not _is_bool(value):
        raise WrongType(f"{name} must be true or false, got {shown(value)}")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string that can be written down: no lone halves of characters, and no control characters but line breaks.

    Raises:
        WrongType: it is no string. ValueError: it holds what is no text.
    """
    if not isinstance(value, str):
        raise WrongType(f"{name} must be a string, got {shown(value)}")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            raise ValueError(f"{name} holds the character U+{ord(character):04X}, which is not text: leave it out")
    return value


def one_of(name: str, value: Any, known: Any) -> Any:
    """One of several values.

    Raises:
        WrongType: it is of a type that none of them has. ValueError: it is none of them.
    """
    known = list(known)
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    wanted = f"{name} must be one of {', '.join(map(str, known[:12]))}{more}, got {shown(value)}"
    if not any(type(value) is type(each) for each in known):
        raise WrongType(wanted)
    if value not in known:
        raise ValueError(wanted)
    return value


def instance(name: str, value: Any, kinds: type | tuple[type, ...], words: str) -> Any:
    """A value of some type, which `words` calls by its name.

    Raises:
        WrongType: it is of another one.
    """
    if not isinstance(value, kinds):
        raise WrongType(f"{name} must be {words}, got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value as it stands in a sentence: short, on one line, and plain characters only where others cannot be shown.

    A thing whose words would say little, such as a tensor, is told by its type.
    """
    if type(value) in (int, float):
        return _SHORT.repr(value)
    if isinstance(value, str):
        words = value
    elif value is None or isinstance(value, bool | int | float | bytes | list | tuple | dict | set):
        words = _SHORT.repr(value)
    elif getattr(value, "ndim", None) == 0:
        words = str(value)
    else:
        return f"a value of the type `{type(value).__name__}`"
    words = words if len(words) <= MOST_SHOWN else words[:MOST_SHOWN] + "…"
    return f"`{words if words.isprintable() else words.encode('unicode_escape').decode()}`"


class _Short(reprlib.Repr):
    """Also of a number with more digits than Python writes down."""

    def repr_int(self, x: int, level: int) -> str:
        return str(x) if x.bit_length() <= 256 else f"{'-' if x < 0 else ''}2^{x.bit_length() - 1} or more"


_SHORT = _Short()


def _is_bool(value: Any) -> bool:
    """Those of numpy and torch, too; they would pass for 0 and 1."""
    if isinstance(value, bool):
        return True
    kind = str(getattr(value, "dtype", ""))
    return kind in ("bool", "torch.bool")


def _range(low: float | None, high: float | None, comma: str = " ") -> str:
    if low is not None and high is not None:
        return f" between {low} and {high}"
    if low is not None:
        return f"{comma}{low} or more"
    return f"{comma}{high} or less" if high is not None else ""
