"""How a search stands, as it goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self, TextIO

from metaplastic.tune import finished
from metaplastic.tune.problem import Measure
from studies.words import text_table

ROWS = 12
"""Trials in the live table: the best ones, and those that are running."""


class SearchDisplay:
    """A live table where rich can draw one, else a line for each trial that ends.

    Args:
        trials: how many are planned.
        measures: what the study optimises.
        chance: accuracy of guessing, None for regression.
        stream: default ``stderr``.
    """

    def __init__(
        self,
        trials: int,
        measures: Sequence[Measure],
        chance: float | None,
        stream: TextIO | None = None,
    ) -> None:
        self.trials, self.measures, self.chance = trials, measures, chance
        self._stream = stream or sys.stderr
        self._told: set[int] = set()
        self._live: Any = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            try:
                from rich.console import Console
                from rich.live import Live

                self._live = Live(console=Console(file=self._stream), refresh_per_second=2)
                self._live.__enter__()
            except ImportError:
                self._live = None
        return self

    def __exit__(self, *details: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*details)

    def look(self, study: Any) -> None:
        """Show how the study stands."""
        if self._live is not None:
            self._live.update(self._table(study))
            return
        for trial in sorted(finished(study), key=lambda t: t.number):
            if trial.number not in self._told:
                self._told.add(trial.number)
                print(
                    f"[{len(self._told)}/{self.trials}] trial {trial.number} "
                    f"{outcome_words(trial, self.measures, self.chance)}  "
                    f"{parameter_words(trial)}",
                    file=self._stream,
                    flush=True,
                )

    def _table(self, study: Any) -> Any:
        from rich.table import Table

        done = finished(study)
        table = Table(title=f"{len(done)} of {self.trials} trials", title_justify="left", box=None)
        for column in ("trial", "outcome", "seconds", "options"):
            table.add_column(column, justify="right" if column in ("trial", "seconds") else "left")
        every = study.get_trials(deepcopy=False)
        shown = [t for t in every if t.state.name == "RUNNING"]
        shown += best_first(study, self.measures)[: max(0, ROWS - len(shown))]
        for trial in shown:
            table.add_row(
                str(trial.number),
                outcome_words(trial, self.measures, self.chance),
                f"{trial.user_attrs.get('seconds', 0):.0f}",
                parameter_words(trial),
            )
        return table


def best_first(study: Any, measures: Sequence[Measure]) -> list[Any]:
    """Complete trials, the best first by the first measure."""
    complete = [t for t in finished(study) if t.state.name == "COMPLETE"]
    sign = -1.0 if study.directions[0].name == "MAXIMIZE" else 1.0
    del measures
    return sorted(complete, key=lambda t: (sign * t.values[0], t.number))


def outcome_words(trial: Any, measures: Sequence[Measure], chance: float | None) -> str:
    """What became of a trial, in a few words."""
    if trial.state.name == "COMPLETE":
        named = zip(measures, trial.values, strict=True)
        words = ", ".join(value_words(measure, value, chance) for measure, value in named)
    else:
        words = trial.user_attrs.get("outcome", "running")
    baseline = trial.user_attrs.get("baseline")
    return words if baseline is None else f"{words} ({baseline})"


def value_words(measure: Measure, value: float, chance: float | None) -> str:
    """One value with its unit."""
    if measure == "seconds":
        return f"{value:.1f} s"
    if chance is None:
        return f"{value:.4g}"
    return f"{100 * value:.1f} {'points' if measure == 'forgetting' else '%'}"


def parameter_words(trial: Any) -> str:
    """The options that a trial varied."""
    options = trial.user_attrs.get("options", {})
    varied = {name: options.get(name, value) for name, value in trial.params.items()}
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in varied.items()
    )


def search_table(study: Any, measures: Sequence[Measure], chance: float | None) -> str:
    """The best trials and the baselines as text."""
    best = best_first(study, measures)
    shown = best[:5] + [t for t in best[5:] if "baseline" in t.user_attrs]
    body = [
        [
            str(t.number),
            outcome_words(t, measures, chance),
            f"{t.user_attrs.get('seconds', 0):.0f} s",
            parameter_words(t),
        ]
        for t in shown
    ]
    return text_table(["trial", "validation", "time", "options"], body)
