"""The search: trials, one after another, until a study has as many as were asked for."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.artifacts import upload_artifact
from optuna.trial import FrozenTrial, TrialState

from metaplastic.evaluation import Evaluation
from metaplastic.portable import save_rule
from metaplastic.training import MetaTraining, StepReport
from metaplastic.tune.problem import DivergedError, Measure, Problem, Score
from metaplastic.tune.samplers import STOPS
from metaplastic.tune.storage import quiet

POLL = 1.0
"""Seconds between two looks at a study whose last trials others are running."""
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
OPEN = (TrialState.RUNNING, TrialState.WAITING)


class _Surplus(Exception):
    """A trial beyond the number that was asked for."""


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
    again, where the storage can tell (see ``open_storage``). A trial that diverges is recorded as
    pruned, with ``outcome`` and ``reason`` among its attributes.

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
    objective = _Objective(problem, tuple(measures), seed, trials, artifacts, report)
    while timeout is None or time.monotonic() - began < timeout:
        with quiet():
            optuna.storages.fail_stale_trials(study)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        if sum(state in COUNTED for state in states) >= trials:
            return
        if sum(state in COUNTED or state == TrialState.RUNNING for state in states) >= trials:
            time.sleep(POLL)  # others are at the last ones, which may yet fail
            continue
        with quiet():
            study.optimize(objective, n_trials=1, catch=(_Surplus,))


class _Objective:
    """One trial."""

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

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        self._check_rank(trial)
        began = time.monotonic()
        options, seed = self._options(trial), self.seed + trial.number
        trial.set_user_attr("options", json.loads(json.dumps(options)))
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("versions", {n: version(n) for n in ("torch", "optuna")})
        training = self.problem.training(options, seed)
        curve: list[StepReport] = []
        try:
            self._train(trial, training, curve)
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
        before = [
            t
            for t in trial.study.get_trials(deepcopy=False)
            if t.number != trial.number
            and (t.state in COUNTED or (t.state in OPEN and t.number < trial.number))
        ]
        if len(before) >= self.trials:
            trial.set_user_attr("outcome", "surplus")
            raise _Surplus

    def _options(self, trial: optuna.Trial) -> dict[str, Any]:
        if "baseline" in trial.user_attrs:
            # A baseline may lie outside the space: what is inside is recorded as parameters.
            for name in trial.user_attrs["inside"]:
                self.problem.space[name].suggest(trial, name)
            return dict(trial.user_attrs["options"])
        suggested = {n: d.suggest(trial, n) for n, d in self.problem.space.items()}
        return {**self.problem.options, **suggested}

    def _train(self, trial: optuna.Trial, training: MetaTraining, curve: list[StepReport]) -> None:
        by_stop = len(self.measures) == 1 and not isinstance(
            trial.study.pruner, optuna.pruners.WilcoxonPruner
        )
        stops = min(STOPS, self.problem.steps)
        for stop, reports in self.problem.train(training, STOPS):
            curve += reports
            value = None
            if by_stop and stop < stops:
                value = self.problem.early(training)
                trial.report(value, stop)
            self.report(trial.number, stop, stops, value)
            if value is not None and trial.should_prune():
                raise optuna.TrialPruned

    def _validate(self, trial: optuna.Trial, training: MetaTraining) -> list[Evaluation]:
        wilcoxon = len(self.measures) == 1 and isinstance(
            trial.study.pruner, optuna.pruners.WilcoxonPruner
        )
        parts, first = [], 0
        for episodes, part in zip(
            self.problem.validation, self.problem.batches(training), strict=True
        ):
            parts.append(part)
            if wilcoxon:
                values = part.loss if part.accuracy is None else part.accuracy
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
