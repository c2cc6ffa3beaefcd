"""One method, one seed: what came out, and all of them in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studies.reproduce.training import Line

CONDITION, BOUND = "row_space_share", "gain_bound"
"""The probes that the table shows, from the start to the end, and that a note tells."""
STABLE = 5
"""About the largest gain bound at which simulations are stable."""


@dataclass(frozen=True)
class Outcome:
    """One job that has ended."""

    part: str
    method: str
    seed: int
    level: float | None
    curve: list[Line]
    diverged: str | None = None
    """Why it ended before its time."""

    @property
    def best(self) -> Line | None:
        """The epoch with the best validation accuracy, the first of equals."""
        trained = self.curve[1:]
        if self.diverged is not None or not trained:
            return None
        return max(trained, key=lambda line: line["validation_accuracy"])

    @property
    def accuracy(self) -> float | None:
        """On test images, 0..1, at that epoch."""
        return None if self.best is None else self.best["test_accuracy"]

    @property
    def words(self) -> str:
        """For the display."""
        return "diverged" if self.accuracy is None else f"{100 * self.accuracy:.2f} %"

    def along(self, name: str) -> list[float]:
        """One value or probe at every epoch that has it, the start first."""
        found = [line.get(name, line.get("probes", {}).get(name)) for line in self.curve]
        return [math.nan if value is None else float(value) for value in found]

    def row(self, epochs: int, test: int) -> dict[str, Any]:
        """Its row of ``result.json``."""
        best = self.best
        name = self.method if self.level is None else f"{self.method} at {self.level:g}"
        return {
            "task": self.part,
            "learner": name,
            "metagradient": None,
            "seed": self.seed,
            "steps": epochs,
            "episodes": test,
            "loss": None if best is None else best["test_loss"],
            "accuracy": self.accuracy,
            "ci95": None,
            "per_task": None,
            "forgetting": None,
            "diverged": int(self.diverged is not None),
        }


@dataclass(frozen=True)
class Summary:
    """One method over its seeds; shares are 0..1, None is what there is not."""

    part: str
    method: str
    seeds: int
    diverged: int
    accuracy: float | None
    std: float | None
    """Over seeds, n - 1 in the denominator."""
    difference: float | None
    """From the reference, mean over the seeds that both have."""
    difference_std: float | None
    published: float | None
    seconds: float | None
    """For each epoch."""
    unconverged: float | None
    """Share of the images shown while weights learn."""
    condition: tuple[float, float] | None
    """Row-space share of the feedback at the start and at the end."""
    gain_bound: float | None
    """The largest of any epoch and seed."""
    slowness: float | None
    """In epochs, mean over the seeds, where the paper asks for it."""

    @property
    def warning(self) -> str | None:
        """What to say of a method with images without control."""
        if not self.unconverged or self.gain_bound is None:
            return None
        return (
            f"{self.method}: {100 * self.unconverged:.2g} % of the images shown were without "
            f"control; its largest gain bound was {self.gain_bound:.2g}, and simulations are "
            f"stable below about {STABLE}. Errors that a small nudge brings down to rounding "
            "count as well."
        )


def summarise(
    outcomes: Sequence[Outcome],
    reference: str,
    published: Mapping[str, float | None],
    slow: int | None = None,
) -> list[Summary]:
    """One line for each method of one part, in the order given; sweeps are left out. ``slow`` is
    the last epoch of what the slowness is fitted to, None for no such fit.
    """
    plain = [o for o in outcomes if o.level is None]
    against = {o.seed: o.accuracy for o in plain if o.method == reference}
    found = []
    for name in dict.fromkeys(o.method for o in plain):
        own = [o for o in plain if o.method == name]
        scores = {o.seed: o.accuracy for o in own if o.accuracy is not None}
        pairs = [
            score - other
            for seed, score in scores.items()
            if (other := against.get(seed)) is not None and name != reference
        ]
        seconds = [line["seconds"] for o in own for line in o.curve[1:]]
        lost = [line["unconverged"] for o in own for line in o.curve[1:]]
        bounds = [v for o in own for v in o.along(BOUND) if math.isfinite(v)]
        fits = [slowness(o.along("test_accuracy")[1 : slow + 1]) for o in own] if slow else []
        shares = [o.along(CONDITION) for o in own if o.curve]
        ends = np.array([[s[0], s[-1]] for s in shares]) if shares else np.full((1, 2), np.nan)
        start, end = (float(v) for v in ends.mean(0))
        found.append(
            Summary(
                part=own[0].part,
                method=name,
                seeds=len(own),
                diverged=sum(o.diverged is not None for o in own),
                accuracy=mean(list(scores.values())),
                std=std(list(scores.values())),
                difference=mean(pairs),
                difference_std=std(pairs),
                published=published.get(name),
                seconds=mean(seconds),
                unconverged=mean(lost),
                condition=None if math.isnan(start) else (start, end),
                gain_bound=max(bounds, default=None),
                slowness=mean([fit for fit in fits if fit is not None]),
            )
        )
    return found


def slowness(accuracy: Sequence[float]) -> float | None:
    """Epochs s to half of a_max in the least-squares fit a(t) = a_max t / (s + t) to the accuracy
    after epochs t = 1, 2, .. (Dellaferrera & Kreiman 2022). The fit is 0 at t = 0, so that the
    chance level there would not move it. None for fewer than three epochs; at most 1000.
    """
    wanted = np.asarray(accuracy, dtype=float)
    if len(wanted) < 3 or not np.isfinite(wanted).all():
        return None
    epochs = np.arange(1, len(wanted) + 1)

    def misfit(s: float) -> float:
        shape = epochs / (s + epochs)
        best = (shape @ wanted) / (shape @ shape)
        return float(np.square(best * shape - wanted).sum())

    low, high = -6.0, 3.0
    for _ in range(8):
        grid = np.linspace(low, high, 41)
        least = int(np.argmin([misfit(10.0**v) for v in grid]))
        low, high = grid[max(least - 1, 0)], grid[min(least + 1, 40)]
    return 10.0 ** float((low + high) / 2)


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return float(np.mean(values)) if values else None


def std(values: Sequence[float]) -> float | None:
    """With n - 1 in the denominator; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
