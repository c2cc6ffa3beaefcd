"""Least control of recurrent networks at rest, against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metaplastic import CrossEntropy, Delta, SquaredError
from metaplastic.equilibrium import Controlled, Energy, Inversion, Solver, rest
from tests.helpers import assert_close, deviation, heard, normal, presentation
from tests.lcp_networks.parts import (
    GRADIENT,
    HARD,
    KINDS,
    LABELS,
    OUT,
    TIGHT,
    Plain,
    X,
    Y,
    controlled,
    given,
    grads,
    loss_gradient,
    rnn,
    seen,
    weights_of,
)

# --- T8 ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("classes", [True, False])
def test_lcp_t08_field_and_controller_rest(kind: str, beta: float, classes: bool) -> None:
    learner = given(kind, beta, CrossEntropy() if classes else SquaredError())
    v, psi = seen(learner, X, LABELS if classes else Y)
    plain = Plain(weights_of(learner), X)
    assert float((plain.g(v) + psi - v).abs().max()) <= 1e-10 * (float(psi.norm()) + 1)
    aim = torch.nn.functional.one_hot(LABELS, OUT) - v[:, -OUT:].softmax(-1)
    error = aim if classes else Y - v[:, -OUT:]
    assert deviation(psi[:, -OUT:], beta * error) < 1e-8
    back = torch.einsum("bij,bi->bj", plain.jacobian(v), psi)
    assert deviation(psi[:, :-OUT], back[:, :-OUT]) < 1e-8


@pytest.mark.parametrize("kind", ["inversion", "kolen-pollack", "linear"])
def test_lcp_t08_hard_control_reaches_the_target(kind: str) -> None:
    learner = given(kind, HARD, SquaredError())
    v, psi = seen(learner, X, Y)
    assert float((Y - v[:, -OUT:]).abs().max()) <= 1e-10
    assert float((Plain(weights_of(learner), X).g(v) + psi - v).abs().max()) <= 1e-10


# --- T9 ---


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_lcp_t09_inversion_is_the_minimum_of_the_energy(beta: float) -> None:
    v, psi = seen(given("inversion", beta, SquaredError()), X, Y)
    descent = controlled(
        rnn(),
        "energy",
        beta,
        objective=SquaredError(),
        solver={**TIGHT, "damping": 0.4, "tolerance": 1e-14},
    )
    w, own = seen(descent, X, Y)
    assert float((v - w).abs().max()) <= 1e-10
    assert float((psi - own).abs().max()) <= 1e-10
    plain = Plain(weights_of(descent), X)

    def energy(state: Tensor, drive: Tensor, y: Tensor) -> Tensor:
        one = Plain(plain.weights, X[:1])
        one.drive = drive.unsqueeze(0)
        control = state - one.g(state.unsqueeze(0))[0]
        return (control.square().sum() + beta * (y - state[-OUT:]).square().sum()) / 2

    curvature = vmap(jacrev(grad(energy)))(w, plain.drive, Y)
    assert float(torch.linalg.eigvalsh(curvature).min()) > 0
    slope = vmap(grad(energy))(w, plain.drive, Y)
    assert float(slope.abs().max()) <= 1e-10


def test_lcp_t09_plain_descent_steps_go_down() -> None:
    """A step of Energy is minus the gradient of F / (1 + beta), by autograd."""
    network, beta = rnn(), 2.0
    field = network.field(X, network.weights())
    strength = beta / (1 + beta)
    energy = Energy(Controlled(field, lambda o: Y - o, strength, Inversion()))
    state = normal(7, 4 + OUT, seed=4).requires_grad_()
    plain = Plain(network.weights(), X)
    loss = (Y - state[:, -OUT:]).square().sum()
    total = ((state - plain.g(state)).square().sum() + beta * loss) / 2
    (slope,) = torch.autograd.grad(total, state)
    assert deviation(energy.step(state) - state, -slope / (1 + beta)) < 1e-13


# --- T10 ---


def at_rest_gradient(objective, y: Tensor) -> dict[str, Tensor]:
    network = rnn()
    plain = Plain(network.weights(), X)
    output = plain.rest()[:, -OUT:]
    target = objective.encode(y, OUT).double()
    if isinstance(objective, SquaredError):
        loss = (output - target).square().sum(-1).mean() / 2
    else:
        loss = objective.loss(output, target).mean()
    return loss_gradient(network, loss)


@pytest.mark.parametrize("classes", [True, False])
def test_lcp_t10_weak_control_is_the_gradient_with_slope_one(classes: bool) -> None:
    objective, y = (CrossEntropy(), LABELS) if classes else (SquaredError(), Y)
    wanted = at_rest_gradient(objective, y)

    def error(beta: float) -> dict[str, float]:
        found = grads(controlled(rnn(), beta=beta, objective=objective), X, y)
        return {n: deviation(g / beta, wanted[n]) for n, g in found.items()}

    some, fewer, least = error(1e-3), error(1e-4), error(1e-6)
    assert all(8.5 < some[n] / fewer[n] < 11.5 for n in wanted), (some, fewer)
    assert max(least.values()) <= 1e-5


@pytest.mark.parametrize("classes", [True, False])
def test_lcp_t10_recurrent_backprop_is_the_gradient(classes: bool) -> None:
    objective, y = (CrossEntropy(), LABELS) if classes else (SquaredError(), Y)
    found = grads(controlled(rnn(), "recurrent-backprop", objective=objective), X, y)
    assert_close(found, at_rest_gradient(objective, y), 1e-12)


@pytest.mark.parametrize("sweeps", [1, 2, 6])
def test_lcp_t10_backprop_is_the_gradient_through_the_sweeps(sweeps: int) -> None:
    learner = controlled(rnn(), "backprop", solver={"sweeps": sweeps})
    network = learner.network
    output = Plain(network.weights(), X).rest(sweeps)[:, -OUT:]
    loss = torch.nn.functional.cross_entropy(output, LABELS)
    names, parameters = zip(*network.named_parameters(), strict=True)
    slopes = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
    assert_close(grads(learner, X, LABELS), dict(zip(names, slopes, strict=True)), 1e-12)


# --- T14 ---


@pytest.mark.parametrize("seed", range(3))
def test_lcp_t14_the_loss_is_bounded_by_the_control(seed: int) -> None:
    network = rnn(seed)
    with torch.no_grad():
        joined = torch.cat([network.parameter(f"{n}_weight") for n in ("recurrent", "output")])
        factor = 0.7 / float(torch.linalg.matrix_norm(joined, 2))
        for name in ("recurrent_weight", "output_weight"):
            network.parameter(name).mul_(factor)
    learner = controlled(network, beta=HARD, objective=SquaredError())
    v, psi = seen(learner, X, Y)
    free = Plain(weights_of(learner), X).rest()
    loss = (Y - free[:, -OUT:]).square().sum(-1) / 2
    assert bool((loss <= psi.square().sum(-1) / 2 / (1 - 0.7) ** 2).all())
    assert float((v[:, -OUT:] - Y).abs().max()) < 1e-10


# --- T15 ---


@pytest.mark.parametrize(
    "kind", ["inversion", "kolen-pollack", "linear", "energy", "recurrent-backprop", "backprop"]
)
def test_lcp_t15_no_error_no_control(kind: str) -> None:
    network = rnn()
    options = {"solver": {"sweeps": 400}} if kind == "backprop" else {}
    learner = controlled(network, kind, 1.0, objective=SquaredError(), **options)
    y = Plain(weights_of(learner), X).rest()[:, -OUT:]
    assert max(float(g.abs().max()) for g in grads(learner, X, y).values()) <= 1e-12


# --- what the pieces say of themselves ---


def test_a_sweep_solves_a_lone_output() -> None:
    """One controlled output without hidden units: u = beta / (1 + beta) (y - called)."""
    for beta in (0.3, 30.0):
        strength = beta / (1 + beta)
        network = rnn()
        field = network.field(X, {n: 0 * w for n, w in network.weights().items()})
        controlled_ = Controlled(field, lambda o: Y - o, strength, Inversion())
        solver = Solver.of({"sweeps": 3, "every": 1, "tolerance": 1e-15})
        found = rest(controlled_.step, controlled_.start(field.still()), solver).state
        assert deviation(strength * found[:, -OUT:], strength * Y) < 1e-14


def test_signals_are_those_of_the_controlled_state() -> None:
    learner = controlled(rnn(), beta=1.0, rule={"*": Delta(1.0)})
    found = heard(learner, presentation(learner, X, LABELS))
    v, psi = seen(learner, X, LABELS)
    hidden, called = v[:, :-OUT], v[:, :-OUT] - psi[:, :-OUT]
    for name, pre in (
        ("input_weight", X),
        ("input_bias", torch.ones(7, 1).double()),
        ("recurrent_weight", hidden.tanh()),
    ):
        assert deviation(found[name].pre, pre) < 1e-10
        assert deviation(found[name].post, called.tanh()) < 1e-10
        assert deviation(found[name].gain, 1 - hidden.tanh().square()) < 1e-10
        assert deviation(found[name].teaching, psi[:, :-OUT]) < 1e-10
        assert found[name].kind == "error"
    assert deviation(found["output_weight"].pre, hidden.tanh()) < 1e-10
    assert GRADIENT.needs == {"teaching"}
