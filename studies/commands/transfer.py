"""``transfer``: learned rules on networks that they have never seen."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from metaplastic.errors import ConfigurationError
from metaplastic.rule_file import read_rule
from studies.assembly import make_run_task, pick_device
from studies.commands.base import Command
from studies.commands.evaluate import tested
from studies.commands.train import add_sizes
from studies.config import RunConfig, read_config
from studies.display import make_display
from studies.figures_transfer import gain_figure
from studies.folders import open_folder
from studies.interrupt import stoppable
from studies.networks import build_architecture
from studies.report import left_out_text, save_figure
from studies.results import Result
from studies.run import RULE, row_of
from studies.status import Status
from studies.threads import few_threads
from studies.transfer import Gain, Summary, measure, summarise
from studies.words import text_table
from tasks import Task

FILE = "transfer.json"
PICTURE = "gain.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``transfer``."""
    parser.add_argument(
        "run_folders",
        metavar="RUN",
        nargs="+",
        help="folders of trained learners that differ in their seed",
    )
    parser.add_argument(
        "--to",
        metavar="ARCH",
        action="append",
        default=[],
        help="a network: mlp:64x64x64, conv:32x32-64; may be given several times (the source "
        "network comes first in any case)",
    )
    parser.add_argument("--task", help="another task (that of the runs)")
    parser.add_argument("--episodes", type=int, help="unseen episodes (as many as in the run)")
    add_sizes(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run ``transfer``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    folders = [Path(folder) for folder in arguments.run_folders]
    configs = [read_config(folder) for folder in folders]
    source = _source(configs)
    rules = {c.seed: read_rule(f / RULE) for c, f in zip(configs, folders, strict=True)}
    config = tested(source, arguments)
    task = make_run_task(config, device)
    archs = list(dict.fromkeys([source.arch, *arguments.to]))
    _check(archs, task)
    out = open_folder(arguments.out, "transfer", arguments.overwrite, folders)
    job = f"{config.task} {config.learner}"
    with few_threads(), stoppable() as stop, make_display([job]) as display:

        def between(what: str, done: int, total: int) -> None:
            display.show(job, Status(what, done, total, unit="steps"))
            if stop():
                raise KeyboardInterrupt("stopped; transfer again from the start.")

        gains = measure(rules, archs, task, config.test, device, between)
    summaries = summarise(gains)
    _write(out, gains, summaries)
    result = Result(
        command="transfer",
        config={**config.as_json(), "to": archs},
        seeds=sorted(rules),
        rows=[_row(gain, config) for gain in gains],
        headline=headline(config, summaries, len(rules)),
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    left_out = save_figure(out / PICTURE, lambda: gain_figure(gains, summaries, config.chance))
    print(f"\n{table(summaries, config.chance)}\n")
    print(gains[-1].report + "\n")
    if left_out:
        print(left_out_text([PICTURE]))
    print(f"Results and pictures are in {out}")
    print(result.headline)


def table(summaries: list[Summary], chance: float | None) -> str:
    """One line for each network."""
    factor, digits = (1.0, 4) if chance is None else (100.0, 1)
    head = ["network", "learned rule", "best rate alone", "rate", "gain"]
    head += ["± over seeds", "± over episodes", "kept"]
    body = [
        [
            s.arch,
            f"{factor * s.learned:.{digits}f}",
            f"{factor * s.scalar:.{digits}f}",
            f"{s.rate:.3g}",
            f"{factor * s.gain:+.{digits}f}",
            "" if s.half is None else f"{factor * s.half:.{digits}f}",
            "" if s.half_episodes is None else f"{factor * s.half_episodes:.{digits}f}",
            "" if s.kept is None else f"{100 * s.kept:.0f} %",
        ]
        for s in summaries
    ]
    return text_table(head, body)


def headline(config: RunConfig, summaries: list[Summary], seeds: int) -> str:
    """The gains in one sentence."""
    factor, unit = (1.0, "") if config.chance is None else (100.0, " points")
    digits = 3 if config.chance is None else 1
    halves = [(s, s.half if seeds > 1 else s.half_episodes) for s in summaries]
    parts = [
        f"{s.arch} {factor * s.gain:+.{digits}f}"
        + ("" if half is None else f" ± {factor * half:.{digits}f}")
        + unit
        for s, half in halves
    ]
    over = f"{seeds} seeds, on the same " if seeds > 1 else ""
    return (
        f"{config.task}: gain of the learned {config.learner} over the best of 16 single rates: "
        f"{', '.join(parts)} (95 % intervals over {over}{config.test} unseen episodes; the first "
        "is the source network)"
    )


def _source(configs: list[RunConfig]) -> RunConfig:
    first = configs[0]
    for config in configs:
        if replace(config, seed=first.seed) != first:
            raise ConfigurationError(
                "these runs differ in more than their seed: transfer one kind of run at a time."
            )
    if len({config.seed for config in configs}) < len(configs):
        raise ConfigurationError("two of these runs have the same seed: give each one once.")
    if not first.arch:
        raise ConfigurationError(
            "this learner was trained behind a trunk of its own, which does not move to another "
            "network: train it with --arch mlp:64x64x64 or the like."
        )
    return first


def _check(archs: list[str], task: Task) -> None:
    for arch in archs:  # a wrong one is named before a folder is made
        build_architecture(arch, task, torch.Generator())


def _row(gain: Gain, config: RunConfig) -> dict:
    return {
        **row_of(replace(config, seed=gain.seed)),
        "learner": f"{config.learner} on {gain.arch}",
        **gain.learned.row(),
    }


def _write(out: Path, gains: list[Gain], summaries: list[Summary]) -> None:
    content = {
        "summary": [asdict(summary) for summary in summaries],
        "runs": [
            {
                "arch": gain.arch,
                "seed": gain.seed,
                "gain": gain.mean,
                "learned": float(gain.learned.by_episode.mean()),
                "diverged": gain.learned.diverged,
                "scalar": float(gain.scalar.scores.by_episode.mean()),
                "scalar_rate": gain.scalar.rate,
                "scalar_validation": gain.scalar.validation,
            }
            for gain in gains
        ],
    }
    (out / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


COMMAND = Command(
    name="transfer",
    about="put learned rules into networks that they have never seen",
    description="Put the learned rules of some runs into other networks and compare each with the "
    "best of 16 log-spaced rates of the same rule family, chosen on validation episodes. Initial "
    "weights and feedback are drawn anew in every episode, the same ones for both.",
    add_options=add_options,
    run=run,
    preset=None,
    names=True,
)
