"""Learners whose feedback alone learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaplastic import Delta, LayeredNetwork, Learner, Presentation, SquaredError
from metaplastic.credit import CreditAssignment
from metaplastic.testing.oracles import seeded
from metaplastic.testing.parts import Silent
from tests.dfc.parts import sequential
from tests.helpers import normal, presentation

LINEAR = (10, 20, 20, 5)


def fed(
    credit: CreditAssignment, rate: float, decay: float, sizes=LINEAR, activation=nn.Identity
) -> Learner:
    """Only the feedback learns."""
    rules = {
        "role:feedback": Delta(rate, derivative=False, decay=rate * decay),
        "role:weight": Silent(),
    }
    return Learner(sequential(sizes, activation), credit, rules, SquaredError())


def feedback_of(weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(w for name, w in weights.items() if name.endswith("_feedback"))


def stream(made: Learner, seed: int, batch: int) -> Presentation:
    network = made.network
    assert isinstance(network, LayeredNetwork)
    x = normal(batch, *network.layers[0].in_shape, seed=seed)
    noise = made.credit.noise(network, (1, 1, batch), seeded(seed))
    assert noise is not None
    given = presentation(made, x, torch.zeros(batch, network.outputs).double())
    return Presentation(given.x, given.teacher, noise=noise[0, 0].double())
