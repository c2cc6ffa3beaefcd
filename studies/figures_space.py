"""The pictures of what a search varied: values along each option, and which options matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from studies.figures_search import (
    BASE,
    MAIN,
    baselines,
    capital,
    fit_values,
    known,
    lane_pad,
    lanes,
)
from studies.search_read import Study, Trial, scale
from studies.style import GRID, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (5, 4, 3)
"""Panels side by side, of which the number that leaves the fewest gaps is taken."""


def importance_figure(study: Study) -> Figure | None:
    """How much each option sets the best trials apart; None where there were too few trials."""
    from matplotlib.figure import Figure

    if not study.importance:
        return None
    names = list(study.importance)
    figure = Figure(figsize=(6.6, 1.1 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    shares = [100 * share for share in study.importance.values()]
    bars = axes.barh(range(len(names)), shares, color=MAIN, height=0.62)
    axes.bar_label(bars, [f"{s:.0f}" for s in shares], padding=4, color=MUTED, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(shares))
    axes.set_xlabel("share of the importance (%)")
    axes.set_title("Importance of the options")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure


def slices_figure(study: Study) -> Figure:
    """The value of every trial along each option, in the form that was searched: a panel for each
    option, a block of rows for each measure; later trials are darker.
    """
    from matplotlib.figure import Figure

    names = list(study.space)
    columns = min(len(names), min(COLUMNS, key=lambda c: -len(names) % c))
    folds = -(-len(names) // columns)
    rows = folds * len(study.measures)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, measure in enumerate(study.measures):
        written = scale(measure, study.config.chance)
        _, values = known(study.trials, i, written)
        for k in range(folds * columns):
            axes = grid[i * folds + k // columns][k % columns]
            if k >= len(names):
                axes.set_axis_off()
                continue
            _slice(axes, study, names[k], i)
            fit_values(axes, values)
            axes.set_ylabel(capital(written.label) if k % columns == 0 else "")
            axes.tick_params(axis="y", labelleft=k % columns == 0)
            minus = "1 − " if study.space[names[k]]["type"] == "OneMinus" else ""
            axes.set_title(minus + names[k], fontsize=9.5, pad=lane_pad(study.trials) - 3)
    return figure


def _slice(axes: Axes, study: Study, name: str, i: int) -> None:
    from matplotlib import colormaps

    dimension, written = study.space[name], scale(study.measures[i], study.config.chance)
    _scale(axes, dimension)  # first, or a single point makes limits of its own
    drawn = [t for t in study.trials if t.values is not None and name in t.parameters]
    x = [position(dimension, t.parameters[name]) for t in drawn]
    y = [written.factor * (t.values or ())[i] for t in drawn]
    age = np.array([t.number for t in drawn]) / max(1, max(t.number for t in study.trials))
    colours = colormaps["Blues"](0.35 + 0.6 * age)
    axes.scatter(x, y, c=colours, s=26, linewidths=0)
    baselines(axes, study, i, written)
    for trial, across, up in zip(drawn, x, y, strict=True):
        if trial.baseline:
            axes.plot(across, up, "D", mfc="none", mec=BASE, markersize=8)

    def place(trial: Trial) -> float | None:
        known = trial.parameters
        return position(dimension, known[name]) if name in known else None

    lanes(axes, study.trials, place, label=False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def position(dimension: dict[str, Any], parameter: Any) -> float:
    """Where a parameter stands on the axis of its dimension."""
    if dimension["type"] == "Choice":
        return float(dimension["values"].index(parameter))
    return float(2**parameter if dimension["type"] == "PowerOfTwo" else parameter)


def _scale(axes: Axes, dimension: dict[str, Any]) -> None:
    """The axis of a dimension, over all of it."""
    kind = dimension["type"]
    if kind == "Choice":
        values = dimension["values"]
        axes.set_xticks(range(len(values)), [str(v) for v in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return
    low, high = dimension["low"], dimension["high"]
    if kind == "OneMinus":
        low, high = 1 - high, 1 - low
    if kind == "Real":
        room = 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
        return
    axes.set_xscale("log", base=2 if kind == "PowerOfTwo" else 10)
    room = (high / low) ** 0.04
    axes.set_xlim(low / room, high * room)
    if kind == "PowerOfTwo":
        ticks = [2**k for k in range(round(np.log2(low)), round(np.log2(high)) + 1)]
        axes.set_xticks(ticks, [str(t) for t in ticks])
