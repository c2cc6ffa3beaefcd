"""The pictures of a report about how learners learn, each for the runs of one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from studies.figures import smooth
from studies.gather import Run
from studies.style import GRID, INK, MUTED, colours, depth_colours, diverging, end_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""{layer: (x, degrees)}, input side first."""

MANY = 150
"""Points of a line from which on it is smoothed."""
LARGEST = 6
"""Of a matrix with numbers in it."""


def angle_figure(runs: Sequence[Run]) -> Figure | None:
    """Degrees between local updates and gradient descent against the presentation."""
    figure = _layer_figure(
        runs, _angles, "presentation", "Local update against gradient descent (degrees)"
    )
    if figure is None:
        return None
    for axes, run in zip(figure.axes, [r for r in runs if _angles(r)], strict=False):
        task = run.analysis.get("task", np.zeros(0))
        for first in np.flatnonzero(np.diff(task)) + 1.5:
            axes.axvline(first, color=GRID, linewidth=0.8, zorder=0)
    return figure


def alignment_figure(runs: Sequence[Run]) -> Figure | None:
    """Degrees between feedback and forward weights against the meta-step."""
    return _layer_figure(
        runs, _alignment, "meta-step", "Feedback against forward weights (degrees)"
    )


def _angles(run: Run) -> Lines:
    found = {}
    for name, degrees in run.analysis.items():
        if name.startswith("angle_") and name.endswith("_weight") and np.isfinite(degrees).any():
            found[_layer(name.removeprefix("angle_"))] = np.arange(1, len(degrees) + 1), degrees
    return found


def _alignment(run: Run) -> Lines:
    known = {} if run.alignment is None else run.alignment.degrees
    return {
        _layer(name): (run.alignment.step, degrees)
        for name, degrees in known.items()
        if run.alignment is not None and np.isfinite(degrees).any()
    }


def _layer(group: str) -> str:
    """``layer0_weight`` in words."""
    return group.partition("_")[0].replace("layer", "layer ")


