"""The ranges within which the numbers of a training make sense."""

import sys
from collections.abc import Mapping
from typing import Any

MOST = sys.float_info.max  # of numbers without an upper end: infinity and NaN are none


def require_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """
    Args:
        ranges: the least and the largest that each field of `settings` may be; one that is None is not looked at.

    Raises:
        ValueError: a field lies outside.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            words = f"{low:g} or more" if high == MOST else f"{low:g} to {high:g}"
            raise ValueError(f"{name} must be {words}, got {value}")
