"""Backpropagation through the whole inner loop."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.evaluation import query_scores
from metaplastic.inner_loop import Batching, Draws, Rollout, chunks, draw
from metaplastic.kernels import Engine, explain
from metaplastic.learner import Learner
from metaplastic.metagradient.base import (
    Divergence,
    MetaGradient,
    Outcome,
    accumulate,
    gradients,
    locate,
)

if TYPE_CHECKING:
    from metaplastic.memory import MemoryEstimate


class _Plans:
    """The last plan, for as long as learner and shapes stay; a copy begins empty."""

    def __init__(self) -> None:
        self._of: tuple[weakref.ref[Learner], Any, MemoryEstimate] | None = None

    def __reduce__(self) -> tuple[type[_Plans], tuple[()]]:
        return _Plans, ()

    def get(self, method: Unrolled, learner: Learner, episodes: Episodes) -> MemoryEstimate:
        from metaplastic.memory import memory_estimate

        shapes = [t if t is None else (t.shape, t.dtype) for t in vars(episodes).values()]
        key = shapes, [(p.shape, p.dtype, p.device, p.requires_grad) for p in learner.parameters()]
        if self._of is None or self._of[0]() is not learner or self._of[1] != key:
            self._of = weakref.ref(learner), key, memory_estimate(learner, episodes, method)
        return self._of[2]


@dataclass(frozen=True)
class Unrolled(MetaGradient):
    """The exact gradient through T presentations (or a declared part of it).

    Args:
        checkpoint_every: keep the state every so many presentations and compute the rest again on
            the way back: memory for T / k states and k presentations, one more forward pass, the
            same gradient.
        truncate: keep the graph of the last so many presentations only. What came before is a
            constant, so the initial weights of plastic groups get a zero gradient unless T fits.
        first_order: the weights and features that each update sees are constants (first-order
            MAML); feedback weights and coefficients keep their direct effect.
        batching: all episodes at once (``"vmap"``), one after another (``"loop"``), or by size and
            device (``"auto"``).
        limit: a query loss above it counts as diverged.
        engine: ``"plain"``, ``"compiled"`` (by torch.compile), ``"fused"`` (by kernels) or
            ``"auto"``, all with the same gradient; ``kernels.explain`` says which it is for a
            learner, and why.
        memory: budget in bytes, beside learner and episodes, as ``memory_estimate`` tells it. Where
            not everything fits, the best ``checkpoint_every`` is taken, but by kernels; where that
            is not enough, fewer episodes run at once under ``batching="auto"``. The gradient is the
            same. It is an estimate and no hard limit.

    Raises:
        ConfigurationError: for a number of presentations or bytes below 1, and for both
            ``checkpoint_every`` and ``memory``.
        MemoryBudgetError: by ``gradient``, where the budget cannot be met.
        CompatibilityError: for a learner that the fused engine, asked for by name, cannot run, and
            by ``gradient`` where torch.compile fails.
    """

    checkpoint_every: int | None = None
    truncate: int | None = None
    first_order: bool = False
    batching: Batching = "auto"
    limit: float = 1e8
    engine: Engine = "auto"
    memory: int | None = None
    _plans: _Plans = field(default_factory=_Plans, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice(batching=(self.batching, Batching), engine=(self.engine, Engine))
        for name in ("checkpoint_every", "truncate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} counts presentations, from 1; got {value}.")
        if self.memory is not None and self.memory < 1:
            raise ConfigurationError(f"memory counts bytes, from 1; got {self.memory}.")
        if self.memory is not None and self.checkpoint_every is not None:
            raise ConfigurationError(
                "memory chooses checkpoint_every by itself; got memory="
                f"{self.memory} and checkpoint_every={self.checkpoint_every}: give one of them."
            )

    def gradient(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Outcome:
        if self.memory is None:
            return self._gradient(learner, episodes, generator, None)
        plan = self._plans.get(self, learner, episodes)
        planned = replace(self, memory=None, checkpoint_every=plan.checkpoint_every)
        return planned._gradient(learner, episodes, generator, plan.episodes)

    def _gradient(
        self,
        learner: Learner,
        episodes: Episodes,
        generator: torch.Generator | None,
        most: int | None,
    ) -> Outcome:
        """``gradient``, of at most so many episodes at once."""
        draws = draw(learner, episodes, generator)
        total = _Total([p for p in learner.parameters() if p.requires_grad])
        engine = explain(learner, self.engine, first_order=self.first_order).engine
        for chunk in chunks(learner, episodes, self.batching, engine, most):
            self._add(learner, episodes, draws, chunk, total)
        total.write(learner)
        order = sorted(total.loss)
        return Outcome(
            loss=torch.stack([total.loss[i] for i in order]) if order else torch.zeros(0),
            accuracy=torch.stack([total.accuracy[i] for i in order]) if total.accuracy else None,
            kept=tuple(order),
            diverged=tuple(sorted(total.diverged, key=lambda d: d.episode)),
        )

    def _add(
        self,
        learner: Learner,
        episodes: Episodes,
        draws: Draws,
        indices: list[int],
        total: _Total,
    ) -> None:
        """Add the gradient of some episodes; those that diverge are found, left out and reported,
        and the others computed again without them.
        """
        if not indices:
            return
        loss, accuracy = self.losses(learner, episodes[indices], draws[indices])
        good = (loss.detach().isfinite() & (loss.detach() < self.limit)).tolist()
        if not all(good):
            bad = [i for i, fine in zip(indices, good, strict=True) if not fine]
            total.diverged += [locate(learner, episodes, draws, i) for i in bad]
            self._add(learner, episodes, draws, [i for i in indices if i not in bad], total)
            return
        found = gradients(loss.sum(), total.parameters)
        if all(bool(g.isfinite().all()) for g in found):
            total.add(indices, loss.detach(), accuracy, found)
        elif len(indices) == 1:
            total.diverged.append(Divergence(indices[0], None, None, "meta-gradient"))
        else:
            for i in indices:
                self._add(learner, episodes, draws, [i], total)

    def losses(
        self, learner: Learner, episodes: Episodes, draws: Draws
    ) -> tuple[Tensor, Tensor | None]:
        """Query loss (E,) with its graph, and accuracy (E,) or None, after the whole stream."""
        rollout = Rollout(
            learner, episodes, draws, first_order=self.first_order, engine=self.engine
        )
        count = episodes.presentations
        begin = 0 if self.truncate is None else max(0, count - self.truncate)
        if begin:
            with torch.no_grad():
                rollout.advance(0, begin)
            rollout.detach()
        size = self.checkpoint_every or count
        for first in range(begin, count, size):
            last = min(first + size, count)
            rollout.advance(first, last, checkpointed=self.checkpoint_every is not None)
        return query_scores(rollout)


class _Total:
    """Sum of gradients over the kept episodes, divided by their number at the end."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.gradients = [torch.zeros_like(p) for p in parameters]
        self.loss: dict[int, Tensor] = {}
        self.accuracy: dict[int, Tensor] = {}
        self.diverged: list[Divergence] = []

    def add(
        self,
        indices: list[int],
        loss: Tensor,
        accuracy: Tensor | None,
        gradients: tuple[Tensor, ...],
    ) -> None:
        self.gradients = [a + b for a, b in zip(self.gradients, gradients, strict=True)]
        for row, i in enumerate(indices):
            self.loss[i] = loss[row]
            if accuracy is not None:
                self.accuracy[i] = accuracy[row]

    def write(self, learner: Learner) -> None:
        count = max(1, len(self.loss))
        penalty = gradients(learner.penalty(), self.parameters)
        accumulate(
            self.parameters, [g / count + p for g, p in zip(self.gradients, penalty, strict=True)]
        )
