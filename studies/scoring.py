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
from metaplastic.metagradient import Unrolled
from metaplastic.seeds import evaluation_stream
from tasks import Sinusoid, Split, Task

FILE = "scores.npz"
BATCH = 50
"""Episodes drawn at once. A fixed number, so that the first episodes are the same however many
there are."""
GRID = 400
"""Points of each fitted function."""


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
        arrays = {"loss": self.loss, "accuracy": self.accuracy, "by_task": self.by_task}
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
) -> Scores:
    """Scores on ``count`` episodes, the same ones for every learner and training seed.

    ``between`` is called after every batch with the number of episodes done.
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
    return Scores(loss, accuracy, by_task, joined("forgetting"), count - len(loss), finite)


def fitted_functions(learner: Learner, task: Task) -> dict[str, np.ndarray]:
    """One unseen episode of sinusoids after the whole stream: ``function_x``, ``function_y`` (true)
    and ``function_fit``, each (K functions, points) with x rising; {} for another task.
    """
    if not isinstance(task, Sinusoid):
        return {}
    dense = Sinusoid(
        task.order, task.functions, task.batches, task.batch, GRID, task.x_scale, task.vary_length
    )
    episodes = dense.episodes("test", 1, evaluation_stream(2))
    rollout = Rollout(learner, episodes, draw(learner, episodes, evaluation_stream(3)))
    with torch.no_grad():
        rollout.advance(0, episodes.presentations)
        fit = rollout.outputs()
    shape = (task.functions, GRID)
    x = (episodes.query_x[0, :, -1] / task.x_scale).reshape(shape)
    order = x.argsort(1)
    found = {"x": x, "y": episodes.query_y[0].reshape(shape), "fit": fit[0].cpu().reshape(shape)}
    return {f"function_{n}": v.gather(1, order).float().numpy() for n, v in found.items()}
