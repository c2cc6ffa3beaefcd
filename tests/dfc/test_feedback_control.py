"""Feedback control as a credit: what synapses are told."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Coefficient,
    CrossEntropy,
    Delta,
    LayeredNetwork,
    Learner,
    Presentation,
    SquaredError,
)
from metaplastic.credit import Backprop, CreditAssignment, FeedbackControl, StrongFeedbackControl
from metaplastic.errors import ConfigurationError, UnsupportedLayerError
from tests.dfc.parts import degrees, sequential
from tests.helpers import (
    classification,
    final_weights,
    heard,
    meta_gradient,
    normal,
    presentation,
    regression,
    show,
    slope_error,
    unit_direction,
)

SIZES = (5, 7, 6, 3)
FLAT = {"*": Delta(1.0, derivative=False)}
TIMES = {"mode": "dynamic", "dt": 0.02, "tau": 0.2}


def learner(
    credit: CreditAssignment, rules=None, sizes=SIZES, activation=nn.Tanh, objective=None, **options
) -> Learner:
    network = sequential(sizes, activation)
    return Learner(network, credit, rules or FLAT, objective or SquaredError(), **options)


def field(made: Learner, x: Tensor, y: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
    shown = presentation(made, x, y)
    with torch.no_grad():
        state = made.start(len(x))
        return made.field(state, Presentation(shown.x, shown.teacher, noise=noise))


def flat(changes: dict[str, Tensor]) -> Tensor:
    return torch.cat([changes[name].flatten() for name in sorted(changes)])


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return float((flat(found) - flat(wanted)).norm() / flat(wanted).norm())


X, Y = normal(4, 5), normal(4, 3, seed=1)


def by_hand(made: Learner, x: Tensor, y: Tensor, nudge: float, leak: float) -> dict[str, Tensor]:
    """The analytic update of one example, by its definition, with autograd's Jacobian."""
    weights = {n: w.detach() for n, w in made.network.weights().items()}
    weights |= {n: w.detach() for n, w in made.credit.weights().items()}
    ends = ("weight", "bias", "feedback")
    w, b, q = ([weights[f"layer{i}_{end}"] for i in range(3)] for end in ends)

    def run(*added: Tensor) -> tuple[Tensor, list, list, list]:
        r, pres, bases, rates = x, [], [], []
        for i in range(3):
            pres.append(r)
            bases.append(w[i] @ r + b[i][:, 0])
            v = bases[-1] + added[i]
            r = v if i == 2 else v.tanh()
            rates.append(r)
        return r, pres, bases, rates

    zeros = [torch.zeros(len(m)).double() for m in w]
    jacobians = torch.autograd.functional.jacobian(lambda *a: run(*a)[0], tuple(zeros))
    loop = sum(j @ m for j, m in zip(jacobians, q, strict=True)) + leak * torch.eye(3).double()
    u = torch.linalg.solve(loop, nudge * (y - run(*zeros)[0]))
    _, pres, bases, rates = run(*(m @ u for m in q))
    change = {}
    for i in range(3):
        alone = bases[i] if i == 2 else bases[i].tanh()
        change[f"layer{i}_weight"] = torch.outer(rates[i] - alone, pres[i])
        change[f"layer{i}_bias"] = (rates[i] - alone).unsqueeze(1)
    return change


def test_the_update_is_that_of_its_definition() -> None:
    made = learner(FeedbackControl(nudge=0.3, leak=0.01))
    found = field(made, X, Y)
    each = [by_hand(made, x, y, 0.3, 0.01) for x, y in zip(X, Y, strict=True)]
    wanted = {n: torch.stack([e[n] for e in each]).mean(0) for n in found}
    assert apart(found, wanted) < 1e-12


def test_voltages_times_slope_are_rates_to_first_order() -> None:
    nudge = 1e-5
    rates = field(learner(FeedbackControl(nudge=nudge)), X, Y)
    gain = {"*": Delta(1.0)}
    voltages = field(learner(FeedbackControl(nudge=nudge, difference="voltage"), gain), X, Y)
    assert apart(voltages, rates) < 1e-4
    plain = field(learner(FeedbackControl(nudge=nudge, difference="voltage")), X, Y)
    assert apart(plain, rates) > 1e-2


def test_small_nudges_of_a_strong_leak_are_gradient_descent() -> None:
    """Q u = J^T error / a as a grows, and J^T error times slopes is the gradient of the loss."""
    made = learner(FeedbackControl(nudge=1e-4, leak=1e5), activation=nn.Identity)
    wanted = field(learner(Backprop(), activation=nn.Identity), X, Y)
    found = {n: c * 1e9 for n, c in field(made, X, Y).items()}
    assert apart(found, wanted) < 1e-3


