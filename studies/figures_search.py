"""The pictures of a search: how it went, and what its trials traded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from studies.figures import is_wide, smooth
from studies.search_read import Scale, Study, Trial, scale
from studies.style import COLOURS, GRID, HARM, INK, MUTED, NEUTRAL, end_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN = COLOURS["flp"]
BASE = INK
FAINT = "#c4ccd2"
LANES = {"pruned": ("|", NEUTRAL), "diverged": ("x", HARM)}
"""Outcomes without a value, each with a lane of its own above the axes."""


def history_figure(study: Study) -> Figure:
    """The value of every trial against its number, and the best so far; a panel by measure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    count = len(study.measures)
    figure = Figure(figsize=(7.4, 3.6 * count), layout="constrained")
    for i, axes in enumerate(np.ravel(figure.subplots(count, 1))):
        written = scale(study.measures[i], study.config.chance)
        numbers, values = known(study.trials, i, written)
        best = (np.maximum if study.maximize[i] else np.minimum).accumulate(values)
        last = max(t.number for t in study.trials)
        axes.step(
            [*numbers, last], [*best, best[-1]], where="post", color=MAIN, linewidth=1.5, alpha=0.6
        )
        axes.plot(numbers, values, "o", color=MAIN, markersize=5, markeredgewidth=0)
        for trial in study.trials:
            if trial.baseline and trial.values is not None:
                value = written.factor * trial.values[i]
                axes.plot(trial.number, value, "D", mfc="none", mec=BASE, markersize=8)
        axes.set_xlim(-0.5, last + 0.5)
        fit_values(axes, values)
        ends = [(float(best[-1]), "best so far", MAIN), *baselines(axes, study, i, written)]
        lanes(axes, study.trials, lambda t: float(t.number))
        axes.set_title(
            f"{capital(written.name)} of each trial{units(written.unit)}",
            pad=lane_pad(study.trials),
        )
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        end_labels(axes, ends)
    return figure


def front_figure(study: Study) -> Figure | None:
    """Every trial by its two measures, and the Pareto front; None for another number of them."""
    from matplotlib.figure import Figure

    if len(study.measures) != 2:
        return None
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    across, up = (scale(m, study.config.chance) for m in study.measures)
    points = {
        t.number: (across.factor * t.values[0], up.factor * t.values[1])
        for t in study.trials
        if t.values is not None
    }
    front = np.array(sorted(points[number] for number in study.front))
    rest = np.array([p for number, p in points.items() if number not in study.front])
    if len(rest):
        axes.plot(*rest.T, "o", color=FAINT, markersize=6, markeredgewidth=0)
    # What the front promises between two trials is no more than the worse of both.
    after = study.maximize[0]
    axes.step(*front.T, where="pre" if after else "post", color=MAIN, linewidth=1.2, alpha=0.6)
    axes.plot(*front.T, "o", color=MAIN, markersize=6.5, markeredgewidth=0)
    outside = [(1 if m else -1) for m in study.maximize]  # where no other trial is
    for trial in study.trials:
        if trial.number in points and (trial.baseline or trial.number in study.front):
            colour = BASE if trial.baseline else MAIN
            if trial.baseline:
                axes.plot(*points[trial.number], "D", mfc="none", mec=BASE, markersize=9)
            axes.annotate(
                trial.baseline or str(trial.number),
                points[trial.number],
                (7 * outside[0], 7 * outside[1]),
                textcoords="offset points",
                ha="left" if outside[0] > 0 else "right",
                va="bottom" if outside[1] > 0 else "top",
                fontsize=8.5,
                color=colour,
            )
    axes.set_xlabel(f"{across.label}, {better(study.maximize[0])}")
    axes.set_ylabel(f"{up.label}, {better(study.maximize[1])}")
    axes.set_title("Pareto front")
    axes.margins(0.1)
    axes.grid(color=GRID, linewidth=0.8)
    return figure


def curves_figure(study: Study, best: int) -> Figure | None:
    """The training loss of every trial, faint, with one trial and the default in front; None where
    no curve is at hand.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = {t.number: t for t in study.trials if t.curve and np.isfinite(t.curve.loss).any()}
    if not drawn:
        return None
    figure = Figure(figsize=(6.6, 3.9), layout="constrained")
    axes = figure.subplots()
    ends = []
    shown = []
    for trial in sorted(drawn.values(), key=lambda t: (t.number == best, t.baseline != "")):
        assert trial.curve is not None
        front = trial.number == best or trial.baseline
        colour = (MAIN if trial.number == best else BASE) if front else FAINT
        values = smooth(trial.curve.loss)
        dashes = "--" if trial.baseline == "published" else "-"
        axes.plot(trial.curve.step, values, dashes, color=colour, linewidth=1.9 if front else 0.9)
        shown.append(values)
        if front:
            finite = values[np.isfinite(values)]
            label = f"{trial.label} (best)" if trial.number == best else trial.label
            ends.append((float(finite[-1]), label, colour))
    axes.set_xlim(1, max(2, study.config.steps))
    if not is_wide(axes, shown):
        axes.set_ylim(0, None)
    kind = "mean squared error" if study.config.chance is None else "cross-entropy, nats"
    axes.set_title(f"Query loss in training ({kind})")
    axes.set_xlabel("meta-step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    end_labels(axes, ends)
    return figure


def known(trials: Sequence[Trial], i: int, written: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and values of the complete trials, in their order."""
    found = [(t.number, written.factor * t.values[i]) for t in trials if t.values is not None]
    numbers, values = zip(*found, strict=True)
    return np.array(numbers), np.array(values, dtype=float)


def fit_values(axes: Axes, values: np.ndarray) -> None:
    """The y-axis around some values, logarithmic where they need it."""
    if not is_wide(axes, [values]):
        low, high = float(values.min()), float(values.max())
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def baselines(axes: Axes, study: Study, i: int, written: Scale) -> list[tuple[float, str, str]]:
    """A line at each baseline's value; returns their labels."""
    ends = []
    for trial in study.trials:
        if trial.baseline and trial.values is not None:
            value = written.factor * trial.values[i]
            axes.axhline(value, color=BASE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            ends.append((value, trial.baseline, BASE))
    return ends


def lanes(
    axes: Axes,
    trials: Sequence[Trial],
    place: Callable[[Trial], float | None],
    label: bool = True,
) -> None:
    """Marks above the axes for the trials that have no value, at ``place(trial)``."""
    for lane, outcome in enumerate(present(trials)):
        y, (marker, colour) = 1.045 + 0.06 * lane, LANES[outcome]
        places = [place(t) for t in trials if t.outcome == outcome]
        x = [found for found in places if found is not None]
        if x:
            axes.plot(
                x, [y] * len(x), marker, color=colour, markersize=5, markeredgewidth=1.2,
                transform=axes.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        if label:
            axes.text(
                1.015, y, outcome, transform=axes.transAxes, color=MUTED, fontsize=9, va="center"
            )


def lane_pad(trials: Sequence[Trial]) -> float:
    """How far the title stands above the axes and their lanes."""
    return 8 + 13 * len(present(trials))


def present(trials: Sequence[Trial]) -> list[str]:
    """The outcomes without a value that there are."""
    return [outcome for outcome in LANES if any(t.outcome == outcome for t in trials)]


def units(unit: str) -> str:
    """A unit in brackets, if there is one."""
    return f" ({unit})" if unit else ""


def better(maximize: bool) -> str:
    """Which way is better."""
    return "more is better" if maximize else "less is better"


def capital(text: str) -> str:
    """A phrase as a title."""
    return text[0].upper() + text[1:]
