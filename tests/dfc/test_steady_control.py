"""Steady states of the controller against simulations and closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaplastic.control import (
    Chain,
    Goal,
    analytic,
    control_angle,
    jacobian,
    newton,
    row_space_share,
)
from tests.dfc.parts import (
    constants,
    degrees,
    delta,
    last_moment,
    loop,
    noisy_transposed,
    number,
    plant,
    positive,
    transposed,
)
from tests.helpers import normal

LEAK = 1e-3


@pytest.mark.parametrize("leak", [1e-3, 0.8])
def test_dfc_t01_the_error_left_is_leak_times_control(leak: float) -> None:
    given = plant()
    feedback = noisy_transposed(given, 0.05)
    goal = Goal(given.units.output + delta(0.1))
    last = last_moment(given, feedback, goal, constants(leak), 3000)
    left = goal.error(last.units.output)
    assert float((left - leak * last.control).norm()) < 1e-8 * 0.1
    if leak < 0.01:
        assert float(left.norm()) < 0.01 * 0.1


def test_dfc_t02_control_is_what_a_layer_does_not_call_for_itself() -> None:
    given = plant(batch=3)
    feedback = noisy_transposed(given, 0.05)
    goal = Goal(given.units.output + delta(0.5, 3))
    last = last_moment(given, feedback, goal, constants(apical=0.1), 3000)
    for i, q in enumerate(feedback):
        arrived = last.units.potential[i] - last.units.basal[i]
        wanted = last.control @ q.mT
        assert float((arrived - wanted).norm() / wanted.norm()) < 1e-8


@pytest.mark.parametrize("instant", [True, False])
@pytest.mark.parametrize("proactive", [True, False])
def test_dfc_t03_linear_networks_reach_the_analytic_state(instant: bool, proactive: bool) -> None:
    given = plant(activation=nn.Identity, batch=2)
    feedback = noisy_transposed(given, 0.1)
    assert bool((torch.linalg.eigvals(loop(given, feedback)).real + LEAK > 0).all())
    error = delta(1.0, 2)
    goal = Goal(given.units.output + error)
    of = constants(LEAK, instant=instant, proactive=proactive)
    last = last_moment(given, feedback, goal, of, 4000)
    steady = analytic(given.chain, given.units, feedback, error, number(LEAK))
    assert float((last.control - steady.control).norm() / steady.control.norm()) < 1e-9
    for arrived, q in zip(last.apical, feedback, strict=True):
        wanted = steady.control @ q.mT
        assert float((arrived - wanted).norm() / wanted.norm()) < 1e-9


def test_dfc_t04_the_analytic_state_is_exact_to_first_order() -> None:
    given = plant()
    feedback = noisy_transposed(given, 0.05)
    sizes, errors = [1.0, 0.1, 0.01, 0.001], []
    for size in sizes:
        error = delta(size)
        goal = Goal(given.units.output + error)
        u = last_moment(given, feedback, goal, constants(LEAK), 3000).control
        found = analytic(given.chain, given.units, feedback, error, number(LEAK)).control
        errors.append(float((found - u).norm() / u.norm()))
        exact = newton(given.chain, feedback, goal, number(LEAK)).control
        assert float((exact - u).norm() / u.norm()) < 1e-9
    for (large, at_large), (small, at_small) in pairwise(zip(sizes[1:], errors[1:], strict=True)):
        slope = np.log(at_large / at_small) / np.log(large / small)
        assert 0.8 < slope < 1.2
    assert errors[2] < 5e-3


@pytest.mark.parametrize("mixed", [False, True])
def test_dfc_t05_feedback_in_the_row_space_gives_gauss_newton_targets(mixed: bool) -> None:
    given = plant(activation=nn.Identity)
    feedback = transposed(given, positive(4, 5) if mixed else None)
    error = delta(1.0)
    u = analytic(given.chain, given.units, feedback, error, number(LEAK)).control
    dv = (u @ torch.cat(feedback).mT)[0]
    j = given.stacked[0]
    pseudo = torch.linalg.pinv(j) @ error[0]
    assert float((dv - pseudo).norm() / pseudo.norm()) < 1e-3
    assert degrees(dv, pseudo) < 0.1
    if not mixed:
        damped = j.mT @ torch.linalg.solve(j @ j.mT + LEAK * torch.eye(4).double(), error[0])
        assert float((dv - damped).norm() / damped.norm()) < 1e-9
    assert float(row_space_share(given.jacobians, feedback)[0]) == pytest.approx(1.0, abs=1e-12)
    angle = control_angle(u, given.jacobians, feedback, error)
    assert float(angle[0]) == pytest.approx(degrees(dv, pseudo), abs=1e-4)


def test_dfc_t06_other_feedback_adds_what_the_output_does_not_see() -> None:
    given = plant()
    feedback = noisy_transposed(given, 0.09)
    error = delta(1.0)
    u = analytic(given.chain, given.units, feedback, error, number(1e-8)).control
    dv = (u @ torch.cat(feedback).mT)[0]
    j = given.stacked[0]
    pseudo = torch.linalg.pinv(j) @ error[0]
    assert float((j @ dv - error[0]).norm()) < 1e-6
    assert float(dv.norm()) > float(pseudo.norm())
    projected = j.mT @ torch.linalg.solve(j @ j.mT, j @ dv)
    assert float((projected - pseudo).norm() / pseudo.norm()) < 1e-6
    assert 5 < degrees(dv, pseudo) < 30
    assert float(row_space_share(given.jacobians, feedback)[0]) < 0.99


def weight_jacobian(chain: Chain, jacobians: tuple[Tensor, ...], rates: list[Tensor]) -> Tensor:
    """(K, all weights): dr_L / dW_i = J_i (x) r_{i-1}."""
    return torch.cat(
        [
            torch.einsum("kn,m->knm", j[0], r).flatten(1)
            for j, r in zip(jacobians, rates, strict=True)
        ],
        1,
    )


@pytest.mark.parametrize("equal", [True, False])
def test_dfc_t07_equal_rates_make_it_the_smallest_change_of_weights(equal: bool) -> None:
    given = plant()
    feedback = transposed(given)
    error = delta(1.0)
    u = analytic(given.chain, given.units, feedback, error, number(1e-13)).control
    lengths = [2.0, 2.0, 2.0] if equal else [1.0, 2.0, 0.5]
    rates = [
        length * torch.nn.functional.normalize(normal(n, seed=n), dim=0)
        for length, n in zip(lengths, (8, 12, 10), strict=True)
    ]
    change = torch.cat(
        [torch.outer((u @ q.mT)[0], r).flatten() for q, r in zip(feedback, rates, strict=True)]
    )
    wanted = torch.linalg.pinv(weight_jacobian(given.chain, given.jacobians, rates)) @ error[0]
    if equal:
        assert float((change / 4 - wanted).norm() / wanted.norm()) < 1e-9
    else:
        assert degrees(change, wanted) > 1


def test_dfc_t08_the_jacobian_is_that_of_autograd() -> None:
    given = plant(batch=3)
    added = [torch.zeros_like(v) for v in given.units.potential]

    def output(*control: Tensor) -> Tensor:
        return given.chain.run(control).output

    wanted = torch.autograd.functional.jacobian(output, tuple(added))
    for j, full in zip(given.jacobians, wanted, strict=True):
        for b in range(3):
            assert float((j[b] - full[b, :, b]).abs().max()) < 1e-12


def test_dfc_t08_examples_together_are_examples_one_by_one() -> None:
    given = plant(batch=3)
    feedback = noisy_transposed(given, 0.05)
    error = delta(0.3, 3)
    goal = Goal(given.units.output + error)
    together = (
        analytic(given.chain, given.units, feedback, error, number(LEAK)).control,
        newton(given.chain, feedback, goal, number(LEAK)).control,
    )
    for b in range(3):
        one = Chain(
            given.chain.layers,
            given.chain.weights,
            given.chain.biases,
            given.chain.inlet[b : b + 1],
        )
        units = one.run([torch.zeros(1, layer.units).double() for layer in one.layers])
        alone = (
            analytic(one, units, feedback, error[b : b + 1], number(LEAK)).control,
            newton(one, feedback, Goal(goal.target[b : b + 1]), number(LEAK)).control,
        )
        j = torch.cat(jacobian(one, units), -1)[0]
        matrix = (j @ torch.cat(feedback)).numpy() + LEAK * np.eye(4)
        by_hand = np.linalg.solve(matrix, error[b].numpy())
        assert np.abs(by_hand - alone[0][0].numpy()).max() < 1e-12
        for found, wanted in zip(together, alone, strict=True):
            assert float((found[b] - wanted[0]).abs().max()) < 1e-12


def test_no_control_where_there_is_none_to_be_found() -> None:
    """Feedback that does not reach the output, without a leak, and a goal out of reach."""
    given = plant(batch=2)
    silent = tuple(torch.zeros(layer.units, 4).double() for layer in given.chain.layers)
    error = delta(1.0, 2)
    steady = analytic(given.chain, given.units, silent, error, number(0.0))
    assert not bool(steady.found.any())
    assert not bool(steady.control.any())
    steady = newton(given.chain, silent, Goal(given.units.output + error), number(0.0))
    assert not bool(steady.found.any())
    assert not bool(steady.control.any())


def test_a_singular_example_leaves_no_nan_in_gradients() -> None:
    """One whose ReLUs are all silent, so that its J Q is 0."""
    given = plant(activation=nn.ReLU, batch=2)
    inlet = given.chain.inlet * torch.tensor([[0.0], [1.0]]).double()
    chain = Chain(given.chain.layers, given.chain.weights, (None,) * 3, inlet)
    units = chain.run([torch.zeros(2, layer.units).double() for layer in chain.layers])
    lowest = transposed(given)[0].requires_grad_()
    feedback = (lowest, *(torch.zeros(n, 4).double() for n in (10, 4)))
    error = delta(0.01, 2)
    for steady in (
        analytic(chain, units, feedback, error, number(0.0)),
        newton(chain, feedback, Goal(units.output + error), number(0.0), tolerance=1.0),
    ):
        assert not bool(steady.found[0])
        assert not bool(steady.control[0].any())
        (gradient,) = torch.autograd.grad(steady.control.sum(), lowest)
        assert bool(gradient.isfinite().all())


def test_what_is_no_root_is_no_control() -> None:
    """After a single step towards a goal that is far away."""
    given = plant(batch=2)
    feedback = noisy_transposed(given, 0.05)
    goal = Goal(given.units.output + delta(1.0, 2))
    early = newton(given.chain, feedback, goal, number(LEAK), iterations=1)
    assert not bool(early.found.any())
    assert not bool(early.control.any())
    assert bool(newton(given.chain, feedback, goal, number(LEAK)).found.all())


def test_steps_that_are_too_long_are_halved() -> None:
    given = plant(batch=8)
    feedback = (*transposed(given)[:2], torch.zeros(4, 4).double())
    goal = Goal(given.units.output + delta(8.0, 8))
    found = [
        int(newton(given.chain, feedback, goal, number(0.1), iterations=20, halvings=h).found.sum())
        for h in (0, 3)
    ]
    assert found == [6, 8]
