"""Layered networks: forward and hand-written backward against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaplastic import Backprop, Delta, DirectFeedback, LayeredNetwork, Learner, Unrolled
from metaplastic.errors import ConfigurationError
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    final_weights,
    meta_gradient,
    normal,
    seeded,
    shake,
    show,
    slope_error,
    unit_direction,
)
from tests.networks.parts import CASES, WAYS, built, randomised


@pytest.mark.parametrize("name", CASES)
def test_run_equals_the_users_sequential(name):
    network, chain, shape = built(name)
    statistics = {n: b.clone() for n, b in chain.named_buffers()}
    for size in (2, 5):
        x = normal(size, *shape)
        before = x.clone()
        output, activities = network.run(network.features(x), network.weights())
        assert torch.equal(x, before)
        assert len(activities) == len(network.layers)
        assert all(torch.equal(b, statistics[n]) for n, b in chain.named_buffers())
        assert deviation(output, chain(x)) < 1e-12
        for n, b in chain.named_buffers():
            b.copy_(statistics[n])


def test_batch_norm_on_running_statistics_takes_one_example():
    network, chain, shape = built("BatchNorm2d, running")
    x = normal(1, *shape)
    assert deviation(network(network.features(x), network.weights()), chain(x)) < 1e-12


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_backprop_and_delta_are_one_step_of_autograd_sgd(name, size):
    """The errors sent down by hand give the gradient of every weight and bias."""
    network, chain, shape = built(name)
    size += 3 * name.endswith("batch")  # statistics need rows
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    x, y = normal(size, *shape), torch.randint(WAYS, (size,), generator=seeded(1))
    state = show(learner, x[None], y[None])
    F.cross_entropy(chain(x), y).backward()
    begin = network.weights()
    slopes = {n: network.parameter(n).grad for n in begin}
    wanted = {n: -0.25 * g.reshape(begin[n].shape) for n, g in slopes.items() if g is not None}
    assert_close({n: state["weights"][n] - w for n, w in begin.items()}, wanted, 1e-11)


@pytest.mark.parametrize("name", CASES)
def test_episodes_at_once_equal_one_after_another_on_every_network(name):
    network, _, shape = built(name)
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    episodes = classification(3, 2, 4, shape, WAYS)
    at_once = meta_gradient(learner, episodes, Unrolled(batching="vmap"))
    looped = meta_gradient(learner, episodes, Unrolled(batching="loop"))
    assert_close(at_once, looped, 1e-11)


@pytest.mark.parametrize(
    "name", ["GroupNorm", "BatchNorm2d, batch", "MaxPool2d, overlap, padding, ceil", "many"]
)
@pytest.mark.parametrize("credit", [Backprop(), DirectFeedback(rectify=True, bias=True)])
def test_meta_gradient_through_every_kind_of_network_equals_central_differences(name, credit):
    network, _, shape = built(name)
    learner = Learner(network, credit, {"*": Delta(0.25, learned=True)})
    shake(learner, 2, feedback=0.3)
    episodes = classification(2, 3, 3, shape, WAYS)
    gradient = meta_gradient(learner, episodes)
    for pattern in ("", r"^network\.body\.1\."):
        direction = unit_direction(learner, 3, pattern)
        if direction:
            assert slope_error(learner, episodes, direction, gradient) < 1e-6, pattern


def test_first_order_takes_norms_for_constants_in_the_updates_too():
    """Only what the norm does to the queries is left, as when autograd's slopes are detached."""
    network, chain, shape = built("LayerNorm")
    learner = Learner(network, Backprop(), {"*": Delta(0.25)})
    episodes = classification(1, 2, 2, shape, WAYS)
    found = meta_gradient(learner, episodes, Unrolled(first_order=True))
    after = {n: w[0].detach() for n, w in final_weights(learner, episodes).items()}
    norm = chain[1]
    assert isinstance(norm, nn.LayerNorm)
    loss = F.cross_entropy(learner.network(episodes.query_x[0], after), episodes.query_y[0])
    wanted = torch.autograd.grad(loss, [norm.weight, norm.bias])
    assert deviation(found["network.body.1.weight"], wanted[0]) < 1e-12
    assert deviation(found["network.body.1.bias"], wanted[1]) < 1e-12


def test_a_batch_norm_in_front_does_not_mix_episodes():
    """An episode's loss does not depend on the other episodes or on its own queries."""
    chain = randomised(
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, WAYS))
    )
    with pytest.raises(ConfigurationError, match="in front of the first synapses"):
        LayeredNetwork(chain, batch_norm="batch")
    network = LayeredNetwork(chain, batch_norm="running")
    learner = Learner(network, Backprop(), Delta(0.25)).double()
    episodes = classification(2, 3, 4, 4, WAYS)
    together, alone = (final_weights(learner, e) for e in (episodes, episodes[[0]]))
    assert_close({n: w[:1] for n, w in together.items()}, alone, 1e-12)
    x, y = episodes.support_x[0], episodes.support_y[0]
    stepped = show(learner, x, y)["weights"]
    assert_close({n: w[0] for n, w in alone.items()}, {n: stepped[n] for n in alone}, 1e-12)


def test_building_leaves_the_users_chain_as_it_is():
    chain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    network = LayeredNetwork(chain)
    assert network.body is chain
    assert chain[1].inplace
    assert network.parameter("layer0_weight") is chain[0].weight
    assert chain.training
