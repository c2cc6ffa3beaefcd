"""Learners, and the loop of higher's documentation around them."""

from __future__ import annotations

from collections.abc import Callable

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Oja,
    PlasticityRule,
    SquaredError,
)
from metaplastic.adapters.higher import PlasticOptimizer
from metaplastic.signals import LocalSignals
from tests.helpers import classification, mlp, regression, shake

TOLERANCE = 1e-10
FLP = {"role:bias": None, "position:last": Oja(0.05, mix=1.0), "*": Oja(0.05)}
METHODS = {
    "FLP": (DirectFeedback(bias=True), FLP),
    "feedback x delta": (DirectFeedback(), {"*": Delta(0.1, learned=True)}),
    "backprop x delta": (Backprop(), Delta(0.1, learned=True)),
}


class Eligibility(PlasticityRule):
    """A rule with a trace: a running mean of pre x error."""

    needs = frozenset({"teaching"})

    def init(self, weight):
        return {"e": torch.zeros_like(weight)}

    def update(self, weight, signals: LocalSignals, traces, coefficients):
        e = 0.5 * traces["e"] + signals.correlate(signals.error, signals.pre, "examples")
        return 0.1 * e, {"e": e}


def learner_for(method: str, regress: bool = False, **options) -> Learner:
    credit, rule = METHODS[method]
    objective = SquaredError() if regress else CrossEntropy()
    return shaken(Learner(mlp(4, 6, 5, 3), credit, rule, objective, **options))


def shaken(learner: Learner) -> Learner:
    return shake(learner, plasticity=0.05, mixing=0.3, control=0.1, feedback=0.3)


def body_of(learner: Learner) -> nn.Sequential:
    """The user's own module."""
    assert isinstance(learner.network, LayeredNetwork)
    return learner.network.body


def episode(regress: bool = False, batch: int = 3, presentations: int = 6, seed: int = 0):
    make = regression if regress else classification
    return make(1, presentations, batch, 4, 3, seed=seed)


def stream(episodes: Episodes) -> list[tuple[Tensor, Tensor]]:
    return list(zip(episodes.support_x[0], episodes.support_y[0], strict=True))


def inner_loop(
    learner: Learner,
    episodes: Episodes,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    *,
    model: nn.Module | None = None,
    generator: torch.Generator | None = None,
    copy: bool = False,
    track: bool = True,
    shown_target: bool = False,
):
    """The loop of higher's documentation: the functional model and its optimiser, after it."""
    optimizer = PlasticOptimizer(learner, generator=generator)
    options = {"copy_initial_weights": copy, "track_higher_grads": track}
    with higher.innerloop_ctx(model or learner, optimizer, **options) as (fmodel, diffopt):
        for x, y in stream(episodes):
            more = {"target": y} if shown_target else {}
            diffopt.step(criterion(fmodel(x), y), **more)
    return fmodel, diffopt


def query(fmodel: Callable[[Tensor], Tensor], episodes: Episodes, regress: bool = False) -> Tensor:
    loss = F.mse_loss if regress else F.cross_entropy
    return loss(fmodel(episodes.query_x[0]), episodes.query_y[0])


def cnn() -> LayeredNetwork:
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh())
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 3)
    )
    return LayeredNetwork(chain, trunk=trunk, input_shape=(1, 4, 4))
