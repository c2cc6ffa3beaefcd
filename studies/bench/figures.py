"""The pictures of the benchmark. Nothing is drawn through pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.bench.rows import FUSED, JAX, LOOP
from studies.bench.scaling import Curve
from studies.bench.study import Measured
from studies.style import GRID, INK, MUTED, NEUTRAL, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    LOOP: NEUTRAL,
    FUSED: PALETTE[0],
    "plain": PALETTE[1],
    "vmap": PALETTE[2],
    "higher": PALETTE[3],
    "learn2learn": PALETTE[4],
    "compiled": PALETTE[5],
    JAX: PALETTE[6],
}
MARKERS = {FUSED: "o", "compiled": "X", "plain": "s", "vmap": "D"}
MARKERS |= {"higher": "^", "learn2learn": "v", JAX: "P"}
AXES = {"T": "presentations T", "E": "episodes E", "width": "width of each layer"}


def speed_figure(sizes: Sequence[Measured], gpu: bool = False) -> Figure | None:
    """How many times as fast as the loop each row is, with its range; one line for each size."""
    from matplotlib.figure import Figure

    shown = [done for done in sizes if any(_ratio(done, row, gpu) for row in MARKERS)]
    if not shown:
        return None
    figure = Figure(figsize=(7.6, 1.5 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in MARKERS if any(_ratio(done, row, gpu) for done in shown)]
    for k, row in enumerate(rows):
        # Apart in height, so that equal values can be told from each other.
        shift = 0.56 * (k / max(1, len(rows) - 1) - 0.5)
        points = [(i, s) for i, done in enumerate(shown) if (s := _ratio(done, row, gpu))]
        axes.errorbar(
            [s.median for _, s in points],
            [i + shift for i, _ in points],
            xerr=[[s.median - s.least for _, s in points], [s.most - s.median for _, s in points]],
            fmt=MARKERS[row],
            color=COLOURS[row],
            markersize=5.5,
            elinewidth=1.1,
            label=row,
        )
    axes.axvline(1, color=INK, linewidth=0.9, zorder=0)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.45), max(high, 2.2))
    _plain_ticks(axes, "x")
    axes.set_yticks(range(len(shown)), [done.size.name for done in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast as the plain loop; bars: range over the repeats; log scale")
    axes.set_title(f"Speed of one meta-gradient ({'wall' if gpu else 'CPU'} time)")
    _legend(figure)
    return figure


def memory_figure(sizes: Sequence[Measured]) -> Figure | None:
    """Peak memory of the loop and of fused, size by size."""
    from matplotlib.figure import Figure

    shown = [done for done in sizes if done.peaks]
    if not shown:
        return None
    figure = Figure(figsize=(7.6, 1.5 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for i, done in enumerate(shown):
        ends = [max(size, 1) / 1e6 for size in done.peaks.values()]
        axes.plot([min(ends), max(ends)], [i, i], color=GRID, linewidth=2.5, zorder=1)
    for row in (LOOP, FUSED):
        points = [(max(d.peaks[row], 1) / 1e6, i) for i, d in enumerate(shown) if row in d.peaks]
        if points:
            x, y = zip(*points, strict=True)
            marker = MARKERS.get(row, "s")
            axes.scatter(x, y, color=COLOURS[row], marker=marker, s=38, label=row, zorder=2)
    axes.set_xscale("log")
    _plain_ticks(axes, "x")
    axes.set_yticks(range(len(shown)), [done.size.name for done in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("MB over what was in use before; log scale")
    axes.set_title("Peak memory of one meta-gradient")
    _legend(figure)
    return figure


def scaling_figure(curves: Sequence[Curve], gpu: bool = False) -> Figure | None:
    """Time against T, E and width, all logarithmic, with the slopes in the legends."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.axis for curve in curves))
    if not names:
        return None
    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for curve in (c for c in curves if c.axis == name):
            medians = [1000 * s.median for s in curve.seconds]
            axes.fill_between(
                curve.values,
                [1000 * s.least for s in curve.seconds],
                [1000 * s.most for s in curve.seconds],
                color=COLOURS[curve.row],
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(
                curve.values,
                medians,
                color=COLOURS[curve.row],
                marker=MARKERS.get(curve.row, "s"),
                markersize=4,
                linewidth=1.6,
                label=f"{curve.row}: slope {curve.slope:.2f}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({v for c in curves if c.axis == name for v in c.values})
        axes.set_xticks(ticks, [str(v) for v in ticks])
        axes.xaxis.set_minor_locator(_none())
        _plain_ticks(axes, "y")
        axes.set_xlabel(AXES.get(name, name))
        axes.grid(color=GRID, linewidth=0.8)
        axes.legend(frameon=False, fontsize=8.5, labelcolor=MUTED)
    panels[0].set_title(f"Milliseconds of {'wall' if gpu else 'CPU'} time of one meta-gradient")
    return figure


def _ratio(done: Measured, row: str, gpu: bool):
    line = done.lines.get(row)
    return None if line is None else line.wall_ratio if gpu else line.cpu_ratio


def _plain_ticks(axes: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
    wide = high > 300 * max(low, 1e-12)
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _none():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9, labelcolor=MUTED)
