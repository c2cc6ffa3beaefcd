"""Least control and implicit gradients of a linear unit, against linear algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metaplastic import Implicit, LeastControl
from metaplastic.metagradient import Equilibrium
from metaplastic.metagradient.equilibrium import Settled
from tests.helpers import deviation, meta_gradient, normal
from tests.lcp.parts import Bilevel, bilevel, settled, tight

OMEGA, STRENGTH = "network.body.0.weight", "rules.layer0_weight.strength.raw"
RATES = {1e-5: (80, 0.5), 1e-4: (80, 0.5), 0.1: (100, 0.5), 1.0: (150, 0.4), 10.0: (250, 0.3)}
"""Steps and their length at which each beta has settled."""
HARD = {1e3: (400, 0.05), 1e4: (1600, 0.015)}


@pytest.fixture(scope="module")
def q() -> Bilevel:
    return bilevel()


def method(variant: str, beta: float, **options) -> LeastControl:
    steps, rate = (RATES | HARD)[beta]
    return LeastControl(variant, beta, steps=steps, rate=rate, tolerance=1e-8, **options)


def rest(q: Bilevel, variant: str, beta: float, **options) -> Settled:
    found = settled(q.learner, q.episodes, method(variant, beta, **options))
    assert float(found.residual) < 1e-8
    return found


def gradients(q: Bilevel, method: Equilibrium) -> tuple[Tensor, Tensor]:
    """By omega and by the logarithm of lambda, (n,) each."""
    found = meta_gradient(q.learner, q.episodes, method)
    return found[OMEGA][0], found[STRENGTH][0]


def implicit(q: Bilevel) -> tuple[Tensor, Tensor]:
    free = q.free()
    adjoint = q.strength * torch.linalg.solve(q.h, q.slope(free))
    return adjoint, adjoint * (q.omega - free)


def least(q: Bilevel, omega: Tensor) -> Tensor:
    """Half the square of the least control that solves the queries."""
    psi = q.at(omega).hard()
    return psi.square().sum() / 2


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("free_steps", [None, 0])
def test_lcp_t01_dynamic_inversion_settles_where_algebra_says(q, beta, free_steps):
    found = rest(q, "inversion", beta, free_steps=free_steps)
    phi, psi = q.inverted(beta)
    assert deviation(found.phi[0], phi) < 1e-10
    assert deviation(found.psi[0], psi) < 1e-10
    at = q.free() if free_steps is None else phi
    loss = (q.c @ at - q.d).square().sum() / 2
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-9)


@pytest.mark.parametrize("variant", ["inversion", "contrastive"])
def test_lcp_t02_weak_control_gives_the_implicit_gradient(q, variant):
    errors = []
    for beta in (1e-4, 1e-5):
        found = gradients(q, method(variant, beta))
        errors.append([deviation(f, w) for f, w in zip(found, implicit(q), strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 1e-3
        assert coarse / fine == pytest.approx(10, abs=1.5)


def test_lcp_t02_symmetric_contrast_has_a_smaller_error(q):
    errors = []
    for beta in (0.3, 0.03):
        nudged = LeastControl("contrastive", beta, steps=150, rate=0.5, symmetric=True)
        found = gradients(q, tight(nudged))
        errors.append([deviation(f, w) for f, w in zip(found, implicit(q), strict=True)])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.01
        assert coarse / fine == pytest.approx(100, abs=15)


def test_contrast_is_the_difference_of_two_energies(q):
    """At any beta: that of consolidation is lambda |phi - omega|^2 / 2."""
    omega, strength = gradients(q, method("contrastive", 1.0))
    (free, nudged), prior = (q.free(), q.pushed(1.0)[0]), q.omega
    assert deviation(omega, -q.strength * (nudged - free)) < 1e-9
    energies = [q.strength * (phi - prior).square() / 2 for phi in (free, nudged)]
    assert deviation(strength, energies[1] - energies[0]) < 1e-9


@pytest.mark.parametrize("solver", ["gmres", "cg", "neumann"])
def test_lcp_t02_the_implicit_gradient_itself(q, solver):
    terms = {"gmres": 12, "cg": 12, "neumann": 60}[solver]
    found = gradients(q, Implicit(solver, terms, steps=80, rate=0.5, tolerance=1e-9))
    for f, w in zip(found, implicit(q), strict=True):
        assert deviation(f, w) < 1e-9


def test_damping_is_added_to_the_hessian(q):
    free = settled(q.learner, q.episodes, Implicit(damping=0.7, terms=12, steps=80, rate=0.5))
    h = q.h + 0.7 * torch.eye(12).double()
    assert deviation(free.psi[0], -torch.linalg.solve(h, q.slope(q.free()))) < 1e-10


def test_lcp_t03_strong_control_is_the_least_that_solves_the_queries(q):
    wanted = q.hard()
    coarse, fine = (deviation(rest(q, "inversion", beta).psi[0], wanted) for beta in HARD)
    assert fine < 1e-3
    assert coarse / fine == pytest.approx(10, abs=1.5)


def test_lcp_t04_no_derivative_of_the_rest_point_is_needed(q):
    """The gradient of min F, and of the least control in the limit."""
    omega = q.omega.clone().requires_grad_()
    phi, psi = q.at(omega).inverted(1.0)
    smallest = psi.square().sum() / 2 + (q.c @ phi - q.d).square().sum() / 2
    (wanted,) = torch.autograd.grad(smallest, omega)
    assert deviation(gradients(q, method("inversion", 1.0))[0], wanted) < 1e-9
    (hard,) = torch.autograd.grad(least(q, omega), omega)
    assert deviation(-q.strength * q.hard(), hard) < 1e-12
    assert deviation(1e4 * gradients(q, method("inversion", 1e4))[0], hard) < 1e-3


def test_lcp_t05_every_other_control_to_the_same_end_is_larger(q):
    psi = rest(q, "inversion", 1e3).psi[0]
    to_query = q.c @ torch.linalg.inv(q.h)
    blind = torch.linalg.svd(to_query).Vh[4:]
    others = psi + normal(100, 8, seed=9) @ blind
    assert float((to_query @ (others - psi).mT).abs().max()) < 1e-12
    assert bool((others.norm(dim=1) > psi.norm()).all())


def test_lcp_t06_direct_control_settles_where_algebra_says(q):
    for beta in (0.1, 1.0):
        found = rest(q, "direct", beta)
        phi, psi = q.pushed(beta)
        assert deviation(found.phi[0], phi) < 1e-10
        assert deviation(found.psi[0], psi) < 1e-10


def test_lcp_t06_direct_control_is_least_only_where_it_sees_every_direction(q):
    """With fewer queries than weights it takes more; with as many, and strong, as much."""

    def both(q: Bilevel, beta: float, steps: int) -> tuple[Tensor, Tensor]:
        options = {"steps": steps, "rate": 1.5 / (1.5 + beta), "free_steps": 0}
        direct = settled(q.learner, q.episodes, LeastControl("direct", beta, **options))
        assert float(direct.residual) < 1e-8
        return direct.psi[0], q.inverted(beta)[1]

    assert float(q.pushed(1e8)[1].norm()) > 1.001 * float(q.hard().norm())
    square = bilevel(6, 6)
    coarse, fine = (deviation(*both(square, beta, n)) for beta, n in ((30.0, 80), (300.0, 80)))
    assert fine < 0.02
    assert coarse / fine == pytest.approx(10, abs=1.5)


def test_lcp_t07_a_small_step_down_needs_less_control(q):
    def after(method: Equilibrium, size: float) -> Tensor:
        return q.omega - size * gradients(q, method)[0]

    strong = after(method("inversion", 1e3), 1.0)
    assert float(least(q, strong)) < float(least(q, q.omega))

    def loss(omega: Tensor) -> float:
        return float((q.c @ q.at(omega).free() - q.d).square().sum() / 2)

    for weak in (method("inversion", 0.1), Implicit(terms=12, steps=80, rate=0.5)):
        assert loss(after(weak, 0.1)) < loss(q.omega)


def test_an_episode_is_held_to_its_own_tolerance(q):
    early = LeastControl("inversion", 1.0, steps=5, rate=0.4)
    outcome = tight(early).gradient(q.learner, q.episodes)
    assert outcome.kept == ()
    assert "did not settle" in str(outcome.diverged[0])
