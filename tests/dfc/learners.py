"""Learners under control, and what they want to change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaplastic import Delta, Learner, SquaredError
from metaplastic.credit import CreditAssignment
from tests.dfc.parts import sequential
from tests.helpers import normal, presentation

SIZES = (5, 7, 6, 3)
FLAT = {"*": Delta(1.0, derivative=False)}
TIMES = {"mode": "dynamic", "dt": 0.02, "tau": 0.2}
X, Y = normal(4, 5), normal(4, 3, seed=1)


def learner(
    credit: CreditAssignment, rules=None, sizes=SIZES, activation=nn.Tanh, objective=None, **options
) -> Learner:
    network = sequential(sizes, activation)
    return Learner(network, credit, rules or FLAT, objective or SquaredError(), **options)


def field(made: Learner, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return made.field(made.start(len(x)), presentation(made, x, y))


def flat(changes: dict[str, Tensor]) -> Tensor:
    return torch.cat([changes[name].flatten() for name in sorted(changes)])


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return float((flat(found) - flat(wanted)).norm() / flat(wanted).norm())
