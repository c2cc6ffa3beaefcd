"""Learners under feedback control: how they are made, and their outer loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metaplastic import Coefficient, CrossEntropy, Delta, LayeredNetwork, Learner
from metaplastic.control import Chain
from metaplastic.credit import CreditAssignment, FeedbackControl, StrongFeedbackControl
from metaplastic.errors import ConfigurationError, UnsupportedLayerError
from tests.dfc.learners import FLAT, SIZES, X, Y, apart, field, learner
from tests.dfc.parts import sequential
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
    {"mode": "dynamic", "feedback_learning": "single-phase", "noise": {"tau_noise": 0.005}},
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


def test_the_gain_is_the_slope_without_control() -> None:
    made = learner(FeedbackControl(nudge=1.0, leak=0.0), {"*": Delta(1.0)})
    assert isinstance(made.network, LayeredNetwork)
    _, activities = made.network.run(X, made.network.weights())
    seen = heard(made, presentation(made, X, Y))
    for i in range(2):
        gain = seen[f"layer{i}_weight"].gain
        assert gain is not None
        assert torch.allclose(gain, 1 - activities[i].potential.tanh().square(), atol=1e-14)


def test_soft_labels_leave_the_rest_to_the_other_classes() -> None:
    made = learner(StrongFeedbackControl(probability=0.9), objective=CrossEntropy())
    shown = presentation(made, X, torch.tensor([0, 1, 2, 0]))
    assert isinstance(made.network, LayeredNetwork)
    assert isinstance(made.credit, StrongFeedbackControl)
    _, units = Chain.of(made.network, made.start(4)["weights"], X)
    target = made.credit.goal(shown, units, {}).target
    wanted = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]]).double()
    assert torch.allclose(target, wanted[[0, 1, 2, 0]], atol=1e-7)