def test_newton_is_where_the_simulation_ends() -> None:
    steady = field(learner(FeedbackControl("steady", nudge=0.5)), X, Y)
    last = field(learner(FeedbackControl("dynamic", nudge=0.5, average=False, steps=4000)), X, Y)
    assert apart(steady, last) < 1e-8


def test_dfc_t09_the_time_average_tends_to_the_steady_state() -> None:
    steady = field(learner(FeedbackControl("steady")), X, Y)
    off = [
        apart(field(learner(FeedbackControl("dynamic", steps=s, chunk=50)), X, Y), steady)
        for s in (1000, 2000, 4000)
    ]
    assert off[0] / off[1] == pytest.approx(2, rel=0.2)
    assert off[1] / off[2] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("credit", [
    FeedbackControl(), FeedbackControl("steady"), FeedbackControl(steps=20, **TIMES),
    StrongFeedbackControl(), StrongFeedbackControl(steps=20, **TIMES),
])  # fmt: skip
def test_dfc_t10_a_batch_is_the_mean_of_its_examples(credit: CreditAssignment) -> None:
    made = learner(credit)
    whole = field(made, X, Y)
    order = [2, 0, 3, 1]
    assert apart(field(made, X[order], Y[order]), whole) < 1e-12
    each = [field(made, X[i : i + 1], Y[i : i + 1]) for i in range(4)]
    mean = {n: torch.stack([e[n] for e in each]).mean(0) for n in whole}
    assert apart(mean, whole) < 1e-12
    with torch.no_grad():
        done = made(X)
    assert all(not bool(change.any()) for change in field(made, X, done).values())


@pytest.mark.parametrize("chunk", [1, 4, 7, 50])
@pytest.mark.parametrize("batch", [1, 3])
def test_stretches_of_a_simulation_add_up(chunk: int, batch: int) -> None:
    """To the mean over all moments, the first included, whatever their length."""
    x, y = X[:batch], Y[:batch]
    made = learner(FeedbackControl("dynamic", steps=20, chunk=chunk, nudge=0.5))
    sums: dict[str, Tensor] = {}
    for steps in range(2, 21):
        short = FeedbackControl("dynamic", steps=steps, average=False, nudge=0.5)
        last = field(learner(short), x, y)
        sums = {n: sums.get(n, 0) + last[n] / 20 for n in last}
    assert apart(field(made, x, y), sums) < 1e-12


def test_learning_does_not_disturb_the_simulation_it_is_told_of() -> None:
    """It goes on with the weights that it began with: a step is the change at first weights."""
    made = learner(FeedbackControl("dynamic", steps=20, nudge=0.5))
    state = made.start(4)
    after = made.step(state, presentation(made, X, Y))["weights"]
    for name, change in field(made, X, Y).items():
        assert torch.allclose(after[name], state["weights"][name] + change, atol=1e-14, rtol=0)


def test_decay_is_one_presentations_decay() -> None:
    made = learner(FeedbackControl("dynamic", steps=20), {"*": Delta(1e-9, decay=0.01)})
    after = made.step(made.start(4), presentation(made, X, Y))["weights"]
    for name, before in made.start(4)["weights"].items():
        if name in made.plastic:
            assert torch.allclose(after[name], before * (1 - 0.01 / 20) ** 20, atol=1e-7)


@pytest.mark.parametrize("mode", ["steady", "dynamic"])
def test_dfc_t20_the_weak_limit_of_strong_control(mode) -> None:
    options = {"leak": 0.01, "dt": 0.02, "tau": 0.2, "steps": 30, "iterations": 8, "halvings": 3}
    weak = learner(FeedbackControl(mode, nudge=0.1, **options))
    strong = learner(StrongFeedbackControl(mode, **options))
    with torch.no_grad():
        output = weak(X)
    nudged = output + torch.full((1, 1), 0.1, dtype=torch.float64) * (Y - output)
    found, wanted = field(strong, X, nudged), field(weak, X, Y)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_dfc_t20_half_the_nudge_is_half_the_change() -> None:
    errors = []
    for nudge in (0.1, 0.05):
        whole = field(learner(FeedbackControl("steady", nudge=nudge)), X, Y)
        half = field(learner(FeedbackControl("steady", nudge=nudge / 2)), X, Y)
        errors.append(apart({n: 2 * c for n, c in half.items()}, whole))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.3)


