"""The search: trials, one after another, until a study has as many as were asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from metaplastic.tune.dead import DeadTrials, awaited
from metaplastic.tune.problem import Measure, Problem
from metaplastic.tune.storage import quiet
from metaplastic.tune.trial import COUNTED, SurplusError, TrialObjective

POLL = 1.0
"""Seconds between two looks at a study whose last trials others are running."""


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete, pruned and diverged ones."""
    return study.get_trials(deepcopy=False, states=COUNTED)


def search(
    study: optuna.Study,
    problem: Problem,
    *,
    trials: int,
    measures: Sequence[Measure] = ("score",),
    seed: int = 0,
    timeout: float | None = None,
    artifacts: Any = None,
    report: Callable[[int, int, int, float | None], None] = lambda trial, stop, stops, value: None,
) -> None:
    """Run trials until the study has ``trials`` finished ones, together with all other workers.

    A trial of a dead worker stays recorded as failed, does not count, and its parameters are run
    again, where the storage can tell (see ``open_storage``); where it cannot, running trials are
    counted and not waited for. A trial that diverges is recorded as pruned, with ``outcome`` and
    ``reason`` among its attributes.

    Args:
        study: see ``open_study``.
        problem: what it searches.
        trials: finished trials in all.
        measures: those that the study was made with.
        seed: trial i trains with the seed ``seed`` + i.
        timeout: seconds after which no new trial begins.
        artifacts: an Optuna artifact store for the curve and the rule of each trial, or None.
        report: told (trial, stop, stops, score on the way) as a trial goes on.
    """
    began = time.monotonic()
    objective = TrialObjective(problem, tuple(measures), seed, trials, artifacts, report)
    dead = DeadTrials(study)
    while timeout is None or time.monotonic() - began < timeout:
        dead.bury()
        every = study.get_trials(deepcopy=False)
        counted = sum(trial.state in COUNTED for trial in every)
        if counted >= trials:
            return
        running = sum(trial.state == TrialState.RUNNING for trial in every)
        pending = awaited(every) if dead.known else 0
        if counted + running + pending >= trials:
            if not dead.known:
                return
            time.sleep(POLL)  # others are at the last ones, which may yet fail
            continue
        objective.lost = False
        try:
            with quiet():
                study.optimize(objective, n_trials=1, catch=(SurplusError,))
        except (ValueError, UpdateFinishedTrialError):
            # This worker slept for so long that its trial was taken for dead and queued again.
            if not objective.lost:
                raise
