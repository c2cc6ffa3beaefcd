"""``reproduce``: the experiments of a paper again."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from metaplastic.errors import ConfigurationError
from studies.assembly import pick_device
from studies.commands.base import Command
from studies.display import make_display
from studies.report import left_out_text
from studies.reproduce import PAPERS, paper_of
from studies.reproduce.page import write_report
from studies.reproduce.paper import Chosen, Ended, Paper, PartReport, chosen
from studies.reproduce.study import make_jobs, open_study, work
from studies.results import Result
from studies.words import text_table
from studies.workers import run_jobs

WORKERS = 2
PRESET = "quick"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``reproduce``."""
    about = "; ".join(f"{name}, {paper.about}" for name, paper in PAPERS.items())
    parser.add_argument("paper", metavar="PAPER", help=about)
    parser.add_argument("--methods", metavar="A,B", help="some methods only (all of the paper)")
    parser.add_argument("--parts", metavar="A,B", help="some parts only (all of the preset)")
    parser.add_argument("--seeds", metavar="0,1", help="seeds (the preset's; --seed N: just one)")
    parser.add_argument("--workers", type=int, help=f"processes, one thread each ({WORKERS})")
    parser.add_argument("--epochs", type=int, help="epochs (the preset's), for images")
    parser.add_argument("--images", type=int, help="training images (the preset's)")


def run(arguments: argparse.Namespace) -> None:
    """Run ``reproduce``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    paper, preset = paper_of(arguments.paper), arguments.preset or PRESET
    asked = arguments.images, arguments.epochs, _seeds(arguments)
    every = {name: one.resized(*asked) for name, one in chosen(paper, preset).items()}
    named = chosen(paper, preset, _words(arguments.methods), _words(arguments.parts))
    wanted = {name: one.resized(*asked) for name, one in named.items()}
    _refuse_sizes(arguments, wanted)
    workers = min(WORKERS, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigurationError(f"--workers counts from 1, got {workers}.")
    for one in wanted.values():
        one.check(device.type)  # what is missing is said before anything is made
    setting = {
        "paper": paper.name,
        "preset": preset,
        **{
            key: {n: one.setting[key] for n, one in every.items() if key in one.setting}
            for key in ("images", "epochs")
        },
    }
    out = open_study(arguments.out, arguments.overwrite, setting)
    jobs = make_jobs(wanted, out, device.type)
    try:
        with make_display(list(jobs)) as display:
            done = run_jobs(work, jobs, workers, display, words=lambda ended: ended.words)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command with\n"
            f"  --out {out}\ngoes on behind the last checkpoint of every method and seed."
        ) from None
    ended = [done[name] for name in jobs]
    reports = {
        name: one.report(paper, [e for e in ended if e.part == name])
        for name, one in wanted.items()
    }
    result = Result(
        command="reproduce",
        config={
            **setting,
            "sizes": {name: one.record for name, one in wanted.items()},
            "summary": [line for report in reports.values() for line in report.summary],
            "runs": {name: job.setting for name, job in jobs.items()},
        },
        seeds=sorted({seed for one in wanted.values() for seed in one.record["seeds"]}),
        rows=[job.row() for job in jobs.values()],
        headline=f"{paper.name} on {'; '.join(report.headline for report in reports.values())}",
        seconds=time.monotonic() - began,
        device=device,
    )
    _finish(result, out, paper, wanted, reports, ended)


def _refuse_sizes(arguments: argparse.Namespace, wanted: Mapping[str, Chosen]) -> None:
    given = [f"--{name}" for name in ("images", "epochs") if getattr(arguments, name) is not None]
    if given and not any(one.of_images for one in wanted.values()):
        raise ConfigurationError(
            f"{' and '.join(given)}: {', '.join(wanted)} learn from episodes, whose sizes are the "
            "preset's. Leave it out, choose another --preset, or add a part with images."
        )


def _finish(
    result: Result,
    out: Path,
    paper: Paper,
    wanted: Mapping[str, Chosen],
    reports: Mapping[str, PartReport],
    ended: Sequence[Ended],
) -> None:
    result.write(out)
    left_out = write_report(out, paper, wanted, reports, ended, result.as_json())
    for part, report in reports.items():
        print(f"\n{part}")
        for table in report.tables:
            print(f"{text_table(*table)}\n")
        for note in report.notes:
            print(note)
    if paper.published_note and any(report.summary for report in reports.values()):
        print(paper.published_note)
    for one in ended:
        if one.diverged is not None:
            print(f"{one.part}: {one.method}, seed {one.seed}: {one.diverged}")
    if left_out:
        print(left_out_text(left_out))
    print(f"Results, pictures and report.html are in {out}")
    print(result.headline)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _seeds(arguments: argparse.Namespace) -> list[int] | None:
    if arguments.seeds is not None and arguments.seed is not None:
        raise ConfigurationError("--seed N is --seeds N: give one of them.")
    words = _words(arguments.seeds)
    if words is None:
        return None if arguments.seed is None else [arguments.seed]
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ConfigurationError(
            f"--seeds takes numbers with commas between them, such as 0,1,2; got "
            f"{arguments.seeds!r}."
        ) from None


COMMAND = Command(
    name="reproduce",
    about="run the experiments of a paper again",
    description="Train the methods of a paper, several seeds each, and compare them with what was "
    "published. Called again with the same --out and setting it goes on: finished methods and "
    "seeds are not run again, unfinished ones go on behind their last checkpoint, and further "
    "--parts, --methods and --seeds join those that are there; --overwrite starts anew.",
    add_options=add_options,
    run=run,
    preset=PRESET,
)
