"""``train``: one learner on one task."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaplastic.errors import CheckpointError, ConfigurationError
from studies.assembly import make_learner, make_run_task, pick_device
from studies.commands.base import Command, finish
from studies.config import METAGRADIENTS, RunConfig, make_config, read_config, read_options
from studies.display import make_display
from studies.folders import open_folder
from studies.gather import gather
from studies.interrupt import stoppable
from studies.run import CHECKPOINT, run_training
from studies.threads import few_threads
from studies.words import score_name, score_text

PRESET = "quick"
TASK, LEARNER = "glyphs-continual", "flp"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``train``, all unset where they are not given."""
    add_run_options(parser)
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run, exactly; of the other options only --steps (for a "
        "longer run) and --device have a meaning then",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What decides a run, for every command that makes some."""
    forms = [name if option is None else f"{name}:K" for name, option in METAGRADIENTS.items()]
    parser.add_argument("--task", help=f"name of a task ({TASK})")
    parser.add_argument("--learner", help=f"name of a learner ({LEARNER})")
    parser.add_argument(
        "--metagradient",
        help=f"{', '.join(forms)}; K counts presentations, pairs for evolution (unrolled)",
    )
    parser.add_argument("--steps", type=int, help="meta-steps in all")
    parser.add_argument("--episodes", type=int, help="episodes in each meta-step")
    add_sizes(parser)
    parser.add_argument(
        "--arch",
        help="a network without a trunk: mlp:64x64x64, conv:32x32-64 (that of the preset)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with options of the learner, name = value"
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Options of the task."""
    parser.add_argument("--ways", type=int, help="classes in an episode; image tasks")
    parser.add_argument("--shots", type=int, help="examples of each class; image tasks")
    parser.add_argument("--functions", type=int, help="functions in an episode; sinusoids")
    parser.add_argument("--tasks", type=int, help="tasks in an episode; mnist")
    parser.add_argument("--stream", help="split or permuted: what a task is; mnist")


def given_sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the task that were given."""
    names = ("ways", "shots", "functions", "tasks", "stream")
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def run(arguments: argparse.Namespace) -> None:
    """Run ``train``."""
    device = pick_device(arguments.device)
    resume = arguments.resume is not None
    if resume:
        config, out = _resumed(arguments)
    else:
        config = _configured(arguments)
        # What is wrong with the sizes is said before a folder is made.
        make_learner(config, make_run_task(config, device), device)
        out = open_folder(arguments.out, "train", arguments.overwrite)
    job = f"{config.task} {config.learner}"
    with few_threads(), stoppable() as stop, make_display([job]) as display:
        result = run_training(
            config, out, display.reporter(job), device=device, stop=stop, resume=resume
        )
        display.done(job, f"{score_name(config.chance)} {score_text(result.rows[0])}")
    finish(result, out, gather([out]), f"{config.learner} on {config.task}")


def _configured(arguments: argparse.Namespace) -> RunConfig:
    return make_config(
        arguments.task or TASK,
        arguments.learner or LEARNER,
        arguments.preset or PRESET,
        arguments.seed or 0,
        metagradient=arguments.metagradient,
        steps=arguments.steps,
        episodes=arguments.episodes,
        task_options=given_sizes(arguments),
        options=None if arguments.config is None else read_options(arguments.config),
        arch=arguments.arch,
    )


def _resumed(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    fixed = ("out", "seed", "preset", "task", "learner", "metagradient", "episodes", "arch")
    given = [n for n in (*fixed, "config") if getattr(arguments, n) is not None]
    given += list(given_sizes(arguments))
    if given:
        raise ConfigurationError(
            f"--resume goes on with a run as it was configured, in its own folder: leave out "
            f"{', '.join('--' + name for name in given)}, or start a new run without --resume."
        )
    folder = Path(arguments.resume)
    config = read_config(folder)
    if not (folder / CHECKPOINT).is_file():
        raise CheckpointError(
            f"{folder} holds no {CHECKPOINT}: give a folder of `python -m studies train`."
        )
    if arguments.steps is not None:
        if arguments.steps < config.steps:
            raise ConfigurationError(
                f"--steps {arguments.steps}: this run has {config.steps} already; give more."
            )
        config = replace(config, steps=arguments.steps)
    return config, folder


COMMAND = Command(
    name="train",
    about="meta-train one learner on one task, and score it on unseen episodes",
    add_options=add_options,
    run=run,
    preset=PRESET,
    names=True,
)
