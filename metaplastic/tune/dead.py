"""Trials of workers that died."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from metaplastic.tune.storage import quiet

SILENCE = 6
"""Intervals between signs of life in which a trial must begin."""
BEGUN = "begun"
MOMENT = 10
"""Seconds within which a dead trial's parameters are queued again."""


def awaited(trials: Sequence[FrozenTrial]) -> int:
    """How many trials have just died and are about to be queued again: Optuna fails a trial first
    and queues its parameters a moment later, and nobody else may take its place meanwhile.
    """
    queued = {n for t in trials for n in t.system_attrs.get("retry_history", ())}
    now = datetime.now()
    return sum(
        t.state == TrialState.FAIL
        and t.number not in queued
        and t.user_attrs.get("outcome") != "surplus"
        and t.datetime_complete is not None
        and (now - t.datetime_complete).total_seconds() < MOMENT
        for t in trials
    )


class DeadTrials:
    """Finds the trials of workers that died, fails them and puts their parameters in the queue.

    Optuna does so with trials whose signs of life end. A trial whose worker dies before the first
    one, while the sampler still draws, would stay as running for ever; it is known by the missing
    mark of ``begin``.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._storage: Any = study._storage  # there is no public way to it
        self._interval = getattr(self._storage, "get_heartbeat_interval", lambda: None)()
        self._seen: dict[int, float] = {}

    @property
    def known(self) -> bool:
        """Whether the storage can tell which trials are dead."""
        return self._interval is not None

    @staticmethod
    def begin(trial: optuna.Trial) -> None:
        """Mark a trial that shows signs of life from now on."""
        trial.set_user_attr(BEGUN, trial.number)  # a retry inherits the mark of another number

    def bury(self) -> None:
        """Fail the dead trials and queue their parameters."""
        if self._interval is None:
            return
        with quiet():
            optuna.storages.fail_stale_trials(self._study)
        now = time.monotonic()
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            since = self._seen.setdefault(trial.number, now)
            if (
                trial.user_attrs.get(BEGUN) == trial.number
                or now - since < SILENCE * self._interval
            ):
                continue
            with suppress(ValueError, UpdateFinishedTrialError):  # another worker was faster
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._storage.get_heartbeat_stale_trial_callback()(self._study, trial)
