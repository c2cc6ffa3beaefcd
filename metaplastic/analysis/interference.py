"""What learning one task does to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import DataError
from metaplastic.evaluation import Blocks, scores_by_task, task_blocks, task_count
from metaplastic.inner_loop import Rollout, chunks, draw
from metaplastic.learner import Learner


@dataclass(frozen=True)
class Interference:
    """What the block of presentations of each of K tasks does to the others, E episodes."""

    loss: Tensor
    """(E, K, K) entry [i, j]: the change of the mean loss on task i's queries by the presentations
    of task j; positive is harm."""
    update_cosines: Tensor
    """(E, K, K) cosine, -1..1, between the changes of the network's plastic weights by the
    presentations of tasks i and j; NaN where either changed nothing."""


@dataclass(frozen=True)
class ForgettingMatrix:
    """How each of K tasks is known after each one was learned, E episodes."""

    loss: Tensor
    """(E, K, K) entry [i, j]: mean loss on task i's queries after the presentations of task j."""
    accuracy: Tensor | None
    """(E, K, K) the same for the accuracy, None for regression."""
    order: tuple[int, ...]
    """The tasks as they were learned."""

    @property
    def forgetting(self) -> Tensor | None:
        """(E,) as in Evaluation; None for a single task."""
        if len(self.order) < 2:
            return None
        early, last = list(self.order[:-1]), self.order[-1]
        score, sign = (self.loss, 1.0) if self.accuracy is None else (self.accuracy, -1.0)
        return sign * (score[:, early, last] - score[:, early, early]).mean(1)


def interference(
    learner: Learner, episodes: Episodes, generator: torch.Generator | None = None
) -> Interference:
    """Interference between the tasks of each episode.

    Args:
        learner: left as it is.
        episodes: E episodes whose K tasks come one after another, at the same presentations in
            every episode.
        generator: draws what is resampled, and noise.

    Raises:
        DataError: for episodes of another order, or without labels of their tasks.
    """
    blocks, count = _blocks_of_all(episodes)
    own = [name for name in learner.network.groups() if name in learner.plastic]

    def look(rollout: Rollout) -> list[Tensor]:
        loss, _ = scores_by_task(rollout, count)
        assert loss is not None
        weights = [rollout.moving["weights"][name].flatten(1) for name in own]
        # One weight that never moves stands for none at all.
        return [loss, torch.cat([loss.new_zeros(len(loss), 1), *weights], dim=1)]

    loss, weights = _at_boundaries(learner, episodes, blocks, generator, look)
    columns = _columns(blocks)
    change = weights.diff(dim=-1)[..., columns].mT
    change = change / change.abs().amax(-1, keepdim=True)  # whose square might underflow
    change = change / torch.linalg.vector_norm(change, dim=-1, keepdim=True)
    return Interference(
        loss.diff(dim=-1)[..., columns].cpu(), (change @ change.mT).clamp(-1.0, 1.0).cpu()
    )


def forgetting_matrix(
    learner: Learner, episodes: Episodes, generator: torch.Generator | None = None
) -> ForgettingMatrix:
    """The scores of every task after every task. Arguments and errors as for ``interference``."""
    blocks, count = _blocks_of_all(episodes)

    def look(rollout: Rollout) -> list[Tensor]:
        return [score for score in scores_by_task(rollout, count) if score is not None]

    scores = _at_boundaries(learner, episodes, blocks, generator, look)
    loss, *accuracy = (score[..., 1:][..., _columns(blocks)].cpu() for score in scores)
    order = tuple(task for _, _, task in blocks)
    return ForgettingMatrix(loss, accuracy[0] if accuracy else None, order)


def _blocks_of_all(episodes: Episodes) -> tuple[Blocks, int]:
    blocks, count = task_blocks(episodes), task_count(episodes)
    if blocks is None or len(blocks) < count:
        given = "no labels of the tasks"
        if episodes.support_task is not None and episodes.query_task is not None:
            runs = torch.unique_consecutive(episodes.support_task[0]).tolist()
            given = f"{count} tasks, in the first episode as {runs}"
        raise DataError(
            "the tasks must come one after another, each once, at the same presentations in every "
            f"episode; got {given}. Take continual episodes, with support_task and query_task."
        )
    return blocks, count


def _columns(blocks: Blocks) -> list[int]:
    """Where in the stream each task has its block, by task."""
    order = [task for _, _, task in blocks]
    return [order.index(task) for task in range(len(order))]


def _at_boundaries(
    learner: Learner,
    episodes: Episodes,
    blocks: Blocks,
    generator: torch.Generator | None,
    look: Callable[[Rollout], list[Tensor]],
) -> list[Tensor]:
    """What is seen before the stream and after each block, (E, *) each: (E, *, blocks + 1)."""
    draws = draw(learner, episodes, generator)
    parts = []
    with torch.no_grad():
        for chunk in chunks(learner, episodes, "auto"):
            rollout = Rollout(learner, episodes[chunk], draws[chunk])
            seen = [look(rollout)]
            for first, last, _ in blocks:
                rollout.advance(first, last)
                seen.append(look(rollout))
            parts.append([torch.stack(kind, dim=-1) for kind in zip(*seen, strict=True)])
    return [torch.cat(kind) for kind in zip(*parts, strict=True)]
