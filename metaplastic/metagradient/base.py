"""The meta-gradient axis: the contract, and what it reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import REMEDY
from metaplastic.evaluation import Evaluation, evaluate
from metaplastic.inner_loop import Draws, Rollout
from metaplastic.learner import Learner


@dataclass(frozen=True)
class Divergence:
    """An episode that left the finite numbers and was left out."""

    episode: int
    """Its index in the batch."""
    step: int | None
    """The presentation after which a weight was not finite; None if only the query loss was not."""
    group: str | None
    """The first such synapse group, input side first; None as above."""
    what: str = "weights"
    """``weights``, ``query loss`` or ``meta-gradient``."""

    def __str__(self) -> str:
        place = "" if self.group is None else f" of {self.group} at presentation {self.step}"
        return f"episode {self.episode}: the {self.what}{place} diverged; {REMEDY}."


@dataclass(frozen=True)
class Outcome:
    """What a meta-gradient saw. E' counts the episodes that were kept."""

    loss: Tensor
    """(E',) query loss of each kept episode."""
    accuracy: Tensor | None
    """(E',) share of right queries, None for regression."""
    kept: tuple[int, ...]
    """Their indices in the batch."""
    diverged: tuple[Divergence, ...] = ()
    """The episodes that were left out."""
    residual: Tensor | None = None
    """(E',) how far from rest each kept episode was, relative to what holds it there; None for
    methods without a rest point."""


class MetaGradient(ABC):
    """Gradient of the mean query loss of episodes with respect to all meta-parameters."""

    @abstractmethod
    def gradient(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Outcome:
        """Add the gradient of the mean query loss to the ``.grad`` of every Parameter, as
        ``backward`` does; never takes a step.

        Every ``.grad`` is a finite tensor afterwards: a diverged episode is left out of the mean
        and reported. ``generator`` draws what the learner resamples, and noise.
        """

    def evaluate(
        self, learner: Learner, episodes: Episodes, *, generator: torch.Generator | None = None
    ) -> Evaluation:
        """Scores of the inner loop that the gradient is of: the stream, unless a method says
        otherwise.
        """
        return evaluate(learner, episodes, generator=generator)


def gradients(total: Tensor, parameters: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    """Gradients of a scalar, zero where it does not depend on a Parameter."""
    if not total.requires_grad:
        return tuple(torch.zeros_like(p) for p in parameters)
    return torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)


def accumulate(parameters: list[torch.nn.Parameter], gradients: list[Tensor]) -> None:
    """Add gradients to ``.grad``."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@torch.no_grad()
def locate(learner: Learner, episodes: Episodes, draws: Draws, index: int) -> Divergence:
    """Run one episode again, without a graph, up to where it leaves the finite numbers."""
    rollout = Rollout(learner, episodes[[index]], draws[[index]])
    for step in range(episodes.presentations):
        rollout.advance(step, step + 1)
        for group, finite in rollout.finite_groups().items():
            if not bool(finite.all()):
                return Divergence(index, step, group)
    return Divergence(index, None, None, "query loss")
