"""Learners at rest, and their closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Coefficient,
    Consolidated,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    Learner,
    Oja,
    SquaredError,
)
from metaplastic.inner_loop import draw
from metaplastic.metagradient import Equilibrium
from metaplastic.metagradient.equilibrium import Settled
from metaplastic.metagradient.rest import Rest
from tests.helpers import classification, mlp, normal, presentation, regression, shake

TIGHT = 1e-9
"""A tolerance under which only rest points are rest points."""


def at_rest(learner: Learner, episodes: Episodes) -> Rest:
    """Without a graph."""
    with torch.no_grad():
        return Rest(learner, episodes, draw(learner, episodes, None))


def settled(learner: Learner, episodes: Episodes, method: Equilibrium) -> Settled:
    with torch.no_grad():
        return method.settle(at_rest(learner, episodes))


def tight(method: Equilibrium) -> Equilibrium:
    return replace(method, tolerance=TIGHT)


@dataclass(frozen=True)
class Bilevel:
    """Support (A, a) and queries (C, d) of one linear unit: f = A a + lambda omega - (A +
    diag lambda) phi and, up to a factor, L = |C phi - d|^2 / 2. One episode.
    """

    learner: Learner
    episodes: Episodes
    a_matrix: Tensor
    """A (n, n)"""
    b: Tensor
    """A a + lambda omega, (n,)"""
    c: Tensor
    """C (m, n), scaled so that L has the factor 1/2."""
    d: Tensor
    strength: Tensor
    """lambda (n,)"""
    omega: Tensor
    """(n,)"""

    @property
    def h(self) -> Tensor:
        return self.a_matrix + self.strength.diag()

    def at(self, omega: Tensor) -> Bilevel:
        """The same algebra with another omega."""
        return replace(self, omega=omega, b=self.b + self.strength * (omega - self.omega))

    def free(self) -> Tensor:
        return torch.linalg.solve(self.h, self.b)

    def inverted(self, beta: float) -> tuple[Tensor, Tensor]:
        """Phi and psi under optimal control of a strength beta."""
        h, c = self.h, self.c
        phi = torch.linalg.solve(h @ h + beta * c.mT @ c, h @ self.b + beta * c.mT @ self.d)
        return phi, h @ phi - self.b

    def pushed(self, beta: float) -> tuple[Tensor, Tensor]:
        """The same with psi = -beta grad L."""
        h, c = self.h, self.c
        phi = torch.linalg.solve(h + beta * c.mT @ c, self.b + beta * c.mT @ self.d)
        return phi, -beta * c.mT @ (c @ phi - self.d)

    def slope(self, phi: Tensor) -> Tensor:
        """The gradient of L."""
        return self.c.mT @ (self.c @ phi - self.d)

    def hard(self) -> Tensor:
        """The least control that solves the queries."""
        to_query = self.c @ torch.linalg.inv(self.h)
        return to_query.mT @ torch.linalg.solve(
            to_query @ to_query.mT, self.d - self.c @ self.free()
        )


def bilevel(n: int = 12, m: int = 4, seed: int = 0) -> Bilevel:
    """A with eigenvalues around 1, lambda of every synapse between 0.3 and 0.8, and m orthogonal
    queries.
    """
    x = torch.linalg.qr(normal(n, n, seed=seed))[0] * (1 + 0.2 * normal(n, 1, seed=seed + 1).tanh())
    a, omega = normal(n, seed=seed + 2), normal(n, seed=seed + 3)
    queries = torch.linalg.qr(normal(n, n, seed=seed + 4))[0][:m] * (m / 2) ** 0.5
    d = normal(m, seed=seed + 5)
    strength = 0.3 + 0.5 * torch.rand(n, generator=torch.Generator().manual_seed(seed)).double()
    chain = nn.Sequential(nn.Linear(n, 1, bias=False)).double()
    chain[0].weight.data = omega.unsqueeze(0)
    rule = Consolidated(Delta(1.0, learned=True, reduction="sum"), granularity="synapse")
    learner = Learner(chain, Backprop(), rule, SquaredError()).double()
    (bound,) = learner.rules.values()
    assert isinstance(bound, Consolidated)
    bound.strength.assign(strength.unsqueeze(0))
    batch = n // 3
    episodes = Episodes(
        x.reshape(1, 3, batch, n), (x @ a).reshape(1, 3, batch, 1), queries[None], d[None, :, None]
    )
    scale = (2 / m) ** 0.5
    matrix = x.mT @ x
    b = matrix @ a + strength * omega
    return Bilevel(learner, episodes, matrix, b, queries * scale, d * scale, strength, omega)


def raw_strength(learner: Learner, group: str = "layer0_weight") -> nn.Parameter:
    return learner.get_parameter(f"rules.{group}.strength.raw")


def gradient_field(seed: int = 0) -> Learner:
    """Backpropagation in a small tanh network: f is a gradient, its Hessian positive."""
    strength = Coefficient(1.0, granularity="synapse", bound="exp", role="control")
    rules = {"*": Consolidated(Delta(0.5), strength)}
    learner = Learner(mlp(2, 4, 1), Backprop(), rules, SquaredError())
    return shake(learner, seed, control=0.1)


def local_field(seed: int = 0) -> Learner:
    """Oja's rule on linear feedback: f is no gradient."""
    credit = DirectFeedback("error", output="feedback")
    rule = Consolidated(Oja(0.3, 0.6, granularity="synapse"), 1.0, granularity="neuron")
    learner = Learner(mlp(2, 4, 2), credit, {"*": rule}, SquaredError())
    return shake(learner, seed, plasticity=0.1, mixing=0.3, feedback=0.2, control=0.1)


def shown(learner: Learner, episodes: int = 2) -> Episodes:
    """Inputs of a size at which all settle in a few steps."""
    if isinstance(learner.objective, CrossEntropy):
        drawn = classification(episodes, 2, 3, (1, 3, 3), 3, queries=4)
    else:
        drawn = regression(episodes, 3, 2, 2, learner.network.outputs, queries=6)
    small = {name: 0.5 * getattr(drawn, name) for name in ("support_x", "query_x")}
    return replace(drawn, **small)


def rest_by_hand(learner: Learner, episodes: Episodes, steps: int, rate: float) -> Tensor:
    """Query loss of each episode after Euler steps on all examples at once, in loops, (E,)."""
    found = []
    for e in range(len(episodes)):
        x, y = episodes.support_x[e].flatten(0, 1), episodes.support_y[e].flatten(0, 1)
        state = learner.start(len(x))
        for _ in range(steps):
            change = learner.field(state, presentation(learner, x, y))
            names = learner.network.groups()
            own = {
                n: w + rate * change[n] if n in change and n in names else w
                for n, w in state["weights"].items()
            }
            state = {**state, "weights": own}
        features = learner.network.features(episodes.query_x[e])
        output = learner.network(features, state["weights"], state["network"])
        target = learner.encode(episodes.query_y[e], features.shape[:1])
        found.append(learner.objective.loss(output, target).mean().detach())
    return torch.stack(found)
