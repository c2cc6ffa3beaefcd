"""Networks at rest, their solvers and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from metaplastic import (
    Backprop,
    Delta,
    EquilibriumControl,
    EquilibriumNetwork,
    LayeredNetwork,
    Learner,
    Oja,
    Unsupervised,
)
from metaplastic.equilibrium import Solver, rest, solver
from metaplastic.errors import (
    UnconvergedWarning,
)
from metaplastic.networks import equilibrium_block, equilibrium_chain
from metaplastic.networks.populations import WiredPoint
from metaplastic.testing.parts import drawn
from tests.helpers import assert_close, deviation, heard, mlp, normal, presentation, seeded
from tests.lcp_networks.parts import GRADIENT, LABELS, OUT, TIGHT, Plain, X, controlled, grads, rnn


def conv_chain() -> nn.Sequential:
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2, stride=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, OUT),
    )
    return drawn(LayeredNetwork(chain, input_shape=(2, 5, 5))).body.double()  # type: ignore[union-attr]


CHAINS = {
    "linear": (lambda: mlp(5, 4, 6, OUT), (5,)),
    "conv": (conv_chain, (2, 5, 5)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_lcp_t13_a_chain_at_rest_is_its_forward_pass(name: str) -> None:
    make, shape = CHAINS[name]
    chain = make()
    network = equilibrium_chain(chain, input_shape=shape, solver={"every": 1})
    x, layers = normal(3, *shape), sum(isinstance(m, nn.Linear | nn.Conv2d) for m in chain)
    found = network.rest(network.field(x, network.weights()))
    assert float(found.residual.max()) == 0
    assert found.sweeps.flatten().tolist() == [layers] * 3
    layered = LayeredNetwork(chain, input_shape=shape)
    assert network.groups().keys() == layered.groups().keys()
    assert torch.equal(network(x, network.weights()), layered(x, layered.weights()))


@pytest.mark.parametrize("psi", ["recurrent-backprop", "backprop"])
@pytest.mark.parametrize("name", CHAINS)
def test_lcp_t13_its_gradient_is_backpropagation(name: str, psi: str) -> None:
    make, shape = CHAINS[name]
    chain = make()
    x, y = normal(3, *shape), LABELS[:3]
    options = {"solver": {"sweeps": 5}} if psi == "backprop" else {"solver": TIGHT}
    credit = EquilibriumControl(psi, **options)
    one = Learner(
        equilibrium_chain(copy.deepcopy(chain), input_shape=shape), credit, {"*": GRADIENT}
    )
    other = Learner(LayeredNetwork(chain, input_shape=shape), Backprop(), {"*": Delta(1.0)})
    one.assign_grads(x, y)
    other.assign_grads(x, y)
    found = {n: one.network.parameter(n).grad for n in one.network.groups()}
    wanted = {n: other.network.parameter(n).grad for n in other.network.groups()}
    assert_close(found, wanted, 1e-11)


def block(**options) -> EquilibriumNetwork:
    sizes = {"channels": 4, "inner": 6, "groups": 2, "pool": 2, "generator": seeded(1)}
    return equilibrium_block((2, 4, 4), OUT, **{**sizes, **options}).double()


def test_a_block_rests_where_its_equation_holds() -> None:
    network = block(solver={"method": "anderson", "tolerance": 1e-13, "sweeps": 300})
    x, w = normal(2, 2, 4, 4), network.weights()
    found = network.rest(network.field(x, w))
    assert bool(found.found.all())
    p = dict(network.named_parameters())
    wiring = network.wiring
    q = wiring.populations[2].of(found.state)
    conv, relu = torch.nn.functional.conv2d, torch.relu

    def norm(v: Tensor, module: nn.Module) -> Tensor:
        return torch.nn.functional.group_norm(v, 2, module.weight, module.bias)  # type: ignore

    inner = network.units["inner"][1]  # type: ignore[index]
    outer, last = network.units["outer"], network.units["state"][1]  # type: ignore[index]
    z = norm(relu(q), last)
    first, second = p["pathways.first.weight"], p["pathways.second.weight"]
    inside = conv(norm(relu(conv(z, first, padding=1)), inner), second, padding=1)
    injected = conv(x, p["pathways.input.weight"], padding=1)
    assert deviation(norm(relu(z + norm(injected + inside, outer)), last), z) < 1e-10
    read = network.pathways["output"]
    assert deviation(network(x, w), read(z)) < 1e-10  # type: ignore[operator]


def test_the_transposed_field_is_that_of_autograd() -> None:
    for network, x in ((block(), normal(2, 2, 4, 4)), (rnn(), X)):
        field = network.field(x, network.weights())
        state, error = (
            normal(len(x), network.wiring.size),
            normal(len(x), network.wiring.size, seed=1),
        )
        back = vjp(lambda v, f=field: f.at(v).called, state)[1]
        assert deviation(field.at(state).transposed(error), back(error)[0]) < 1e-12


def test_a_recurrent_network_rests_where_its_equation_holds() -> None:
    network = rnn()
    weights = network.weights()
    output = Plain(weights, X).rest()[:, -OUT:]
    assert deviation(network(X, weights), output) < 1e-13
    for options in ({"sweeps": 400}, {"damping": 0.7, "sweeps": 400}, {"method": "anderson"}):
        other = Solver.of({"tolerance": 1e-14, **options})  # type: ignore[typeddict-item]
        found = network.rest(network.field(X, weights), other)
        assert bool(found.found.all())
        assert deviation(found.state[:, -OUT:], output) < 1e-12


def test_nobody_else_decides_when_an_example_rests() -> None:
    network = rnn()
    for method in ("sweeps", "anderson"):
        own = Solver.of({"method": method, "tolerance": 1e-4, "every": 3})  # type: ignore
        together = network.rest(network.field(X, network.weights()), own)
        for b in range(7):
            alone = network.rest(network.field(X[b : b + 1], network.weights()), own)
            assert float(alone.sweeps) == float(together.sweeps[b])
            near = 1e-12 if method == "sweeps" else 1e-5  # which solves ill-conditioned equations
            assert deviation(alone.state, together.state[b : b + 1]) < near
        assert float(together.residual.max()) <= 1e-4
        assert len(set(together.sweeps.flatten().tolist())) > 1


@pytest.mark.parametrize("dense", [True, False])
def test_the_derivative_is_that_of_the_rest(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Z = tanh(A z + b), one by one and under vmap, against central differences."""
    if not dense:
        monkeypatch.setattr(solver, "DENSE", 1)
    a, weight = 0.3 * normal(3, 3), normal(2, 3, seed=2)
    options = Solver.of({"tolerance": 1e-15, "backward": 80})

    def value(b: Tensor) -> Tensor:
        found = rest(lambda z: (z @ a.mT + b).tanh(), torch.zeros_like(b), options)
        return (found.state * weight).sum()

    both = normal(4, 2, 3, seed=3).requires_grad_()
    (slope,) = torch.autograd.grad(vmap(value)(both).sum(), both)
    assert deviation(slope[1], torch.autograd.grad(value(both[1]), both)[0][1]) < 1e-12
    h, along = 1e-5, normal(4, 2, 3, seed=5)
    with torch.no_grad():
        sides = [vmap(value)(both + sign * h * along).sum() for sign in (1, -1)]
    assert float((slope * along).sum()) == pytest.approx(
        float(sides[0] - sides[1]) / (2 * h), rel=1e-8
    )


