"""The learner's meta-parameters: their roles, what is frozen, and their precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import Delta, DirectFeedback, LayeredNetwork, Learner, Oja, SquaredError, Unrolled
from metaplastic.errors import ConfigurationError
from tests.helpers import classification, meta_gradient, mlp, regression, shake
from tests.learner.parts import batch, classifier


def test_every_parameter_is_in_one_group_of_its_role():
    rules = {"position:last": Delta(0.1, learned=True), "role:weight": Oja(0.1)}
    network = LayeredNetwork(
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)),
        trunk=nn.Linear(2, 4),
    )
    learner = Learner(network, DirectFeedback(bias=True), rules)
    names = {id(p): n for n, p in learner.named_parameters()}
    groups = learner.param_groups(lr=0.5, feedback=0.25, mixing=0.125)
    found = {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}
    assert found == {
        "initial": {n for n in names.values() if n.startswith("network")},
        "feedback": {"credit.layer0_feedback1", "credit.layer0_feedback1_bias"},
        "plasticity": {"rules.layer0_weight.plasticity.raw"},
        "mixing": {"rules.layer0_weight.mix.raw"},
        "control": {"rules.layer1_weight.rate.raw", "rules.layer1_bias.rate.raw"},
    }
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert {g["name"]: g["lr"] for g in groups} == {
        "initial": 0.5,
        "feedback": 0.25,
        "plasticity": 0.5,
        "mixing": 0.125,
        "control": 0.5,
    }
    with pytest.raises(ConfigurationError, match="roles are"):
        learner.param_groups(feedbacks=0.1)


@pytest.mark.parametrize("initial", ["fixed", "resampled"])
def test_what_is_not_trained_is_a_buffer(initial):
    network = mlp(4, 6, 3)
    network[0].weight.requires_grad_(False)
    learner = Learner(network, DirectFeedback(weights="fixed"), Delta(0.1), initial=initial)
    assert list(learner.parameters()) == []
    assert learner.param_groups() == []
    assert {n for n, _ in learner.named_buffers()} >= {
        "network.body.0.weight",
        "network.body.2.bias",
        "credit.layer0_feedback1",
        "rules.layer0_weight.rate.raw",
    }
    learner.double()
    assert learner.network.weights()["layer0_weight"].dtype == torch.float64


def test_a_learner_has_its_networks_precision():
    """Feedback and coefficients too, so that it runs as it was built."""
    learner = Learner(mlp(4, 6, 3), DirectFeedback(bias=True), {"*": Oja(0.1)})
    assert {p.dtype for p in learner.parameters()} == {torch.float64}
    learner.clone().adapt(*batch())


def test_a_frozen_layer_gets_no_gradient_and_the_others_do():
    network = mlp(4, 6, 3)
    network[0].weight.requires_grad_(False)
    learner = shake(Learner(network, DirectFeedback(), Oja(0.1)), feedback=0.1)
    gradient = meta_gradient(learner, classification(2, 3, 2, 4, 3))
    assert "network.body.0.weight" not in gradient
    assert {"network.body.0.bias", "network.body.2.weight"} <= gradient.keys()


def test_a_parameter_frozen_after_building_is_left_alone():
    learner = classifier()
    frozen = learner.network.parameter("layer0_weight").requires_grad_(False)
    outcome = Unrolled().gradient(learner, classification(2, 3, 2, 4, 3))
    assert outcome.kept == (0, 1)
    assert frozen.grad is None
    assert learner.network.parameter("layer1_weight").grad is not None


def test_feedback_that_no_plastic_layer_reads_is_not_made():
    learner = Learner(mlp(4, 6, 5, 3), DirectFeedback(), {"name:layer1_weight": Oja()})
    assert learner.credit.weights().keys() == {"layer1_feedback1"}


def test_episodes_are_taken_to_the_learners_precision():
    learner = classifier(objective=SquaredError()).float()
    episodes = regression(2, 3, 2, 4, 3)
    before = [episodes.support_x.clone(), episodes.query_y.clone()]
    outcome = Unrolled().gradient(learner, episodes)
    assert outcome.loss.dtype == torch.float32
    assert torch.equal(episodes.support_x, before[0])
    assert torch.equal(episodes.query_y, before[1])
