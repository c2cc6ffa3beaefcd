"""Results in words and plain tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from studies.config import AT_REST

Row = dict[str, Any]
LARGE = 1e4
"""Losses from here on are written with an exponent."""


def score_text(row: Row) -> str:
    """Accuracy, or loss where there is none, with its interval: ``61.3 ± 1.2 %`` or
    ``0.424 ± 0.031``.
    """
    value, half = row["accuracy"], row["ci95"]
    if row["loss"] is None:
        return "diverged"
    if value is not None:
        return f"{100 * value:.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " %"
    if not half or row["loss"] >= LARGE:
        return f"{row['loss']:.3g}" + ("" if half is None else f" ± {half:.2g}")
    # As many decimals as the interval has: two of its digits.
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 9)
    return f"{row['loss']:.{decimals}f} ± {half:.{decimals}f}"


def forgetting_text(row: Row) -> str:
    """Forgetting in the units of the score, signed; empty where it has no meaning."""
    value = row["forgetting"]
    if value is None:
        return ""
    if row["accuracy"] is not None:
        return f"{100 * value:+.1f} points"
    return f"{value:+.2f}" if abs(value) < LARGE else f"{value:+.2g}"


REST_HEAD = ("at rest", "online", "residual")
"""The columns of learners with a method at rest."""


def rest_head(rows: Sequence[Row]) -> tuple[str, ...]:
    """The columns that some rows add to a table: REST_HEAD where any row has one of them."""
    return REST_HEAD if any(any(rest_texts(row)) for row in rows) else ()


def rest_texts(row: Row) -> tuple[str, ...]:
    """Its scores at rest and after the stream, and how far from rest it was; empty for a learner
    without a method at rest, and in rows of earlier versions.
    """
    at_rest, online, residual = (
        row.get(name) for name in ("rest_score", "online_score", "residual")
    )
    if at_rest is online is residual is None:
        return ("",) * len(REST_HEAD)
    scores = (_plain(value, row["accuracy"] is not None) for value in (at_rest, online))
    return (*scores, "–" if residual is None else f"{residual:.1e}")


def _plain(value: float | None, accuracy: bool) -> str:
    if value is None:
        return "diverged"
    return f"{100 * value:.1f} %" if accuracy else f"{value:.3g}"


def score_name(chance: float | None) -> str:
    """What the score of a task is; ``chance`` is None for regression."""
    return "mean squared error" if chance is None else "accuracy"


def run_headline(row: Row, chance: float | None) -> str:
    """One row in one sentence."""
    if row["loss"] is None:
        return (
            f"{row['task']}: {row['learner']} diverged on all {row['episodes']} unseen episodes "
            f"(seed {row['seed']}, {row['steps']} meta-steps); lower its rates"
        )
    against = "" if chance is None else f", chance {100 * chance:.0f} %"
    lost = f", {row['diverged']} diverged" if row["diverged"] else ""
    at_rest = " at rest" if row["metagradient"] == AT_REST else ""
    return (
        f"{row['task']}: {row['learner']} reaches {score_name(chance)} {score_text(row)}{at_rest} "
        f"(95 % interval over {row['episodes']} unseen episodes{against}{lost}; seed "
        f"{row['seed']}, {row['steps']} meta-steps)"
    )


def comparison(rows: Sequence[Row]) -> str:
    """The rows of one task in one phrase, the best first."""
    best_first = sorted(rows, key=badness)
    return ", ".join(f"{row['learner']} {score_text(row)}" for row in best_first)


def badness(row: Row) -> float:
    """Sorts rows, the best first."""
    if row["loss"] is None:
        return float("inf")
    return row["loss"] if row["accuracy"] is None else -row["accuracy"]


def text_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal: the first one to the left, the others to the right."""
    cells = [list(head), *(list(line) for line in body)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = []
    for line in cells:
        padded = [line[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
