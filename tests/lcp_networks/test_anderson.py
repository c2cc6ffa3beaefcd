"""What follows an extrapolation that made things worse."""

from __future__ import annotations

import torch
from torch import Tensor

from metaplastic.equilibrium import Solver, rest
from metaplastic.equilibrium.algebra import Anderson
from tests.helpers import deviation, normal


def test_a_sweep_follows_where_the_residual_grew() -> None:
    """Of two examples one comes nearer and one farther."""
    solver, state = Anderson(3, 0.5), normal(2, 4)
    after = state
    residuals = [normal(2, 4, seed=1), 0.5 * normal(2, 4, seed=1)]
    residuals.append(torch.stack([0.2 * normal(4, seed=2), 3.0 * normal(4, seed=2)]))
    for residual in residuals:
        state = normal(2, 4, seed=5) + state
        after = solver(state, state + residual)
    swept = state + 0.5 * residuals[-1]
    assert deviation(after[1], swept[1]) < 1e-12
    assert deviation(after[0], swept[0]) > 1e-2


def test_a_map_far_from_linear_comes_to_rest() -> None:
    """Z = tanh(W z) + b with large W: without that sweep few of the examples settle."""
    weight, bias = 2.2 * normal(30, 30, seed=3) / 30**0.5, 3 * normal(60, 30, seed=4)

    def step(z: Tensor) -> Tensor:
        return z.tanh() @ weight.mT + bias

    with torch.no_grad():
        found = rest(step, 0 * bias, Solver.of({"method": "anderson", "memory": 2, "sweeps": 80}))
    assert float(found.found.double().mean()) > 0.9
