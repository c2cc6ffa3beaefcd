"""What a search may vary: typed dimensions in the form that searches best.

A dimension stands for an option's value by a number of its own, its parameter: the logarithm of a
rate, one minus a share, the exponent of a power of two. Nothing here needs Optuna.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from metaplastic.errors import ConfigurationError

Value = float | int | str | bool | None


class Suggests(Protocol):
    """An Optuna trial, as far as a dimension needs it."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Dimension(ABC):
    """One option that a search varies."""

    @abstractmethod
    def suggest(self, trial: Suggests, name: str) -> Value:
        """The option's value in a trial."""

    @abstractmethod
    def parameter(self, value: Value) -> Value:
        """The parameter that stands for ``value``, the inverse of what ``suggest`` does.

        Raises:
            ConfigurationError: for a value outside the dimension.
        """

    @abstractmethod
    def grid(self, points: int) -> list[Value]:
        """Parameters spread over the dimension, at most ``points`` of them."""

    def describe(self) -> dict[str, Any]:
        """``{"type": class name, ...}`` in plain values, the same for equal dimensions."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"type": type(self).__name__, **plain}

    def _inside(self, value: Value, low: float, high: float) -> float:
        slack = 1e-9 * max(abs(low), abs(high))
        if (
            isinstance(value, bool)
            or not isinstance(value, float | int)
            or not low - slack <= value <= high + slack
        ):
            raise ConfigurationError(f"{self} does not hold {value!r}.")
        return min(max(float(value), low), high)

    def _check(self, fits: bool, wanted: str) -> None:
        if not fits:
            raise ConfigurationError(f"{self}: {wanted}.")


@dataclass(frozen=True)
class Real(Dimension):
    """A number in ``low``..``high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        self._check(-math.inf < self.low <= self.high < math.inf, "low must not exceed high")

    def suggest(self, trial: Suggests, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high)

    def parameter(self, value: Value) -> float:
        return self._inside(value, self.low, self.high)

    def grid(self, points: int) -> list[Value]:
        return [_between(self.low, self.high, i, points) for i in range(points)]


@dataclass(frozen=True)
class Log(Dimension):
    """A positive number in ``low``..``high`` whose order of magnitude matters."""

    low: float
    high: float

    def __post_init__(self) -> None:
        self._check(0 < self.low <= self.high < math.inf, "needs 0 < low <= high")

    def suggest(self, trial: Suggests, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=True)

    def parameter(self, value: Value) -> float:
        return self._inside(value, self.low, self.high)

    def grid(self, points: int) -> list[Value]:
        ends = math.log(self.low), math.log(self.high)
        # The way through the logarithm and back may step over the ends.
        spread = [math.exp(_between(*ends, i, points)) for i in range(points)]
        return [min(max(value, self.low), self.high) for value in spread]


@dataclass(frozen=True)
class OneMinus(Dimension):
    """A share close to 1, searched as the logarithm of one minus itself; ``low`` and ``high`` bound
    the share.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        self._check(-math.inf < self.low <= self.high < 1, "needs low <= high < 1")

    def suggest(self, trial: Suggests, name: str) -> float:
        return 1.0 - trial.suggest_float(name, 1.0 - self.high, 1.0 - self.low, log=True)

    def parameter(self, value: Value) -> float:
        return 1.0 - self._inside(value, self.low, self.high)

    def grid(self, points: int) -> list[Value]:
        return Log(1.0 - self.high, 1.0 - self.low).grid(points)


@dataclass(frozen=True)
class PowerOfTwo(Dimension):
    """A power of two in ``low``..``high``, searched as its exponent."""

    low: int
    high: int

    def __post_init__(self) -> None:
        powers = all(end > 0 and end & (end - 1) == 0 for end in (self.low, self.high))
        self._check(powers and self.low <= self.high, "both ends must be powers of two")

    def suggest(self, trial: Suggests, name: str) -> int:
        return 2 ** trial.suggest_int(name, *self._ends())

    def parameter(self, value: Value) -> int:
        exponent = math.log2(self._inside(value, self.low, self.high))
        if not exponent.is_integer():
            raise ConfigurationError(f"{self} does not hold {value!r}.")
        return int(exponent)

    def grid(self, points: int) -> list[Value]:
        low, high = self._ends()
        spread = [round(_between(low, high, i, points)) for i in range(points)]
        return list(dict.fromkeys(spread))

    def _ends(self) -> tuple[int, int]:
        return int(math.log2(self.low)), int(math.log2(self.high))


@dataclass(frozen=True)
class Choice(Dimension):
    """One of a few values."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        self._check(len(self.values) > 0, "needs at least one value")

    def suggest(self, trial: Suggests, name: str) -> Value:
        return trial.suggest_categorical(name, self.values)

    def parameter(self, value: Value) -> Value:
        if value not in self.values:
            raise ConfigurationError(f"{self} does not hold {value!r}.")
        return value

    def grid(self, points: int) -> list[Value]:
        return list(self.values[:points])


Space = Mapping[str, Dimension]
"""The dimensions of a search by the option that they vary."""


def parameters(space: Space, options: Mapping[str, Any]) -> dict[str, Value]:
    """The parameters that stand for some options, to begin a search with.

    An option outside its dimension is left out, so that the sampler draws it.
    """
    found: dict[str, Value] = {}
    for name, dimension in space.items():
        try:
            found[name] = dimension.parameter(options[name])
        except ConfigurationError:
            continue
    return found


def _between(low: float, high: float, i: int, points: int) -> float:
    return low if points == 1 else min(low + (high - low) * i / (points - 1), high)
