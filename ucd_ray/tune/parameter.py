"""How one key of a recipe varies in a study.  Needs neither torch, Optuna nor Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ucd_ray.config import Config

Choice = str | int | float | bool | None
Value = str | int | float | bool | None | list[float] | dict[str, Any]


class Parameter(Config):
    """How one key varies: a range (`low`, `high`, optionally `log` or `step`) or `choices`.

    With `when` it exists only under some values of other searched keys.
    """

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Sample evenly in the logarithm."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance of neighbouring values."""
    type: Literal["float", "int"] = "float"
    """Kind of the values of a range."""
    choices: tuple[Choice, ...] | None = None
    """The values to choose from, instead of a range."""
    when: dict[str, tuple[Choice, ...] | Choice] = {}
    """Other searched keys, each with the value or values under which this one exists; empty: always."""

    @field_validator("when")
    @classmethod
    def _lists(cls, when: dict[str, Any]) -> dict[str, Any]:
        return {k: v if isinstance(v, tuple) else (v,) for k, v in when.items()}

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("give either low and high, or choices")
            if not self.choices:
                raise ValueError("choices is empty")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError("choices has a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        numbers = (self.low, self.high, self.step or 1.0)
        if self.type == "int" and not all(number.is_integer() for number in numbers):
            raise ValueError("type int needs whole numbers for low, high and step")
        return self

    @property
    def conditions(self) -> dict[str, tuple[Choice, ...]]:
        """The values of other keys under which this one exists."""
        return {k: v for k, v in self.when.items() if isinstance(v, tuple)}

    def samples(self) -> tuple[Choice, ...]:
        """Values that tell whether all fit a key: a range's ends and a value between, or all choices."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        if self.type == "int":
            return (int(self.low), int(self.high))
        inner = self.low + (self.step or (self.high - self.low) / 2**0.5)
        return (self.low, self.high, inner)

    @property
    def count(self) -> int | None:
        """How many values there are; None: a range without a step."""
        if self.choices is not None:
            return len(self.choices)
        assert self.low is not None and self.high is not None
        step = self._step
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def points(self) -> Iterator[Choice] | None:
        """All values, one after the other, if they can be counted."""
        count = self.count
        return None if count is None else map(self._point, range(count))

    def draw(self, random: Random) -> Choice:
        """Any value, all alike likely; on a logarithmic scale with `log`."""
        if (count := self.count) is not None:
            return self._point(random.randrange(count))
        assert self.low is not None and self.high is not None
        if self.log:
            return math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        return random.uniform(self.low, self.high)

    @property
    def _step(self) -> float | None:
        return self.step or (1.0 if self.type == "int" else None)

    def _point(self, index: int) -> Choice:
        if self.choices is not None:
            return self.choices[index]
        assert self.low is not None and self._step is not None
        value = self.low + self._step * index
        return int(value) if self.type == "int" else value

    def holds(self, value: Value) -> bool:
        """Whether `value` lies in the range, on one of its steps if it has some, or is a choice."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self._step or 1)
        return self._step is None or abs(steps - round(steps)) < 1e-8
