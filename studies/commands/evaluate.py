"""``evaluate``: a trained learner on other episodes, or another task."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.learner import Learner
from metaplastic.training import load_checkpoint
from studies.analysis import analyse, write_analysis
from studies.assembly import make_learner, make_run_task, pick_device, pinned
from studies.commands.base import Command, finish
from studies.commands.train import add_sizes, given_sizes
from studies.config import RunConfig, own_rest, read_config, run_metagradient
from studies.display import make_display
from studies.folders import SUBRUNS, open_folder
from studies.gather import gather
from studies.interrupt import stoppable
from studies.presets import sizes
from studies.results import Result
from studies.run import CHECKPOINT, row_of
from studies.scoring import fitted_functions, score_run
from studies.status import Status
from studies.threads import few_threads
from studies.words import run_headline
from tasks import TASKS, Task


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``evaluate``."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a trained learner")
    parser.add_argument("--task", help="another task that its network fits (that of the run)")
    parser.add_argument("--episodes", type=int, help="unseen episodes (as many as in the run)")
    add_sizes(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run ``evaluate``."""
    began, device = time.monotonic(), pick_device(arguments.device)
    folder = Path(arguments.run_folder)
    if (folder / SUBRUNS).is_dir():
        names = sorted(path.name for path in (folder / SUBRUNS).iterdir())
        raise ConfigurationError(
            f"{folder} holds several learners: give {folder / SUBRUNS}/ and one of "
            f"{', '.join(names)}."
        )
    trained = read_config(folder)
    learner = make_learner(trained, make_run_task(trained, device), device)
    content = load_checkpoint(folder / CHECKPOINT, learner)
    learner.load_state_dict(content["learner"])
    config = tested(trained, arguments)
    task = make_run_task(config, device)
    config = replace(pinned(config, task), steps=content["steps"])
    check_fit(learner, task)
    out = open_folder(arguments.out, "evaluate", arguments.overwrite, [folder])
    config.write(out)
    job = f"{config.task} {config.learner}"
    with few_threads(), stoppable() as stop, make_display([job]) as display:

        def between(done: int, total: int) -> None:
            display.show(job, Status("testing", done, total, unit="episodes"))
            if stop():
                raise KeyboardInterrupt("stopped; evaluate again from the start.")

        method = run_metagradient(config)
        scores, values = score_run(learner, task, config.test, method, own_rest(config), between)
        functions = fitted_functions(learner, task, method)
        found = analyse(learner, task)
    scores.write(out, functions)
    write_analysis(out, found)
    row: dict[str, Any] = {**row_of(config), **values}
    result = Result(
        command="evaluate",
        config={**config.as_json(), "trained": {"task": trained.task, **trained.task_options}},
        seeds=[config.seed],
        rows=[row],
        headline=run_headline(row, config.chance),
        seconds=time.monotonic() - began,
        device=device,
    )
    result.write(out)
    finish(result, out, gather([out]), f"{config.learner} on {config.task}")


def tested(trained: RunConfig, arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the evaluation: the run's, with other episodes.

    Raises UnknownNameError, and ConfigurationError for a number of episodes below 1.
    """
    name = arguments.task or trained.task
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    options = dict(trained.task_options)
    if name.partition("-")[0] != trained.task.partition("-")[0]:
        # Another family: what both know is kept, and the rest is the family's own default.
        other = sizes(name, trained.learner, trained.preset).task
        options = {key: options.get(key, value) for key, value in other.items()}
    episodes = trained.test if arguments.episodes is None else arguments.episodes
    if episodes < 1:
        raise ConfigurationError(f"--episodes counts from 1; got {episodes}.")
    return replace(
        trained, task=name, task_options={**options, **given_sizes(arguments)}, test=episodes
    )


def check_fit(learner: Learner, task: Task) -> None:
    """Raise ConfigurationError unless the learner's network can take part in the task."""
    shape = getattr(learner.network, "input_shape", None)
    if shape != task.input_shape or learner.network.outputs < task.outputs:
        raise ConfigurationError(
            f"the learner takes inputs {shape} and has {learner.network.outputs} outputs; "
            f"{task.name} has inputs {task.input_shape} and needs {task.outputs} outputs. Choose "
            "a task with the same inputs and no more outputs (fewer --ways, the same --functions)."
        )


COMMAND = Command(
    name="evaluate",
    about="score a trained learner on other unseen episodes",
    description="Score a trained learner on other unseen episodes: more of them, fewer ways, other "
    "shots, or a task of another family with the same inputs. Every learner meets the same ones.",
    add_options=add_options,
    run=run,
    preset=None,
    names=True,
)
