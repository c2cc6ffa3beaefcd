"""``report.html``: one page that carries its pictures and style with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from metaplastic.recipes import RECIPES
from studies.gather import Run
from studies.words import (
    badness,
    forgetting_text,
    rest_head,
    rest_texts,
    score_name,
    score_text,
)

STYLE = """
:root { color-scheme: light; }
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; background: #fff; color: #222;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid #e2e2e2; }
.headline { font-size: 1.05rem; margin: .4rem 0 1.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .9rem .38rem 0; text-align: right; white-space: nowrap; }
th { color: #6b6b6b; font-weight: 600; border-bottom: 1.5px solid #bbb; }
td { border-bottom: 1px solid #ececec; }
th:first-child, td:first-child, .text { text-align: left; }
td:first-child { font-weight: 600; }
tr.best td { background: #f2f7fb; }
figure { margin: 1.8rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: #5a5a5a; font-size: .9rem; max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .92rem; }
dt { color: #6b6b6b; } dd { margin: 0; overflow-wrap: anywhere; }
"""
WORDS = (1,)
"""The columns of words in the table of runs."""
REST_NOTE = (
    " The score of a learner is that of the inner loop that it was trained for. Learners at rest "
    "have two: at rest, the whole support set shown as one batch until the weights settle, without "
    "an order; and online, example after example. The residual is how far from rest the weights "
    "still were, as a share of the first push."
)


@dataclass
class Section:
    """The part of the page about one task."""

    task: str
    runs: Sequence[Run]
    pictures: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(file name, caption, PNG)"""


def write_page(
    path: Path,
    title: str,
    result: dict[str, Any],
    sections: Sequence[Section],
    left_out: Sequence[str],
) -> None:
    """Write the page about a ``result.json``."""
    parts = [*(_section(section) for section in sections), _setting(result, sections)]
    write_document(path, title, result["headline"], parts, left_out)


def write_document(
    path: Path, title: str, headline: str, parts: Sequence[str], left_out: Sequence[str]
) -> None:
    """Write a page of some parts in HTML under a title and a headline."""
    missing = ""
    if left_out:
        missing = f"<p class='note'>Left out without matplotlib: {escape(', '.join(left_out))}.</p>"
    head = [f"<h1>{escape(title)}</h1>", f"<p class='headline'>{escape(headline)}</p>", missing]
    body = "\n".join([*head, *parts])
    path.write_text(
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n",
        encoding="utf-8",
    )


def figure(name: str, caption: str, content: bytes) -> str:
    """A PNG inside the page."""
    return (
        f"<figure><img alt='{escape(name)}' src='data:image/png;base64,"
        f"{base64.b64encode(content).decode()}'><figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(head: Sequence[str], lines: Sequence[str], text: Sequence[int] = ()) -> str:
    """A table of some ``line``; the columns numbered in ``text`` are words."""
    cells = "".join(f"<th{_text(i, text)}>{escape(name)}</th>" for i, name in enumerate(head))
    return (
        f"<div class='scroll'><table>\n<tr>{cells}</tr>\n" + "\n".join(lines) + "\n</table></div>"
    )


def line(cells: Sequence[str], best: bool = False, text: Sequence[int] = ()) -> str:
    """One line of a table."""
    inner = "".join(f"<td{_text(i, text)}>{escape(cell)}</td>" for i, cell in enumerate(cells))
    return f"<tr{' class=best' if best else ''}>{inner}</tr>"


def definitions(lines: Mapping[str, str]) -> str:
    """Names and what they are."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in lines.items())
    return f"<dl>{items}</dl>"


def machine_lines(result: Mapping[str, Any]) -> dict[str, str]:
    """Where the content of a ``result.json`` comes from."""
    machine, versions = result["machine"], result["versions"]
    return {
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": result["date"],
    }


def _text(column: int, text: Sequence[int]) -> str:
    return " class='text'" if column in text else ""


def _section(section: Section) -> str:
    rows = [run.row for run in section.runs]
    chance = section.runs[0].config.chance
    score = score_name(chance)
    rest = rest_head(rows)
    head = ["learner", "what it is", score, *rest, "query loss", "forgetting"]
    head += ["diverged", "meta-steps"]
    if chance is None:
        head.remove("query loss")  # it is the score
    order = sorted(section.runs, key=lambda run: badness(run.row))
    lines = [
        _line(run, best=i == 0 and len(order) > 1, rest=bool(rest)) for i, run in enumerate(order)
    ]
    note = (
        f"± is half the 95 % interval over {rows[0]['episodes']} unseen episodes, which are the "
        "same for every learner. Forgetting is how much worse all tasks but the latest have become "
        "since right after they were learned."
    )
    if len({row["seed"] for row in rows}) == 1:
        note += " All are of one seed; another one gives other numbers."
    if rest:
        note += REST_NOTE
    if chance is not None:
        note += f" Chance is {100 * chance:.0f} %."
    pictures = "\n".join(figure(*picture) for picture in section.pictures)
    return (
        f"<h2>{escape(section.task)}</h2>\n{table(head, lines, WORDS)}\n"
        f"<p class='note'>{escape(note)}</p>\n{pictures}"
    )


def _line(run: Run, best: bool, rest: bool) -> str:
    row, known = run.row, RECIPES.get(run.config.learner)
    loss = "–" if row["loss"] is None else f"{row['loss']:.3g}"
    cells = [
        run.label,
        "" if known is None else known.about,
        score_text(row),
        *(rest_texts(row) if rest else ()),
        *(() if run.config.chance is None else (loss,)),
        forgetting_text(row) or "–",
        str(row["diverged"]),
        f"{row['steps']:,}",
    ]
    return line(cells, best, WORDS)


def _setting(result: dict[str, Any], sections: Sequence[Section]) -> str:
    origin = machine_lines(result)
    seconds = sum(run.seconds for section in sections for run in section.runs)
    lines = {
        "command": f"python -m studies {result['command']}",
        "seed": ", ".join(str(seed) for seed in result["seeds"]),
        "preset": ", ".join(dict.fromkeys(r.config.preset for s in sections for r in s.runs)),
        "machine": origin.pop("machine"),
        "computing time of the runs": f"{seconds / 60:.1f} minutes",
        **origin,
    }
    for section in sections:
        lines[section.task] = _sizes(section.runs[0])
    return f"<h2>Setting</h2>\n{definitions(lines)}"


def _sizes(run: Run) -> str:
    config = run.config
    options = ", ".join(f"{name} {value}" for name, value in config.task_options.items())
    widths = "-".join(str(width) for width in config.hidden)
    return f"{options}; {config.episodes} episodes per meta-step; hidden layers {widths}"
