"""Sign symmetry: magnitudes of its own, signs of the present forward weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import Delta, LayeredNetwork, Learner, Presentation, SquaredError, Unrolled
from metaplastic.credit import SignSymmetry
from metaplastic.inner_loop import draw
from metaplastic.signals import State
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    heard,
    meta_gradient,
    mlp,
    normal,
    presentation,
    seeded,
    shake,
)

ORIGINS = ("uniform", "fixed", "learned", "resampled", "presentation")


def made(credit: SignSymmetry, *sizes: int) -> Learner:
    return Learner(LayeredNetwork(mlp(*sizes)), credit, Delta(0.3), SquaredError()).double()


def sent_down(
    learner: Learner, state: State, shown: Presentation, layer: int
) -> tuple[Tensor, Tensor]:
    """The error at a layer's potentials, and what arrives at the activity below it."""
    signals = heard(learner, shown, state)
    above, below = signals[f"layer{layer}_weight"], signals[f"layer{layer - 1}_weight"]
    assert above.gain is not None
    assert below.teaching is not None
    return above.error * above.gain, below.teaching


def test_uniform_magnitudes_are_that_of_fresh_weights():
    learner = made(SignSymmetry(scale=0.5), 4, 8, 3)
    weights = learner.credit.weights()
    assert weights.keys() == {"layer1_feedback"}
    wanted = torch.full((3, 8), 0.5 * (2 / 8) ** 0.5, dtype=torch.float64)
    assert deviation(weights["layer1_feedback"], wanted) < 1e-7  # made in single precision


def test_drawn_magnitudes_have_that_as_their_root_mean_square():
    credit = made(SignSymmetry("fixed", 0.5), 4, 90, 80).credit
    drawn = credit.weights()["layer1_feedback"]
    assert bool((drawn >= 0).all())
    assert abs(float(drawn.square().mean().sqrt()) / (0.5 * (2 / 90) ** 0.5) - 1) < 0.03


@pytest.mark.parametrize("magnitudes", ORIGINS)
def test_b09_sign_symmetry_follows_present_weights(magnitudes):
    """What arrives is (e o f') (M o sign W), W as the last presentation left it."""
    learner = made(SignSymmetry(magnitudes), 4, 6, 5, 3)
    state = learner.start(2, seeded(1))
    weights = state["weights"]
    # Weights so small that one step turns some of them over.
    state["weights"] = weights | {"layer1_weight": 0.01 * weights["layer1_weight"]}
    noise = learner.credit.noise(learner.network, (1, 3, 2), seeded(2))
    turned = []
    for t in range(3):
        shown = presentation(learner, normal(2, 4, seed=10 + t), normal(2, 3, seed=20 + t))
        magnitude = weights["layer1_feedback"]
        if noise is not None:
            shown = replace(shown, noise=noise[0, t].double())
            magnitude = magnitude * noise[0, t, :30].double().reshape(5, 6)
        error, arrived = sent_down(learner, state, shown, 1)
        present = state["weights"]["layer1_weight"]
        wanted = error @ (magnitude * torch.where(present > 0, 1.0, -1.0))
        assert deviation(arrived, wanted) < 1e-13
        state = learner.step(state, shown)
        turned.append(bool((state["weights"]["layer1_weight"].sign() != present.sign()).any()))
    assert turned[0]


def test_a_weight_of_zero_sends_nothing_down():
    learner = made(SignSymmetry(), 4, 6, 3)
    state = learner.start(2)
    silent = {"layer1_weight": torch.zeros(3, 6, dtype=torch.float64)}
    state["weights"] = state["weights"] | silent
    shown = presentation(learner, normal(2, 4), normal(2, 3))
    assert not bool(sent_down(learner, state, shown, 1)[1].any())


def test_magnitudes_of_a_presentation_come_from_its_noise():
    """Of their own at each presentation and in each episode, and for each layer."""
    learner = made(SignSymmetry("presentation"), 4, 6, 5, 3)
    noise = learner.credit.noise(learner.network, (2, 3, 7), seeded(3))
    assert noise is not None
    assert noise.shape == (2, 3, 5 * 6 + 3 * 5)
    assert bool((noise >= 0).all())
    assert len({float(v) for v in noise[:, :, 0].flatten()}) == 6
    x, y = normal(2, 4), normal(2, 3)
    arrived = []
    for t in range(2):
        shown = replace(presentation(learner, x, y), noise=noise[0, t].double())
        arrived.append(sent_down(learner, learner.start(2), shown, 1)[1])
        error, below = sent_down(learner, learner.start(2), shown, 2)
        scale = (2 / 5) ** 0.5
        magnitude = scale * noise[0, t, 30:].double().reshape(3, 5)
        forward = learner.start(2)["weights"]["layer2_weight"]
        assert deviation(below, error @ (magnitude * forward.sign())) < 1e-6
    assert deviation(*arrived) > 0.01


def test_other_magnitudes_draw_no_noise():
    for magnitudes in ORIGINS[:-1]:
        learner = made(SignSymmetry(magnitudes), 4, 6, 3)
        assert learner.credit.noise(learner.network, (2, 3, 1), seeded()) is None


def test_magnitudes_of_presentations_are_the_same_behind_a_checkpoint():
    network = mlp(4, 6, 5, 3, activation=nn.Tanh)
    learner = Learner(network, SignSymmetry("presentation"), {"*": Delta(0.3, learned=True)})
    shake(learner, 1, control=0.1)
    episodes = classification(3, 5, 2, 4, 3)
    wanted = meta_gradient(learner, episodes, generator=seeded(4))
    for every in (1, 2, 5):
        found = meta_gradient(learner, episodes, Unrolled(checkpoint_every=every), seeded(4))
        assert_close(found, wanted, 1e-12)
    other = meta_gradient(learner, episodes, generator=seeded(5))
    assert deviation(other["network.body.0.weight"], wanted["network.body.0.weight"]) > 1e-3


def test_learned_magnitudes_start_from_a_draw_and_are_feedback():
    learner = made(SignSymmetry("learned"), 4, 6, 3)
    roles = {g["name"]: [tuple(p.shape) for p in g["params"]] for g in learner.param_groups()}
    assert roles["feedback"] == [(3, 6)]
    fixed = made(SignSymmetry("fixed"), 4, 6, 3)
    assert torch.equal(
        learner.credit.weights()["layer1_feedback"], fixed.credit.weights()["layer1_feedback"]
    )


def test_resampled_magnitudes_are_positive_in_every_episode():
    learner = made(SignSymmetry("resampled"), 4, 6, 3)
    episodes = classification(3, 2, 1, 4, 3)
    drawn = draw(learner, episodes, seeded()).weights["layer1_feedback"]
    assert drawn.shape == (3, 3, 6)
    assert bool((drawn > 0).all())
