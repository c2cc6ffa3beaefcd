"""Reports: the pictures of some runs, and one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from studies.figures import age_figure, curve_figure, functions_figure
from studies.figures_analysis import (
    alignment_figure,
    angle_figure,
    forgetting_figure,
    interference_figure,
)
from studies.gather import Run
from studies.page import Section, write_page
from studies.style import RC

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Picture(Generic[Shown]):
    """One kind of picture, of some runs."""

    name: str
    """The end of its file name, ``<task>-<name>.png``."""
    caption: str
    draw: Callable[[Sequence[Shown]], Figure | None]
    """None where the runs have nothing to show in it."""


PICTURES: tuple[Picture[Run], ...] = (
    Picture(
        "curve",
        "Meta-learning: the query loss of the training episodes at every meta-step (faint) and its "
        "running mean (bold). One meta-step is one step of the outer optimiser.",
        curve_figure,
    ),
    Picture(
        "age",
        "What is left of each part of the stream at its end. Bars are 95 % intervals over unseen "
        "episodes. A learner that forgets does worse on the left than on the right.",
        age_figure,
    ),
    Picture(
        "functions",
        "One unseen episode: each learner saw examples of every function and is asked about all of "
        "them at the end: of the stream, or of the way to the rest point.",
        functions_figure,
    ),
    Picture(
        "forgetting",
        "What is known of each task (row) after each task was learned (column), mean over some "
        "unseen episodes. A row that fades to the right is forgotten; what lies below the line was "
        "not yet learned.",
        forgetting_figure,
    ),
    Picture(
        "interference",
        "What learning one task (column) does to the loss on another (row): orange is harm, blue "
        "is help. Above the line are tasks learned before, below it those still to come; the "
        "diagonal is what learning a task does for itself. The scale is that of tasks learned "
        "before, and what lies beyond it has the colour of its end.",
        interference_figure,
    ),
    Picture(
        "angles",
        "How far each layer's local update points away from gradient descent on the same examples: "
        "0 degrees is the gradient's own direction, 90 degrees is unrelated to it. Vertical lines "
        "mark where the next task begins.",
        angle_figure,
    ),
    Picture(
        "alignment",
        "How far each layer's feedback weights point away from the forward weights that they stand "
        "for, over the meta-training; 90 degrees is unrelated.",
        alignment_figure,
    ),
)
"""Every kind of picture, in the order of the page; a new one is one line here."""


def write_report(out: Path, runs: Sequence[Run], title: str, result: dict) -> list[str]:
    """Write ``<task>-<name>.png`` and ``report.html`` to ``out``.

    Returns the names of the pictures that were left out because matplotlib is missing.
    """
    sections, left_out = [], []
    for task in dict.fromkeys(run.row["task"] for run in runs):
        drawn = [run for run in runs if run.row["task"] == task]
        section = Section(task, drawn)
        section.pictures, missing = write_pictures(out, task, PICTURES, drawn)
        left_out += missing
        sections.append(section)
    write_page(out / "report.html", title, result, sections, left_out)
    return left_out


def write_pictures(
    out: Path, task: str, pictures: Sequence[Picture[Shown]], runs: Sequence[Shown]
) -> tuple[list[tuple[str, str, bytes]], list[str]]:
    """Write ``<task>-<name>.png`` of each picture that has anything to show.

    Returns their names, captions and contents, and the names of those that were left out because
    matplotlib is missing.
    """
    written, left_out = [], []
    for picture in pictures:
        name = f"{task}-{picture.name}.png"
        try:
            content = render(partial(picture.draw, runs))
        except ImportError:
            left_out.append(name)
            continue
        if content is not None:
            (out / name).write_bytes(content)
            written.append((name, picture.caption, content))
    return written, left_out


def save_figure(path: Path, draw: Callable[[], Figure | None]) -> bool:
    """Write a picture; returns whether it was left out because matplotlib is missing."""
    try:
        content = render(draw)
    except ImportError:
        return True
    if content is not None:
        path.write_bytes(content)
    return False


def render(draw: Callable[[], Figure | None]) -> bytes | None:
    """A picture as PNG, or None. Raises ImportError without matplotlib."""
    import matplotlib

    with matplotlib.rc_context(RC):  # type: ignore[arg-type]
        figure = draw()
        if figure is None:
            return None
        buffer = BytesIO()
        # Without a date in it, the same runs give the same bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def left_out_text(left_out: Sequence[str]) -> str:
    """What to tell the user about missing pictures, or nothing."""
    if not left_out:
        return ""
    return (
        f"Without matplotlib these pictures are left out: {', '.join(left_out)}. Install it and "
        "run `python -m studies report` on this folder to get them."
    )
