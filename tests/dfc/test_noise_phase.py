"""What feedback becomes that learns before the presentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaplastic import Learner
from metaplastic.control import row_space_share, through_feedback
from metaplastic.credit import FeedbackControl
from metaplastic.credit.feedback_learning import Noise, noise_phase
from tests.dfc.fed import LINEAR, fed, feedback_of, stream
from tests.dfc.parts import Plant, degrees, plant, transposed
from tests.helpers import normal


def linear_jacobian(sizes=LINEAR) -> Plant:
    return plant(sizes, nn.Identity)


def learn(phases: list[tuple[Learner, int]], batch: int = 128) -> tuple[Tensor, ...]:
    """The feedback after some updates of one learner after another."""
    weights, seed = None, 0
    for made, updates in phases:
        state = made.start(batch)
        if weights is not None:
            state = {**state, "weights": weights}
        with torch.no_grad():
            for _ in range(updates):
                seed += 1
                state = made.step(state, stream(made, seed, batch))
        weights = state["weights"]
    assert weights is not None
    return feedback_of(weights)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dfc_t11_the_noise_phase_has_its_fixed_point_in_the_row_space(beta: float) -> None:
    """Moment equations of a linear instantaneous network: l q^2 + a q = c in the eigenvectors."""
    leak, tau_a, sigma = 0.5, 0.3, 0.7
    j = linear_jacobian((4, 5, 4, 3)).stacked[0].numpy()
    q = 0.1 * np.random.default_rng(0).normal(size=j.T.shape)
    for _ in range(2000):
        change = -covariance(j, q, leak, tau_a, sigma) / sigma**2 - beta * q
        q = q + 0.3 * change
        if np.abs(change).max() < 1e-12:
            break
    values, vectors = np.linalg.eigh(j @ j.T)
    c = leak / (2 * beta * (1 + leak * tau_a))
    roots = (-leak + np.sqrt(leak**2 + 4 * values * c)) / (2 * values)
    wanted = j.T @ (vectors * roots) @ vectors.T
    assert np.abs(q - wanted).max() < 1e-6 * np.abs(wanted).max()
    inside = np.linalg.pinv(j) @ j @ q
    assert np.linalg.norm(inside) / np.linalg.norm(q) > 1 - 1e-9
    assert np.linalg.eigvals(j @ q).real.min() > 0


def covariance(j, q, leak, tau_a, sigma) -> np.ndarray:
    """E[v_fb u^T] of the stationary state, from A S + S A^T + D = 0."""
    outputs, units = j.shape
    a = np.block([[-np.eye(units) / tau_a, q / tau_a], [-j, -leak * np.eye(outputs)]])
    d = np.zeros_like(a)
    d[:units, :units] = sigma**2 / tau_a**2 * np.eye(units)
    eye = np.eye(len(a))
    s = np.linalg.solve(np.kron(a, eye) + np.kron(eye, a), -d.flatten()).reshape(a.shape)
    return s[:units, units:]


def test_dfc_t11_a_long_noise_phase_has_these_moments() -> None:
    sizes, steps = (3, 4, 2), 6000
    given = plant(sizes, nn.Identity, batch=256)
    q = transposed(plant(sizes, nn.Identity))
    feedback = tuple(0.5 * f + 0.1 * normal(*f.shape, seed=i) for i, f in enumerate(q))
    noise = Noise.of(
        {"sigma": 0.1, "leak": 4.0, "gain": 0.0, "dt": 0.004, "tau": 0.004, "steps": steps}
    )
    moved, before = torch.zeros(6, 2).double(), None
    xi = normal(256, steps - 1, 6)
    for k, now in enumerate(noise_phase(given.chain, given.units, feedback, xi, noise)):
        if before is not None and k >= steps // 3:
            moved += torch.cat(before.apical, 1).mT @ now.control / 256 / (2 * steps // 3)
        before = now
    j = plant(sizes, nn.Identity).stacked[0].numpy()
    wanted = torch.from_numpy(covariance(j, torch.cat(feedback).numpy(), 4.0, 0.3, 0.1))
    assert float((moved - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.slow
def test_dfc_t12_the_noise_phase_turns_feedback_into_the_row_space() -> None:
    noise = {"sigma": 0.01, "leak": 0.5, "gain": 0.0, "dt": 0.003, "tau": 0.015, "steps": 100}
    credit = FeedbackControl(
        initial="random", scale=0.2, feedback_learning="noise-phase", noise=noise, chunk=100
    )
    given = linear_jacobian()
    fast, slow = fed(credit, 0.5, 0.01), fed(credit, 0.1, 0.01)
    before = tuple(q.detach() for q in feedback_of(fast.start(1)["weights"]))
    found = learn([(fast, 150), (slow, 40)])
    assert float(row_space_share(given.jacobians, before)[0]) < 0.5
    assert float(row_space_share(given.jacobians, found)[0]) > 0.98
    wanted, q = given.stacked[0].mT, torch.cat(found)
    assert degrees(q, wanted) < 15
    assert degrees(q, torch.linalg.pinv(wanted.mT)) > degrees(q, wanted)
    assert float(torch.linalg.eigvals(through_feedback(given.jacobians, found)).real.min()) > 0


def test_dfc_t13_forward_noise_learns_the_transposed_jacobian() -> None:
    credit = FeedbackControl(initial="random", scale=0.1, feedback_learning="forward-noise")
    given = linear_jacobian()
    found = learn([(fed(credit, r, 0.01), n) for r, n in ((0.02, 400), (0.002, 400))])
    assert float(row_space_share(given.jacobians, found)[0]) > 0.995
    assert degrees(torch.cat(found), given.stacked[0].mT) < 5
