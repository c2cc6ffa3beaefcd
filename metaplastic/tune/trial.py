"""One trial of a search: train, validate, record."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from torch import Tensor

from metaplastic.evaluation import Evaluation
from metaplastic.portable import save_rule
from metaplastic.training import MetaTraining, StepReport
from metaplastic.tune.dead import DeadTrials, awaited
from metaplastic.tune.problem import DivergedError, Measure, Problem, Score
from metaplastic.tune.samplers import STOPS

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
OPEN = (TrialState.RUNNING, TrialState.WAITING)


class SurplusError(Exception):
    """A trial beyond the number that was asked for."""


class TrialObjective:
    """What Optuna calls: one trial; see ``search`` for the arguments."""

    def __init__(
        self,
        problem: Problem,
        measures: tuple[Measure, ...],
        seed: int,
        trials: int,
        artifacts: Any,
        report: Callable[[int, int, int, float | None], None],
    ) -> None:
        self.problem, self.measures, self.seed = problem, measures, seed
        self.trials, self.artifacts, self.report = trials, artifacts, report
        self.pruned_by: Measure | None = measures[0] if len(measures) == 1 else None
        self.lost = False
        """Whether others have ended the trial that runs here."""

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        try:
            return self._run(trial)
        except UpdateFinishedTrialError:
            self.lost = True
            raise

    def _run(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        DeadTrials.begin(trial)
        self._check_rank(trial)
        began = time.monotonic()
        options, seed = self._options(trial), self.seed + trial.number
        trial.set_user_attr("options", json.loads(json.dumps(options)))
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("versions", {n: version(n) for n in ("torch", "optuna")})
        trial.set_user_attr("worker", f"{gethostname()}:{os.getpid()}")
        training = self.problem.training(options, seed)
        curve: list[StepReport] = []
        try:
            self._train(trial, training, curve, began)
            score = self.problem.score(self._validate(trial, training), began)
        except DivergedError as reason:
            self._record(trial, "diverged", began, training, curve, str(reason))
            raise optuna.TrialPruned(f"diverged: {reason}") from reason
        except optuna.TrialPruned:
            self._record(trial, "pruned", began, training, curve)
            raise
        self._record(trial, "complete", began, training, curve, score=score)
        values = [score.value(measure) for measure in self.measures]
        return values[0] if len(values) == 1 else tuple(values)

    def _check_rank(self, trial: optuna.Trial) -> None:
        """Refuse a trial beyond the number asked for: two workers may begin the last one at once,
        and the one with the higher number gives way.
        """
        every = trial.study.get_trials(deepcopy=False)
        before = sum(
            t.number != trial.number
            and (t.state in COUNTED or (t.state in OPEN and t.number < trial.number))
            for t in every
        )
        # The parameters of a trial that died come first, though they get a higher number.
        queued = sum(
            t.state == TrialState.WAITING
            and t.number > trial.number
            and "retry_history" in t.system_attrs
            for t in every
        )
        if before + queued + awaited(every) >= self.trials:
            trial.set_user_attr("outcome", "surplus")
            raise SurplusError

    def _options(self, trial: optuna.Trial) -> dict[str, Any]:
        if "baseline" in trial.user_attrs:
            # A baseline may lie outside the space: what is inside is recorded as parameters.
            for name in trial.user_attrs["inside"]:
                self.problem.space[name].suggest(trial, name)
            return dict(trial.user_attrs["options"])
        suggested = {n: d.suggest(trial, n) for n, d in self.problem.space.items()}
        return {**self.problem.options, **suggested}

    def _train(
        self, trial: optuna.Trial, training: MetaTraining, curve: list[StepReport], began: float
    ) -> None:
        by_stop = None if _episode_by_episode(trial) else self.pruned_by
        stops = min(STOPS, self.problem.steps)
        for stop, reports in self.problem.train(training, STOPS):
            curve += reports
            value = None
            if by_stop is not None and stop < stops:
                value = self.problem.early(training, began).value(by_stop)
                trial.report(value, stop)
            self.report(trial.number, stop, stops, value)
            if value is not None and trial.should_prune():
                raise optuna.TrialPruned

    def _validate(self, trial: optuna.Trial, training: MetaTraining) -> list[Evaluation]:
        measure = self.pruned_by if _episode_by_episode(trial) else None
        parts, first = [], 0
        for episodes, part in zip(
            self.problem.validation, self.problem.batches(training), strict=True
        ):
            parts.append(part)
            values = None if measure is None else _values(part, measure)
            if values is not None:
                kept = [i for i in range(len(episodes)) if i not in part.diverged]
                for i, value in zip(kept, values.tolist(), strict=True):
                    trial.report(value, first + i)
                first += len(episodes)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return parts

    def _record(
        self,
        trial: optuna.Trial,
        outcome: str,
        began: float,
        training: MetaTraining,
        curve: list[StepReport],
        reason: str = "",
        score: Score | None = None,
    ) -> None:
        trial.set_user_attr("outcome", outcome)
        trial.set_user_attr("seconds", round(time.monotonic() - began, 3))
        if reason:
            trial.set_user_attr("reason", reason)
        if score is not None:
            trial.set_user_attr(
                "validation",
                {
                    "loss": score.loss,
                    "accuracy": score.accuracy,
                    "forgetting": score.forgetting,
                    "diverged": score.diverged,
                },
            )
        if self.artifacts is not None:
            self._keep(trial, training, curve, score)

    def _keep(
        self,
        trial: optuna.Trial,
        training: MetaTraining,
        curve: list[StepReport],
        score: Score | None,
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            lines = [
                json.dumps({"step": r.step, "loss": r.loss, "accuracy": r.accuracy}) for r in curve
            ]
            (Path(folder) / "curve.jsonl").write_text("".join(f"{line}\n" for line in lines))
            names = ["curve.jsonl"]
            if score is not None:
                save_rule(
                    training.learner, Path(folder) / "rule.safetensors", score=score.value("score")
                )
                names.append("rule.safetensors")
            kept = {
                name: upload_artifact(
                    artifact_store=self.artifacts,
                    file_path=str(Path(folder) / name),
                    study_or_trial=trial,
                )
                for name in names
            }
        trial.set_user_attr("artifacts", kept)


def _episode_by_episode(trial: optuna.Trial) -> bool:
    return isinstance(trial.study.pruner, optuna.pruners.WilcoxonPruner)


def _values(part: Evaluation, measure: Measure) -> Tensor | None:
    """A measure of each episode that stayed finite, None for those of a whole trial."""
    if measure == "score":
        return part.loss if part.accuracy is None else part.accuracy
    return part.forgetting if measure == "forgetting" else None
