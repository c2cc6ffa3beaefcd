"""The pictures of a report, each for the runs of one task. Nothing is drawn through pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from studies.config import AT_REST
from studies.gather import Run
from studies.style import GRID, INK, MUTED, colours, end_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LIMIT = 6.0
"""Of y where functions are drawn; amplitudes reach 5.1."""


def curve_figure(runs: Sequence[Run]) -> Figure | None:
    """Training loss and accuracy against the meta-step: every step faint, smoothed bold."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = [run for run in runs if run.curve and np.isfinite(run.curve.loss).any()]
    if not drawn:
        return None
    accuracy = drawn[0].config.chance is not None
    figure = Figure(figsize=(10.5 if accuracy else 6.6, 3.7), layout="constrained")
    panels = list(np.ravel(figure.subplots(1, 2 if accuracy else 1)))
    kind = "cross-entropy, nats" if accuracy else "mean squared error"
    _curves(panels[0], drawn, "loss")
    panels[0].set_title(f"Query loss ({kind})")
    if accuracy:
        _curves(panels[1], drawn, "accuracy")
        panels[1].set_title("Query accuracy (%)")
        panels[1].set_ylim(0, 100)
    for axes in panels:
        axes.set_xlabel("meta-step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    _label_ends(figure, panels, drawn)
    return figure


def _curves(axes: Axes, runs: Sequence[Run], name: str) -> None:
    for run, colour in zip(runs, colours([r.config.learner for r in runs]), strict=True):
        assert run.curve is not None
        values = getattr(run.curve, name)
        if values is None:
            continue
        values = values * (100 if name == "accuracy" else 1)
        axes.plot(run.curve.step, values, color=colour, linewidth=0.6, alpha=0.22)
        axes.plot(run.curve.step, smooth(values), color=colour, linewidth=1.9)
    axes.set_xlim(1, max(2.0, *(float(r.curve.step[-1]) for r in runs if r.curve)))
    if name == "loss":
        shown = [smooth(getattr(r.curve, name)) for r in runs]
        if not is_wide(axes, shown):
            axes.set_ylim(0, 1.1 * max(float(np.nanmax(v)) for v in shown))


def is_wide(axes: Axes, values: Sequence[np.ndarray]) -> bool:
    """Whether values need a logarithmic scale, which the axes then have."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    low, high = float(known.min()), float(known.max())
    if not high > 8 * low > 0:
        return False
    axes.set_yscale("log")
    axes.set_ylabel("log scale")
    axes.set_ylim(low * 0.75, high * 1.3)
    if high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return True


def _label_ends(figure: Figure, panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    chosen = colours([r.config.learner for r in runs])
    for axes, name in zip(panels, ("loss", "accuracy"), strict=False):
        ends = []
        for run, colour in zip(runs, chosen, strict=True):
            values = getattr(run.curve, name)
            known = None if values is None else smooth(values)[np.isfinite(values)]
            if known is not None and len(known):
                ends.append((known[-1] * (100 if name == "accuracy" else 1), run.label, colour))
        if name == "accuracy":
            ends += _chance(axes, runs)
        end_labels(axes, ends)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the curve; gaps are left out of it."""
    width = max(1, len(values) // 20)
    known = np.isfinite(values)
    window = np.ones(2 * width + 1)
    total = np.convolve(np.where(known, values, 0.0), window)[width:-width]
    count = np.convolve(known.astype(float), window)[width:-width]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def age_figure(runs: Sequence[Run]) -> Figure | None:
    """The score of each task of the stream after the whole stream, with 95 % intervals; at rest
    there is no order.
    """
    from matplotlib.figure import Figure

    drawn = [r for r in runs if len(r.scores.get("by_task", ())) > 0 and not _at_rest(r)]
    if not drawn:
        return None
    accuracy = drawn[0].config.chance is not None
    chosen = colours([r.config.learner for r in drawn])
    figure = Figure(figsize=(6.6, 3.9), layout="constrained")
    axes = figure.subplots()
    ends = []
    for i, (run, colour) in enumerate(zip(drawn, chosen, strict=True)):
        scores = run.scores["by_task"] * (100 if accuracy else 1)
        mean = scores.mean(0)
        half = 1.96 * scores.std(0, ddof=1 if len(scores) > 1 else 0) / len(scores) ** 0.5
        # A little apart, so that one interval does not hide another.
        x = np.arange(1, len(mean) + 1) + 0.07 * (i - (len(drawn) - 1) / 2)
        axes.errorbar(
            x, mean, half, color=colour, linewidth=1.7, marker="o", markersize=4.5, elinewidth=1.1
        )
        ends.append((float(mean[-1]), run.label, colour))
    count = max(r.scores["by_task"].shape[1] for r in drawn)
    axes.set_xlim(0.6, count + 0.4)
    axes.set_xticks(range(1, count + 1), _ages(count))
    what = "class" if accuracy else "function"
    axes.set_xlabel(f"{what}, in the order of the stream")
    if accuracy:
        axes.set_title("Accuracy of each class after the whole stream (%)")
        axes.set_ylim(0, 100)
        ends += _chance(axes, drawn)
    else:
        axes.set_title("Mean squared error of each function after the whole stream")
        if not is_wide(axes, [run.scores["by_task"].mean(0) for run in drawn]):
            axes.set_ylim(0, None)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    end_labels(axes, ends)
    return figure


def _ages(count: int) -> list[str]:
    names = [str(i) for i in range(1, count + 1)]
    if count > 1:
        names[0], names[-1] = "1\noldest", f"{count}\nlatest"
    return names


def _chance(axes: Axes, runs: Sequence[Run]) -> list[tuple[float, str, str]]:
    """A line at chance, in per cent; returns its label."""
    chance = runs[0].config.chance
    if chance is None:
        return []
    axes.axhline(100 * chance, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    return [(100 * chance, "chance", MUTED)]


def functions_figure(runs: Sequence[Run]) -> Figure | None:
    """One unseen episode after its whole stream or at rest: a row for each learner, a panel for
    each function, the true function in grey.
    """
    from matplotlib.figure import Figure

    drawn = [run for run in runs if "function_fit" in run.scores]
    if not drawn:
        return None
    count = max(len(run.scores["function_x"]) for run in drawn)
    columns = min(count, 5)
    folds = -(-count // columns)
    rows = folds * len(drawn)
    figure = Figure(figsize=(10.5, 1.0 + 1.55 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    chosen = colours([r.config.learner for r in drawn])
    for i, (run, colour) in enumerate(zip(drawn, chosen, strict=True)):
        for k in range(folds * columns):
            axes = grid[i * folds + k // columns][k % columns]
            if k >= len(run.scores["function_x"]):
                axes.set_axis_off()
                if k >= columns:  # the panel above is then the lowest of its column
                    grid[i * folds + k // columns - 1][k % columns].tick_params(labelbottom=True)
                continue
            _function(axes, run, k, colour)
            if i == 0:
                # Only the row on top says which function a column is, unless columns are folded.
                axes.set_title(_function_name(k, count), fontsize=9.5, fontweight="normal")
            if k == 0:
                axes.set_ylabel(run.label, color=colour, fontweight="bold")
    figure.supxlabel("x", color=MUTED, fontsize=10)
    settled = {_at_rest(run) for run in drawn}
    when = "" if len(settled) > 1 else " at rest" if True in settled else " after the whole stream"
    figure.suptitle(
        f"Fitted functions{when} (grey: true)",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=11,
        color=INK,
    )
    return figure


def _at_rest(run: Run) -> bool:
    """Whether its scores are of a rest point."""
    return run.row["metagradient"] == AT_REST


def _function_name(k: int, count: int) -> str:
    age = {0: ", the oldest", count - 1: ", the latest"}.get(k, "") if count > 1 else ""
    return f"function {k + 1}{age}"


def _function(axes: Axes, run: Run, k: int, colour: str) -> None:
    x, y, fit = (run.scores[f"function_{n}"][k] for n in ("x", "y", "fit"))
    axes.plot(x, y, color="#b5b5b5", linewidth=3.2, solid_capstyle="round")
    axes.plot(x, fit, color=colour, linewidth=1.7)
    if not (np.abs(fit) < LIMIT).any():
        word = "off the scale" if np.isfinite(fit).all() else "diverged"
        place = {"transform": axes.transAxes, "ha": "center", "va": "top"}
        axes.text(0.5, 0.98, word, color=colour, fontsize=8.5, **place)
    axes.axhline(0, color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlim(-5, 5)
    axes.set_ylim(-LIMIT, LIMIT)
    axes.set_xticks([-5, 0, 5])
    axes.set_yticks([-5, 0, 5])
