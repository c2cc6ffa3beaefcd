"""The pictures and the page of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaplastic.tune.problem import Measure
from studies.figures_again import again_figure
from studies.figures_search import curves_figure, front_figure, history_figure
from studies.figures_space import importance_figure, slices_figure
from studies.page import definitions, figure, line, machine_lines, table, write_document
from studies.report import render
from studies.search_again import STREAM, Candidate
from studies.search_read import Study, Trial, scale
from studies.search_standings import HEAD, Standing, cells
from studies.spelling import run_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 30
"""Trials in the table of all."""
CAPTIONS = {
    "history": "Every trial by its number. Marks above the axes are trials without a value: pruned "
    "ones were stopped early, diverged ones left the finite numbers or never settled.",
    "slices": "The same values along each option that was searched; darker is later. Marks above "
    "are trials without a value.",
    "importance": "How much each option alone sets the best tenth of the trials apart from all of "
    "them (PED-ANOVA).",
    "front": "Every trial by both objectives. No trial is better in both than one on the line.",
    "curves": "The query loss of the training episodes, running means. Lines that end early are "
    "pruned trials.",
}


def write_search_page(
    out: Path,
    study: Study,
    candidates: Sequence[Candidate],
    found: dict[Measure, list[Standing]],
    result: dict[str, Any],
) -> list[str]:
    """Write the pictures and ``report.html``; returns the names of the pictures that were left out
    because matplotlib is missing.
    """
    again = {
        f"again-{measure}": partial(again_figure, study, candidates, lines, i)
        for i, (measure, lines) in enumerate(found.items())
    }
    best = next((s.trial for s in found[study.measures[0]]), study.complete[0].number)
    draw: dict[str, Callable[[], Figure | None]] = {
        **again,
        "history": partial(history_figure, study),
        "front": partial(front_figure, study),
        "slices": partial(slices_figure, study),
        "importance": partial(importance_figure, study),
        "curves": partial(curves_figure, study, best),
    }
    drawn, left_out = {}, []
    for name, picture in draw.items():
        try:
            content = render(picture)
        except ImportError:
            left_out.append(f"{name}.png")
            continue
        if content is not None:
            (out / f"{name}.png").write_bytes(content)
            drawn[name] = content
    parts = [
        *(_again(study, m, lines, drawn.get(f"again-{m}"), result) for m, lines in found.items()),
        "<h2>The search</h2>",
        f"<p class='note'>{escape(_counts(study))}</p>",
        *(figure(f"{n}.png", CAPTIONS[n], drawn[n]) for n in CAPTIONS if n in drawn),
        *(f"<p class='note'>{escape(note)}.</p>" for note in _notes(study)),
        _all_trials(study),
        _setting(study, result),
    ]
    write_document(out / "report.html", study.name, result["headline"], parts, left_out)
    return left_out


def _again(
    study: Study,
    measure: Measure,
    lines: Sequence[Standing],
    picture: bytes | None,
    result: dict[str, Any],
) -> str:
    chance = study.config.chance
    body = [line(cells(s, measure, chance), best=i == 0) for i, s in enumerate(lines)]
    episodes = result["rows"][0]["episodes"]
    note = (
        f"Trained again with seeds {', '.join(map(str, result['seeds']))}, which no trial had, and "
        f"scored on {episodes} validation episodes that no trial saw; the test episodes stay "
        "unseen. The first two columns of numbers are from the search, the others new. The best "
        "of many values is good by luck too: compare how far a trial was over the default in the "
        "search with what is left of it. (The values themselves also move because other episodes "
        "are easier or harder.) ± is half the 95 % interval over seeds, by Student's t, on these "
        "episodes; differences to the default are paired by seed. The trial on top was picked "
        "among these few, which flatters it a little again."
    )
    name = scale(measure, chance).label
    shown = (
        ""
        if picture is None
        else figure(f"again-{measure}.png", "The table as a picture.", picture)
    )
    return (
        f"<h2>Again on fresh seeds: {escape(name)}</h2>\n{table(HEAD, body)}\n"
        f"<p class='note'>{escape(note)}</p>\n{shown}"
    )


def _counts(study: Study) -> str:
    kinds = [t.outcome for t in study.trials]
    words = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{len(kinds)} trials: {words}."


def _notes(study: Study) -> list[str]:
    notes = [study.importance_note] if study.importance_note else []
    if all(t.curve is None for t in study.trials):
        notes.append("The learning curves are not here: name their folder with --artifacts")
    if len(study.measures) > 2:
        notes.append("The Pareto front is drawn for two objectives only")
    return [note[0].upper() + note[1:] for note in notes]


def _all_trials(study: Study) -> str:
    scales = [scale(measure, study.config.chance) for measure in study.measures]
    options = list(study.space)
    head = ["trial", *(s.label for s in scales), "seconds", *options]
    rest = [t for t in study.trials if t.values is None]
    shown = (study.complete + rest)[:ROWS]
    lines = []
    for trial in shown:
        if trial.values is None:
            values = [trial.outcome] + [""] * (len(scales) - 1)
        else:
            values = [s.text(v) for s, v in zip(scales, trial.values, strict=True)]
        lines.append(
            line(
                [
                    _named(trial),
                    *values,
                    f"{trial.seconds:.0f}",
                    *(_short(trial.options.get(name)) for name in options),
                ]
            )
        )
    more = "" if len(study.trials) <= ROWS else f" The first {ROWS} of {len(study.trials)}."
    return (
        f"<h2>Trials</h2>\n<p class='note'>The best by the first objective first; all are in "
        f"search.json.{more}</p>\n{table(head, lines)}"
    )


def _named(trial: Trial) -> str:
    return f"{trial.number} ({trial.baseline})" if trial.baseline else str(trial.number)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _setting(study: Study, result: dict[str, Any]) -> str:
    lines = {
        "study": study.name,
        "made by": study.command,
        "a run of it": f"python -m studies train {run_words(study.config)}",
        "objectives": ", ".join(study.measures),
        "computing time of the trials": f"{sum(t.seconds for t in study.trials) / 60:.1f} minutes",
        "fresh episodes": f"validation episodes of evaluation stream {STREAM}",
        **machine_lines(result),
    }
    return f"<h2>Setting</h2>\n{definitions(lines)}"
