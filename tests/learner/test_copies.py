"""Copies of a learner, files, and functional calls."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaplastic import DirectFeedback, LayeredNetwork, Learner, Oja
from tests.helpers import assert_close, classification, meta_gradient, mlp, seeded, shake, show
from tests.learner.parts import batch, classifier


def copies_of(learner: Learner) -> dict[str, Learner]:
    stream = io.BytesIO()
    torch.save(learner, stream)
    stream.seek(0)
    return {
        "deepcopy": copy.deepcopy(learner),
        "pickle": pickle.loads(pickle.dumps(learner)),
        "torch.save": torch.load(stream, weights_only=False),
    }


@pytest.mark.parametrize("conv", [False, True])
def test_a_copy_learns_as_the_original_and_shares_nothing_with_it(conv):
    if conv:
        chain = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
        )
        network = LayeredNetwork(chain, input_shape=(1, 4, 4), trunk=nn.Identity())
        learner = Learner(network, DirectFeedback("target", bias=True), Oja(0.1)).double()
        episodes = classification(2, 3, 2, (1, 4, 4), 3)
    else:
        learner, episodes = classifier(), classification(2, 3, 2, 4, 3)
    wanted = meta_gradient(learner, episodes)
    for name, twin in copies_of(learner).items():
        own = {id(p) for p in learner.parameters()}
        assert own.isdisjoint(id(p) for p in twin.parameters()), name
        assert_close(meta_gradient(twin, episodes), wanted, 0.0)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert_close(meta_gradient(learner, episodes), wanted, 0.0)


def test_state_dict_carries_everything_over():
    learner, episodes = classifier(), classification(2, 3, 2, 4, 3)
    wanted = meta_gradient(learner, episodes)
    other = Learner(mlp(4, 6, 5, 3, seed=5), DirectFeedback(), Oja(0.3), generator=seeded(9))
    other.double().load_state_dict(learner.state_dict())
    assert_close(meta_gradient(other, episodes), wanted, 0.0)


def test_functional_call_uses_the_parameters_it_is_given():
    learner, other = classifier(), shake(classifier(), 3, initial=0.5)
    x, _ = batch()
    given = dict(other.named_parameters())
    assert torch.equal(functional_call(learner, given, (x,)), other(x))
    assert not torch.equal(learner(x), other(x))


def test_functional_call_reaches_feedback_and_coefficients():
    """What one presentation does is decided by the given Parameters alone."""

    class Once(nn.Module):
        def __init__(self, learner: Learner) -> None:
            super().__init__()
            self.learner = learner

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return show(self.learner, x[None], y[None])["weights"]["layer0_weight"]

    changed = shake(classifier(), 3, plasticity=0.3, mixing=0.3, feedback=0.4)
    one, other = Once(classifier()), Once(changed)
    x, y = batch()
    wanted = other(x, y)
    assert torch.equal(functional_call(one, dict(other.named_parameters()), (x, y)), wanted)
    for part in ("plasticity", "mix", "feedback"):
        given = {n: p for n, p in other.named_parameters() if part not in n}
        assert not torch.equal(functional_call(one, given, (x, y)), wanted), part
