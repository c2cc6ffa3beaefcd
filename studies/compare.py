"""Learners over several seeds: means, spreads and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.gather import Run
from studies.intervals import seeds_interval
from studies.words import score_name, text_table


@dataclass(frozen=True)
class Comparison:
    """One learner on one task, over the seeds that all compared learners share."""

    task: str
    learner: str
    seeds: list[int]
    mean: float
    """Mean over seeds of the accuracy, or of the loss where there is none."""
    spread: float
    """Standard deviation over seeds."""
    behind: float
    """How much worse than the best learner, paired by seed; 0 for the best."""
    half: float
    """Half the 95 % interval of that difference, by Student's t over seeds."""


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """The learners of every task that two or more of them ran with the same two or more seeds and
    the same number of episodes, the best first; a learner counts once for each seed.
    """
    found: list[Comparison] = []
    for task in dict.fromkeys(run.row["task"] for run in runs):
        table: dict[str, dict[int, Run]] = {}
        for run in runs:
            if run.row["task"] == task and run.row["loss"] is not None:
                table.setdefault(run.config.learner, {})[run.row["seed"]] = run
        shared = (
            sorted(set.intersection(*(set(by_seed) for by_seed in table.values()))) if table else []
        )
        counts = {run.row["episodes"] for by_seed in table.values() for run in by_seed.values()}
        if len(table) < 2 or len(shared) < 2 or len(counts) > 1:
            continue
        accuracy = table[next(iter(table))][shared[0]].row["accuracy"] is not None
        values = {
            learner: np.array([_score(by_seed[seed]) for seed in shared])
            for learner, by_seed in table.items()
        }
        sign = -1.0 if accuracy else 1.0
        order = sorted(values, key=lambda name: sign * values[name].mean())
        for learner in order:
            lost = sign * (values[learner] - values[order[0]])
            found.append(
                Comparison(
                    task=task,
                    learner=learner,
                    seeds=shared,
                    mean=float(values[learner].mean()),
                    spread=float(values[learner].std(ddof=1)),
                    behind=float(lost.mean()),
                    half=seeds_interval(lost),
                )
            )
    return found


def comparison_table(task: str, chance: float | None, lines: Sequence[Comparison]) -> str:
    """The comparison of one task as text."""
    factor, digits, unit = (1.0, 4, "") if chance is None else (100.0, 1, " points")
    head = ["learner", f"mean {score_name(chance)}", "SD", "behind the best", "± 95 %"]
    body = [
        [
            line.learner,
            f"{factor * line.mean:.{digits}f}",
            f"{factor * line.spread:.{digits}f}",
            f"{factor * line.behind:.{digits}f}{unit}" if line.behind else "",
            f"{factor * line.half:.{digits}f}" if line.behind else "",
        ]
        for line in lines
    ]
    seeds = ", ".join(map(str, lines[0].seeds))
    return f"{task}, paired over seeds {seeds}\n{text_table(head, body)}"


def _score(run: Run) -> float:
    row = run.row
    return float(row["loss"] if row["accuracy"] is None else row["accuracy"])
