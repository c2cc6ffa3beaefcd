"""``demo``: five learners on two streams at the same budget."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from studies.assembly import pick_device
from studies.commands.base import Command, finish
from studies.config import RunConfig, make_config
from studies.display import make_display
from studies.folders import open_folder, subrun
from studies.gather import gather
from studies.results import Result
from studies.run import run_training
from studies.status import Report
from studies.words import comparison, score_text
from studies.workers import run_jobs

STREAMS = ("glyphs-continual", "sinusoid-continual")
LEARNERS = ("flp", "feedback-delta", "oml", "dfa", "none")
WORKERS = 2
PRESET = "quick"


@dataclass(frozen=True)
class Job:
    """One learner on one stream."""

    config: RunConfig
    out: Path
    device: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """``demo`` has no options of its own."""


def train(job: Job, report: Report) -> Result:
    """Train and score one learner, in a process of its own."""
    return run_training(job.config, job.out, report, device=torch.device(job.device))


def run(arguments: argparse.Namespace) -> None:
    """Run ``demo``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    preset, seed = arguments.preset or PRESET, arguments.seed or 0
    configs = {
        f"{task}-{learner}": make_config(task, learner, preset, seed)
        for task in STREAMS
        for learner in LEARNERS
    }
    out = open_folder(arguments.out, "demo", arguments.overwrite)
    jobs = {name: Job(c, subrun(out, name), device.type) for name, c in configs.items()}
    workers = min(WORKERS, os.cpu_count() or 1)
    with make_display(list(jobs)) as display:
        results = run_jobs(
            train, jobs, workers, display, words=lambda result: score_text(result.rows[0])
        )
    rows = [result.rows[0] for result in results.values()]
    by_task = {task: [row for row in rows if row["task"] == task] for task in STREAMS}
    result = Result(
        command="demo",
        config={
            "preset": preset,
            "workers": workers,
            "runs": {name: result.config for name, result in results.items()},
        },
        seeds=[seed],
        rows=rows,
        headline=(
            f"After meta-training with one seed ({seed}): accuracy on continual glyphs "
            f"{comparison(by_task[STREAMS[0]])}; mean squared error on continual sinusoids "
            f"{comparison(by_task[STREAMS[1]])} (95 % intervals over {rows[0]['episodes']} unseen "
            "episodes)"
        ),
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    order = {name: i for i, name in enumerate(jobs)}
    runs = sorted(gather([out]), key=lambda run: order[run.folder])
    finish(result, out, runs, "Continual learning with local plasticity: five learners, one budget")


COMMAND = Command(
    name="demo",
    about="compare five learners on continual glyphs and sinusoids, in minutes",
    description="Meta-train flp (feedback and local plasticity), feedback-delta, oml, dfa (random "
    "feedback) and none (no plasticity) on continual glyphs and on continual sinusoids, with the "
    "same meta-steps, episodes, trunk and plastic layers; one seed.",
    add_options=add_options,
    run=run,
    preset=PRESET,
)
