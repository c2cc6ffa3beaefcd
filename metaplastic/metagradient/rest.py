"""Episodes at rest: the plastic weights as the state of a dynamical system."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from metaplastic.episodes import Episodes
from metaplastic.equilibrium.algebra import Anderson
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.evaluation import query_scores
from metaplastic.inner_loop import Draws, Rollout
from metaplastic.learner import Learner
from metaplastic.signals import Presentation, Teacher

ROUNDING = 1e3
"""A scale is at least so many rounding errors of the field at the start."""


class Rest(Rollout):
    """E episodes as vector fields f(phi): what the learner wants of its plastic network weights
    phi, (E, P), when the whole support set is shown as one batch of T x B examples. The order of
    the stream is not in it. Rule traces, the credit's state and plastic feedback weights are as at
    the start; features are computed once.
    """

    def __init__(self, learner: Learner, episodes: Episodes, draws: Draws) -> None:
        super().__init__(learner, _as_one_presentation(episodes), draws)
        self._names = plastic_weights(learner)
        self._shapes = [self.moving["weights"][name].shape[1:] for name in self._names]

    @property
    def begin(self) -> Tensor:
        """The initial weights, (E, P)."""
        return self._packed(self.moving["weights"])

    def _packed(self, weights: dict[str, Tensor]) -> Tensor:
        return torch.cat([weights[name].flatten(-2) for name in self._names], -1)

    def weights(self, phi: Tensor) -> dict[str, Tensor]:
        """(..., P) as {group: (..., n_out, n_in)}."""
        parts = phi.split([shape.numel() for shape in self._shapes], -1)
        named = zip(self._names, parts, self._shapes, strict=True)
        return {name: part.unflatten(-1, shape) for name, part, shape in named}

    def field(self, phi: Tensor) -> Tensor:
        """f(phi), (E, P), with its graph to phi and to the meta-parameters."""

        def one(phi: Tensor, moving: dict, stream: dict[str, Tensor]) -> Tensor:
            weights = moving["weights"] | self._shared["weights"] | self.weights(phi)
            shown = {name: values[0] for name, values in stream.items()}
            teacher = Teacher(self.learner.objective, shown["target"], shown.get("weight"))
            presentation = Presentation(shown["x"], teacher, shown.get("weight"))
            state = {**moving, **self._shared, "weights": weights}
            return self._packed(self.learner.field(state, presentation))

        return vmap(one)(phi, self.moving, self._stream)

    def at(self, phi: Tensor) -> Rest:
        """The same episodes with weights phi."""
        moved = copy.copy(self)
        moved.moving = {**self.moving, "weights": self.moving["weights"] | self.weights(phi)}
        return moved

    def scores(self, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Query loss (E,) with its graph, and accuracy (E,) or None, under phi."""
        return query_scores(self.at(phi))

    def slope(self, phi: Tensor) -> Tensor:
        """Gradient of each episode's query loss, (E, P)."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            return _pulled(self.scores(phi)[0].sum(), phi)

    def linearised(self, phi: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """f(phi) and the map psi -> J^T psi with J = df/dphi, both (E, P), for many psi."""
        with torch.enable_grad():
            phi = phi.detach().requires_grad_()
            field = self.field(phi)
        return field.detach(), lambda psi: _pulled(field, phi, psi)


def _pulled(output: Tensor, phi: Tensor, cotangent: Tensor | None = None) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(phi)
    (found,) = torch.autograd.grad(
        output, phi, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return found


def relax(
    push: Callable[[Tensor], Tensor],
    state: Tensor,
    steps: int,
    rate: float,
    momentum: float,
    memory: int,
) -> Tensor:
    """Where states (E, n) are after some steps along their push, by Euler's method with momentum,
    or with Anderson acceleration from the last ``memory`` differences.
    """
    if memory:
        accelerated = Anderson(memory, damping=1.0)
        for _ in range(steps):
            state = accelerated(state, state + rate * push(state))
        return state
    velocity = torch.zeros_like(state)
    for _ in range(steps):
        velocity = momentum * velocity + rate * push(state)
        state = state + velocity
    return state


def length(vectors: Tensor) -> Tensor:
    """(E, P) -> (E,)"""
    return torch.linalg.vector_norm(vectors, dim=-1)


def relative(left: Tensor, size: Tensor, floor: Tensor) -> Tensor:
    """Length of what is ``left`` over that of ``size``, (E, P) -> (E,), 0 for 0 / 0; ``floor``
    (E, P) is the field at the start, whose rounding errors a size may not fall below.
    """
    limits = torch.finfo(left.dtype)
    least = (ROUNDING * limits.eps * length(floor)).clamp(min=limits.tiny)
    return length(left) / torch.maximum(length(size), least)


def plastic_weights(learner: Learner) -> list[str]:
    """The network's plastic groups, input side first: what phi is made of."""
    return [name for name in learner.network.groups() if name in learner.plastic]


def check_field(learner: Learner) -> None:
    """Whether a learner has a field at rest.

    Raises:
        ConfigurationError: for a network without plastic weights.
        CompatibilityError: for a credit that draws noise, and a network with a state of its own.
    """
    if not plastic_weights(learner):
        raise ConfigurationError(
            "a rest point is one of plastic weights, and no weight of this network is plastic: "
            "give it a rule, or take Unrolled."
        )
    generator = torch.Generator().manual_seed(0)
    if learner.credit.noise(learner.network, (1, 1, 1), generator) is not None:
        raise CompatibilityError(
            f"{type(learner.credit).__name__} draws noise at every presentation, and a rest point "
            "needs a field that does not change: take Unrolled, or a credit without noise."
        )
    if learner.network.start(learner.network.weights(), 1):
        raise CompatibilityError(
            f"{type(learner.network).__name__} carries a state from one presentation to the next, "
            "and at rest the stream has no order: take Unrolled, or a network without a state."
        )


def _as_one_presentation(episodes: Episodes) -> Episodes:
    """(E, T, B) -> (E, 1, T x B)"""
    weight = episodes.support_weight
    return replace(
        episodes,
        support_x=episodes.support_x.flatten(1, 2).unsqueeze(1),
        support_y=episodes.support_y.flatten(1, 2).unsqueeze(1),
        support_weight=None if weight is None else weight.flatten(1, 2).unsqueeze(1),
        support_task=None,
    )
