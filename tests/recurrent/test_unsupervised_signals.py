"""What the groups of a network see without a credit to teach them, recurrent or layered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import Learner, Oja, SquaredError
from metaplastic.credit import Unsupervised
from metaplastic.rules import Backpropamine
from tests.helpers import deviation, meta_gradient, mlp, normal, presentation, regression, show
from tests.recurrent.parts import SILENT, recurrent


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid()])
def test_observe_gives_what_was_asked_for_and_no_more(activation):
    learner = recurrent(Backpropamine(), "fanout", activation=activation)
    network, state = learner.network, show(learner, normal(2, 3, 3), normal(2, 3, 2))
    shown = presentation(learner, normal(3, 3, seed=5), normal(3, 2))
    everything = dict.fromkeys(network.groups(), frozenset({"gain", "modulator"}))
    seen = network.observe(shown, state["weights"], state["network"], everything)
    assert seen.signals.keys() == {n for n, g in network.groups().items() if g.taught}
    hidden, w = seen.state["hidden"], state["weights"]
    assert torch.equal(seen.output, hidden @ w["output_weight"].mT + w["output_bias"].mT)
    for name, group in network.groups().items():
        if not group.taught:
            continue
        signals = seen.signals[name]
        assert signals.pre.shape == (3, group.n_in)
        assert signals.post.shape == signals.gain.shape == (3, group.n_out)
        assert signals.teaching is None
        slope = {"Tanh": 1 - hidden**2, "Sigmoid": hidden * (1 - hidden)}[type(activation).__name__]
        last = group.position == 1
        wanted = torch.ones(3, 2).double() if last else slope
        assert deviation(signals.gain, wanted) < 1e-15
        assert signals.modulator.shape == ((3, 1) if last else (3, 4))
    bare = network.observe(shown, w, state["network"], {"input_weight": frozenset()}).signals
    assert bare.keys() == {"input_weight"}
    assert bare["input_weight"].gain is bare["input_weight"].modulator is None


def test_a_layered_network_observes_with_slopes_alone():
    learner = Learner(mlp(3, 5, 2), Unsupervised(), Oja(0.1, 0.0), SquaredError())
    network, weights = learner.network, learner.network.weights()
    shown = presentation(learner, normal(4, 3), normal(4, 2))
    needs = {"layer0_weight": frozenset({"gain"}), "layer1_bias": frozenset()}
    seen = network.observe(shown, weights, {}, needs)
    assert seen.state == {}
    assert torch.equal(seen.output, network(shown.x, weights))
    post = seen.signals["layer0_weight"].post
    assert torch.equal(seen.signals["layer0_weight"].gain, 1 - post * post)
    assert seen.signals["layer1_bias"].gain is None
    assert network.provides == {"gain"}


def test_layered_networks_learn_unsupervised_too():
    learner = Learner(mlp(3, 5, 2), Unsupervised(), Oja(0.2, SILENT, bounded=False), SquaredError())
    x, y = normal(1, 4, 3), normal(1, 4, 2)
    w = {n: v.detach() for n, v in learner.network.weights().items()}
    found = show(learner, x, y)["weights"]
    hidden = (x[0] @ w["layer0_weight"].T + w["layer0_bias"].T).tanh()
    output = hidden @ w["layer1_weight"].T + w["layer1_bias"].T
    for name, pre, post in (("layer0_weight", x[0], hidden), ("layer1_weight", hidden, output)):
        change = post.T @ pre - (post * post).sum(0)[:, None] * w[name]
        assert deviation(found[name], w[name] + 0.2 * change) < 1e-13
    gradient = meta_gradient(learner, regression(2, 3, 2, 3, 2))
    assert all(float(g.abs().max()) > 0 for n, g in gradient.items() if "mix" not in n)
