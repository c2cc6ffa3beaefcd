"""What is refused, and why."""

from __future__ import annotations

import pytest
from torch import nn

from metaplastic import (
    Backprop,
    CrossEntropy,
    EquilibriumControl,
    EquilibriumNetwork,
    Learner,
    SquaredError,
)
from metaplastic.errors import (
    CompatibilityError,
    ConfigurationError,
    ShapeError,
    UnsupportedLayerError,
)
from metaplastic.networks import equilibrium_chain, equilibrium_rnn
from tests.helpers import mlp, normal
from tests.lcp_networks.parts import GRADIENT, HARD, LABELS, OUT, X, controlled, grads, rnn


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"psi": "transport"}, "psi must be one of"),
        ({"integral": 0.0}, "integral above 0"),
        ({"integral": 0.0, "leak": 0.0, "proportional": 1.0}, "integral above 0"),
        ({"leak": -1.0}, "from 0"),
        ({"psi": "energy", "leak": 0.0}, "leak above 0"),
        ({"start": "inversion"}, "psi='energy'"),
        ({"feedback_learning": "noise-phase"}, "psi='linear'"),
        ({"solver": {"steps": 3}}, "solver options are"),
        ({"solver": {"damping": 0.0}}, "damping above 0"),
        ({"solver": {"method": "broyden"}}, "method must be one of"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        EquilibriumControl(**options)


def test_hard_control_needs_a_target_that_an_output_can_have() -> None:
    with pytest.raises(ConfigurationError, match="CrossEntropy has nowhere"):
        grads(controlled(rnn(), beta=HARD, objective=CrossEntropy()), X, LABELS)
    learner = controlled(rnn(), beta=HARD, objective=SquaredError()).clone()
    with pytest.raises(CompatibilityError, match="reads only the output error"):
        learner.adapt(learner(X).square().mean())


def test_credit_and_network_belong_together() -> None:
    with pytest.raises(CompatibilityError, match="EquilibriumNetwork"):
        Learner(mlp(5, OUT), EquilibriumControl(), GRADIENT)
    with pytest.raises(CompatibilityError, match="LayeredNetwork"):
        Learner(rnn(), Backprop(), GRADIENT)


def test_wirings_that_do_not_fit_are_refused() -> None:
    line = nn.Linear(5, 3)
    with pytest.raises(ConfigurationError, match="goes from 'nowhere'"):
        EquilibriumNetwork({"a": nn.Identity()}, {"w": ("nowhere", "a", line)}, input_shape=(5,))
    with pytest.raises(ConfigurationError, match="reaches b"):
        EquilibriumNetwork(
            {"b": nn.Tanh(), "a": nn.Identity()}, {"w": ("features", "a", line)}, input_shape=(5,)
        )
    with pytest.raises(ConfigurationError, match="brings"):
        EquilibriumNetwork(
            {"a": nn.Identity()},
            {"w": ("features", "a", line), "v": ("features", "a", nn.Linear(5, 2))},
            input_shape=(5,),
        )
    with pytest.raises(UnsupportedLayerError, match="are the output"):
        EquilibriumNetwork({"a": nn.Tanh()}, {"w": ("features", "a", line)}, input_shape=(5,))
    with pytest.raises(ConfigurationError, match="no dots"):
        EquilibriumNetwork({"a.b": nn.Identity()}, {}, input_shape=(5,))
    with pytest.raises(ShapeError, match="an example must be"):
        equilibrium_rnn(5, 4, 3).features(normal(2, 6))
    with pytest.raises(UnsupportedLayerError, match="begin with"):
        equilibrium_chain(nn.Sequential(nn.Flatten(), line), input_shape=(5,))
