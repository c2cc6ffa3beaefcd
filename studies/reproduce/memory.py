"""What a meta-gradient keeps alive, against the number of steps of its inner loop."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from metaplastic.analysis import LiveBytes
from metaplastic.errors import ConfigurationError, MetaplasticError
from metaplastic.seeds import streams
from studies.assembly import make_learner, make_run_task
from studies.config import make_config, own_rest
from studies.folders import open_folder
from studies.report import left_out_text, save_figure
from studies.results import Result
from studies.style import GRID, colours, end_labels
from studies.words import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNERS = ("lcp", "lcp-direct", "lcp-contrastive", "imaml", "t1-t2", "maml-rest")
STEPS = (10, 30, 100, 300, 1000)
TASK, PRESET, EPISODES = "sinusoid-iid", "smoke", 2
PICTURE = "memory.png"
Peaks = Mapping[str, Mapping[int, int]]
"""{learner: {inner steps: bytes}}"""


def peak(learner: str, steps: int) -> int:
    """The most bytes that are alive at once in one meta-gradient of a learner with a method at
    rest, beside the learner and the episodes themselves.

    Raises ConfigurationError for a learner without one, and RuntimeError where an episode diverged.
    """
    config = make_config(TASK, learner, PRESET, 0)
    rest = own_rest(config)
    if rest is None:
        raise ConfigurationError(f"{learner} has no method at rest; {', '.join(LEARNERS)} have.")
    # No episode is left out, however far from rest it is.
    method = replace(rest, steps=steps, tolerance=math.inf, batching="vmap")
    device = torch.device("cpu")
    task = make_run_task(config, device)
    made = make_learner(config, task, device)
    episodes = task.episodes("train", EPISODES, streams(0)["episodes"])
    with LiveBytes() as live:
        outcome = method.gradient(made, episodes)
    if outcome.diverged:
        raise RuntimeError(f"{learner} at {steps} steps: {outcome.diverged[0]}")
    return live.peak


def growth(peaks: Mapping[int, int]) -> float:
    """The peak with the most steps over that with the fewest."""
    return peaks[max(peaks)] / peaks[min(peaks)]


def memory_table(peaks: Peaks) -> tuple[list[str], list[list[str]]]:
    """A line for each learner, in kB (1000 bytes)."""
    steps = list(next(iter(peaks.values())))
    head = ["kB after inner steps", *map(str, steps), "growth"]
    return head, [
        [name, *(f"{row[step] / 1000:.1f}" for step in steps), f"{growth(row):.2f}"]
        for name, row in peaks.items()
    ]


def memory_figure(peaks: Peaks) -> Figure:
    """Peaks against inner steps, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6, 3.7), layout="constrained")
    axes = figure.subplots()
    ends = []
    for (name, row), colour in zip(peaks.items(), colours(list(peaks)), strict=True):
        sizes = [size / 1000 for size in row.values()]
        axes.plot(
            list(row), sizes, color=colour, linewidth=1.6, marker="o", markersize=3, clip_on=False
        )
        ends.append((sizes[-1], name, colour))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Peak memory of one meta-gradient (kB)")
    axes.set_xlabel("inner steps")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlim(min(map(min, peaks.values())), max(map(max, peaks.values())))
    end_labels(axes, ends)
    return figure


def run(out: str | None, overwrite: bool, steps: Sequence[int] = STEPS) -> None:
    """Measure, write ``result.json`` and the picture, print the table and the headline."""
    began = time.monotonic()
    folder = open_folder(out, "memory", overwrite)
    peaks = {name: {count: peak(name, count) for count in steps} for name in LEARNERS}
    written = {
        name: {str(count): size for count, size in row.items()} for name, row in peaks.items()
    }
    told = ", ".join(f"{name} {growth(row):.2f}" for name, row in peaks.items())
    config = make_config(TASK, LEARNERS[0], PRESET, 0)
    result = Result(
        command="memory",
        config={
            "task": TASK,
            "task_options": config.task_options,
            "hidden": list(config.hidden),
            "episodes": EPISODES,
            "peaks": written,
            "growth": {name: growth(row) for name, row in peaks.items()},
        },
        seeds=[0],
        rows=[],
        headline=f"memory of one meta-gradient from {min(steps)} to {max(steps)} inner steps, "
        f"peak over peak: {told} ({TASK}, {EPISODES} episodes)",
        seconds=time.monotonic() - began,
        device=torch.device("cpu"),
    )
    result.write(folder)
    missing = save_figure(folder / PICTURE, partial(memory_figure, peaks))
    print(f"{text_table(*memory_table(peaks))}\n")
    if missing:
        print(left_out_text([PICTURE]))
    print(f"Results are in {folder}")
    print(result.headline)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m studies.reproduce.memory --out DIR``; returns the exit code: 0, or 2 for a wrong
    request.
    """
    parser = argparse.ArgumentParser(prog="python -m studies.reproduce.memory", description=__doc__)
    parser.add_argument("--out", metavar="DIR", help="folder for the results (runs/memory-<date>)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in DIR")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        run(parsed.out, parsed.overwrite)
    except MetaplasticError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
