"""The numbers of the sampling loop: what a person may set, and what a model carries as its recipe and presets."""

import dataclasses
import math
from typing import Any

import torch

from maskimg.masking import schedule_named

ORDERS = ("confidence", "halton", "random", "critic", "moment")
PATHS = ("halton", "random")  # orders that do not look at what is predicted
GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")

Knots = float | tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The numbers of the loop; a model carries its own as its recipe.

    A temperature or guidance may also be a list: its values are spread over the steps, from the first to the last,
    with straight lines between them; a list as long as the steps sets each.

    Attributes:
        steps: forward passes (twice as costly where guidance is on).
        schedule: how fast masked tokens become fewer, by name.
        counts: how many tokens each step reveals, instead of `steps` and `schedule`; scaled to what is missing.
        order: which tokens are kept first: the most probable draws (`confidence`), evenly spread ones (`halton`), any
            (`random`), those the critic believes (`critic`), or those where a draw will be most probable, chosen
            before it is made (`moment`).
        critic_revises: in the order `critic`, let it also mask a token that was kept before.
        token_temperature: of the draw; lower is safer and plainer.
        choice_temperature: of Gumbel noise on the scores of `confidence`, `moment` and `critic`. A number fades to
            nothing over the steps, as in MaskGIT; a list is taken as it is.
        guidance: towards what is asked for: u + guidance (c - u); 1 is off.
        field_guidance: towards single label fields or sequences, by name, beyond that; such as (("style", 2.0),).
        guidance_schedule: `constant`; `linear`, from off at the first step to all at the last; or `power-cosine`,
            1 + (guidance - 1) (1 - cos(pi t^p)) / 2 with p = guidance_power.
        guidance_start, guidance_end: guidance is on while the share of revealed tokens is between them.
        top_k, top_p: draw among the k most probable codes, or the fewest that hold probability p; 0 and 1 are off. Of
            equally probable codes the lowest are kept.
        revise: share of the tokens drawn so far that each step gives back, at random, and draws again; never more than
            are masked after the step, so that the last one gives nothing back.
    """

    steps: int = 12
    schedule: str = "cosine"
    counts: tuple[int, ...] = ()
    order: str = "halton"
    critic_revises: bool = True
    token_temperature: Knots = 1.0
    choice_temperature: Knots = 1.0
    guidance: Knots = 1.0
    field_guidance: tuple[tuple[str, float], ...] = ()
    guidance_schedule: str = "constant"
    guidance_power: float = 3.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    revise: float = 0.0

    def __post_init__(self):
        for name in ("counts", "token_temperature", "choice_temperature", "guidance"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "field_guidance", _pairs(self.field_guidance))
        if self.counts:
            if any(count != int(count) or count < 1 for count in self.counts):
                raise ValueError(f"counts must be whole numbers of 1 or more, got {self.counts}")
            object.__setattr__(self, "steps", len(self.counts))
        limits = {
            "steps": (1, 1024),
            "token_temperature": (0.001, 10),
            "choice_temperature": (0, 100),
            "guidance": (0, 20),
            "guidance_power": (0.1, 10),
            "guidance_start": (0, 1),
            "guidance_end": (0, 1),
            "top_k": (0, 2**20),
            "top_p": (0.001, 1),
            "revise": (0, 0.9),
        }
        for name, strength in self.field_guidance:
            if not 0 <= strength <= 20:
                raise ValueError(f"field_guidance of {name} must be between 0 and 20, got {strength}")
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value == ():
                raise ValueError(f"{name} is an empty list: give a number")
            for each in value if isinstance(value, tuple) else (value,):
                if not low <= each <= high:  # also refuses NaN
                    raise ValueError(f"{name} must be between {low} and {high}, got {each}")
        if self.steps != int(self.steps) or self.top_k != int(self.top_k):
            raise ValueError(f"steps and top_k must be whole numbers, got {self.steps} and {self.top_k}")
        # A browser, or a person, writes 1 for 1.0: the same sampler is written in one way.
        for name in (field.name for field in dataclasses.fields(self) if isinstance(field.default, float)):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(map(float, value)) if isinstance(value, tuple) else float(value))
        for name, known in (("order", ORDERS), ("guidance_schedule", GUIDANCE_SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got `{getattr(self, name)}`")
        schedule_named(self.schedule)
        object.__setattr__(self, "steps", int(self.steps))
        object.__setattr__(self, "top_k", int(self.top_k))
        object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))

    @property
    def forwards(self) -> int:
        """Forward passes for one image with a condition: steps, and once more for each guidance that is on."""
        return self.steps + sum(strength != 1 for i in range(self.steps) for strength in self.guidances_at(i).values())

    def numbers(self) -> dict[str, Any]:
        """Every field as JSON has it; `Sampler(**numbers)` is the same sampler."""
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return lists | {"field_guidance": dict(self.field_guidance)}

    def temperature_at(self, i: int) -> float:
        return _spread(self.token_temperature, i, self.steps)

    def choice_at(self, i: int) -> float:
        if isinstance(self.choice_temperature, tuple):
            return _spread(self.choice_temperature, i, self.steps)
        return self.choice_temperature * (1 - (i + 1) / self.steps)

    def guidances_at(self, i: int) -> dict[str, float]:
        """Guidance of step i by field, 1 where it is off; that of the whole condition by the name ""."""
        return {"": self.guidance_at(i)} | {name: self._guided(strength, i) for name, strength in self.field_guidance}

    def guidance_at(self, i: int) -> float:
        """Guidance of the whole condition at step i, 1 where it is off."""
        return self._guided(self.guidance, i)

    def _guided(self, guidance: Knots, i: int) -> float:
        if self.counts:
            revealed = sum(self.counts[:i]) / sum(self.counts)
        else:
            revealed = 1 - float(schedule_named(self.schedule)(torch.tensor(i / self.steps, dtype=torch.float64)))
        if not self.guidance_start - 1e-9 <= revealed <= self.guidance_end + 1e-9:
            return 1.0
        full = _spread(guidance, i, self.steps)
        t = i / (self.steps - 1) if self.steps > 1 else 1.0
        rise = {
            "constant": 1.0,
            "linear": t,
            "power-cosine": (1 - math.cos(math.pi * t**self.guidance_power)) / 2,
        }[self.guidance_schedule]
        return 1 + (full - 1) * rise


def describe(sampler: Sampler) -> str:
    """The numbers in words, those that are as usual left out."""
    usual = vars(Sampler())
    always = ("steps", "order", "schedule", "guidance")
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in vars(sampler).items()
        if name in always or value != usual[name]
    )


def make_presets(recipe: Sampler, has_critic: bool) -> dict[str, Sampler]:
    """`fast`, `balanced` and `best` for a model whose own presets were not measured: its recipe at other costs."""
    best = {"order": "critic", "choice_temperature": 2.0} if has_critic else {}
    return {
        "fast": dataclasses.replace(recipe, steps=8, counts=()),
        "balanced": recipe,
        "best": dataclasses.replace(recipe, steps=max(24, recipe.steps), counts=(), **best),
    }


def _pairs(given: Any) -> tuple[tuple[str, float], ...]:
    """A dictionary, as JSON has it, or pairs, in the order of their names."""
    pairs = given.items() if isinstance(given, dict) else given
    return tuple(sorted((str(name), float(strength)) for name, strength in pairs))


def _spread(value: Knots, i: int, steps: int) -> float:
    """The value at step i of a number, or of a list whose values are spread over the steps."""
    if not isinstance(value, tuple):
        return value
    place = i / (steps - 1) * (len(value) - 1) if steps > 1 else 0.0
    left = min(int(place), len(value) - 1)
    right = min(left + 1, len(value) - 1)
    return value[left] + (place - left) * (value[right] - value[left])
