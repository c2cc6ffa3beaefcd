"""How pictures look: colours, axes, labels at the ends of lines. matplotlib is imported lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

INK, MUTED, GRID = "#222222", "#6b6b6b", "#e6e6e6"
# From Okabe and Ito's palette, which most colour-blind readers can tell apart, without its yellow,
# which is too light on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
NEUTRAL = "#8a8a8a"
COLOURS = {
    "flp": "#0072B2",
    "oml": "#D55E00",
    "feedback-delta": "#009E73",
    "dfa": "#CC79A7",
    "dfc": "#E69F00",
    "strong-dfc": "#7A5195",
    "none": NEUTRAL,
}
"""Colours that a learner keeps in every picture."""

HARM, NEITHER, HELP = "#B34E00", "#f7f7f7", "#00598C"
"""Ends and middle of the diverging scale."""

RC: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": "#bdbdbd",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}
"""Settings of all pictures, for ``matplotlib.rc_context``."""


def colours(learners: Sequence[str]) -> list[str]:
    """One colour for each line; a learner keeps its own, and no two lines share one."""
    taken: set[str] = set()
    found: list[str] = []
    for learner in learners:
        own = COLOURS.get(learner)
        if own is None or own in taken:
            free = [c for c in PALETTE if c not in taken and c not in COLOURS.values()]
            free += [c for c in PALETTE if c not in taken]
            own = free[0] if free else PALETTE[len(found) % len(PALETTE)]
        taken.add(own)
        found.append(own)
    return found


def depth_colours(count: int) -> list[str]:
    """One colour for each layer, the input side dark. Their lightness tells them apart too."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"]
    return [to_hex(scale(0.75 * i / max(1, count - 1))) for i in range(count)]


def diverging() -> Colormap:
    """From help, blue, through nearly white to harm, orange."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("harm", [HELP, NEITHER, HARM])


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.062) -> None:
    """Name lines at the right edge of the axes, moved apart where they would overlap.

    ``ends`` are (last value, label, colour); ``gap`` is the least distance, as a share of the
    height.
    """
    transform = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    wanted = sorted((float(transform.transform((x, y))[1]), name, c) for y, name, c in ends)
    heights = spread([min(max(y, 0.0), 1.0) for y, _, _ in wanted], gap)
    # Not below the axes, where the numbers of the x-axis are.
    for i in range(len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap if i else 0.02)
    for height, (_, name, colour) in zip(heights, wanted, strict=True):
        axes.text(
            1.015,
            height,
            name,
            transform=axes.transAxes,
            color=colour,
            va="center",
            ha="left",
            fontsize=9,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as needed to lie ``gap`` apart, their middle kept."""
    blocks: list[list[float]] = []  # each block: its wanted heights, packed around their mean
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _top(blocks[-2], gap) + gap > _bottom(blocks[-1], gap):
            last = blocks.pop()
            blocks[-1] += last
    return [_bottom(block, gap) + i * gap for block in blocks for i in range(len(block))]


def _bottom(block: list[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: list[float], gap: float) -> float:
    return _bottom(block, gap) + gap * (len(block) - 1)
