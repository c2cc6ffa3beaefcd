"""Control to the label itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from metaplastic import CrossEntropy, Delta, LayeredNetwork, Learner, SquaredError
from metaplastic.control import Chain, Goal, control_energy, control_to_drive, jacobian, newton
from metaplastic.control.steady import sent
from metaplastic.credit import StrongFeedbackControl
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.objectives import Objective
from tests.dfc.parts import Plant, number, plant, sequential, transposed
from tests.helpers import normal, presentation

SIZES = (6, 14, 10, 3)
LEAK = 1e-9


def at_control(given: Plant, feedback: tuple[Tensor, ...], goal: Goal, leak: float):
    """u, the controlled units, and the Jacobian there."""
    steady = newton(given.chain, feedback, goal, number(leak), iterations=30, halvings=6)
    assert bool(steady.found.all())
    units = given.chain.run(sent(steady.control, feedback))
    return steady.control, units, jacobian(given.chain, units)


def aligned(given: Plant, goal: Goal) -> tuple[Tensor, ...]:
    """Q = J^T at the state that Q controls, by iteration."""
    feedback = transposed(given)
    for _ in range(80):
        _, _, jacobians = at_control(given, feedback, goal, LEAK)
        feedback = tuple(j[0].mT for j in jacobians)
    return feedback


def energy(given: Plant, feedback: tuple[Tensor, ...], goal: Goal, leak: float, layer: int):
    """H as a function of the weights of one layer."""

    def of(weight: Tensor) -> float:
        weights = list(given.chain.weights)
        weights[layer] = weight
        chain = Chain(given.chain.layers, tuple(weights), given.chain.biases, given.chain.inlet)
        control = newton(chain, feedback, goal, number(leak), iterations=10, halvings=1).control
        return float(control_energy(control, feedback)[0])

    return of


def slopes(of, weight: Tensor, h: float = 1e-5) -> Tensor:
    """Central differences in every entry."""
    found = torch.zeros_like(weight)
    for index in range(weight.numel()):
        step = torch.zeros_like(weight).flatten()
        step[index] = h
        step = step.reshape(weight.shape)
        found.view(-1)[index] = (of(weight + step) - of(weight - step)) / (2 * h)
    return found


def far_goal(given: Plant) -> Goal:
    away = normal(1, 3, seed=4)
    return Goal(given.units.output + 1.7 * away / away.norm())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_dfc_t17_under_aligned_feedback_the_rule_descends_the_energy(layer: int) -> None:
    given = plant(SIZES)
    goal = far_goal(given)
    feedback = aligned(given, goal)
    control, units, _ = at_control(given, feedback, goal, LEAK)
    local = torch.outer((control @ feedback[layer].mT)[0], given.chain.below(layer, units.rate)[0])
    wanted = -slopes(energy(given, feedback, goal, LEAK, layer), given.chain.weights[layer])
    assert float((local - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_dfc_t17_the_gradient_of_the_energy_under_any_feedback(layer: int) -> None:
    """-u^T Q^T Q (J Q + a I)^-1 J r^T, by differences and through the last Newton step."""
    leak = 0.01
    given = plant(SIZES)
    goal = far_goal(given)
    feedback = tuple(q + 0.1 * normal(*q.shape, seed=i) for i, q in enumerate(transposed(given)))
    control, units, jacobians = at_control(given, feedback, goal, leak)
    q, j = torch.cat(feedback), torch.cat(jacobians, -1)[0]
    solved = torch.linalg.solve(j @ q + leak * torch.eye(3).double(), j)
    along = given.split(-(control[0] @ q.mT @ q @ solved).unsqueeze(1))[layer]
    formula = along * given.chain.below(layer, units.rate)
    weight = given.chain.weights[layer]
    numeric = slopes(energy(given, feedback, goal, leak, layer), weight)
    assert float((formula - numeric).norm() / numeric.norm()) < 1e-7
    learned = weight.clone().requires_grad_()
    weights = [learned if i == layer else w for i, w in enumerate(given.chain.weights)]
    chain = Chain(given.chain.layers, tuple(weights), given.chain.biases, given.chain.inlet)
    steady = newton(chain, feedback, goal, number(leak), iterations=30, halvings=6)
    (implicit,) = torch.autograd.grad(control_energy(steady.control, feedback)[0], learned)
    assert float((implicit - formula).norm() / formula.norm()) < 1e-9


def test_dfc_t17_the_credit_tells_that_rule() -> None:
    network = sequential(SIZES, nn.Tanh)
    rule = Delta(1.0, derivative=False)
    made = Learner(
        network, StrongFeedbackControl(difference="voltage"), {"*": rule}, SquaredError()
    )
    given = plant(SIZES)
    goal = far_goal(given)
    feedback = tuple(w.detach() for w in made.credit.weights().values())
    control, units, _ = at_control(given, feedback, goal, 1e-3)
    with torch.no_grad():
        found = made.field(made.start(), presentation(made, given.chain.inlet, goal.target))
    for i, q in enumerate(feedback):
        local = torch.outer((control @ q.mT)[0], given.chain.below(i, units.rate)[0])
        change = found[f"layer{i}_weight"]
        assert float((change - local).norm() / local.norm()) < 1e-9


def test_dfc_t18_learning_is_to_need_less_control() -> None:
    """A student of a teacher network under frozen feedback, the whole batch at a time."""
    x = normal(60, 6, seed=1)
    with torch.no_grad():
        y = 2 * sequential(SIZES, nn.Tanh, seed=5)(x)
    credit = StrongFeedbackControl(leak=1e-4, iterations=8)
    made = Learner(
        sequential(SIZES, nn.Tanh), credit, {"*": Delta(0.05, derivative=False)}, SquaredError()
    )
    state, shown = made.start(60), presentation(made, x, y)

    def needed(weights: dict[str, Tensor]) -> tuple[float, float, float]:
        """H, the loss without control, and the share of control in what layers get."""
        assert isinstance(made.network, LayeredNetwork)
        chain, units = Chain.of(made.network, weights, x)
        feedback = tuple(weights[f"layer{i}_feedback"] for i in range(3))
        control = newton(chain, feedback, Goal(y), number(1e-4), iterations=20).control
        share = control_to_drive(control, feedback, units.basal).mean()
        loss = (units.output - y).square().sum(-1).mean()
        return float(control_energy(control, feedback).mean()), float(loss), float(share)

    with torch.no_grad():
        first = needed(state["weights"])
        for _ in range(200):
            state = made.step(state, shown)
        last = needed(state["weights"])
    assert float(state["credit"]["unconverged"]) == 0
    assert last[0] < 0.15 * first[0]
    assert last[1] < 0.2 * first[1]
    assert last[2] < first[2]


@pytest.mark.parametrize("leak", [1e-4, 0.1])
def test_dfc_t19_the_label_is_reached_but_for_the_leak(leak: float) -> None:
    given = plant(batch=5)
    feedback = tuple(q + 0.05 * normal(*q.shape, seed=i) for i, q in enumerate(transposed(given)))
    y = given.units.output + normal(5, 4, seed=6)
    control, units, _ = at_control(given, feedback, Goal(y), leak)
    left = torch.linalg.vector_norm(units.output - y, dim=-1)
    assert torch.allclose(left, leak * torch.linalg.vector_norm(control, dim=-1), rtol=1e-6)
    soft = 0.01 / 3 + (0.99 - 0.01 / 3) * torch.eye(4)[[0, 1, 2, 3, 0]].double()
    control, units, _ = at_control(given, feedback, Goal(soft, softmax=True), leak)
    reached = units.output.softmax(-1)
    assert float((reached - soft).abs().max()) <= leak * float(control.abs().max()) * (1 + 1e-6)
    if leak < 1e-3:
        assert float((reached - soft).abs().max()) < 0.01


@pytest.mark.parametrize("probability", [1.0, 1.5, 0.0, -0.1])
def test_dfc_t19_labels_that_no_softmax_reaches_are_refused(probability: float) -> None:
    with pytest.raises(ConfigurationError, match="softmax"):
        StrongFeedbackControl(probability=probability)


def test_dfc_t19_nearly_without_a_leak_the_control_for_certainty_has_no_bound() -> None:
    given = plant()
    feedback = transposed(given)
    sizes = []
    for p in (0.9, 0.99, 0.999, 0.9999):
        target = (1 - p) / 3 + (p - (1 - p) / 3) * torch.eye(4)[:1].double()
        control, _, _ = at_control(given, feedback, Goal(target, softmax=True), 1e-7)
        sizes.append(float(control.norm()))
    assert sizes == sorted(sizes)
    steps = [b - a for a, b in pairwise(sizes)]
    assert min(steps) > 0.3 * max(steps)


def test_the_linearised_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="mode"):
        StrongFeedbackControl("analytic")  # type: ignore[arg-type]


def test_cross_entropy_takes_linear_outputs_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh())
    rule = Delta(derivative=False)
    x, labels = normal(2, 3).float(), torch.tensor([0, 1])
    made = Learner(network, StrongFeedbackControl(), rule, CrossEntropy())
    with pytest.raises(CompatibilityError, match="linear output"):
        made.clone().adapt(x, labels)
    made = Learner(network, StrongFeedbackControl(), rule, SquaredError())
    made.clone().adapt(x, 0.1 * normal(2, 2).float())


def test_other_objectives_are_refused() -> None:
    class Own(Objective):
        def encode(self, y, outputs):
            return y

        def loss(self, output, target):
            return (output - target).abs().sum(-1)

        def link(self, output):
            return output.tanh()

    network, rule = nn.Sequential(nn.Linear(3, 2)), Delta(derivative=False)
    made = Learner(network, StrongFeedbackControl(), rule, Own())
    with pytest.raises(CompatibilityError, match="Own"):
        made.clone().adapt(normal(2, 3).float(), normal(2, 2).float())


@pytest.mark.parametrize("option", [{"nudge": 0.1}, {"lambda": 1.0}])
def test_an_option_that_it_has_not_is_refused(option) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        StrongFeedbackControl(**option)


def test_it_says_what_it_was_made_with() -> None:
    given = {"mode": "dynamic", "probability": 0.9, "leak": 0.1, "steps": 7}
    wanted = {"type": "StrongFeedbackControl", **given}
    assert StrongFeedbackControl(**given).describe() == wanted


def test_a_softmax_needs_a_leak() -> None:
    network, rule = nn.Sequential(nn.Linear(3, 2)), Delta(derivative=False)
    made = Learner(network, StrongFeedbackControl(leak=0.0), rule)
    with pytest.raises(ConfigurationError, match="leak"):
        made.clone().adapt(normal(2, 3).float(), torch.tensor([0, 1]))
