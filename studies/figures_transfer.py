"""The picture of a transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.style import COLOURS, GRID, INK, MUTED, NEUTRAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from studies.transfer import Gain, Summary


def gain_figure(
    gains: Sequence[Gain], summaries: Sequence[Summary], chance: float | None
) -> Figure:
    """Left: the score of the learned rule (a dot for each seed) beside the best single rate; right:
    the gain with its interval. One line for each network, the source on top.
    """
    from matplotlib.figure import Figure

    factor = 1.0 if chance is None else 100.0
    name = "mean squared error" if chance is None else "accuracy (%)"
    height = 1.5 + 0.5 * len(summaries)
    figure = Figure(figsize=(9.5, height), layout="constrained")
    scores, gain = figure.subplots(1, 2, sharey=True)
    lines = range(len(summaries))
    for y, summary in zip(lines, summaries, strict=True):
        own = [g for g in gains if g.arch == summary.arch]
        values = [factor * g.learned.by_episode.mean() for g in own]
        scores.plot([factor * summary.scalar, factor * summary.learned], [y, y], color=GRID, lw=4)
        scores.plot(values, [y] * len(own), "o", color=COLOURS["flp"], ms=5, alpha=0.55, mew=0)
        scores.plot(factor * summary.learned, y, "|", color=COLOURS["flp"], ms=18, mew=2.5)
        scores.plot(factor * summary.scalar, y, "D", color=NEUTRAL, ms=6)
        gain.errorbar(
            factor * summary.gain,
            y,
            xerr=factor * (summary.half or summary.half_episodes or 0.0),
            fmt="o",
            color=COLOURS["flp"],
            capsize=3,
            ms=6,
        )
        kept = "" if summary.kept is None or y == 0 else f"keeps {100 * summary.kept:.0f} %"
        gain.annotate(
            kept, (factor * summary.gain, y), (0, 7), textcoords="offset points", color=MUTED,
            fontsize=8, ha="center",
        )  # fmt: skip
    if chance is not None:
        scores.axvline(100 * chance, color=NEUTRAL, ls=":", lw=1)
        scores.annotate("chance", (100 * chance, -0.62), color=MUTED, fontsize=8, ha="center")
    scores.set_yticks(list(lines), [s.arch for s in summaries], color=INK)
    scores.set_ylim(len(summaries) - 0.4, -0.75)
    scores.set_xlabel(f"{name}; dots: seeds, diamond: best single rate")
    scores.set_title("Score")
    gain.axvline(0, color=INK, lw=0.8)
    gain.set_xlabel("points" if chance is not None else "fall of the error")
    gain.set_title("Gain, 95 % interval")
    for axes in (scores, gain):
        axes.grid(axis="x", color=GRID, linewidth=0.8)
    return figure
