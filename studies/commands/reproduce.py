"""``reproduce``: the experiments of a paper again."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from metaplastic.errors import ConfigurationError
from studies.assembly import pick_device
from studies.commands.base import Command
from studies.display import make_display
from studies.report import left_out_text
from studies.reproduce import PAPERS, paper_of
from studies.reproduce.base import Chosen, Paper, chosen, resized
from studies.reproduce.jobs import count_tests, make_jobs, open_study, work
from studies.reproduce.outcome import Outcome, Summary, summarise
from studies.reproduce.page import part_tables, sizes_text, spread, sweep_table, write_report
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
    parser.add_argument("--epochs", type=int, help="epochs (the preset's)")
    parser.add_argument("--images", type=int, help="training images (the preset's)")


def run(arguments: argparse.Namespace) -> None:
    """Run ``reproduce``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    paper, preset = paper_of(arguments.paper), arguments.preset or PRESET
    asked = arguments.images, arguments.epochs, _seeds(arguments)
    own = {n: resized(one.sizes, *asked) for n, one in chosen(paper, preset).items()}
    named = chosen(paper, preset, _words(arguments.methods), _words(arguments.parts))
    wanted = {name: replace(one, sizes=own[name]) for name, one in named.items()}
    workers = min(WORKERS, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigurationError(f"--workers counts from 1, got {workers}.")
    tests = count_tests(wanted)  # what is missing is said before anything is made
    setting = {
        "paper": paper.name,
        "preset": preset,
        "images": {name: sizes.images for name, sizes in own.items()},
        "epochs": {name: sizes.epochs for name, sizes in own.items()},
    }
    out = open_study(arguments.out, arguments.overwrite, setting)
    jobs = make_jobs(wanted, out, device.type)
    try:
        with make_display(list(jobs)) as display:
            done = run_jobs(work, jobs, workers, display, words=lambda outcome: outcome.words)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command with\n"
            f"  --out {out}\ngoes on behind the last epoch of every method and seed."
        ) from None
    outcomes = [done[name] for name in jobs]
    summaries = [
        summary
        for name, one in wanted.items()
        for summary in summarise(
            [o for o in outcomes if o.part == name],
            one.part.reference,
            {method.name: method.published for method in one.methods},
            paper.slowness,
        )
    ]
    result = Result(
        command="reproduce",
        config={
            **setting,
            "sizes": {name: asdict(one.sizes) for name, one in wanted.items()},
            "summary": [asdict(summary) for summary in summaries],
            "runs": {name: job.setting for name, job in jobs.items()},
        },
        seeds=sorted({seed for one in wanted.values() for seed in one.sizes.seeds}),
        rows=[
            o.row(job.sizes.epochs, min(tests[job.data], job.sizes.test))
            for job, o in zip(jobs.values(), outcomes, strict=True)
        ],
        headline=headline(paper, wanted, summaries, outcomes),
        seconds=time.monotonic() - began,
        device=device,
    )
    _finish(result, out, paper, wanted, outcomes, summaries)


def headline(
    paper: Paper,
    wanted: Mapping[str, Chosen],
    summaries: Sequence[Summary],
    outcomes: Sequence[Outcome],
) -> str:
    """Every method in one line."""
    parts = []
    for part, one in wanted.items():
        told = [f"{s.method} {spread(s.accuracy, s.std)}" for s in summaries if s.part == part]
        text, by = ", ".join(told), ""
        if not told:
            top, body = sweep_table([o for o in outcomes if o.part == part])
            lines = [
                ", ".join(f"{a}: {b}" for a, b in zip(top[1:], line[1:], strict=True))
                for line in body
            ]
            text = "; ".join(f"{line[0]} {words}" for line, words in zip(body, lines, strict=True))
            by = " by noise"
        spreads = "± standard deviation over " if len(one.sizes.seeds) > 1 else ""
        parts.append(f"{part}, test accuracy in %{by}: {text} ({spreads}{sizes_text(one)})")
    return f"{paper.name} on {'; '.join(parts)}"


def _finish(
    result: Result,
    out: Path,
    paper: Paper,
    wanted: Mapping[str, Chosen],
    outcomes: list[Outcome],
    summaries: list[Summary],
) -> None:
    result.write(out)
    left_out = write_report(out, paper, wanted, outcomes, summaries, result.as_json())
    for part, one in wanted.items():
        own = [o for o in outcomes if o.part == part]
        lines = [s for s in summaries if s.part == part]
        print(f"\n{part}")
        for table in part_tables(paper, one, own, lines):
            print(f"{text_table(*table)}\n")
        for summary in lines:
            if summary.warning:
                print(summary.warning)
    if summaries and paper.published_note:
        print(paper.published_note)
    for outcome in outcomes:
        if outcome.diverged is not None:
            print(f"{outcome.part}: {outcome.method}, seed {outcome.seed}: {outcome.diverged}")
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
    "seeds are not run again, unfinished ones go on behind their last epoch, and further --parts, "
    "--methods and --seeds join those that are there; --overwrite starts anew.",
    add_options=add_options,
    run=run,
    preset=PRESET,
)
