"""Small controlled networks that the tests of feedback control share."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaplastic import LayeredNetwork
from metaplastic.control import (
    Chain,
    Constants,
    Goal,
    Moment,
    Units,
    jacobian,
    moments,
    through_feedback,
)
from tests.helpers import normal


class Plant(NamedTuple):
    """A network on some examples."""

    chain: Chain
    units: Units
    jacobians: tuple[Tensor, ...]
    """(B, K, n_i) at the feed-forward activity."""

    @property
    def stacked(self) -> Tensor:
        """(B, K, S)"""
        return torch.cat(self.jacobians, -1)

    def split(self, stacked: Tensor) -> tuple[Tensor, ...]:
        """(S, m) -> (n_i, m) of each layer."""
        return stacked.split([layer.units for layer in self.chain.layers])


def sequential(sizes: tuple[int, ...], activation: type[nn.Module], seed: int = 0) -> nn.Sequential:
    """Xavier-normal weights, small biases, linear output, float64."""
    parts: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        parts += [nn.Linear(n_in, n_out), activation()]
    network = nn.Sequential(*parts[:-1]).double()
    for i, p in enumerate(network.parameters()):
        scale = (2 / sum(p.shape)) ** 0.5 if p.dim() == 2 else 0.1
        p.data = scale * normal(*p.shape, seed=1000 * seed + i)
    return network


def plant(
    sizes: tuple[int, ...] = (8, 12, 10, 4),
    activation: type[nn.Module] = nn.Tanh,
    batch: int = 1,
    seed: int = 0,
) -> Plant:
    network = LayeredNetwork(sequential(sizes, activation, seed))
    weights = {name: w.detach() for name, w in network.weights().items()}
    chain, units = Chain.of(network, weights, normal(batch, sizes[0], seed=seed + 50))
    return Plant(chain, units, jacobian(chain, units))


def positive(size: int, seed: int) -> Tensor:
    """A random symmetric positive definite matrix."""
    root = normal(size, size, seed=seed)
    return root @ root.mT / size + torch.eye(size, dtype=torch.float64)


def transposed(given: Plant, mix: Tensor | None = None) -> tuple[Tensor, ...]:
    """Q = J^T M of one example."""
    q = given.stacked[0].mT
    return given.split(q if mix is None else q @ mix)


def number(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def constants(leak: float = 1e-3, gain: float = 2.0, dt: float = 0.02, tau: float = 0.2, **options):
    return Constants(number(leak), number(gain), dt, tau, **options)


def last_moment(
    given: Plant, feedback: tuple[Tensor, ...], goal: Goal, of: Constants, steps: int
) -> Moment:
    (last,) = deque(moments(given.chain, feedback, goal, of, given.units, steps), maxlen=1)
    return last


def delta(size: float, batch: int = 1, outputs: int = 4, seed: int = 7) -> Tensor:
    """(B, K) control errors of a given length."""
    d = normal(batch, outputs, seed=seed)
    return size * d / d.norm(dim=-1, keepdim=True)


def noisy_transposed(given: Plant, sigma: float, seed: int = 3) -> tuple[Tensor, ...]:
    q = given.stacked[0].mT
    return given.split(q + sigma * normal(*q.shape, seed=seed))


def degrees(first: Tensor, second: Tensor) -> float:
    first, second = first.detach(), second.detach()
    cosine = (first * second).sum() / (first.norm() * second.norm())
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def loop(given: Plant, feedback: tuple[Tensor, ...]) -> Tensor:
    return through_feedback(given.jacobians, feedback)


def angles(feedback: tuple[Tensor, ...], jacobians: tuple[Tensor, ...]) -> list[float]:
    """Between Q_i and the mean of J_i^T, in degrees."""
    return [degrees(q, j.mean(0).mT) for q, j in zip(feedback, jacobians, strict=True)]
