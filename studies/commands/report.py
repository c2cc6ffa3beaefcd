"""``report``: pictures and a page of finished runs."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from metaplastic.errors import ConfigurationError, UnknownNameError
from studies.commands.base import Command, finish
from studies.compare import compare, comparison_table
from studies.folders import open_folder
from studies.gather import Run, gather, labelled
from studies.results import Result
from studies.words import comparison, score_name

COMPARISON = "comparison.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``report``."""
    parser.add_argument(
        "run_folders", metavar="RUN", nargs="+", help="folder of a run, an evaluation or a demo"
    )
    parser.add_argument("--task", help="only the runs of this task")
    parser.add_argument("--episodes", type=int, help="only what was scored on so many episodes")


def run(arguments: argparse.Namespace) -> None:
    """Run ``report``."""
    began = time.monotonic()
    folders = [Path(folder) for folder in arguments.run_folders]
    runs = _chosen(gather(folders), arguments)
    out = open_folder(arguments.out, "report", arguments.overwrite, folders)
    result = Result(
        command="report",
        config={"runs": [run.folder for run in runs]},
        seeds=sorted({run.row["seed"] for run in runs}),
        rows=[run.row for run in runs],
        headline=headline(runs),
        seconds=time.monotonic() - began,
        device=torch.device("cpu"),
    )
    lines = compare(runs)
    for task in dict.fromkeys(line.task for line in lines):
        own = [line for line in lines if line.task == task]
        chance = next(run.config.chance for run in runs if run.row["task"] == task)
        print(f"\n{comparison_table(task, chance, own)}")
    if lines:
        text = json.dumps([asdict(line) for line in lines], indent=2)
        (out / COMPARISON).write_text(text + "\n", encoding="utf-8")
    finish(result, out, runs, "Comparison of learners")


def headline(runs: list[Run]) -> str:
    """The scores of all runs in one line."""
    parts = []
    for task in dict.fromkeys(run.row["task"] for run in runs):
        own = [run for run in runs if run.row["task"] == task]
        rows = [{**run.row, "learner": run.label} for run in own]
        parts.append(f"{task} ({score_name(own[0].config.chance)}): {comparison(rows)}")
    return "; ".join(parts)


def _chosen(runs: list[Run], arguments: argparse.Namespace) -> list[Run]:
    tasks = sorted({run.row["task"] for run in runs})
    if arguments.task is not None and arguments.task not in tasks:
        raise UnknownNameError("task among these runs", arguments.task, tasks)
    kept = [
        run
        for run in runs
        if arguments.task in (None, run.row["task"])
        and arguments.episodes in (None, run.row["episodes"])
    ]
    if not kept:
        counts = sorted({run.row["episodes"] for run in runs})
        raise ConfigurationError(
            f"no run was scored on {arguments.episodes} episodes; these have "
            f"{', '.join(map(str, counts))}. Score one anew with `python -m studies evaluate`."
        )
    return labelled(kept)


COMMAND = Command(
    name="report",
    about="draw the pictures and the page of finished runs, side by side",
    add_options=add_options,
    run=run,
    preset=None,
)
