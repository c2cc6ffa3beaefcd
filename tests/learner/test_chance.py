"""What chance decides: weights drawn in every episode, feedback, and noise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Learner,
    Network,
    Oja,
    PlasticityRule,
    Presentation,
    Unrolled,
)
from metaplastic.errors import ConfigurationError
from metaplastic.inner_loop import Rollout, draw
from metaplastic.rules import Coefficient
from metaplastic.signals import Learn, State
from tests.helpers import (
    assert_close,
    classification,
    deviation,
    meta_gradient,
    mlp,
    normal,
    seeded,
    shake,
)
from tests.learner.parts import classifier


def test_resampled_weights_are_drawn_per_episode_from_the_generator():
    credit = DirectFeedback("target", weights="resampled")
    learner = Learner(mlp(4, 6, 3), credit, Oja(0.1), initial="resampled").double()
    episodes = classification(3, 2, 2, 4, 3)
    first, again = draw(learner, episodes, seeded(1)), draw(learner, episodes, seeded(1))
    other = draw(learner, episodes, seeded(2))
    assert first.weights.keys() == set(learner.groups())
    for name, weights in first.weights.items():
        assert torch.equal(weights, again.weights[name])
        if not name.endswith("bias"):
            assert not torch.equal(weights, other.weights[name])
            assert not torch.equal(weights[0], weights[1])
            assert 0.3 < float(weights.var()) * weights.shape[-1] / 2 < 3  # He: 2 / n_in
    begun = Rollout(learner, episodes, first).moving["weights"]
    assert all(torch.equal(begun[n], first.weights[n]) for n in first.weights)
    initial = [p for n, p in learner.named_parameters() if n.startswith(("network", "credit"))]
    assert initial == []


def test_resampled_episodes_do_not_depend_on_how_they_are_batched():
    credit = DirectFeedback("target", weights="resampled")
    learner = Learner(mlp(4, 6, 3), credit, Oja(0.1), initial="resampled")
    shake(learner, plasticity=0.3)
    episodes = classification(3, 4, 2, 4, 3)
    found = [
        meta_gradient(learner, episodes, Unrolled(batching=b, checkpoint_every=k), seeded(1))
        for b, k in (("vmap", None), ("loop", None), ("vmap", 2))
    ]
    assert_close(found[1], found[0], 1e-12)
    assert_close(found[2], found[0], 1e-12)
    other = meta_gradient(learner, episodes, generator=seeded(2))
    assert deviation(other["rules.layer0_weight.mix.raw"], found[0]["rules.layer0_weight.mix.raw"])


def test_resampled_weights_without_a_generator_are_an_error():
    learner = Learner(mlp(4, 3), DirectFeedback(), Oja(0.1), initial="resampled").double()
    for call in (
        learner.clone,
        lambda: learner(normal(2, 4)),
        lambda: Unrolled().gradient(learner, classification(1, 2, 2, 4, 3)),
    ):
        with pytest.raises(ConfigurationError, match="generator"):
            call()
    fast = learner.clone(generator=seeded(1))
    assert torch.equal(fast(normal(2, 4)), learner.clone(generator=seeded(1))(normal(2, 4)))


class Anchored(PlasticityRule):
    """Pulls the weights back to where they began."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = Coefficient(0.5, learned=False)

    def init(self, weight: Tensor) -> dict[str, Tensor]:
        return {"begin": weight}

    def update(self, weight, signals, traces, coefficients):
        drift = signals.correlate(signals.post, signals.pre, "sum")
        return drift + coefficients["pull"] * (traces["begin"] - weight), traces


def test_traces_begin_with_the_weights_of_their_own_episode():
    learner = Learner(mlp(4, 3), DirectFeedback(), Anchored(), initial="resampled").double()
    episodes = classification(2, 3, 2, 4, 3)
    draws = draw(learner, episodes, seeded(1))
    together = Rollout(learner, episodes, draws)
    assert torch.equal(
        together.moving["rule"]["layer0_weight"]["begin"], draws.weights["layer0_weight"]
    )


def test_feedback_is_drawn_from_the_generator():
    def feedback(seed: int | None) -> Tensor:
        g = None if seed is None else seeded(seed)
        learner = Learner(mlp(4, 500, 3), DirectFeedback(scale=0.5), Oja(), generator=g)
        return learner.credit.weights()["layer0_feedback1"]

    assert torch.equal(feedback(1), feedback(1))
    assert torch.equal(feedback(None), feedback(0))
    assert not torch.equal(feedback(1), feedback(2))
    assert abs(float(feedback(1).detach().std()) - 0.5 * (2 / 3) ** 0.5) < 0.02


class NoisyBackprop(Backprop):
    """Backpropagation on inputs with noise, which the inner loop draws."""

    def noise(self, network: Network, lead: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 0.3 * torch.randn(*lead, 4, generator=generator)

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert presentation.noise is not None
        noisy = Presentation(presentation.x + presentation.noise, presentation.teacher)
        return super().present(network, state, noisy, learn)


def test_noise_is_drawn_once_so_that_checkpoints_repeat_it():
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    episodes = classification(3, 6, 2, 4, 3)
    plain = meta_gradient(learner, episodes, generator=seeded(1))
    for method in (Unrolled(checkpoint_every=2), Unrolled(checkpoint_every=1, batching="vmap")):
        again = meta_gradient(learner, episodes, method, seeded(1))
        assert all(torch.equal(again[n], plain[n]) for n in plain)
    looped = meta_gradient(learner, episodes, Unrolled(batching="loop"), seeded(1))
    assert_close(looped, plain, 1e-12)
    other = meta_gradient(learner, episodes, generator=seeded(2))
    assert deviation(other["network.body.0.weight"], plain["network.body.0.weight"]) > 1e-3


def test_noise_is_part_of_what_is_shown():
    """The same as showing the noisy inputs to a learner without noise."""
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    calm = classifier({"*": Delta(0.25)}, Backprop())
    episodes = classification(2, 3, 2, 4, 3)
    draws = draw(learner, episodes, seeded(1))
    wanted = Unrolled().losses(learner, episodes, draws)[0]
    shown = copy.copy(episodes)
    object.__setattr__(shown, "support_x", episodes.support_x + draws.noise.double())
    found = Unrolled().losses(calm, shown, draw(calm, shown, None))[0]
    assert deviation(found, wanted) < 1e-13


def test_noise_without_a_generator_is_an_error():
    """Else every call would see the same noise."""
    learner = classifier({"*": Delta(0.25)}, NoisyBackprop())
    with pytest.raises(ConfigurationError, match="generator"):
        Unrolled().gradient(learner, classification(2, 3, 2, 4, 3))
