"""One method, one seed: what came out, and all of them in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studies.reproduce.training import Line

CONDITION = "row_space_share"
"""The probe that the table shows, from the start to the end."""


@dataclass(frozen=True)
class Outcome:
    """One job that has ended."""

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

    def row(self, task: str, epochs: int, test: int) -> dict[str, Any]:
        """Its row of ``result.json``."""
        best = self.best
        name = self.method if self.level is None else f"{self.method} at {self.level:g}"
        return {
            "task": task,
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


def summarise(
    outcomes: Sequence[Outcome], reference: str, published: dict[str, float | None]
) -> list[Summary]:
    """One line for each method, in the order given; sweeps are left out."""
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
        shares = [o.along(CONDITION) for o in own if o.curve]
        ends = np.array([[s[0], s[-1]] for s in shares]) if shares else np.full((1, 2), np.nan)
        start, end = (float(v) for v in ends.mean(0))
        found.append(
            Summary(
                method=name,
                seeds=len(own),
                diverged=sum(o.diverged is not None for o in own),
                accuracy=_mean(list(scores.values())),
                std=_std(list(scores.values())),
                difference=_mean(pairs),
                difference_std=_std(pairs),
                published=published.get(name),
                seconds=_mean(seconds),
                unconverged=_mean(lost),
                condition=None if math.isnan(start) else (start, end),
            )
        )
    return found


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _std(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
