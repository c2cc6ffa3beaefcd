"""The analyses of a run: angles of updates, interference, forgetting, and feedback over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metaplastic.analysis import (
    feedback_alignment,
    forgetting_matrix,
    interference,
    update_angles,
)
from metaplastic.episodes import Episodes
from metaplastic.evaluation import evaluate, task_blocks
from metaplastic.learner import Learner
from metaplastic.metagradient import Unrolled
from metaplastic.networks import LayeredNetwork
from metaplastic.seeds import evaluation_stream
from studies.logs import Log
from studies.scoring import BATCH
from tasks import Task

FILE = "analysis.npz"
ALIGNMENT = "alignment.jsonl"
EPISODES = 20
POINTS = 50
"""Of the alignment, over a meta-training."""


class AlignmentLog:
    """``alignment.jsonl``: the angles between feedback and forward weights, {group: degrees}, at
    the beginning, after every so many meta-steps and at the end; no file for a learner without
    feedback to compare.

    Args:
        folder: of the run.
        learner: at the checkpoint.
        done: the meta-steps of the checkpoint, 0 at the beginning.
        total: all meta-steps of the run.
    """

    def __init__(self, folder: Path, learner: Learner, done: int, total: int) -> None:
        self._learner, self._total = learner, total
        self._every = max(1, -(-total // POINTS))
        self._log = None
        if feedback_alignment(learner):
            self._log = Log(folder / ALIGNMENT, done, self._every)
            if not done:
                self.add(0)

    def add(self, step: int) -> None:
        """After a meta-step."""
        if self._log is not None and (step % self._every == 0 or step == self._total):
            self._log.add({"step": step, "degrees": feedback_alignment(self._learner)})

    def flush(self) -> None:
        """Write what was added."""
        if self._log is not None:
            self._log.flush()


def analyse(learner: Learner, task: Task, count: int = EPISODES) -> dict[str, np.ndarray]:
    """Means over the first ``count`` unseen episodes, of T presentations and K tasks.

    ``angle_<group>`` (T,) in degrees; and, where tasks come one after another, ``interference``,
    ``update_cosines``, ``forgetting_loss`` and, for classes, ``forgetting_accuracy``, (K, K) each,
    and ``task`` (T,), the task of each presentation. Episodes that diverge are left out; {} where
    all do, and for a learner without plasticity.
    """
    if not learner.plastic:
        return {}
    episodes = task.episodes("test", BATCH, evaluation_stream(0))[:count]
    kept = _kept(learner, episodes)
    if not kept:
        return {}
    found: dict[str, Tensor | None] = {}
    if isinstance(learner.network, LayeredNetwork):
        angles = update_angles(learner, episodes, _noise()).degrees
        found |= {f"angle_{name}": values for name, values in angles.items()}
    if task_blocks(episodes) is not None:
        between = interference(learner, episodes, _noise())
        matrix = forgetting_matrix(learner, episodes, _noise())
        found |= {
            "interference": between.loss,
            "update_cosines": between.update_cosines,
            "forgetting_loss": matrix.loss,
            "forgetting_accuracy": matrix.accuracy,
        }
    means = {n: v[kept].nanmean(0).numpy() for n, v in found.items() if v is not None}
    if "interference" in means and episodes.support_task is not None:
        means["task"] = episodes.support_task[0].cpu().numpy()
    return means


def _noise() -> torch.Generator:
    """The same for every analysis, so that all are of the same episodes."""
    return evaluation_stream(4)


def _kept(learner: Learner, episodes: Episodes) -> list[int]:
    """The episodes that stay finite and, as in the scores, below the limit of the outer loop."""
    scores = evaluate(learner, episodes, generator=_noise())
    finite = [e for e in range(len(episodes)) if e not in scores.diverged]
    limit = Unrolled().limit
    return [e for e, loss in zip(finite, scores.loss.tolist(), strict=True) if loss < limit]


def write_analysis(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write ``analysis.npz``, where there is anything to write."""
    if arrays:
        np.savez_compressed(folder / FILE, **arrays)  # type: ignore[arg-type]
