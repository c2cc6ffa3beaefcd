"""A search in a few processes: what is searched, its workers, and how it stands."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaplastic.errors import ConfigurationError
from metaplastic.recipes import recipe
from metaplastic.seeds import evaluation_stream
from metaplastic.tune import Problem, finished, make_pruner, make_sampler, open_storage, search
from metaplastic.tune.problem import Measure
from studies.assembly import make_learner, make_run_task, make_training
from studies.config import RunConfig
from studies.folders import ARTIFACTS
from studies.threads import few_threads

VALIDATION = 200
"""Validation episodes of a trial, at most; as many as the preset tests on."""
BATCH = 25
"""Of these at a time; the first batch also scores a trial on its way."""
DATABASE = "study.db"
CONFIG, MADE_BY, COMMANDS = "config", "command", "commands"
"""Attributes of a study: the configuration of its trials, how it was made, and how many commands
have worked on it.
"""


@dataclass(frozen=True)
class Search:
    """Everything that a worker needs to know."""

    config: RunConfig
    storage: str
    name: str
    out: str
    trials: int
    sampler: str
    pruner: str
    measures: tuple[Measure, ...]
    timeout: float | None
    device: str
    interval: int
    grace: int
    earlier: int
    """Commands that have worked on the study before."""


def make_problem(config: RunConfig, device: torch.device, *, stream: int = 0) -> Problem:
    """What a search of a run's learner on its task tunes; trials are runs of that configuration.

    ``stream`` numbers the evaluation stream of the validation episodes.

    Raises ConfigurationError for a learner without a search space.
    """
    named = recipe(config.learner)
    if not named.space:
        raise ConfigurationError(f"the learner {named.name} declares nothing to search.")
    task = make_run_task(config, device)
    count, generator = min(config.test, VALIDATION), evaluation_stream(stream)
    sizes = [min(BATCH, count - first) for first in range(0, count, BATCH)]

    def training(options: Mapping[str, Any], seed: int):
        trial = trial_config(config, options, seed)
        return make_training(trial, task, make_learner(trial, task, device))

    published = None if named.published is None else asdict(named.published)
    whole = config.as_json()
    kept = ("task", "task_options", "learner", "metagradient", "episodes", "hidden", "arch")
    return Problem(
        training=training,
        steps=config.steps,
        validation=[task.episodes("validation", size, generator) for size in sizes],
        space=named.space,
        options=config.options,
        accuracy=config.chance is not None,
        published=published,
        identity={
            **{name: whole[name] for name in (*kept, "feature_norm", "decay")},
            "validation": count,
        },
    )


def trial_config(config: RunConfig, options: Mapping[str, Any], seed: int) -> RunConfig:
    """The run that a trial is."""
    return replace(config, options={**config.options, **options}, seed=seed, rate_search={})


def sign(study: Any, config: RunConfig, words: str) -> int:
    """Write down in a new study how it was made; returns how many commands have signed before."""
    earlier = study.user_attrs.get(COMMANDS, 0)
    if CONFIG not in study.user_attrs:
        study.set_user_attr(CONFIG, config.as_json())
        study.set_user_attr(MADE_BY, words)
    study.set_user_attr(COMMANDS, earlier + 1)
    return earlier


def work(job: Search, worker: int) -> None:
    """One worker, in a process of its own: trials until the study has enough."""
    import optuna
    from optuna.artifacts import FileSystemArtifactStore

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # Of this process alone. What is raised comes out as such, and surplus trials are no news.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parent = multiprocessing.parent_process()

    def report(*_: object) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit("the command that asked for this is gone")

    problem = make_problem(job.config, torch.device(job.device))
    storage = open_storage(job.storage, interval=job.interval, grace=job.grace)
    study = optuna.load_study(study_name=job.name, storage=storage)
    # No worker, of this command or another one, may draw what another one drew.
    seed = np.random.SeedSequence([job.config.seed, job.earlier, worker]).generate_state(1)[0]
    study.sampler = make_sampler(job.sampler, int(seed), problem.space, job.trials)
    study.pruner = make_pruner(job.pruner)
    folder = Path(job.out) / ARTIFACTS
    folder.mkdir(parents=True, exist_ok=True)
    with few_threads():
        search(
            study,
            problem,
            trials=job.trials,
            measures=job.measures,
            seed=job.config.seed,
            timeout=job.timeout,
            artifacts=FileSystemArtifactStore(str(folder)),
            report=report,
        )


def run_workers(
    job: Search,
    workers: int,
    look: Callable[[Any], None],
    stop: Callable[[], bool] = lambda: False,
    pause: float = 1.0,
) -> None:
    """Run workers until the study has ``job.trials`` finished trials; one that is killed is
    replaced.

    ``look`` is given the study every ``pause`` seconds.

    Raises:
        KeyboardInterrupt: when ``stop`` says so; running trials are left to the next resume.
        ConfigurationError: when workers are killed again and again.
        RuntimeError: when a worker fails, which has printed its traceback.
    """
    import optuna

    context = multiprocessing.get_context("spawn")
    storage = open_storage(job.storage, interval=job.interval, grace=job.grace)
    study = optuna.load_study(study_name=job.name, storage=storage)
    began, started, deaths = time.monotonic(), 0, 0
    running: list[BaseProcess] = []

    def start() -> BaseProcess:
        nonlocal started
        left = None if job.timeout is None else job.timeout - (time.monotonic() - began)
        process = context.Process(
            target=work, args=(replace(job, timeout=left), started), daemon=True
        )
        process.start()
        started += 1
        return process

    try:
        running = [start() for _ in range(workers)]
        while running:
            time.sleep(pause)
            look(study)
            if stop():
                raise KeyboardInterrupt("stopped; go on with --resume.")
            ended = [process for process in running if not process.is_alive()]
            running = [process for process in running if process.is_alive()]
            dead = [process for process in ended if process.exitcode]
            if any(process.exitcode and process.exitcode > 0 for process in dead):
                raise RuntimeError(
                    "a worker failed, with the traceback above; its trial is recorded as failed. "
                    "Go on with --resume once the cause is mended."
                )
            deaths += len(dead)
            if deaths > 3 * workers + job.trials:
                raise ConfigurationError(
                    f"workers were killed {deaths} times, the last one with signal "
                    f"{-(dead[-1].exitcode or 0)}; 9 usually means that memory ran out."
                )
            if len(finished(study)) < job.trials:
                running += [start() for _ in dead]
    finally:
        for process in running:
            process.terminate()
            process.join()
    look(study)
