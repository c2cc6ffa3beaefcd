"""Scores at the rest point, and the gradient through the way there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from metaplastic import (
    Backprop,
    Consolidated,
    CrossEntropy,
    Delta,
    Equilibrium,
    Implicit,
    Learner,
    LeastControl,
    ThroughRest,
    Unrolled,
)
from metaplastic.errors import ConfigurationError
from tests.helpers import assert_close, classification, gradients, meta_gradient, mlp, shake
from tests.lcp.parts import gradient_field, local_field, rest_by_hand, shown


@pytest.mark.parametrize("make", [gradient_field, local_field])
@pytest.mark.parametrize("count", [1, 3])
def test_through_rest_is_the_unrolled_stream_of_the_whole_support_set(make, count):
    """A step at rate 1 is one presentation of all examples, whose mean a Delta takes."""
    learner = make()
    episodes = shown(learner, count)
    steps = 7
    whole = {
        name: getattr(episodes, name).flatten(1, 2).unsqueeze(1).expand(-1, steps, -1, -1)
        for name in ("support_x", "support_y")
    }
    wanted = meta_gradient(learner, replace(episodes, **whole), Unrolled())
    found = meta_gradient(learner, episodes, ThroughRest(steps=steps, tolerance=math.inf))
    assert_close(found, wanted, 1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_through_rest_tends_to_the_implicit_gradient(momentum):
    learner = local_field()
    episodes, shared = shown(learner, 2), {"rate": 0.6, "momentum": momentum}
    wanted = meta_gradient(learner, episodes, Implicit(steps=200, tolerance=1e-9, **shared))
    far = meta_gradient(learner, episodes, ThroughRest(steps=2, tolerance=math.inf, **shared))
    near = meta_gradient(learner, episodes, ThroughRest(steps=120, tolerance=1e-9, **shared))
    assert_close(near, wanted, 1e-8)
    assert any(float((far[name] - wanted[name]).abs().max()) > 1e-3 for name in wanted)


@pytest.mark.parametrize("make", [gradient_field, local_field])
@pytest.mark.parametrize("method", [ThroughRest, Implicit, LeastControl])
def test_scores_are_those_after_the_steps_without_control(make, method):
    learner = make()
    episodes = shown(learner, 3)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    chosen: Equilibrium = method(steps=9, rate=0.6)
    found = chosen.evaluate(learner, episodes)
    assert torch.allclose(found.loss, rest_by_hand(learner, episodes, 9, 0.6), rtol=1e-12)
    assert found.accuracy is None
    assert found.residual is not None
    assert found.residual.shape == (3,)
    assert float(found.residual.min()) > 1e-5  # nine steps are not all the way
    further = replace(chosen, steps=90).evaluate(learner, episodes)
    assert further.residual is not None
    assert float(further.residual.max()) < 1e-9
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())


def test_scores_of_classes_are_told_by_task():
    learner = Learner(mlp(3, 5, 3), Backprop(), Consolidated(Delta(0.5), 0.3), CrossEntropy())
    shake(learner, 0)
    episodes = classification(2, 3, 2, 3, 3, queries=6)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    episodes = replace(
        episodes,
        support_task=torch.tensor([0, 1, 2]).expand(2, 3),
        query_task=labels.expand(2, 6),
    )
    found = ThroughRest(steps=20, rate=0.5).evaluate(learner, episodes)
    assert found.accuracy is not None
    assert found.task_accuracy is not None
    assert torch.allclose(found.task_accuracy.mean(1), found.accuracy)
    assert found.forgetting is None  # there is no order


def test_an_episode_that_explodes_is_left_out_of_scores():
    learner = gradient_field()
    episodes = shown(learner, 3)
    episodes.support_y[1] *= 1e200
    found = ThroughRest(steps=9, rate=0.6).evaluate(learner, episodes)
    assert found.diverged == (1,)
    assert len(found.loss) == 2


def test_an_episode_far_from_rest_counts_only_without_a_tolerance():
    learner = gradient_field()
    episodes, hasty = shown(learner, 2), ThroughRest(steps=1, rate=0.1)
    outcome = hasty.gradient(learner, episodes)
    assert outcome.kept == ()
    assert all(float(g.abs().max()) == 0.0 for g in gradients(learner).values())
    learner.zero_grad()
    assert replace(hasty, tolerance=math.inf).gradient(learner, episodes).kept == (0, 1)
    for wrong in (0.0, math.nan):
        with pytest.raises(ConfigurationError, match="tolerance must be positive"):
            ThroughRest(tolerance=wrong)
