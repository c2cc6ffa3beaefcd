"""``reproduce``: the experiments of a paper again."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

from metaplastic.errors import ConfigurationError
from studies.assembly import pick_device
from studies.commands.base import Command
from studies.display import make_display
from studies.report import left_out_text
from studies.reproduce import PAPERS, paper_of
from studies.reproduce.base import Chosen, Paper, Sizes, chosen, resized
from studies.reproduce.jobs import make_jobs, open_study, read_images, work
from studies.reproduce.outcome import Outcome, Summary, summarise
from studies.reproduce.page import spread, summary_table, sweep_table, write_report
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
    parser.add_argument("--seeds", metavar="0,1", help="seeds (the preset's; --seed N: just one)")
    parser.add_argument("--workers", type=int, help=f"processes, one thread each ({WORKERS})")
    parser.add_argument("--epochs", type=int, help="epochs (the preset's)")
    parser.add_argument("--images", type=int, help="training images (the preset's)")


def run(arguments: argparse.Namespace) -> None:
    """Run ``reproduce``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    paper, preset = paper_of(arguments.paper), arguments.preset or PRESET
    wanted = chosen(paper, preset, _words(arguments.methods))
    sizes = resized(paper.sizes[preset], arguments.images, arguments.epochs, _seeds(arguments))
    workers = min(WORKERS, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigurationError(f"--workers counts from 1, got {workers}.")
    count = len(read_images(paper.data, sizes, "cpu").test)  # what is missing is said before
    setting = {"paper": paper.name, "preset": preset, "images": sizes.images}
    out = open_study(arguments.out, arguments.overwrite, {**setting, "epochs": sizes.epochs})
    jobs = make_jobs(paper.data, wanted, sizes, out, device.type)
    try:
        with make_display(list(jobs)) as display:
            done = run_jobs(work, jobs, workers, display, words=lambda outcome: outcome.words)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; the same command with\n"
            f"  --out {out}\ngoes on behind the last epoch of every method and seed."
        ) from None
    outcomes = list(done.values())
    published = {method.name: method.published for method in wanted.methods}
    summaries = summarise(outcomes, paper.reference, published)
    result = Result(
        command="reproduce",
        config={
            **setting,
            "epochs": sizes.epochs,
            "sizes": asdict(sizes),
            "summary": [asdict(summary) for summary in summaries],
            "runs": {name: job.setting for name, job in jobs.items()},
        },
        seeds=list(sizes.seeds),
        rows=[o.row(paper.data, jobs[n].sizes.epochs, count) for n, o in done.items()],
        headline=headline(paper, sizes, summaries, outcomes),
        seconds=time.monotonic() - began,
        device=device,
    )
    _finish(result, out, paper, wanted, outcomes, summaries)


def headline(paper: Paper, sizes: Sizes, summaries: list[Summary], outcomes: list[Outcome]) -> str:
    """Every method in one line."""
    parts = [f"{s.method} {spread(s.accuracy, s.std)}" for s in summaries]
    text = f"{paper.name} on {paper.data}, test accuracy in %: {', '.join(parts)}"
    if not summaries:
        top, body = sweep_table(outcomes)
        told = [
            ", ".join(f"{a}: {b}" for a, b in zip(top[1:], line[1:], strict=True)) for line in body
        ]
        lines = [f"{line[0]} {words}" for line, words in zip(body, told, strict=True)]
        text = f"{paper.name} on {paper.data}, test accuracy in % by noise: {'; '.join(lines)}"
    many = f"seeds {', '.join(map(str, sizes.seeds))}"
    one = f"one seed, {sizes.seeds[0]}"
    return (
        f"{text} (± standard deviation over {many}; "
        if len(sizes.seeds) > 1
        else f"{text} ({one}; "
    ) + f"{sizes.images} images, {sizes.epochs} epochs)"


def _finish(
    result: Result,
    out: Path,
    paper: Paper,
    wanted: Chosen,
    outcomes: list[Outcome],
    summaries: list[Summary],
) -> None:
    result.write(out)
    methods = [*wanted.methods, *(wanted.sweep.methods if wanted.sweep else ())]
    left_out = write_report(out, paper, methods, outcomes, summaries, result.as_json())
    if summaries:
        print(f"\n{summary_table(paper, summaries)}")
        if paper.published_note:
            print(paper.published_note)
    top, body = sweep_table(outcomes)
    if body:
        print(f"\n{text_table(top, body)}")
    for outcome in outcomes:
        if outcome.diverged is not None:
            print(f"{outcome.method}, seed {outcome.seed}: {outcome.diverged}")
    print()
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
    "seeds are not run again, unfinished ones go on behind their last epoch, and further --methods "
    "and --seeds join those that are there; --overwrite starts anew.",
    add_options=add_options,
    run=run,
    preset=PRESET,
)