def test_dfc_t21_examples_that_diverge_change_nothing_and_are_counted() -> None:
    """Under steps of dt = tau and feedback that is far too strong."""
    made = learner(FeedbackControl("dynamic", dt=0.2, tau=0.2, steps=400))
    state = made.start(4)
    strong = {n: 60 * w for n, w in state["weights"].items() if n.endswith("_feedback")}
    state = {**state, "weights": state["weights"] | strong}
    after = made.step(state, presentation(made, X, Y))
    assert float(after["credit"]["unconverged"]) == 4
    assert float(made.step(after, presentation(made, X, Y))["credit"]["unconverged"]) == 8
    for name, w in after["weights"].items():
        assert torch.equal(w, state["weights"][name]), name
    calm = learner(FeedbackControl("dynamic", steps=50))
    calm = calm.step(calm.start(4), presentation(calm, X, Y))
    assert float(calm["credit"]["unconverged"]) == 0


def test_dfc_t21_a_lost_example_counts_among_the_examples() -> None:
    """One without a control beside three others: the change is theirs times 3/4."""
    made = learner(FeedbackControl("steady"))
    y = Y.clone()
    y[0] = math.inf
    after = made.step(made.start(4), presentation(made, X, y))
    assert float(after["credit"]["unconverged"]) == 1
    others = field(made, X[1:], Y[1:])
    for name, before in made.start(4)["weights"].items():
        if name in made.plastic:
            wanted = before + 0.75 * others[name]
            assert torch.allclose(after["weights"][name], wanted, atol=1e-12), name


def test_dfc_t21_one_example_may_diverge_beside_others() -> None:
    """Through ReLUs that are silent for all but the first."""
    made = learner(FeedbackControl("dynamic", dt=0.1, steps=200), activation=nn.ReLU)
    x = X.clone()
    state = made.start(4)
    weights = {n: w.detach().clone() for n, w in state["weights"].items()}
    weights["layer0_weight"] = weights["layer0_weight"].abs()
    weights["layer0_bias"] = 0 * weights["layer0_bias"] - 0.01
    x = x.abs() * torch.tensor([[1.0], [-1e4], [-1e4], [-1e4]]).double()
    weights["layer0_feedback"] = 60 * weights["layer1_weight"].mT @ weights["layer2_weight"].mT
    weights["layer1_feedback"] = 0 * weights["layer1_feedback"]
    state = {**state, "weights": weights}
    with torch.no_grad():
        after = made.step(state, presentation(made, x, Y))
        assert float(after["credit"]["unconverged"]) == 1
        others = made.step(state, presentation(made, x[1:], Y[1:]))
        assert float(others["credit"]["unconverged"]) == 0
    for name, before in weights.items():
        wanted = before + 0.75 * (others["weights"][name] - before)
        assert torch.allclose(after["weights"][name], wanted, atol=1e-12), name


def test_dfc_t22_single_precision_agrees() -> None:
    options = {"leak": 1e-3, "nudge": 0.5}
    double = field(learner(FeedbackControl(**options)), X, Y)
    made = learner(FeedbackControl(**options)).float()
    single = {n: c.double() for n, c in field(made, X.float(), Y.float()).items()}
    assert apart(single, double) < 1e-4
    assert degrees(flat(single), flat(double)) < 0.5


def test_feedback_begins_as_the_product_of_the_weights_above() -> None:
    made = learner(FeedbackControl())
    w, q = made.network.weights(), made.credit.weights()
    assert torch.equal(q["layer2_feedback"], torch.eye(3).double())
    assert torch.allclose(q["layer1_feedback"], w["layer2_weight"].mT)
    assert torch.allclose(q["layer0_feedback"], w["layer1_weight"].mT @ w["layer2_weight"].mT)
    assert {g.role for g in made.credit.groups().values()} == {"feedback"}
    other = learner(FeedbackControl(initial="random")).credit.weights()
    assert torch.equal(other["layer2_feedback"], torch.eye(3).double())
    assert not torch.allclose(other["layer0_feedback"], q["layer0_feedback"])


def test_feedback_begins_at_the_lowest_plastic_layer() -> None:
    made = learner(FeedbackControl(), {"position:1": Delta(1.0, derivative=False)})
    assert list(made.credit.groups()) == ["layer1_feedback", "layer2_feedback"]
    full = learner(FeedbackControl())
    assert set(field(made, X, Y)) == {"layer1_weight", "layer1_bias"}
    assert apart(field(full, X, Y), field(full, X, Y)) == 0.0


