"""What a reproduction shows in the end: the table, the pictures and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from studies.page import definitions, figure, line, machine_lines, table, write_document
from studies.report import render
from studies.reproduce.base import Method, Paper
from studies.reproduce.outcome import Outcome, Summary
from studies.words import text_table

HEAD = (
    "method",
    "test accuracy, %",
    "against {reference}",
    "published",
    "seconds per epoch",
    "without control",
    "row-space share",
    "diverged",
)
PAGE = "report.html"


def cells(summary: Summary) -> list[str]:
    """One line of the table; what there is not is a dash."""
    shares = summary.condition
    return [
        summary.method,
        spread(summary.accuracy, summary.std),
        spread(summary.difference, summary.difference_std, signed=True),
        "–" if summary.published is None else f"{summary.published:.2f}",
        "–" if summary.seconds is None else f"{summary.seconds:.1f}",
        "–" if summary.unconverged is None else f"{100 * summary.unconverged:.2g} %",
        "–" if shares is None else f"{shares[0]:.3f} → {shares[1]:.3f}",
        f"{summary.diverged} of {summary.seeds}" if summary.diverged else "–",
    ]


def spread(mean: float | None, std: float | None, signed: bool = False) -> str:
    """A share 0..1 as per cent with its standard deviation."""
    if mean is None:
        return "–"
    text = f"{100 * mean:+.2f}" if signed else f"{100 * mean:.2f}"
    return text if std is None else f"{text} ± {100 * std:.2f}"


def head(paper: Paper) -> list[str]:
    """Of the table."""
    return [name.format(reference=paper.reference) for name in HEAD]


def summary_table(paper: Paper, summaries: Sequence[Summary]) -> str:
    """For the terminal."""
    return text_table(head(paper), [cells(summary) for summary in summaries])


def sweep_table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a line for each method, a column for each level, per cent."""
    swept = [o for o in outcomes if o.level is not None]
    levels = sorted({o.level for o in swept if o.level is not None})
    body = []
    for name in dict.fromkeys(o.method for o in swept):
        found = [name]
        for level in levels:
            scores = [o.accuracy for o in swept if o.method == name and o.level == level]
            known = [score for score in scores if score is not None]
            found.append(f"{100 * sum(known) / len(known):.1f}" if known else "–")
        body.append(found)
    return ["test accuracy, % at", *(f"{level:g}" for level in levels)], body


def write_report(
    out: Path,
    paper: Paper,
    methods: Sequence[Method],
    outcomes: Sequence[Outcome],
    summaries: Sequence[Summary],
    result: Mapping[str, Any],
) -> list[str]:
    """Write the pictures and ``report.html``; returns the names of the pictures that were left out
    because matplotlib is missing.
    """
    parts, left_out = [f"<p>{escape(paper.title)} ({escape(paper.source)}).</p>"], []
    lines = [line(cells(summary)) for summary in summaries]
    if lines:
        parts.append(table(head(paper), lines))
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    note = (
        f"± is the standard deviation over seeds {seeds}. Test accuracy is that of the epoch with "
        f"the best validation accuracy. {paper.published_note}"
    )
    parts.append(f"<p class='note'>{escape(note)}</p>")
    top, body = sweep_table(outcomes)
    if body:
        parts.append(table(top, [line(cell) for cell in body]))
    for picture in paper.pictures:
        name = f"{picture.name}.png"
        try:
            content = render(partial(picture.draw, outcomes))
        except ImportError:
            left_out.append(name)
            continue
        if content is not None:
            (out / name).write_bytes(content)
            parts.append(figure(name, picture.caption, content))
    about = {method.name: method.about for method in methods}
    parts.append(f"<h2>Methods</h2>\n{definitions(about)}")
    setting = {
        "command": f"python -m studies reproduce {paper.name}",
        **{name: str(result["config"][name]) for name in ("preset", "images", "epochs")},
        **machine_lines(result),
    }
    parts.append(f"<h2>Setting</h2>\n{definitions(setting)}")
    write_document(out / PAGE, paper.title, result["headline"], parts, left_out)
    return left_out
