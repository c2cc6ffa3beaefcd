"""Noise while the controller works."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metaplastic import Delta, LayeredNetwork, Learner
from metaplastic.control import Chain, Goal, moments, ornstein_uhlenbeck
from metaplastic.credit import FeedbackControl
from metaplastic.errors import ConfigurationError
from tests.dfc.learners import X, Y, field, learner
from tests.dfc.parts import constants
from tests.helpers import normal, presentation

TIMES = {"mode": "dynamic", "steps": 12, "nudge": 0.5, "dt": 0.02, "tau": 0.1}
NOISE = {"tau_noise": 0.05}


def changes(made: Learner, noise: Tensor) -> dict[str, Tensor]:
    shown = replace(presentation(made, X, Y), noise=noise)
    with torch.no_grad():
        return made.field(made.start(len(X)), shown)


@pytest.mark.parametrize("average", [True, False])
def test_layers_learn_from_what_the_noise_makes_of_them(average: bool) -> None:
    """phi(v) - phi(v_ff) times the rate below, moment by moment in a loop."""
    made = learner(FeedbackControl(disturbance=0.3, noise=NOISE, average=average, **TIMES))
    xi = normal(4, 11, 16)
    found = changes(made, xi)
    network = made.network
    assert isinstance(network, LayeredNetwork)
    weights = {name: w.detach() for name, w in made.start(4)["weights"].items()}
    chain, still = Chain.of(network, weights, X)
    feedback = [weights[f"layer{i}_feedback"] for i in range(3)]
    goal = Goal(still.output + 0.5 * (Y - still.output))
    noise = ornstein_uhlenbeck(xi, [7, 6, 3], [0.3] * 3, 0.02, 0.05)
    along = list(moments(chain, feedback, goal, constants(tau=0.1), still, 12, noise))
    for i in range(3):
        wanted = torch.zeros(chain.weights[i].shape, dtype=torch.float64)
        for moment in along if average else along[-1:]:
            units = moment.units
            below = X if i == 0 else units.rate[i - 1]
            basal = below @ chain.weights[i].mT + weights[f"layer{i}_bias"].mT
            post = basal if i == 2 else basal.tanh()
            wanted += (units.rate[i] - post).mT @ below / 4 / (12 if average else 1)
        assert torch.allclose(found[f"layer{i}_weight"], wanted, rtol=1e-11, atol=1e-13)
    quiet = field(learner(FeedbackControl(average=average, **TIMES)), X, Y)
    assert not torch.allclose(found["layer0_weight"], quiet["layer0_weight"], rtol=0.1)


def test_feedback_learns_from_noise_of_its_own_before() -> None:
    rules = {"role:feedback": Delta(0.3, derivative=False), "*": Delta(1.0, derivative=False)}
    fixed = {**rules, "role:feedback": None}
    taught = {"feedback_learning": "forward-noise", "noise": NOISE}
    both = learner(FeedbackControl(disturbance=0.3, **taught, **TIMES), rules)
    first = learner(FeedbackControl(**taught), rules)
    assert both.noise((1, 1, 4), torch.Generator()).shape == (1, 1, 4, 12, 16)
    xi = normal(4, 12, 16)
    found, alone = changes(both, xi), changes(first, xi[:, :1])
    for i in range(3):
        assert torch.equal(found[f"layer{i}_feedback"], alone[f"layer{i}_feedback"])
    after = learner(FeedbackControl(disturbance=0.3, noise=NOISE, **TIMES), fixed)
    state, shown = after.start(4), replace(presentation(after, X, Y), noise=xi[:, 1:])
    moved = {n: state["weights"][n] + alone[n] for n in alone if n.endswith("_feedback")}
    with torch.no_grad():
        wanted = after.field({**state, "weights": state["weights"] | moved}, shown)
    for name, change in wanted.items():
        assert torch.allclose(found[name], change, rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize(
    "options",
    [
        {"disturbance": -0.1},
        {"mode": "steady", "disturbance": 0.1},
        {"disturbance": 0.1, "feedback_learning": "single-phase"},
        {"disturbance": 0.1, "noise": {"tau_noise": 0.01}},
    ],
)
def test_a_disturbance_where_there_is_no_place_for_it_is_refused(options) -> None:
    with pytest.raises(ConfigurationError, match=r"disturbance|tau_noise"):
        FeedbackControl(**{"mode": "dynamic", "dt": 0.02, **options})
