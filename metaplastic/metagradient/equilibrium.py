"""Meta-gradients at rest: what the implicit ones and least control share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.evaluation import Evaluation, final_scores, finite_ones, task_count
from metaplastic.inner_loop import Batching, Draws, chunks, draw
from metaplastic.learner import Learner
from metaplastic.metagradient.base import (
    Divergence,
    MetaGradient,
    Outcome,
    accumulate,
    gradients,
)
from metaplastic.metagradient.rest import Rest, check_field, relative, relax

SETTLE = "take more steps, a lower rate or stronger consolidation"


@dataclass(frozen=True)
class Unsettled(Divergence):
    """An episode that was left out because it did not come to rest."""

    residual: float = math.inf
    """What was left, see Outcome."""
    remedy: str = SETTLE

    def __str__(self) -> str:
        return (
            f"episode {self.episode}: the {self.what} did not settle (residual "
            f"{self.residual:.1e}); {self.remedy}."
        )


@dataclass(frozen=True)
class Settled:
    """E episodes at rest. The gradient of beta L is that of -psi . f(phi, theta) + beta L(phi,
    theta), with phi and psi held fixed.
    """

    phi: Tensor
    """(E, P) plastic weights."""
    psi: Tensor
    """(E, P) control, or the adjoint."""
    residual: Tensor
    """(E,)"""
    loss: Tensor
    """(E,) reported query loss."""
    accuracy: Tensor | None
    """(E,) or None."""
    beta: float = 1.0

    def __getitem__(self, rows: Sequence[int]) -> Settled:
        picked = list(rows)
        accuracy = None if self.accuracy is None else self.accuracy[picked]
        return Settled(
            self.phi[picked],
            self.psi[picked],
            self.residual[picked],
            self.loss[picked],
            accuracy,
            self.beta,
        )


@dataclass(frozen=True, kw_only=True)
class Equilibrium(MetaGradient):
    """A meta-gradient from rest points of the plastic weights instead of a stream.

    The inner loop is the flow of the learner's own field when the support set is shown as one
    batch, so the order of the stream is not in it, nor are rule traces and feedback learning:
    other than its first steps, nothing of an online stream is computed or differentiated, and
    memory does not grow with ``steps``. Rules need a rest point: see ``Consolidated``.

    Args:
        steps: Euler steps to the rest point.
        rate: length of a step; at 1 a step is one presentation of the whole support set.
        momentum: share of the last step that is added to the next.
        memory: Anderson acceleration of the steps by so many of the last ones, in the place of
            momentum; 0 is none. A few get to the rest point in a fraction of the steps.
        tolerance: an episode with a larger residual did not settle, and is left out; with
            ``math.inf`` none is.
        batching: all episodes at once (``"vmap"``), one after another (``"loop"``), or by size and
            device (``"auto"``).
        limit: a query loss above it counts as diverged.

    Raises:
        ConfigurationError: for numbers out of range, and by ``gradient`` for a network without
            plastic weights.
        CompatibilityError: by ``gradient``, for a credit that draws noise at every presentation
            and a network that carries a state through the stream.
    """

    remedy: ClassVar[str] = SETTLE
    """What to do about episodes that did not settle."""
    steps: int = 200
    rate: float = 1.0
    momentum: float = 0.0
    memory: int = 0
    tolerance: float = 0.01
    batching: Batching = "auto"
    limit: float = 1e8

    def __post_init__(self) -> None:
        check_choice(batching=(self.batching, Batching))
        if self.steps < 1:
            raise ConfigurationError(f"steps counts Euler steps, from 1; got {self.steps}.")
        if not 0.0 < self.rate < math.inf:
            raise ConfigurationError(f"rate must be positive and finite; got {self.rate}.")
        if not self.tolerance > 0.0:
            raise ConfigurationError(f"tolerance must be positive; got {self.tolerance}.")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"momentum is a share, from 0 to 1; got {self.momentum}.")
        if self.memory < 0 or (self.memory and self.momentum):
            raise ConfigurationError(
                "memory counts steps, from 0, and takes the place of momentum; got "
                f"memory={self.memory} and momentum={self.momentum}."
            )

    @abstractmethod
    def settle(self, rest: Rest) -> Settled:
        """The rest points of some episodes, without a graph."""

    def gradient(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Outcome:
        check_field(learner)
        draws = draw(learner, episodes, generator)
        sums = _Sums([p for p in learner.parameters() if p.requires_grad])
        for chunk in chunks(learner, episodes, self.batching):
            with torch.no_grad():
                settled = self.settle(Rest(learner, episodes[chunk], draws[chunk]))
            fine = []
            for row, index in enumerate(chunk):
                residual, loss = float(settled.residual[row]), float(settled.loss[row])
                if not residual <= self.tolerance:
                    sums.lost.append(
                        Unsettled(index, None, None, residual=residual, remedy=self.remedy)
                    )
                elif not loss < self.limit:
                    sums.lost.append(Divergence(index, None, None, "query loss"))
                else:
                    fine.append(row)
            self._add(learner, episodes, draws, [chunk[row] for row in fine], settled[fine], sums)
        sums.write(learner)
        every = [sums.kept[i] for i in sorted(sums.kept)]
        like = sums.parameters[0] if sums.parameters else torch.zeros(0)
        return Outcome(
            loss=torch.stack([s.loss[0] for s in every]) if every else like.new_zeros(0),
            accuracy=_stacked([s.accuracy for s in every]),
            kept=tuple(sorted(sums.kept)),
            diverged=tuple(sorted(sums.lost, key=lambda d: d.episode)),
            residual=torch.stack([s.residual[0] for s in every]) if every else like.new_zeros(0),
        )

    def evaluate(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Evaluation:
        """Scores of E episodes after ``steps`` steps without control, in the place of the stream;
        ``residual`` is |f| over the field at the start. Raises as ``gradient`` does.
        """
        check_field(learner)
        draws, tasks = draw(learner, episodes, generator), task_count(episodes)
        parts = []
        with torch.no_grad():
            for chunk in chunks(learner, episodes, self.batching):
                rest = Rest(learner, episodes[chunk], draws[chunk])
                phi, first = self.free(rest), rest.field(rest.begin)
                residual = relative(rest.field(phi), first, first)
                table = final_scores(rest.at(phi), tasks)
                parts.append({**table, "residual": residual})
        return finite_ones(parts)

    def free(self, rest: Rest) -> Tensor:
        """The weights after ``steps`` steps without control, (E, P)."""
        return self.relaxed(rest.field, rest.begin)

    def relaxed(
        self, push: Callable[[Tensor], Tensor], state: Tensor, steps: int | None = None
    ) -> Tensor:
        """States (E, n) after steps along their push."""
        count = self.steps if steps is None else steps
        return relax(push, state, count, self.rate, self.momentum, self.memory)

    def score(self, rest: Rest, settled: Settled) -> Tensor:
        """What has the gradient of E episodes as its own, (E,), with its graph."""
        control = (settled.psi * rest.field(settled.phi)).sum(-1)
        return rest.scores(settled.phi)[0] - control / settled.beta

    def _add(
        self,
        learner: Learner,
        episodes: Episodes,
        draws: Draws,
        indices: list[int],
        settled: Settled,
        sums: _Sums,
    ) -> None:
        """Add the gradients of some episodes; one that is not finite is found and left out."""
        if not indices:
            return
        rest = Rest(learner, episodes[indices], draws[indices])
        found = gradients(self.score(rest, settled).sum(), sums.parameters)
        if all(bool(g.isfinite().all()) for g in found):
            sums.gradients = [a + b for a, b in zip(sums.gradients, found, strict=True)]
            sums.kept |= {index: settled[[row]] for row, index in enumerate(indices)}
        elif len(indices) == 1:
            sums.lost.append(Divergence(indices[0], None, None, "meta-gradient"))
        else:
            for row, index in enumerate(indices):
                self._add(learner, episodes, draws, [index], settled[[row]], sums)


class _Sums:
    """What is gathered over chunks of episodes."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.gradients = [torch.zeros_like(p) for p in parameters]
        self.kept: dict[int, Settled] = {}
        self.lost: list[Divergence] = []

    def write(self, learner: Learner) -> None:
        """Add the mean and the penalty's gradient to ``.grad``."""
        penalty = gradients(learner.penalty(), self.parameters)
        count = max(1, len(self.kept))
        each = zip(self.gradients, penalty, strict=True)
        accumulate(self.parameters, [g / count + p for g, p in each])


def _stacked(values: list[Tensor | None]) -> Tensor | None:
    found = [v[0] for v in values if v is not None]
    return torch.stack(found) if found else None
