"""How well a learner does on unseen episodes, and what it forgets on the way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import UnconvergedWarning
from metaplastic.inner_loop import Batching, Draws, Rollout, chunks, draw
from metaplastic.kernels import Engine, explain
from metaplastic.learner import Learner

Blocks = list[tuple[int, int, int]]
Table = dict[str, Tensor | None]
"""The entries of an Evaluation by name, of all episodes."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of E' finite episodes out of E. K counts an episode's tasks, oldest first."""

    loss: Tensor
    """(E',) mean query loss after the whole stream."""
    accuracy: Tensor | None
    """(E',) share of right queries, None for regression."""
    task_loss: Tensor | None
    """(E', K) loss of each task's queries after the stream, None without task labels."""
    task_accuracy: Tensor | None
    """(E', K)"""
    forgetting: Tensor | None
    """(E',) mean over all tasks but the last of what was lost from right after the task to the end
    of the stream: rise of the loss, or fall of the accuracy where there is one. None unless the
    tasks come one after another, at the same presentations in every episode."""
    unconverged: Tensor | None = None
    """(E',) examples for which the credit found no signal, None where it cannot fail."""
    residual: Tensor | None = None
    """(E',) how far from rest the weights were, see Outcome; None after a stream."""
    diverged: tuple[int, ...] = ()
    """Indices of the episodes that did not stay finite."""


def evaluate(
    learner: Learner,
    episodes: Episodes,
    *,
    generator: torch.Generator | None = None,
    batching: Batching = "auto",
    engine: Engine = "auto",
) -> Evaluation:
    """Run E episodes without a graph and score them; ``generator`` draws what is resampled, and
    ``engine`` is that of ``Unrolled``.

    Warns with an UnconvergedWarning of examples for which the credit found no signal.

    Raises:
        CompatibilityError: where the engine asked for cannot run the learner.
    """
    draws = draw(learner, episodes, generator)
    blocks, tasks = task_blocks(episodes), task_count(episodes)
    with torch.no_grad():
        parts = [
            _score(learner, episodes[chunk], draws[chunk], blocks, tasks, engine)
            for chunk in chunks(learner, episodes, batching, explain(learner, engine).engine)
        ]
    lost = _joined([part["unconverged"] for part in parts])
    if lost is not None and bool(lost.any()):
        count = episodes.support_x.shape[:3].numel()
        warnings.warn(
            f"{float(lost.sum()):.0f} of {count} examples that were shown changed nothing: "
            f"{type(learner.credit).__name__} found no signal for them. `adapt` and "
            "`assign_grads` say why.",
            UnconvergedWarning,
            stacklevel=2,
        )
    return finite_ones(parts)


def finite_ones(parts: list[Table]) -> Evaluation:
    """The scores of some chunks of episodes, without those whose loss is not finite."""
    table = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    loss = table["loss"]
    assert loss is not None
    finite = loss.isfinite()
    kept = {name: None if v is None else v[finite].cpu() for name, v in table.items()}
    return Evaluation(**kept, diverged=tuple((~finite).nonzero().flatten().tolist()))  # type: ignore[arg-type]


def _score(
    learner: Learner,
    episodes: Episodes,
    draws: Draws,
    blocks: Blocks | None,
    tasks: int,
    engine: Engine,
) -> Table:
    rollout = Rollout(learner, episodes, draws, engine=engine)
    right_after = []
    if blocks is None:
        rollout.advance(0, episodes.presentations)
    else:
        for first, last, task in blocks:
            rollout.advance(first, last)
            right_after.append(
                [None if t is None else t[:, task] for t in scores_by_task(rollout, tasks)]
            )
    table = final_scores(rollout, tasks)
    forgetting = None
    if len(right_after) > 1:
        name, column, sign = "task_loss", 0, 1.0
        if table["task_accuracy"] is not None:
            name, column, sign = "task_accuracy", 1, -1.0
        final = table[name]
        assert final is not None
        early = torch.stack([scores[column] for scores in right_after[:-1]], dim=1)
        order = [task for _, _, task in blocks or []][:-1]
        forgetting = sign * (final[:, order] - early).mean(1)
    lost = rollout.moving["credit"].get("unconverged")
    return {**table, "forgetting": forgetting, "unconverged": lost}


def final_scores(rollout: Rollout, tasks: int) -> Table:
    """Losses and accuracies under the present weights, of all queries and of each of K tasks."""
    loss, accuracy = query_scores(rollout)
    task_loss, task_accuracy = scores_by_task(rollout, tasks)
    return {
        "loss": loss,
        "accuracy": accuracy,
        "task_loss": task_loss,
        "task_accuracy": task_accuracy,
        "forgetting": None,
    }


def query_scores(rollout: Rollout) -> tuple[Tensor, Tensor | None]:
    """Mean loss, with its graph, and accuracy (None for regression) over each episode's queries
    under the present weights, (E,).
    """
    weight = rollout.episodes.query_weight
    weight = torch.ones(rollout.target.shape[:2]).to(rollout.target) if weight is None else weight
    loss, right = _query(rollout)
    return _mean(loss, weight), None if right is None else _mean(right, weight)


def _query(rollout: Rollout) -> tuple[Tensor, Tensor | None]:
    objective, outputs = rollout.learner.objective, rollout.outputs()
    right = objective.correct(outputs.detach(), rollout.target)
    return objective.loss(outputs, rollout.target), right


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    total = weight.sum(1)
    return (values * weight).sum(1) / torch.where(total > 0, total, 1.0)


def scores_by_task(rollout: Rollout, count: int) -> tuple[Tensor | None, Tensor | None]:
    """Loss and accuracy of each task's queries, (E, K)."""
    tasks = rollout.episodes.query_task
    if tasks is None:
        return None, None
    loss, right = _query(rollout)
    member = torch.nn.functional.one_hot(tasks.long(), count).to(loss)
    if rollout.episodes.query_weight is not None:
        member = member * rollout.episodes.query_weight.unsqueeze(-1)
    by_task = _mean(loss.unsqueeze(-1), member)
    return by_task, None if right is None else _mean(right.unsqueeze(-1), member)


def task_count(episodes: Episodes) -> int:
    """K: one more than the highest task label."""
    labels = [t for t in (episodes.support_task, episodes.query_task) if t is not None]
    return max((int(t.max()) + 1 for t in labels), default=0)


def task_blocks(episodes: Episodes) -> Blocks | None:
    """(first, last, task) of each contiguous run of presentations of one task, if all episodes
    agree on them.
    """
    tasks = episodes.support_task
    if tasks is None or episodes.query_task is None or bool((tasks != tasks[:1]).any()):
        return None
    values, counts = torch.unique_consecutive(tasks[0], return_counts=True)
    if len(values) != len(set(values.tolist())):
        return None
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return list(zip(starts, ends, values.tolist(), strict=True))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [p for p in parts if p is not None]
    return torch.cat(tensors) if tensors else None
