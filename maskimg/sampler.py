"""The numbers of the sampling loop: what a person may set, and what a model carries as its recipe and presets."""

import dataclasses
import math
from typing import Any

import torch

from maskimg.masking import schedule_named
from maskimg.values import WrongType, instance, one_of, real_number, shown, text, truth, written_whole

ORDERS = ("confidence", "halton", "random", "critic", "moment")
BEFORE_DRAW = ("halton", "random")  # orders that rank the tokens before any code is drawn
GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")

Knots = float | tuple[float, ...]
_KNOTS = ("token_temperature", "choice_temperature", "guidance")
_LIMITS = {
    "token_temperature": (0.001, 10),
    "choice_temperature": (0, 100),
    "guidance": (0, 20),
    "guidance_power": (0.1, 10),
    "guidance_start": (0, 1),
    "guidance_end": (0, 1),
    "top_p": (0.001, 1),
    "revise": (0, 0.9),
}


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

    Raises:
        WrongType: a value is of another type. ValueError: it is out of range, or there is no such schedule or order.
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
        for name in ("counts", *_KNOTS):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "field_guidance", _pairs(self.field_guidance))
        instance("counts", self.counts, tuple, "a list of whole numbers")
        object.__setattr__(
            self, "counts", tuple(written_whole("each of the counts", count, 1, 2**20) for count in self.counts)
        )
        if self.counts:
            object.__setattr__(self, "steps", len(self.counts))
        # A browser, or a person, writes 1 for 1.0: the same sampler is written in one way.
        for name, (low, high) in {"steps": (1, 1024), "top_k": (0, 2**20)}.items():
            object.__setattr__(self, name, written_whole(name, getattr(self, name), low, high))
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value == ():
                raise ValueError(f"{name} is an empty list: give a number")
            if isinstance(value, tuple) and name in _KNOTS:
                found: Knots = tuple(real_number(name, each, low, high) for each in value)
            else:
                found = real_number(name, value, low, high)
            object.__setattr__(self, name, found)
        truth("critic_revises", self.critic_revises)
        for name, known in (("order", ORDERS), ("guidance_schedule", GUIDANCE_SCHEDULES)):
            one_of(name, getattr(self, name), known)
        schedule_named(text("schedule", self.schedule))

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
    pairs = list(given.items()) if isinstance(given, dict) else given
    alike = isinstance(pairs, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    if not alike:
        raise WrongType(f"field_guidance must be pairs of a field and a strength, got {shown(given)}")
    found: dict[str, float] = {}
    for name, strength in pairs:
        if text("a field of field_guidance", name) in found:
            raise ValueError(f"field_guidance names {shown(name)} twice: give one strength")
        found[name] = real_number(f"field_guidance of {name}", strength, 0, 20)
    return tuple(sorted(found.items()))


def _spread(value: Knots, i: int, steps: int) -> float:
    """The value at step i of a number, or of a list whose values are spread over the steps."""
    if not isinstance(value, tuple):
        return value
    place = i / (steps - 1) * (len(value) - 1) if steps > 1 else 0.0
    left = min(int(place), len(value) - 1)
    right = min(left + 1, len(value) - 1)
    return value[left] + (place - left) * (value[right] - value[left])
