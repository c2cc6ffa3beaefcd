"""The picture of trials that were run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from studies.figures_search import BASE, MAIN, capital, units
from studies.search_read import Study, scale
from studies.style import GRID, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from studies.search_again import Candidate
    from studies.search_standings import Standing


def again_figure(
    study: Study, candidates: Sequence[Candidate], lines: Sequence[Standing], measure: int = 0
) -> Figure:
    """Left: the values of fresh seeds; right: what a trial is better than the default, in the
    search and with its interval on fresh seeds. The best is on top.
    """
    from matplotlib.figure import Figure

    name = study.measures[measure]
    written, by_number = scale(name, study.config.chance), {c.trial.number: c for c in candidates}
    figure = Figure(figsize=(9.5, 1.5 + 0.5 * len(lines)), layout="constrained")
    values, gains = figure.subplots(1, 2, sharey=True)
    for y, line in enumerate(lines):
        colour = BASE if by_number[line.trial].trial.baseline else MAIN
        fresh = written.factor * by_number[line.trial].values(name)
        values.plot(fresh, np.full(len(fresh), y), "o", color=colour, ms=5, alpha=0.45, mew=0)
        if line.mean is not None:
            values.plot(written.factor * line.mean, y, "|", color=colour, ms=18, mew=2.5)
        if line.search_better is not None:
            there = written.factor * line.search_better
            gains.plot(there, y, "D", mfc="white", mec=colour, mew=1.3, ms=6, zorder=3)
        if line.better is not None:
            half = None if line.better_half is None else written.factor * line.better_half
            gains.errorbar(
                written.factor * line.better, y, xerr=half, fmt="o", color=colour, capsize=3, ms=6
            )
    values.set_yticks(range(len(lines)), [line.label for line in lines], color=INK)
    values.set_ylim(len(lines) - 0.5, -0.5)
    values.set_xlabel("dots: fresh seeds, bar: their mean")
    values.set_title(f"{capital(written.name)} on fresh seeds{units(written.unit)}")
    gains.axvline(0, color=INK, linewidth=0.8)
    gains.set_xlabel("dot: fresh seeds, diamond: in the search")
    gains.set_title(f"Gain over the default{units(written.unit_of_change)}")
    gains.tick_params(axis="y", length=0)
    for axes in (values, gains):
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure
