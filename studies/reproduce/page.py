"""The page of a reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studies.page import definitions, figure, line, machine_lines, table, write_document
from studies.reproduce.paper import Chosen, Ended, Paper, PartReport

PAGE = "report.html"


def write_report(
    out: Path,
    paper: Paper,
    wanted: Mapping[str, Chosen],
    reports: Mapping[str, PartReport],
    ended: Sequence[Ended],
    result: Mapping[str, Any],
) -> list[str]:
    """Write the pictures, ``PART-NAME.png``, and ``report.html``; returns the names of the pictures
    that were left out because matplotlib is missing.
    """
    notes = [*dict.fromkeys(one.note for one in wanted.values()), paper.published_note]
    parts = [f"<p>{escape(paper.title)} ({escape(paper.source)}).</p>"]
    parts.append(f"<p class='note'>{escape(' '.join(notes).strip())}</p>")
    left_out = []
    for part, chosen in wanted.items():
        own = [one for one in ended if one.part == part]
        parts.append(f"<h2>{escape(part)}</h2>\n<p class='note'>{escape(chosen.sizes_text)}</p>")
        for top, body in reports[part].tables:
            parts.append(table(top, [line(one) for one in body]))
        parts += [f"<p class='note'>{escape(text)}</p>" for text in reports[part].notes]
        pictures, missing = chosen.draw(out, paper, own)
        parts += [figure(*picture) for picture in pictures]
        left_out += missing
    about = {name: text for one in wanted.values() for name, text in one.about.items()}
    parts.append(f"<h2>Methods</h2>\n{definitions(about)}")
    setting = {
        "command": f"python -m studies reproduce {paper.name}",
        "preset": result["config"]["preset"],
        **machine_lines(result),
    }
    parts.append(f"<h2>Setting</h2>\n{definitions(setting)}")
    write_document(out / PAGE, paper.title, result["headline"], parts, left_out)
    return left_out