def test_layers_that_cannot_be_controlled_are_refused_early() -> None:
    def made(*modules: nn.Module, rules=None, shape=None) -> Learner:
        chain = LayeredNetwork(nn.Sequential(*modules), input_shape=shape)
        return Learner(chain, FeedbackControl(), rules or FLAT)

    conv = (nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(UnsupportedLayerError, match="Conv2d"):
        made(*conv, shape=(1, 3, 3))
    with pytest.raises(UnsupportedLayerError, match="LayerNorm"):
        made(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))
    fixed = {"position:last": Delta(derivative=False)}
    above = made(*conv, rules=fixed, shape=(1, 3, 3))
    assert list(above.credit.groups()) == ["layer1_feedback"]
    flattened = made(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(5, 3))
    assert field(flattened, normal(2, 4).float(), torch.tensor([0, 2]))


@pytest.mark.parametrize("options", [
    {"leak": -1.0}, {"nudge": -0.1}, {"gain": -1.0}, {"dt": 0.0}, {"steps": 1}, {"chunk": 0},
    {"apical": 0.001}, {"mode": "newton"}, {"initial": "zero"}, {"weights": "resampled"},
    {"difference": "spikes"}, {"feedback_learning": "single-phase"}, {"iterations": 0},
    {"noise": {"sigma": 0.0}}, {"noise": {"sigmas": 1.0}}, {"noise": {"steps": 1}},
    {"noise": {"apical": 1e-9}},
])  # fmt: skip
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ConfigurationError):
        FeedbackControl(**options)


def coefficient(value: float) -> Coefficient:
    return Coefficient(value, bound="exp", role="control")


@pytest.mark.parametrize("mode", ["analytic", "steady", "dynamic"])
@pytest.mark.parametrize("strong", [False, True])
def test_meta_gradients_reach_leak_gain_and_feedback(mode, strong: bool) -> None:
    if strong and mode == "analytic":
        pytest.skip("there is no such mode")
    controls = {"leak": coefficient(0.05), "gain": coefficient(1.5)}
    options = {"weights": "learned", "steps": 8, "dt": 0.02, "tau": 0.1, **controls}
    credit = (
        StrongFeedbackControl(mode, **options)
        if strong
        else FeedbackControl(mode, nudge=coefficient(0.5), **options)
    )
    made = learner(credit, objective=CrossEntropy() if strong else None)
    episodes = classification(2, 3, 2, 5, 3) if strong else regression(2, 3, 2, 5, 3)
    found = meta_gradient(made, episodes)
    roles = {g["name"]: len(g["params"]) for g in made.param_groups()}
    assert roles["control"] == (2 if strong else 3)
    read = {"credit.leak.raw", "credit.layer0_feedback", "credit.layer1_feedback"}
    read |= {"credit.gain.raw"} if mode == "dynamic" else set()
    assert all(bool(found[name].any()) for name in read)
    for pattern in ["leak", "feedback", "layers|body"] + ["gain"] * (mode == "dynamic"):
        along = unit_direction(made, 3, pattern)
        assert slope_error(made, episodes, along, found) < 1e-6, pattern


@pytest.mark.parametrize("credit", [
    FeedbackControl(), FeedbackControl("steady"), FeedbackControl("dynamic", steps=10),
    StrongFeedbackControl(), StrongFeedbackControl("dynamic", steps=10),
])  # fmt: skip
def test_episodes_at_once_are_episodes_one_by_one(credit: CreditAssignment) -> None:
    made = learner(credit)
    episodes = regression(3, 2, 2, 5, 3)
    together = final_weights(made, episodes)
    for e in range(3):
        alone = final_weights(made, episodes[[e]])
        for name, w in together.items():
            assert torch.allclose(w[e], alone[name][0], atol=1e-12), name


def test_a_stream_is_learned() -> None:
    """Deep feedback control fits a teacher, and what it is given stays as it was."""
    made = learner(FeedbackControl(nudge=0.5), {"*": Delta(0.1, derivative=False)})
    teacher = sequential(SIZES, nn.Tanh, seed=9)
    x = normal(60, 8, 5)
    with torch.no_grad():
        y = teacher(x)
        before, given = copy.deepcopy(made.state_dict()), (x.clone(), y.clone())
        state = show(made, x, y)
        first = float((made(x[0]) - y[0]).square().mean())
        later = made.network(x[0], state["weights"])
        last = float((later - y[0]).square().mean())
    assert last < 0.3 * first
    assert float(state["credit"]["unconverged"]) == 0
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    assert all(torch.equal(v, before[n]) for n, v in made.state_dict().items())


def test_the_same_signals_under_the_loop_and_under_adapt() -> None:
    made = learner(FeedbackControl())
    clone = made.clone()
    clone.adapt(X, Y)
    after = made.step(made.start(4), presentation(made, X, Y))
    with torch.no_grad():
        assert torch.equal(clone(X), made.network(X, after["weights"]))
    seen = heard(made, presentation(made, X, Y))["layer1_weight"]
    assert seen.kind == "target"
    assert seen.pre.shape == (4, 7)
