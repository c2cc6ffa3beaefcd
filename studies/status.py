"""How far a job is: the words that jobs and displays share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """One look at one job."""

    stage: str
    """Such as ``training``."""
    done: int
    total: int
    loss: float | None = None
    accuracy: float | None = None
    diverged: int = 0
    """Episodes left out so far: diverged, or not settled."""
    unit: str = "steps"


Report = Callable[[Status], None]
"""Where a job sends its Status; silence is ``lambda status: None``."""


class Every:
    """True at the first call and then once every so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, float("-inf")

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True


class Smooth:
    """A running mean of a curve that may have gaps, for the eye."""

    def __init__(self, share: float = 0.9) -> None:
        self.share, self.value = share, None

    def __call__(self, new: float | None) -> float | None:
        if new is not None:
            old = new if self.value is None else self.value
            self.value = self.share * old + (1 - self.share) * new
        return self.value
