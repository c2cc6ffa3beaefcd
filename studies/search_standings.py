"""How the trials that were run once more stand against the default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaplastic.tune.problem import Measure
from studies.intervals import seeds_interval
from studies.search_again import Candidate
from studies.search_read import Study, scale
from studies.words import text_table

BASELINES = ("default", "published")
HEAD = (
    *("trial", "in the search", "over the default"),
    *("fresh seeds", "SD", "± 95 %", "over the default", "± 95 %"),
)


@dataclass(frozen=True)
class Standing:
    """How one trial does in one measure."""

    label: str
    trial: int
    search: float | None
    """Its value in the search, None unless it was complete there."""
    search_better: float | None
    """How much better than the default it was there; None for the default itself."""
    mean: float | None
    """Mean over the fresh seeds that did not diverge."""
    spread: float | None
    """Their standard deviation."""
    half: float | None
    """Half the 95 % interval of the mean, by Student's t over seeds."""
    better: float | None
    """How much better than the default, paired by seed; None for the default itself."""
    better_half: float | None
    diverged: int
    """Seeds."""


def standings(study: Study, candidates: Sequence[Candidate]) -> dict[Measure, list[Standing]]:
    """By measure, the best first; what diverged with some seed comes after what did not."""
    default = next((c for c in candidates if c.trial.baseline == "default"), None)
    found: dict[Measure, list[Standing]] = {}
    for i, (measure, maximize) in enumerate(zip(study.measures, study.maximize, strict=True)):
        sign = 1.0 if maximize else -1.0
        base = None if default is None else default.values(measure)
        there = None if default is None or default.trial.values is None else default.trial.values[i]
        lines = [
            _standing(c, i, measure, sign, *((None, None) if c is default else (base, there)))
            for c in candidates
        ]
        found[measure] = sorted(lines, key=lambda s: _rank(s, sign))
    return found


def _standing(
    candidate: Candidate,
    i: int,
    measure: Measure,
    sign: float,
    base: np.ndarray | None,
    there: float | None,
) -> Standing:
    """``base`` are the default's fresh values and ``there`` its value in the search."""
    trial, values = candidate.trial, candidate.values(measure)
    search = None if trial.values is None else trial.values[i]
    kept = values[np.isfinite(values)]
    gains = np.empty(0) if base is None else sign * (values - base)
    gains = gains[np.isfinite(gains)]
    return Standing(
        label=trial.label,
        trial=trial.number,
        search=search,
        search_better=None if search is None or there is None else sign * (search - there),
        mean=_known(kept.mean()) if len(kept) else None,
        spread=_known(kept.std(ddof=1)) if len(kept) > 1 else None,
        half=_known(seeds_interval(kept)),
        better=_known(gains.mean()) if len(gains) else None,
        better_half=_known(seeds_interval(gains)),
        diverged=sum(outcome.score is None for outcome in candidate.outcomes),
    )


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _rank(line: Standing, sign: float) -> tuple[int, float, int]:
    mean = np.inf if line.mean is None else -sign * line.mean
    return line.diverged, mean, line.trial


def cells(line: Standing, measure: Measure, chance: float | None) -> list[str]:
    """One line of the table under ``HEAD``."""
    written = scale(measure, chance)
    name = f"{line.label} (trial {line.trial})" if line.label in BASELINES else line.label
    lost = f" ({line.diverged} diverged)" if line.diverged else ""
    return [
        name,
        written.text(line.search),
        written.text(line.search_better, "+"),
        written.text(line.mean) + lost,
        written.text(line.spread),
        written.text(line.half),
        written.text(line.better, "+"),
        written.text(line.better_half),
    ]


def tables(found: dict[Measure, list[Standing]], chance: float | None) -> str:
    """A table for each measure."""
    parts = []
    for measure, lines in found.items():
        body = [cells(line, measure, chance) for line in lines]
        parts.append(f"{scale(measure, chance).label}\n{text_table(HEAD, body)}")
    return "\n\n".join(parts)


def verdict(found: dict[Measure, list[Standing]], chance: float | None, seeds: int) -> str:
    """Whether a trial beats the default, in one sentence for each measure."""
    parts = [_verdict(m, lines, chance, seeds) for m, lines in found.items()]
    return "; ".join(parts)


def _verdict(measure: Measure, lines: list[Standing], chance: float | None, seeds: int) -> str:
    written = scale(measure, chance)
    name = written.name
    default = next((s for s in lines if s.label == "default"), None)
    tried = [s for s in lines if s.label != "default" and s.mean is not None]
    if not tried:
        return f"{name}: no trial stayed finite on fresh seeds"
    first = tried[0]
    if default is None or first.better is None:
        return f"{name}: the default gives no number on fresh seeds, {first.label} is the best"
    change, unit = written.text(abs(first.better)), f" {written.unit_of_change}".rstrip()
    if first.better_half is None:
        way = "better" if first.better > 0 else "worse"
        return (
            f"{name}: {first.label} is {change}{unit} {way} than the default on one fresh "
            "seed, which tells nothing: give more --seeds"
        )
    change += f" ± {written.text(first.better_half)}{unit}"
    over = f"(95 % interval, paired over {seeds - max(first.diverged, default.diverged)} seeds)"
    if first.better > first.better_half:
        return f"{name}: {first.label} beats the default by {change} {over}"
    if first.better > 0:
        return (
            f"{name}: no trial beats the default by more than the interval; the best, "
            f"{first.label}, is {change} better {over}"
        )
    return f"{name}: no trial beats the default; the best, {first.label}, is {change} worse {over}"
