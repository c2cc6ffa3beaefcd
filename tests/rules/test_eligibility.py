"""The three-factor rule against its equations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metaplastic import CrossEntropy, LayeredNetwork, Learner, SquaredError
from metaplastic.credit import DirectFeedback, Neuromodulation
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.rules import Coefficient, Eligibility
from metaplastic.signals import LocalSignals, State, SynapseGroup
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    presentation,
    regression,
    shake,
    show,
    slope_error,
    unit_direction,
)
from tests.rules.scalar import Synapse

GROUP = SynapseGroup("layer0_weight", 4, 3)


def full(rows: int, columns: int, value: float) -> Tensor:
    return torch.full((rows, columns), value, dtype=torch.float64)


def stream(steps: int, rows: int, modulators: int = 1) -> list[LocalSignals]:
    return [
        LocalSignals(
            pre=normal(rows, 3, seed=10 * t),
            post=normal(rows, 4, seed=10 * t + 1),
            modulator=normal(rows, modulators, seed=10 * t + 2).tanh(),
            teaching=normal(rows, 4, seed=10 * t + 3),
        )
        for t in range(steps)
    ]


def run(rule: Eligibility, shown: list[LocalSignals]) -> tuple[list[Tensor], Tensor]:
    """Changes, and the last trace."""
    weight = normal(4, 3, seed=99)
    traces, coefficients = rule.init(weight), rule.coefficients()
    changes = []
    for signals in shown:
        change, traces = rule.update(weight, signals, traces, coefficients)
        changes.append(change)
    return changes, traces["eligibility"]


def rule(tau: float = 4.0, **options) -> Eligibility:
    return Eligibility(0.2, tau, **options).bind(GROUP).double()


@pytest.mark.parametrize("third", ["modulator", "teaching"])
@pytest.mark.parametrize("kind", ["error", "target"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("modulators", [1, 4])
def test_rule_equals_a_loop_over_synapses(third, kind, rows, modulators):
    shown = [replace(s, kind=kind) for s in stream(5, rows, modulators)]
    with torch.no_grad():
        changes, trace = run(rule(third=third), shown)
    for i in range(4):
        for j in range(3):
            synapse = Synapse("eligibility", rate=0.2, tau=4.0)
            for t, s in enumerate(shown):
                y, x = s.post[:, i].tolist(), s.pre[:, j].tolist()
                m = s.modulator[:, i if modulators > 1 else 0].tolist()
                if third == "teaching":
                    m = s.teaching[:, i].tolist()
                    if kind == "target":
                        m = [a - b for a, b in zip(m, y, strict=True)]
                assert abs(float(changes[t][i, j]) - synapse.change(y, x, m)) < 1e-14
            assert abs(float(trace[i, j]) - synapse.trace["eligibility"]) < 1e-14


@pytest.mark.parametrize("tau", [1.0, 2.5, math.inf])
@pytest.mark.parametrize("steps", [1, 6])
def test_constant_activity_is_a_geometric_series(tau, steps):
    x, y, m = 0.7, -0.4, 0.3
    signals = LocalSignals(
        pre=full(2, 3, x),
        post=full(2, 4, y),
        modulator=full(2, 1, m),
    )
    changes, trace = run(rule(tau), [signals] * steps)
    kept = 1 - 1 / tau
    series = steps if tau == math.inf else (1 - kept**steps) / (1 - kept)
    assert deviation(trace, full(4, 3, x * y * series)) < 1e-12
    assert deviation(changes[-1], full(4, 3, 0.2 * m * x * y * series)) < 1e-12


def test_padding_leaves_no_trace():
    shown = stream(4, 3)
    weight = torch.tensor([[0.0], [1.0], [1.0]]).double()
    padded = [replace(s, weight=weight) for s in shown]
    kept = [replace(s, pre=s.pre[1:], post=s.post[1:], modulator=s.modulator[1:]) for s in shown]
    found, wanted = run(rule(), padded), run(rule(), kept)
    assert deviation(torch.stack(found[0]), torch.stack(wanted[0])) < 1e-13
    nothing = replace(shown[2], weight=torch.zeros(3, 1).double())
    changes, trace = run(rule(), [*shown[:2], nothing])
    assert torch.equal(changes[2], torch.zeros(4, 3).double())
    assert torch.equal(trace, run(rule(), shown[:2])[1])


def test_tau_stays_above_one_however_the_outer_loop_moves():
    bound = rule(3.0)
    assert abs(float(bound.kept().detach()) - 2 / 3) < 1e-15
    assert bound.kept.role == bound.rate.role == "control"
    bound.kept.raw.data -= 30.0
    assert 0 < float(bound.kept().detach()) < 1e-12  # tau = 1 / (1 - kept)
    own = Eligibility(0.1, Coefficient(0.5, granularity="neuron", bound="sigmoid")).bind(GROUP)
    assert own.kept().shape == (4, 1)
    fixed = Eligibility(0.1, 5.0, learned=False)
    assert list(fixed.parameters()) == []


def test_wrong_options_and_signals_are_errors():
    with pytest.raises(ConfigurationError, match=r"tau counts presentations, from 1; got 0\.5"):
        Eligibility(tau=0.5)
    with pytest.raises(ConfigurationError, match="third must be one of"):
        Eligibility(third="error")
    with pytest.raises(CompatibilityError, match="reads a modulator, which nobody sent"):
        run(rule(), [replace(stream(1, 1)[0], modulator=None)])
    with pytest.raises(CompatibilityError, match="needs \\['modulator'\\]"):
        Learner(mlp(4, 3), DirectFeedback(), Eligibility())


# --- in a layered network, with a global third factor ---


def layered(signal="error", objective=None, **options) -> Learner:
    learner = Learner(
        mlp(3, 5, 4, 2),
        Neuromodulation(signal, **options),
        Eligibility(0.2, 3.0),
        objective or SquaredError(),
    )
    return shake(learner, 2, feedback=0.3, control=0.2)


@pytest.mark.parametrize("signal", ["error", "target"])
def test_neuromodulation_sends_one_number_to_each_layer(signal):
    """Three presentations of two examples against plain matrix products."""
    learner = layered(signal)
    xs, ys = normal(3, 2, 3), normal(3, 2, 2, seed=3)
    state = learner.start(2)
    w, coefficients = state["weights"], state["coefficients"]
    trace = {n: torch.zeros_like(w[n]) for n in learner.plastic}
    for x, y in zip(xs, ys, strict=True):
        activity = [x]
        for i in range(3):
            v = activity[-1] @ w[f"layer{i}_weight"].T + w[f"layer{i}_bias"].T
            activity.append(v.tanh() if i < 2 else v)
        f = y - activity[-1] if signal == "error" else y
        moved = dict(w)
        for i in range(3):
            name = f"layer{i}_weight"
            m = (f @ w[f"layer{i}_modulator"].T).tanh().mean()
            product = activity[i + 1].T @ activity[i] / 2
            trace[name] = coefficients[name]["kept"] * trace[name] + product
            moved[name] = w[name] + coefficients[name]["rate"] * m * trace[name]
        w = moved
    assert_close(show(learner, xs, ys)["weights"], w, 1e-13)


def test_neuromodulation_makes_no_more_than_is_read():
    credit = Neuromodulation(weights="fixed")
    rules = {"name:layer1_weight": Eligibility(), "name:layer0_weight": None}
    learner = Learner(mlp(3, 5, 4, 2), credit, rules)
    assert learner.credit.weights().keys() == {"layer1_modulator"}
    assert learner.credit.weights()["layer1_modulator"].shape == (1, 2)
    assert not list(learner.credit.parameters())
    with pytest.raises(CompatibilityError, match="needs \\['teaching'\\]"):
        Learner(mlp(3, 2), credit, Eligibility(third="teaching"))


def test_neuromodulation_reaches_every_place_of_a_convolution():
    """A convolution's rows share their example's modulator."""
    chain = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    network = LayeredNetwork(chain.double(), input_shape=(1, 3, 3))
    learner = Learner(network, Neuromodulation(), Eligibility(), SquaredError())
    seen = {}

    class Look:
        @property
        def needs(self) -> dict[str, frozenset[str]]:
            return {n: frozenset({"modulator"}) for n in learner.rules}

        def __call__(
            self, state: State, signals: dict[str, LocalSignals], share: float = 1.0
        ) -> State:
            seen.update(signals)
            return state

    x, y = normal(2, 1, 3, 3), normal(2, 2)
    state = learner.start(2)
    learner.credit.present(network, state, presentation(learner, x, y), Look())
    error = y - network(x, state["weights"])
    m = (error @ state["weights"]["layer0_modulator"].T).tanh()
    assert torch.equal(seen["layer0_weight"].modulator, m.repeat_interleave(4, dim=0))
    assert seen["layer1_weight"].modulator.shape == (2, 1)
    assert seen["layer0_weight"].teaching is None


@pytest.mark.parametrize("classes", [False, True])
def test_meta_gradient_equals_central_differences(classes):
    learner = layered(objective=CrossEntropy() if classes else None)
    shown = classification(2, 4, 2, 3, 2) if classes else regression(2, 4, 2, 3, 2)
    gradient = meta_gradient(learner, shown)
    assert all(float(g.abs().max()) > 0 for g in gradient.values())
    for seed, pattern in enumerate(("^network", "^credit", "rate", "kept")):
        direction = unit_direction(learner, seed, pattern)
        assert direction
        assert slope_error(learner, shown, direction, gradient) < 1e-6


def test_meta_gradient_of_the_teaching_form():
    learner = Learner(
        mlp(3, 5, 2), DirectFeedback(), Eligibility(0.3, 2.0, third="teaching"), SquaredError()
    )
    shake(learner, 3, feedback=0.3, control=0.2)
    shown = regression(2, 4, 2, 3, 2)
    gradient = meta_gradient(learner, shown)
    assert slope_error(learner, shown, unit_direction(learner, 1), gradient) < 1e-7
