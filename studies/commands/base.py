"""What a command is, and how all of them end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaplastic.recipes import RECIPES
from studies.gather import Run
from studies.report import left_out_text, write_report
from studies.results import Result
from studies.words import (
    badness,
    forgetting_text,
    rest_head,
    rest_texts,
    score_name,
    score_text,
    text_table,
)


@dataclass(frozen=True)
class Command:
    """One command of ``python -m studies``."""

    name: str
    about: str
    """One line."""
    add_options: Callable[[argparse.ArgumentParser], None]
    """Declares its own options; those of every command are added behind them."""
    run: Callable[[argparse.Namespace], None]
    description: str = ""
    preset: str | None = "quick"
    """The default preset; None where neither preset nor seed has a meaning."""
    names: bool = False
    """Whether its help lists tasks and learners."""


def finish(result: Result, out: Path, runs: Sequence[Run], title: str) -> None:
    """Write ``result.json``, pictures and page, print the tables, and the headline last."""
    result.write(out)
    left_out = write_report(out, runs, title, result.as_json())
    for task in dict.fromkeys(run.row["task"] for run in runs):
        print(f"\n{task}\n{table([run for run in runs if run.row['task'] == task])}")
    print()
    if left_out:
        print(left_out_text(left_out))
    print(f"Results, pictures and report.html are in {out}")
    print(result.headline)


def table(runs: Sequence[Run]) -> str:
    """The scores of the runs of one task, the best first."""
    rest = rest_head([run.row for run in runs])
    head = ["learner", score_name(runs[0].config.chance), *rest]
    head += ["forgetting", "diverged", "  what it is"]
    body = []
    for run in sorted(runs, key=lambda run: badness(run.row)):
        known = RECIPES.get(run.config.learner)
        body.append(
            [
                run.label,
                score_text(run.row),
                *(rest_texts(run.row) if rest else ()),
                forgetting_text(run.row),
                f"{run.row['diverged']} of {run.row['episodes']}",
                "  " + ("" if known is None else known.about),
            ]
        )
    width = max(len(line[-1]) for line in [head, *body])
    return text_table(head, [[*line[:-1], line[-1].ljust(width)] for line in body])
