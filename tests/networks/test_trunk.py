"""The trunk in front of a layered network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaplastic import DirectFeedback, LayeredNetwork, Learner, Oja, Unrolled
from tests.helpers import (
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    slope_error,
    unit_direction,
)
from tests.networks.parts import WAYS, randomised


class Counting(nn.Module):
    """A trunk with dropout and batch norm that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (Unrolled(batching="vmap"), 1),
        (Unrolled(batching="vmap", checkpoint_every=2), 1),
        (Unrolled(batching="loop"), 3),
    ],
)
def test_trunk_runs_once_for_its_episodes_in_eval_mode_and_is_meta_learned(method, calls):
    trunk = randomised(Counting())
    assert isinstance(trunk, Counting)
    network = LayeredNetwork(mlp(4, 5, WAYS), trunk=trunk, input_shape=(3,))
    learner = Learner(network, DirectFeedback(), Oja(0.3)).double()
    learner.train()
    assert learner.training
    assert not any(m.training for m in trunk.modules())
    statistics = trunk.get_buffer("body.1.running_mean").clone()
    episodes = classification(3, 5, 2, 3, WAYS)
    trunk.calls = 0
    gradient = meta_gradient(learner, episodes, method)
    assert trunk.calls == calls
    assert torch.equal(trunk.get_buffer("body.1.running_mean"), statistics)
    direction = unit_direction(learner, 0, r"^network\.trunk")
    assert len(direction) == 4
    assert slope_error(learner, episodes, direction, gradient) < 1e-7


def test_trunk_may_be_any_module_that_gives_what_the_chain_takes():
    trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    network = LayeredNetwork(mlp(8, WAYS), trunk=trunk, input_shape=(1, 6, 6)).double()
    x = normal(2, 1, 6, 6)
    output = network(network.features(x), network.weights())
    assert deviation(output, network.body(trunk(x))) < 1e-13
