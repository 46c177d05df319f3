"""log.jsonl, which every run writes: read back as one line a step."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run has logged so far.

    Attributes:
        lines: one dictionary of figures a step, steps rising.
        damaged: how many lines could not be read and were left out.
    """

    lines: list[dict[str, Any]]
    damaged: int = 0

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps at which a figure was logged, and its values; what is no finite number is left out."""
        found = [(line["step"], line[name]) for line in self.lines if is_number(line.get(name))]
        return [step for step, _ in found], [float(value) for _, value in found]

    @property
    def names(self) -> list[str]:
        """Every figure that was logged, in the order in which they came."""
        return list(dict.fromkeys(name for line in self.lines for name in line if is_number(line[name])))


def read_log(path: str | Path) -> Log:
    """The log at `path`; an empty one where there is no such file.

    A run that was killed goes on from its last checkpoint and logs the steps after it again: then the later lines
    count. A last line that was cut off, or any other that is no JSON object with a step, is counted as damaged.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return Log([])
    lines: list[dict[str, Any]] = []
    damaged = 0
    for raw in text.splitlines():
        if not raw.strip():
            continue
        line = _parsed(raw)
        if line is None:
            damaged += 1
            continue
        while lines and lines[-1]["step"] > line["step"]:
            lines.pop()
        if lines and lines[-1]["step"] == line["step"]:
            lines[-1] |= line
        else:
            lines.append(line)
    return Log(lines, damaged)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parsed(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
