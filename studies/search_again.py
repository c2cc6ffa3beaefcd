"""The best trials of a search once more, on fresh seeds and fresh validation episodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from metaplastic.seeds import evaluation_stream
from metaplastic.tune.problem import DivergedError, Measure, Score
from studies.config import RunConfig
from studies.display import Display
from studies.run import row_of
from studies.scoring import ci95
from studies.search import make_problem, trial_config
from studies.search_read import Study, Trial, scale
from studies.status import Report, Smooth, Status
from studies.workers import run_jobs

FIRST_SEED = 10_000
STREAM, NOISE = 10, 1000
"""Evaluation streams of the fresh validation episodes, and of what chance decides in them; a search
and the tests have others."""
STOPS = 50
"""Looks at the progress of a run."""


@dataclass(frozen=True)
class Job:
    """One run."""

    config: RunConfig
    device: str


@dataclass(frozen=True)
class Outcome:
    """One run that has ended."""

    seed: int
    score: Score | None
    """None where it diverged."""
    half: float | None
    """Half the 95 % interval of its score over episodes."""
    reason: str = ""
    """Why it diverged."""


@dataclass(frozen=True)
class Candidate:
    """One trial with its new runs."""

    trial: Trial
    outcomes: list[Outcome]

    def values(self, measure: Measure) -> np.ndarray:
        """(S,) one value for each seed, NaN where its run diverged."""
        scores = [outcome.score for outcome in self.outcomes]
        return np.array([np.nan if s is None else s.value(measure) for s in scores])


def chosen(study: Study, best: int) -> list[Trial]:
    """The baselines, and the ``best`` trials besides them: by the value in the search, or spread
    over the Pareto front where there are several measures.
    """
    baselines = [t for t in study.trials if t.baseline]
    others = [t for t in study.complete if not t.baseline]
    if len(study.measures) > 1:
        others = [t for t in others if t.number in study.front]
        if len(others) > best:
            places = np.linspace(0, len(others) - 1, best).round().astype(int)
            others = [others[i] for i in places]
    return baselines + others[:best]


def fresh_seeds(study: Study, count: int) -> list[int]:
    """Training seeds that no trial used."""
    used = {t.seed for t in study.trials}
    free = (seed for seed in itertools.count(FIRST_SEED) if seed not in used)
    return list(itertools.islice(free, count))


def run_again(
    study: Study, trials: Sequence[Trial], seeds: Sequence[int], workers: int, device: str,
    display: Display,
) -> list[Candidate]:  # fmt: skip
    """Train every trial with every seed and score it on the fresh validation episodes."""
    jobs = {
        job_name(trial, seed): Job(trial_config(study.config, trial.options, seed), device)
        for trial in trials
        for seed in seeds
    }
    written = scale("score", study.config.chance)

    def words(outcome: Outcome) -> str:
        if outcome.score is None:
            return f"diverged: {outcome.reason}"
        return f"{written.label} {written.text(outcome.score.value('score'))}"

    outcomes = run_jobs(again, jobs, workers, display, words)
    return [Candidate(t, [outcomes[job_name(t, seed)] for seed in seeds]) for t in trials]


def job_name(trial: Trial, seed: int) -> str:
    """What a run is called on the way."""
    return f"{trial.label} seed {seed}"


def again(job: Job, report: Report) -> Outcome:
    """One run, in a process of its own."""
    config, began = job.config, time.monotonic()
    problem = make_problem(config, torch.device(job.device), stream=STREAM)
    training = problem.training(config.options, config.seed)
    loss = Smooth()
    try:
        for _, steps in problem.train(training, STOPS):
            for step in steps:
                loss(step.loss)
            report(Status("training", steps[-1].step, config.steps, loss.value))
        parts = [
            training.metagradient.evaluate(
                training.learner, episodes, generator=evaluation_stream(NOISE + i)
            )
            for i, episodes in enumerate(problem.validation)
        ]
        score = problem.score(parts, began)
    except DivergedError as reason:
        return Outcome(config.seed, None, None, str(reason))
    kept = [part.loss if part.accuracy is None else part.accuracy for part in parts]
    return Outcome(config.seed, score, ci95(torch.cat(kept).double().numpy()))


def rows(study: Study, candidates: Sequence[Candidate], episodes: int) -> list[dict[str, Any]]:
    """The rows of ``result.json``: one for each run."""
    found = []
    for candidate in candidates:
        for outcome in candidate.outcomes:
            score, config = outcome.score, replace(study.config, seed=outcome.seed)
            number = candidate.trial.number
            found.append(
                {
                    **row_of(config),
                    "learner": f"{config.learner} trial {number}",
                    "episodes": episodes,
                    "loss": None if score is None else score.loss,
                    "accuracy": None if score is None else score.accuracy,
                    "ci95": outcome.half,
                    "per_task": None,
                    "forgetting": None if score is None else score.forgetting,
                    "diverged": episodes if score is None else score.diverged,
                }
            )
    return found
