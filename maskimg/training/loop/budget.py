"""How long to train, and how the learning rate follows from what is used up."""

import dataclasses

from maskimg.training.loop.ranges import MOST, require_ranges


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, of minutes spent in the loop, or whichever ends first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")
        require_ranges(self, {"steps": (0, MOST), "minutes": (0, MOST)})

    @property
    def long(self) -> bool:
        """Whether half a minute of compiling is well spent."""
        return (self.minutes or 0) > 3 or (self.steps or 0) > 1000

    def progress(self, step: int, seconds: float) -> float:
        """The share used up, 0 to 1."""
        by_steps = step / self.steps if self.steps else float(self.steps == 0)
        by_time = seconds / (60 * self.minutes) if self.minutes else float(self.minutes == 0)
        return min(1.0, max(by_steps, by_time))


def learning_rate_scale(progress: float, *, warmup: float = 0.02, cooldown: float = 0.4) -> float:
    """Warm-up, constant, linear cool-down to zero: most of a short run's loss falls in the cool-down."""
    return min(1.0, (progress + 1e-3) / warmup, max(0.0, 1 - progress) / cooldown)


class Tenths:
    """When a training is evaluated: each time that another tenth of its budget is used up.

    Args:
        progress: the share that was used up before.
    """

    def __init__(self, progress: float):
        self.reached = int(10 * progress)

    def passed(self, progress: float) -> bool:
        """Whether a tenth was completed since the last question."""
        before, self.reached = self.reached, max(self.reached, int(10 * progress))
        return self.reached > before
