"""What recurrent networks and their learners refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import Backprop, Learner, Oja
from metaplastic.credit import Unsupervised
from metaplastic.errors import (
    CompatibilityError,
    ConfigurationError,
    DataError,
    ShapeError,
    UnsupportedLayerError,
)
from metaplastic.evaluation import evaluate
from metaplastic.networks import RecurrentNetwork
from metaplastic.rules import Backpropamine
from tests.helpers import mlp, normal, regression
from tests.recurrent.parts import recurrent


def test_a_rule_that_needs_more_than_the_network_says_is_an_error():
    network = RecurrentNetwork(3, 4, 2)
    with pytest.raises(CompatibilityError, match=r"needs \['modulator'\]"):
        Learner(network, Unsupervised(), Backpropamine())
    with pytest.raises(CompatibilityError, match=r"needs \['teaching'\]"):
        Learner(network, Unsupervised(), Oja())
    with pytest.raises(CompatibilityError, match=r"needs \['modulator'\]"):
        Learner(mlp(3, 2), Unsupervised(), Backpropamine())
    with pytest.raises(CompatibilityError, match="runs through a LayeredNetwork"):
        Learner(network, Backprop(), Oja())


def test_one_stream_at_a_time():
    learner = recurrent(Oja(0.1, 0.0))
    fast = learner.clone()
    fast.adapt(normal(3, 3), normal(3, 2))  # the first presentation says how many streams there are
    with pytest.raises(ShapeError, match="got 2 examples for the activity of 3"):
        fast.adapt(normal(2, 3), normal(2, 2))
    episodes = regression(1, 2, 3, 3, 2, queries=5)
    with pytest.raises(ShapeError, match="3 streams were shown and 5 queries"):
        evaluate(learner, episodes)
    assert evaluate(learner, regression(2, 2, 3, 3, 2, queries=3)).loss.shape == (2,)


def test_wrong_sizes_and_data_are_errors():
    with pytest.raises(ConfigurationError, match="got 3, 0 and 2"):
        RecurrentNetwork(3, 0, 2)
    with pytest.raises(ConfigurationError, match="modulator must be one of"):
        RecurrentNetwork(3, 4, 2, modulator="vector")
    with pytest.raises(UnsupportedLayerError, match="whose slope is known"):
        RecurrentNetwork(3, 4, 2, activation=nn.Softmax(-1))
    learner = recurrent(Oja(0.1, 0.0))
    with pytest.raises(ShapeError, match="must have 3 numbers, got 4"):
        learner(normal(2, 4))
    with pytest.raises(DataError, match="floating point"):
        learner(torch.ones(2, 3, dtype=torch.int64))
    instructed = recurrent(Oja(0.1, 0.0), instruction=True).clone()
    with pytest.raises(CompatibilityError, match=r"call adapt\(x, y\)"):
        instructed.adapt(instructed(normal(1, 3)).square().mean())
    assert instructed(normal(2, 1, 3)).shape == (2, 2)
