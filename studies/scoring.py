"""How a trained learner does on unseen episodes: scores, their intervals, and fitted functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metaplastic.evaluation import Evaluation, evaluate
from metaplastic.inner_loop import Rollout, draw
from metaplastic.learner import Learner
from metaplastic.metagradient import Equilibrium, MetaGradient, Unrolled
from metaplastic.metagradient.rest import Rest
from metaplastic.seeds import evaluation_stream
from tasks import Sinusoid, Split, Task

FILE = "scores.npz"
BATCH = 50
"""Episodes drawn at once. A fixed number, so that the first episodes are the same however many
there are."""
GRID = 400
"""Points of each fitted function."""
Evaluate = Callable[..., Evaluation]
"""(learner, episodes, generator=...) -> scores: ``evaluate``, or that of a meta-gradient."""


@dataclass(frozen=True)
class Scores:
    """Scores of E' finite episodes; K counts an episode's tasks, oldest first."""

    loss: np.ndarray
    """(E',)"""
    accuracy: np.ndarray | None
    """(E',) 0..1, None for regression."""
    by_task: np.ndarray | None
    """(E', K) accuracy where there is one, else loss; None without task labels."""
    forgetting: np.ndarray | None
    """(E',)"""
    diverged: int
    """Episodes left out."""
    kept: np.ndarray
    """(E,) which of all episodes were finite."""
    residual: np.ndarray | None = None
    """(E',) how far from rest the weights were; None after a stream."""

    @property
    def score(self) -> np.ndarray:
        """(E',) accuracy where there is one, else loss."""
        return self.loss if self.accuracy is None else self.accuracy

    @property
    def by_episode(self) -> np.ndarray:
        """(E,) the score of every episode; a diverged one has accuracy 0, or an infinite loss."""
        every = np.full(len(self.kept), np.inf if self.accuracy is None else 0.0)
        every[self.kept] = self.score
        return every

    def row(self) -> dict[str, object]:
        """The scores as they stand in a row of ``result.json``: means, null if all diverged;
        ``ci95`` is half the width of the interval of the accuracy, or of the loss without one.
        """
        by_task = self.by_task if len(self.loss) else None
        return {
            "loss": mean(self.loss),
            "accuracy": None if self.accuracy is None else mean(self.accuracy),
            "ci95": ci95(self.score),
            "per_task": None if by_task is None else by_task.mean(0).tolist(),
            "forgetting": None if self.forgetting is None else mean(self.forgetting),
            "diverged": self.diverged,
        }

    def write(self, folder: Path, functions: dict[str, np.ndarray] | None = None) -> None:
        """Write every episode's scores, and fitted functions, to ``scores.npz``."""
        names = ("loss", "accuracy", "by_task", "residual")
        arrays = {name: getattr(self, name) for name in names}
        present = {name: a for name, a in arrays.items() if a is not None}
        np.savez_compressed(folder / FILE, **present, **(functions or {}))  # type: ignore[arg-type]


def mean(values: np.ndarray) -> float | None:
    """Mean over episodes, None without any."""
    return float(values.mean()) if len(values) else None


def ci95(values: np.ndarray) -> float | None:
    """Half the width of the 95 % interval of the mean over episodes, None for fewer than two."""
    if len(values) < 2:
        return None
    return float(1.96 * values.std(ddof=1) / len(values) ** 0.5)


def score(
    learner: Learner,
    task: Task,
    count: int,
    split: Split = "test",
    between: Callable[[int], None] = lambda done: None,
    evaluate: Evaluate = evaluate,
) -> Scores:
    """Scores on ``count`` episodes, the same ones for every learner and training seed.

    ``between`` is called after every batch with the number of episodes done; ``evaluate`` says of
    which inner loop the scores are, by default of the stream.
    """
    episodes, noise = evaluation_stream(0), evaluation_stream(1)
    parts: list[Evaluation] = []
    for first in range(0, count, BATCH):
        drawn = task.episodes(split, BATCH, episodes)[: min(BATCH, count - first)]
        parts.append(evaluate(learner, drawn, generator=noise))
        between(min(first + BATCH, count))
    # The outer loop counts a loss beyond this limit as diverged, finite or not.
    limit = Unrolled().limit
    kept = [part.loss < limit for part in parts]
    finite = np.zeros(count, dtype=bool)
    for i, (part, fine) in enumerate(zip(parts, kept, strict=True)):
        alive = np.setdiff1d(np.arange(min(BATCH, count - i * BATCH)), part.diverged)
        finite[i * BATCH + alive[fine.numpy()]] = True

    def joined(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        if any(v is None for v in values):
            return None
        picked = [v[k] for v, k in zip(values, kept, strict=True)]
        return torch.cat(picked).double().numpy()

    loss, accuracy = joined("loss"), joined("accuracy")
    by_task = joined("task_loss" if accuracy is None else "task_accuracy")
    assert loss is not None
    forgetting, diverged = joined("forgetting"), count - len(loss)
    return Scores(loss, accuracy, by_task, forgetting, diverged, finite, joined("residual"))


def score_run(
    learner: Learner,
    task: Task,
    count: int,
    trained: MetaGradient,
    rest: Equilibrium | None,
    between: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Scores, dict[str, object]]:
    """Scores of the inner loop that a learner was ``trained`` for, and its part of a row.

    With a method at ``rest`` the learner is scored after the stream and at rest, over all episodes:
    one that diverged has accuracy 0, or leaves no loss. ``between`` is told how many evaluations of
    how many are done.
    """
    total = count if rest is None else 2 * count

    def scored(method: MetaGradient, before: int = 0) -> Scores:
        return score(
            learner,
            task,
            count,
            between=lambda done: between(before + done, total),
            evaluate=method.evaluate,
        )

    scores = scored(trained)
    if rest is None:
        return scores, scores.row()
    settles = isinstance(trained, Equilibrium)
    other = scored(Unrolled() if settles else rest, count)
    settled, online = (scores, other) if settles else (other, scores)
    residual = settled.residual
    return scores, {
        **scores.row(),
        "online_score": _finite_mean(online.by_episode),
        "rest_score": _finite_mean(settled.by_episode),
        "residual": None if residual is None else _finite_mean(residual),
    }


def _finite_mean(values: np.ndarray) -> float | None:
    found = mean(values)
    return found if found is not None and np.isfinite(found) else None


def fitted_functions(
    learner: Learner, task: Task, trained: MetaGradient | None = None
) -> dict[str, np.ndarray]:
    """One unseen episode of sinusoids at the end of the inner loop that a learner was ``trained``
    for, by default the stream: ``function_x``, ``function_y`` (true) and ``function_fit``, each (K
    functions, points) with x rising; {} for another task.
    """
    if not isinstance(task, Sinusoid):
        return {}
    dense = Sinusoid(
        task.order, task.functions, task.batches, task.batch, GRID, task.x_scale, task.vary_length
    )
    episodes = dense.episodes("test", 1, evaluation_stream(2))
    draws = draw(learner, episodes, evaluation_stream(3))
    with torch.no_grad():
        if isinstance(trained, Equilibrium):
            rest = Rest(learner, episodes, draws)
            rollout = rest.at(trained.free(rest))
        else:
            rollout = Rollout(learner, episodes, draws)
            rollout.advance(0, episodes.presentations)
        fit = rollout.outputs()
    shape = (task.functions, GRID)
    x = (episodes.query_x[0, :, -1] / task.x_scale).reshape(shape)
    order = x.argsort(1)
    found = {"x": x, "y": episodes.query_y[0].reshape(shape), "fit": fit[0].cpu().reshape(shape)}
    return {f"function_{n}": v.gather(1, order).float().numpy() for n, v in found.items()}
