"""Errors sent down, through the outer loop: meta-gradients, and feedback from its beginning on."""

from __future__ import annotations

import pytest
import torch

from metaplastic import Delta, LayeredNetwork, Unrolled
from metaplastic.credit import FeedbackAlignment
from metaplastic.inner_loop import Rollout, draw
from tests.alignment.parts import (
    CREDITS,
    NETWORKS,
    WAYS,
    batch,
    both_networks,
    dense,
    episodes_for,
    every_credit,
    make,
    shown_to,
)
from tests.helpers import (
    assert_close,
    meta_gradient,
    mlp,
    seeded,
    shake,
    slope_error,
    unit_direction,
)


@every_credit
@both_networks
def test_meta_gradient_against_central_differences(network, credit):
    learner = make(CREDITS[credit](), NETWORKS[network](), Delta(0.3, learned=True))
    shake(learner, 2, control=0.2, feedback=0.1)
    episodes = episodes_for(network)
    gradient = meta_gradient(learner, episodes, generator=seeded(5))
    patterns = ["network", r"rate\.raw"]
    if learner.credit.learned:
        patterns.append("credit")
        assert all(bool(gradient[f"credit.{n}"].any()) for n in learner.credit.groups())
    for i, pattern in enumerate(patterns):
        direction = unit_direction(learner, 10 + i, pattern)
        assert direction
        assert slope_error(learner, episodes, direction, gradient, seed=5) < 1e-6, pattern


@every_credit
@both_networks
def test_batching_and_checkpoints_change_nothing(network, credit):
    learner = make(CREDITS[credit](), NETWORKS[network](), Delta(0.3, learned=True))
    episodes = episodes_for(network, 3)
    wanted = meta_gradient(learner, episodes, Unrolled(batching="vmap"), seeded(6))
    for method in (Unrolled(batching="loop"), Unrolled(checkpoint_every=2)):
        assert_close(meta_gradient(learner, episodes, method, seeded(6)), wanted, 1e-11)


@every_credit
def test_nothing_that_is_given_changes(credit):
    learner, (x, y) = make(CREDITS[credit](), dense()), batch("mlp")
    shown = shown_to(learner, x, y)
    state = learner.start(3, seeded())
    before = {n: w.clone() for n, w in state["weights"].items()}
    noise = None if shown.noise is None else shown.noise.clone()
    learner.step(state, shown)
    assert all(torch.equal(state["weights"][n], w) for n, w in before.items())
    assert torch.equal(shown.x, x)
    assert noise is None or torch.equal(shown.noise, noise)


@pytest.mark.parametrize("credit", [c for c in CREDITS if "resampled" in c])
def test_resampled_feedback_differs_between_episodes(credit):
    learner, episodes = make(CREDITS[credit](), dense()), episodes_for("mlp")
    names = set(learner.credit.groups())
    assert learner.resampled == names
    assert not names & {n.removeprefix("credit.") for n, _ in learner.named_parameters()}
    drawn = draw(learner, episodes, seeded(8))
    rollout = Rollout(learner, episodes, drawn)
    for name in names:
        weights = rollout.moving["weights"][name]
        assert torch.equal(weights, drawn.weights[name])
        assert not torch.equal(weights[0], weights[1])
    again = draw(learner, episodes, seeded(8)).weights
    assert all(torch.equal(again[n], drawn.weights[n]) for n in names)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_feedback_is_drawn_as_forward_weights_are(scale):
    chain = LayeredNetwork(mlp(60, 80, 90))
    weights = make(FeedbackAlignment(scale=scale), chain).credit.weights()
    assert weights.keys() == {"layer1_feedback"}
    drawn = weights["layer1_feedback"]
    assert drawn.shape == (90, 80)
    assert abs(float(drawn.std()) / (scale * (2 / 80) ** 0.5) - 1) < 0.05


# --- binding ---


@every_credit
def test_a_bound_credit_keeps_its_weights_where_they_fit(credit):
    first = make(CREDITS[credit](), dense(), generator=seeded(1))
    own = {n: w.detach().clone() for n, w in first.credit.weights().items()}
    again = make(first.credit, dense(), generator=seeded(2))
    kept = again.credit.weights()
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[n], own[n]) for n in own)
    given = {w.data_ptr() for w in first.credit.weights().values()}
    assert not given & {w.data_ptr() for w in kept.values()}

    narrow = make(first.credit, mlp(5, 7, 6, 5, WAYS), generator=seeded(2))
    fresh = make(CREDITS[credit](), mlp(5, 7, 6, 5, WAYS), generator=seeded(2))
    wanted = fresh.credit.weights()
    for name, weight in narrow.credit.weights().items():
        fits = name in own and own[name].shape == wanted[name].shape
        assert torch.equal(weight, own[name] if fits else wanted[name]), name
    short = make(first.credit, mlp(5, 7, WAYS), generator=seeded(2))
    assert short.credit.groups().keys() == short.credit.weights().keys()
    buffers = [n for n, _ in short.credit.named_buffers()]
    parameters = [n for n, _ in short.credit.named_parameters()]
    assert set(buffers + parameters) == short.credit.groups().keys()
    assert {n: w.shape for n, w in own.items()} == {
        n: w.shape for n, w in first.credit.weights().items()
    }


def test_a_learned_rate_and_learned_feedback_have_roles():
    learner = make(FeedbackAlignment("learned"), dense(), Delta(0.3, learned=True))
    roles = {g["name"]: len(g["params"]) for g in learner.param_groups()}
    assert roles == {"initial": 8, "feedback": 3, "control": 8}
    assert not list(make(FeedbackAlignment(), dense()).credit.parameters())