@pytest.mark.parametrize("psi", ["inversion", "kolen-pollack", "linear", "energy"])
def test_examples_without_rest_change_nothing_and_are_counted(psi: str) -> None:
    few = {"method": "sweeps", "sweeps": 1, "tolerance": 1e-9}
    learner = controlled(rnn(), psi, 1.0, solver=few)
    with pytest.warns(UnconvergedWarning, match="7 of 7 examples .*: they found no rest"):
        found = grads(learner, X, LABELS)
    assert all(not bool(g.any()) for g in found.values())
    shown = presentation(learner, X, LABELS)
    weight = torch.tensor([[1.0], [1], [0], [1], [0], [0], [1]]).double()
    shown = type(shown)(shown.x, shown.teacher, weight)
    after = learner.step(learner.start(7), shown)
    assert float(after["credit"]["unconverged"]) == 4


def test_feedback_learns_the_columns_of_the_least_control_from_noise() -> None:
    """The mean change points along (1 - g')^-T D^T."""
    network = rnn(size=0.4)
    learner = controlled(
        network,
        "linear",
        0.1,
        rule={"role:feedback": Delta(1.0, derivative=False)},
        scale=0.0,
        feedback_learning="noise-phase",
        noise={"sigma": 0.01, "steps": 300, "dt": 0.01, "tau": 0.01, "leak": 0.1, "gain": 0.0},
    )
    x, y = X[:1].expand(300, -1), LABELS[:1].expand(300)
    noise = learner.noise((1, 1, 300), seeded(0))
    assert noise is not None
    assert noise.shape == (1, 1, 300, 299, 4)
    shown = presentation(learner, x, y)
    shown = type(shown)(shown.x, shown.teacher, None, noise[0, 0])
    with torch.no_grad():
        before = learner.start(300)
        after = learner.step(before, shown)
        change = after["weights"]["hidden_feedback"] - before["weights"]["hidden_feedback"]
        plain = Plain(network.weights(), X[:1])
        jacobian = plain.jacobian(plain.rest())
        eye = torch.eye(7, dtype=torch.float64)
        best = torch.linalg.solve(eye - jacobian.mT, eye[:, -OUT:])[0, :-OUT]
    cosine = float((change * best).sum() / change.norm() / best.norm())
    assert cosine > 0.95
    assert cosine < 1


def test_the_local_ways_transpose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kolen-Pollack and linear feedback run without the network's own transpose."""
    network = rnn()
    network.solver = Solver.of({"sweeps": 400})
    learners = [controlled(network, psi, 0.5, scale=0.2) for psi in ("kolen-pollack", "linear")]
    own = WiredPoint.transposed

    def refuse(point: WiredPoint, error: Tensor, weights=None) -> Tensor:
        assert weights is not None, "the forward weights were transposed"
        return own(point, error, weights)

    monkeypatch.setattr(WiredPoint, "transposed", refuse)
    for learner in learners:
        assert all(bool(g.isfinite().all()) for g in grads(learner, X, LABELS).values())


def test_unsupervised_sees_the_free_rest() -> None:
    learner = Learner(rnn(), Unsupervised(), Oja(0.1, mix=0.0))
    found = heard(learner, presentation(learner, X, LABELS))
    v = Plain(learner.network.weights(), X).rest()
    assert deviation(found["recurrent_weight"].post, v[:, :-OUT].tanh()) < 1e-12
    assert deviation(found["output_weight"].pre, v[:, :-OUT].tanh()) < 1e-12
