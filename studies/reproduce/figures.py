"""The pictures of a reproduction. Nothing is drawn through pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from studies.report import Picture
from studies.style import GRID, INK, MUTED, colours, depth_colours, end_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from studies.reproduce.outcome import Outcome


def curve_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Validation accuracy by epoch: mean over seeds and, shaded, the lowest to the highest."""
    plain = [o for o in outcomes if o.level is None and len(o.curve) > 1]
    if not plain:
        return None
    figure, axes = _panel("Validation accuracy (%)", width=7.6, height=4.2)
    colour = _own(outcomes)
    ends, low = _bands(axes, plain, "validation_accuracy", colour, factor=100, first=1)
    # From chance the curves all look alike: the best part of the axis is for what differs.
    axes.set_ylim(max(0.0, low - 1.0), None)
    end_labels(axes, ends)
    return figure


def condition_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Row-space share of the feedback by epoch."""
    return probe_figure(
        outcomes, "row_space_share", "Share of the feedback in the row space of J", top=1.0
    )


def control_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """H of each method, and the control beside the drive in each layer, by epoch."""
    from matplotlib.figure import Figure

    drawn = [o for o in outcomes if o.level is None and _known(o, "control_energy")]
    if not drawn:
        return None
    names = list(dict.fromkeys(o.method for o in drawn))
    columns = 2 if len(names) < 4 else 3 if len(names) < 6 else 4
    rows = math.ceil((1 + len(names)) / columns)
    figure = Figure(figsize=(4 * columns, 0.5 + 2.8 * rows), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels[1 + len(names) :]:
        axes.set_axis_off()
    panels[0].set_title("H, energy of the control")
    panels[0].set_yscale("log")
    panels[0].grid(axis="y", color=GRID, linewidth=0.8)
    chosen = _own(outcomes)
    ends, _ = _bands(panels[0], drawn, "control_energy", chosen)
    end_labels(panels[0], ends, gap=0.09)
    by_layer = panels[1 : 1 + len(names)]
    for axes, name in zip(by_layer, names, strict=True):
        _by_layer(axes, [o for o in drawn if o.method == name])
        axes.set_title(f"{name}: control / drive", color=chosen[name])
    low = min(axes.get_ylim()[0] for axes in by_layer)
    high = max(axes.get_ylim()[1] for axes in by_layer)
    for axes in by_layer:
        axes.set_ylim(low, high)
        end_labels(axes, _ends(axes), gap=0.09)
    return figure


def noise_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Test accuracy against the level of a sweep; level 0 stands apart on the left."""
    drawn = [o for o in outcomes if o.level is not None]
    if not drawn:
        return None
    figure, axes = _panel("Test accuracy under noise (%)", width=7.2, height=4.2)
    names = list(dict.fromkeys(o.method for o in drawn))
    levels = sorted({o.level for o in drawn if o.level})
    zero = levels[0] / 6 if levels else 1.0
    ends = []
    for name, colour in zip(names, colours(names), strict=True):
        own = [o for o in drawn if o.method == name]
        shown = sorted({o.level for o in own if o.level is not None})
        means = [
            100 * float(np.mean([o.accuracy or 0.0 for o in own if o.level == s])) for s in shown
        ]
        x = [level or zero for level in shown]
        style = {"color": colour, "marker": "o", "markersize": 5, "linewidth": 1.8}
        split = 1 if shown[0] == 0 else 0
        axes.plot(x[:split], means[:split], **style)
        axes.plot(x[split:], means[split:], **style)
        if split:
            axes.axhline(means[0], color=colour, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.8)
        ends.append((float(means[-1]), name, colour))
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.minorticks_off()
    axes.set_xticks([zero, *levels], ["0", *(f"{level:g}" for level in levels)])
    axes.set_xlim(zero / 1.7, levels[-1] * 1.5 if levels else zero * 1.7)
    axes.set_xlabel("strength of the noise σ, log scale; 0 apart")
    axes.axhline(10, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    end_labels(axes, [*ends, (10.0, "chance", MUTED)])
    return figure


def probe_figure(
    outcomes: Sequence[Outcome],
    probe: str,
    title: str,
    *,
    bottom: float | None = 0.0,
    top: float | None = None,
) -> Figure | None:
    """A probe by epoch, from ``bottom`` to ``top``, None for where the lines end."""
    drawn = [o for o in outcomes if o.level is None and _known(o, probe)]
    if not drawn:
        return None
    figure, axes = _panel(title, width=7.2, height=4.0)
    ends, _ = _bands(axes, drawn, probe, _own(outcomes))
    axes.set_ylim(bottom, top)
    end_labels(axes, ends)
    return figure


def _panel(title: str, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    return figure, axes


def _own(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The colour of each method of the table, the same in all its pictures."""
    names = list(dict.fromkeys(o.method for o in outcomes if o.level is None))
    return dict(zip(names, colours(names), strict=True))


def _known(outcome: Outcome, name: str) -> bool:
    return bool(np.isfinite(outcome.along(name)).any())


def _bands(
    axes: Axes,
    outcomes: Sequence[Outcome],
    name: str,
    chosen: Mapping[str, str],
    factor: float = 1.0,
    first: int = 0,
) -> tuple[list[tuple[float, str, str]], float]:
    """A line for the mean of each method over its seeds, by epoch from ``first``, in the band from
    the lowest to the highest; returns their ends for ``end_labels``, which come behind the limits
    of the axes, and the lowest value drawn.
    """
    methods = list(dict.fromkeys(o.method for o in outcomes))
    ends, lowest = [], []
    last = max(len(o.curve) for o in outcomes) - 1
    for method in methods:
        colour = chosen[method]
        own = [factor * np.array(o.along(name)) for o in outcomes if o.method == method]
        length = min(len(v) for v in own)
        values = np.array([v[:length] for v in own])[:, first:]
        if not values.size or not np.isfinite(values).all():
            continue
        epochs = np.arange(first, length)
        mean = values.mean(0)
        marker = "o" if len(epochs) == 1 else None
        axes.plot(epochs, mean, color=colour, linewidth=1.8, marker=marker)
        axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        ends.append((float(mean[-1]), method, colour))
        lowest.append(float(values.min()))
    _epochs(axes, first, last)
    return ends, min(lowest, default=0.0)


def _by_layer(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    layers = [n for n in _probes(outcomes[0]) if n.startswith("control_to_drive_")]
    length = min(len(o.curve) for o in outcomes)
    for layer, colour in zip(layers, depth_colours(len(layers)), strict=True):
        mean = np.mean([o.along(layer)[:length] for o in outcomes], axis=0)
        name = f"layer {layer.rsplit('_', 1)[1]}"
        axes.plot(range(length), mean, color=colour, linewidth=1.6, label=name)
    axes.set_yscale("log")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    _epochs(axes, 0, length - 1)


def _ends(axes: Axes) -> list[tuple[float, str, str]]:
    """Last value, label and colour of each line, for ``end_labels``."""
    return [(float(v.get_ydata()[-1]), v.get_label(), v.get_color()) for v in axes.get_lines()]  # type: ignore[index, misc]


def _probes(outcome: Outcome) -> list[str]:
    return list(outcome.curve[0].get("probes", {})) if outcome.curve else []


def _epochs(axes: Axes, first: int, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(first, max(last, first + 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch", color=INK)


CURVES = Picture(
    "curves",
    "Validation accuracy after each epoch: mean over the seeds, and the band from the worst to the "
    "best of them.",
    curve_figure,
)
CONTROL_PICTURES = (
    CURVES,
    Picture(
        "condition",
        "How much of the feedback Q lies in the row space of the Jacobian J of the output with "
        "respect to all potentials, ||P Q|| / ||Q||, mean over some training images: at 1 the "
        "controller finds Gauss-Newton targets. Epoch 0 is before any learning.",
        condition_figure,
    ),
    Picture(
        "control",
        "How much control the network needs: H = ||Q u||² / 2 at the steady state, and the control "
        "of each layer beside what it gets from below. Strong control learns to do with less.",
        control_figure,
    ),
)
NOISE_PICTURE = Picture(
    "noise",
    "Test accuracy of networks trained under Ornstein-Uhlenbeck noise in all layers while they are "
    "controlled. Dotted: the same method without noise.",
    noise_figure,
)