def _layer_figure(
    runs: Sequence[Run], lines: Callable[[Run], Lines], x_label: str, title: str
) -> Figure | None:
    """A panel for each run, a line for each layer."""
    from matplotlib.ticker import MaxNLocator

    drawn = [run for run in runs if lines(run)]
    if not drawn:
        return None
    figure, panels = _panels(drawn, columns=3, width=3.5, height=2.6, title=title)
    names = sorted({name for run in drawn for name in lines(run)}, key=lambda n: int(n[6:]))
    chosen = dict(zip(names, depth_colours(len(names)), strict=True))
    top = max(float(np.nanmax(y)) for run in drawn for _, y in lines(run).values())
    for axes, run in zip(panels, drawn, strict=True):
        axes.axhline(90, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ends = []
        for name, (x, y) in lines(run).items():
            last = _line(axes, x, y, chosen[name])
            # Rounded, so that lines upon each other are named in their order.
            ends.append((round(last, 1), name, chosen[name]))
        points = np.concatenate([x for x, _ in lines(run).values()])
        axes.set_xlim(points.min(), max(2.0, points.max()))
        axes.set_ylim(-4, max(100.0, min(1.08 * top, 184.0)))
        axes.set_yticks([t for t in (0, 30, 60, 90, 120, 150, 180) if t <= axes.get_ylim()[1]])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        end_labels(axes, ends, gap=0.085)
    figure.supxlabel(x_label, color=MUTED, fontsize=10)
    return figure


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> float:
    """Draws it, a long one smoothed; returns its last value."""
    shown = smooth(y) if len(x) >= MANY else y
    axes.plot(x, shown, color=colour, linewidth=1.9)
    if len(x) >= MANY:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
    return float(shown[np.isfinite(shown)][-1])


def interference_figure(runs: Sequence[Run]) -> Figure | None:
    """What learning one task does to another, one diverging scale for all runs."""
    from matplotlib.colors import Normalize

    drawn = [run for run in runs if len(run.analysis.get("interference", ())) > 1]
    if not drawn:
        return None
    values = [run.analysis["interference"] for run in drawn]
    # The scale is that of tasks learned before; what a task does for itself would hide them.
    before = [v[np.triu_indices(len(v), 1)] for v in values]
    limit = float(np.percentile(np.abs(np.concatenate(before)), 95)) or 1.0
    return _matrix_figure(
        drawn,
        values,
        {"cmap": diverging(), "norm": Normalize(-limit, limit)},
        title="Change of the loss on one task by learning another",
        below=[f"task that is learned\ntasks before: {v.mean():+.2g} on average" for v in before],
        scale="change of the loss (harm is positive)",
        extend="both",
        digits=2,
    )


def forgetting_figure(runs: Sequence[Run]) -> Figure | None:
    """What is known of each task after each task: accuracy where there is one, else loss."""
    from matplotlib.colors import LogNorm, Normalize

    drawn = [run for run in runs if len(run.analysis.get("forgetting_loss", ())) > 1]
    if not drawn:
        return None
    accuracy = drawn[0].config.chance is not None
    if accuracy:
        values = [100 * run.analysis["forgetting_accuracy"] for run in drawn]
        look: dict[str, Any] = {"cmap": "Blues", "norm": Normalize(0, 100)}
    else:
        values = [run.analysis["forgetting_loss"] for run in drawn]
        low, high = (f([f(v) for v in values]) for f in (np.min, np.max))
        wide = high > 8 * low > 0
        look = {"cmap": "Blues_r", "norm": LogNorm(low, high) if wide else Normalize(0, high)}
    what = "accuracy (%)" if accuracy else "mean squared error"
    return _matrix_figure(
        drawn,
        values,
        look,
        title=f"{what.capitalize()} of each task after each task",
        below=["after task"] * len(drawn),
        scale=f"{what}, dark is good",
        extend="neither",
        digits=0 if accuracy else 2,
    )


def _matrix_figure(
    runs: Sequence[Run],
    values: Sequence[np.ndarray],
    look: dict[str, Any],
    *,
    title: str,
    below: Sequence[str],
    scale: str,
    extend: str,
    digits: int,
) -> Figure:
    """A heat map for each run, (K, K), on one scale; a line parts past and future tasks."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    same = len({len(matrix) for matrix in values}) == 1
    size = {"columns": 4, "width": 2.3, "height": 2.5 + 0.25 * below[0].count("\n")}
    figure, panels = _panels(runs, **size, title=title, extra=1.3, shared=same)
    image = None
    for axes, matrix, label in zip(panels, values, below, strict=True):
        image = axes.imshow(matrix, **look)
        count = len(matrix)
        step = 1 if count <= 10 else 5
        ticks = [0, *range(step - 1 if step > 1 else 1, count, step)]
        axes.set_xticks(ticks, [str(t + 1) for t in ticks])
        axes.set_yticks(ticks, [str(t + 1) for t in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        corners = np.arange(count + 1) - 0.5
        axes.step(corners[:-1], corners[1:], where="post", color=INK, linewidth=1)
        axes.set_xlabel(label, fontsize=9)
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel("task that is asked about", fontsize=9)
        if count <= LARGEST:
            _numbers(axes, matrix, image, digits)
    assert image is not None
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(look["norm"], LogNorm) else None
    ends: dict[str, Any] = {"extend": extend, "extendfrac": 0.04}
    place = {"shrink": 0.85, "aspect": 24, "pad": 0.02}
    bar = figure.colorbar(image, ax=panels, ticks=ticks, format="%g", **place, **ends)
    bar.minorticks_off()
    bar.set_label(scale, color=MUTED, fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _numbers(axes: Axes, matrix: np.ndarray, image: Any, digits: int) -> None:
    for (i, j), value in np.ndenumerate(matrix):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        shown = max(0, digits - (abs(value) >= 1) - (abs(value) >= 10))
        place = {"ha": "center", "va": "center", "fontsize": 7.5}
        axes.text(j, i, f"{value:.{shown}f}", color="white" if dark else INK, **place)


def _panels(
    runs: Sequence[Run],
    *,
    columns: int,
    width: float,
    height: float,
    title: str,
    extra: float = 0.0,
    shared: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Axes side by side, one under the name of each run, their y shared or not; in inches."""
    from matplotlib.figure import Figure

    rows = -(-len(runs) // columns)
    columns = -(-len(runs) // rows)
    names = [fill(run.label, round(10 * width), break_on_hyphens=False) for run in runs]
    lines = 1 + max(name.count("\n") for name in names)
    figure = Figure(
        figsize=(max(4.6, columns * width + extra), rows * (height + 0.2 * lines) + 0.5),
        layout="constrained",
    )
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False, sharey=shared))
    chosen = colours([run.config.learner for run in runs])
    for axes, name, colour in zip(grid, names, chosen, strict=False):
        axes.set_title(name, color=colour, fontsize=10)
    for axes in grid[len(runs) :]:
        axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11, color=INK)
    return figure, list(grid[: len(runs)])
