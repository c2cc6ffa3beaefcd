"""What a search tunes: how a learner is trained with some options, and what scores it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError
from metaplastic.evaluation import Evaluation, task_blocks
from metaplastic.recipes.space import Space
from metaplastic.seeds import evaluation_stream
from metaplastic.training import MetaTraining, StepReport

Measure = Literal["score", "forgetting", "seconds"]
PATIENCE = 10
"""Meta-steps in a row without a finite episode that end a trial."""
NOISE = 100
"""The first evaluation stream of what chance decides in validation."""


@dataclass(frozen=True)
class Score:
    """How well a trial did on the validation episodes."""

    loss: float
    accuracy: float | None
    """0..1, None for regression."""
    forgetting: float | None
    """None where the episodes' tasks do not come one after another."""
    diverged: int
    """Episodes that did not stay finite."""
    seconds: float
    """Of training and validation."""

    def value(self, measure: Measure) -> float:
        """One of its numbers: ``score`` is the accuracy, or the loss where there is none."""
        if measure == "score":
            return self.loss if self.accuracy is None else self.accuracy
        found = self.forgetting if measure == "forgetting" else self.seconds
        return math.nan if found is None else found


class DivergedError(Exception):
    """A trial that left the finite numbers; its message says where."""


@dataclass(frozen=True)
class Problem:
    """One learner on one task, with options left open.

    Args:
        training: (options, seed) -> the training of a fresh learner.
        steps: meta-steps of a trial.
        validation: batches of episodes, the same ones for every trial; the first one also scores a
            trial on its way.
        space: the options that a search varies.
        options: every option's default.
        accuracy: whether episodes have an accuracy; the score is the loss where they have not.
        published: options of the published setting, a second baseline, or None.
        identity: plain values that tell this problem from another one; studies are compared by it.
    """

    training: Callable[[Mapping[str, Any], int], MetaTraining]
    steps: int
    validation: Sequence[Episodes]
    space: Space
    options: Mapping[str, Any]
    accuracy: bool
    published: Mapping[str, Any] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    def direction(self, measure: Measure) -> Literal["maximize", "minimize"]:
        """``maximize`` or ``minimize``."""
        return "maximize" if measure == "score" and self.accuracy else "minimize"

    def check(self, measures: Sequence[Measure]) -> None:
        """Raise ConfigurationError unless the validation episodes give all measures."""
        blocks = [task_blocks(episodes) for episodes in self.validation]
        if "forgetting" in measures and not all(b is not None and len(b) > 1 for b in blocks):
            raise ConfigurationError(
                "the validation episodes have no forgetting, which needs several tasks that come "
                "one after another: leave that measure out, or take a continual task."
            )

    def train(self, training: MetaTraining, stops: int) -> Iterator[tuple[int, list[StepReport]]]:
        """Train to the end with ``stops`` stops on the way, the last one at the end: the number of
        the stop from 1, and the reports since the one before.

        Raises:
            DivergedError: when nothing stays finite any more.
        """
        stops = min(stops, self.steps)
        silent = 0
        for stop in range(1, stops + 1):
            reports = []
            for report in training.run(self.steps * stop // stops):
                reports.append(report)
                silent = 0 if report.loss is not None else silent + 1
                if silent == PATIENCE:
                    where = (
                        report.diverged[0] if report.diverged else "the meta-gradient overflowed"
                    )
                    raise DivergedError(
                        f"no episode of {PATIENCE} meta-steps in a row was kept, to meta-step "
                        f"{report.step}: {where}"
                    )
            yield stop, reports

    def early(self, training: MetaTraining, began: float) -> Score:
        """The score on the first validation batch; ``began`` as in ``score``.

        Raises:
            DivergedError: when most of its episodes do.
        """
        part = _evaluated(training, self.validation[0], 0)
        return _score([part], len(self.validation[0]), time.monotonic() - began)

    def batches(self, training: MetaTraining) -> Iterator[Evaluation]:
        """The evaluation of every validation batch; chance plays alike in every trial."""
        for i, episodes in enumerate(self.validation):
            yield _evaluated(training, episodes, i)

    def score(self, parts: Sequence[Evaluation], began: float) -> Score:
        """The score over the batches; ``began`` is ``time.monotonic()`` at the start of the trial.

        Raises:
            DivergedError: when most episodes do.
        """
        count = sum(len(batch) for batch in self.validation)
        return _score(parts, count, time.monotonic() - began)


def _evaluated(training: MetaTraining, episodes: Episodes, index: int) -> Evaluation:
    return training.metagradient.evaluate(
        training.learner, episodes, generator=evaluation_stream(NOISE + index)
    )


def _score(parts: Sequence[Evaluation], count: int, seconds: float) -> Score:
    loss = torch.cat([part.loss for part in parts])
    diverged = count - len(loss)
    if 2 * diverged > count or not bool(loss.mean().isfinite()):
        raise DivergedError(f"{diverged} of {count} validation episodes diverged")

    def mean(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if any(v is None for v in values) else float(torch.cat(values).mean())

    forgetting = mean("forgetting")
    if forgetting is not None and not math.isfinite(forgetting):
        raise DivergedError("the loss of a task was not finite right after it")
    return Score(float(loss.mean()), mean("accuracy"), forgetting, diverged, seconds)
