"""The columns of the feedback, and Kolen-Pollack's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metaplastic import Delta, SquaredError
from tests.helpers import assert_close, deviation, normal, presentation
from tests.lcp_networks.parts import (
    HARD,
    LABELS,
    OUT,
    Plain,
    X,
    Y,
    controlled,
    given,
    grads,
    rnn,
    seen,
    set_feedback,
    weights_of,
)

# --- T11 ---


def least(beta: float = HARD) -> tuple[Plain, Tensor, Tensor]:
    learner = given("inversion", beta, SquaredError())
    return Plain(weights_of(learner), X), *seen(learner, X, Y)


def test_lcp_t11_any_feedback_of_the_same_columns_gives_the_least_control() -> None:
    plain, v, psi = least()
    size = v.shape[1]
    eye = torch.eye(size, dtype=torch.float64)
    best = torch.linalg.solve(eye - plain.jacobian(v).mT, eye[:, -OUT:].expand(7, -1, -1))
    for seed in range(5):
        q = best @ normal(OUT, OUT, seed=seed)

        def off(state: Tensor, u: Tensor, q: Tensor = q) -> Tensor:
            return torch.cat(
                [plain.g(state) + (q @ u.unsqueeze(-1)).squeeze(-1) - state, Y - state[:, -OUT:]],
                -1,
            )

        state, u = v + 0.01 * normal(7, size, seed=seed + 9), normal(7, OUT, seed=seed + 19)
        for _ in range(12):  # Newton's method, with the Jacobian from the equations
            upper = torch.cat([plain.jacobian(state) - eye, q], -1)
            lower = torch.cat([-eye[-OUT:], 0 * eye[-OUT:, :OUT]], -1).expand(7, -1, -1)
            step = torch.linalg.solve(torch.cat([upper, lower], -2), -off(state, u))
            state, u = state + step[:, :size], u + step[:, size:]
        assert float(off(state, u).abs().max()) < 1e-12
        assert deviation((q @ u.unsqueeze(-1)).squeeze(-1), psi) <= 1e-9


def test_lcp_t11_linear_feedback_of_those_columns_and_of_none() -> None:
    plain, v, psi = least()
    eye = torch.eye(v.shape[1], dtype=torch.float64)
    best = torch.linalg.solve(eye - plain.jacobian(v).mT, eye[:, -OUT:].expand(7, -1, -1))
    for b in range(7):
        learner = controlled(rnn(), "linear", HARD, objective=SquaredError())
        set_feedback(learner, {"hidden_feedback": best[b, :-OUT]})
        state, found = seen(learner, X[b : b + 1], Y[b : b + 1])
        assert deviation(found, psi[b : b + 1]) <= 1e-9
        set_feedback(learner, {"hidden_feedback": 0 * best[b, :-OUT]})
        state, direct = seen(learner, X[b : b + 1], Y[b : b + 1])
        assert float((state[:, -OUT:] - Y[b]).abs().max()) < 1e-10
        assert float(direct.norm()) > 1.001 * float(found.norm())


def test_lcp_t11_least_control_is_least() -> None:
    """Any other psi that brings the output to the target is larger: nearby controlled states."""
    plain, v, psi = least()
    eye = torch.eye(v.shape[1], dtype=torch.float64)
    for seed in range(20):
        aside = 0.05 * normal(*v.shape, seed=seed) @ (eye - eye[:, -OUT:] @ eye[-OUT:])
        other = v + aside - plain.g(v + aside)
        assert bool((other.norm(dim=1) > psi.norm(dim=1)).all())


# --- T12 ---


def test_lcp_t12_kolen_pollack_at_the_transpose_is_inversion() -> None:
    for beta in (0.1, 10.0):
        one, other = given("kolen-pollack", beta), given("inversion", beta)
        assert_close(grads(one, X, LABELS), grads(other, X, LABELS), 1e-12)


def test_lcp_t12_feedback_decays_to_the_transpose() -> None:
    decay, steps = 0.05, 6
    learner = controlled(
        rnn(),
        "kolen-pollack",
        0.5,
        rule={"*": Delta(0.1, derivative=False, decay=decay)},
        scale=0.3,
        weights="learned",
    )
    state = learner.start(7)
    groups = learner.credit.groups()
    assert {n: g.twin for n, g in groups.items()} == {
        "recurrent_feedback": "recurrent_weight",
        "output_feedback": "output_weight",
    }
    apart = [state["weights"][n] - state["weights"][str(g.twin)] for n, g in groups.items()]
    for _ in range(steps):
        state = learner.step(state, presentation(learner, X, LABELS))
    for (name, group), first in zip(groups.items(), apart, strict=True):
        now = state["weights"][name] - state["weights"][str(group.twin)]
        assert deviation(now, (1 - decay) ** steps * first) < 1e-12
    learner.assign_grads(X, LABELS)
    network = learner.network
    for name, group in groups.items():
        twin = network.parameter(str(group.twin)).grad.flatten(1)
        own = learner.credit.get_parameter(name).grad
        first = network.parameter(str(group.twin)).detach().flatten(1)
        shift = decay * (learner.credit.get_parameter(name).detach() - first)
        assert deviation(own - shift, twin) < 1e-12  # an optimiser moves both alike


def test_lcp_t12_kolen_pollack_sends_through_its_own_matrices() -> None:
    learner = controlled(rnn(), "kolen-pollack", 0.5, scale=0.3)
    v, psi = seen(learner, X, LABELS)
    own = {n: w.detach() for n, w in learner.credit.weights().items()}
    for b in range(7):
        for j in range(4):
            back = sum(float(own["recurrent_feedback"][i, j]) * float(psi[b, i]) for i in range(4))
            back += sum(
                float(own["output_feedback"][k, j]) * float(psi[b, 4 + k]) for k in range(OUT)
            )
            slope = 1 - float(v[b, j].tanh()) ** 2
            assert float(psi[b, j]) == pytest.approx(slope * back, rel=1e-8, abs=1e-12)
