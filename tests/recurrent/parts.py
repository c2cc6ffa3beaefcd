"""Recurrent learners under every form of their rules, and the static network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from metaplastic import CrossEntropy, Episodes, Learner, PlasticityRule, SquaredError
from metaplastic.credit import Unsupervised
from metaplastic.inner_loop import Rollout, draw
from metaplastic.networks import RecurrentNetwork
from metaplastic.rules import Backpropamine, Coefficient, DifferentiablePlasticity, Eligibility
from tests.helpers import seeded, shake

RATE = 0.3
SILENT = Coefficient(0.0, learned=False)
"""A mix that never reads the teaching signal."""
Make = Callable[[], PlasticityRule]
STATIC_FORMS: dict[str, tuple[Make, dict]] = {
    "decay": (lambda: DifferentiablePlasticity("decay", 0.5, RATE), {}),
    "oja": (lambda: DifferentiablePlasticity("oja", 0.5, RATE), {}),
    "clip": (lambda: DifferentiablePlasticity("clip", 0.5, RATE, bound=0.5), {"bound": 0.5}),
}
MODULATED_FORMS: dict[str, tuple[Make, dict]] = {
    "simple": (lambda: Backpropamine("simple", 0.5, clip=None), {}),
    "simple-hard": (
        lambda: Backpropamine("simple", 0.5, bound=0.3),
        {"clip": "hard", "bound": 0.3},
    ),
    "simple-soft": (lambda: Backpropamine("simple", 0.5, clip="soft"), {"clip": "soft"}),
    "retroactive": (lambda: Backpropamine("retroactive", 0.5, RATE), {"clip": "hard"}),
    "retroactive-soft": (
        lambda: Backpropamine("retroactive", 0.5, RATE, clip="soft"),
        {"clip": "soft"},
    ),
    "eligibility": (lambda: Eligibility(RATE, 4.0), {"tau": 4.0}),
}
FORMS = STATIC_FORMS | MODULATED_FORMS
CASES = [(form, None) for form in STATIC_FORMS] + [
    (form, kind) for form in MODULATED_FORMS for kind in ("scalar", "fanout")
]
cases = pytest.mark.parametrize(("form", "modulator"), CASES)


def recurrent(
    rule: PlasticityRule | None,
    modulator=None,
    *,
    instruction: bool = False,
    classes: bool = False,
    activation: nn.Module | None = None,
    pattern: str = "role:weight",
    seed: int = 1,
) -> Learner:
    """3-4-2 units in float64, every Parameter at random but the rates."""
    network = RecurrentNetwork(
        3, 4, 2, modulator=modulator, instruction=instruction, activation=activation
    ).double()
    learner = Learner(
        network,
        Unsupervised(),
        None if rule is None else {pattern: rule},
        CrossEntropy() if classes else SquaredError(),
    )
    return shake(learner, seed, initial=0.3, plasticity=0.3)


def plain(
    weights: dict[str, Tensor], xs: Tensor, queries: Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A static recurrent network: activity after xs (T, B, n), and outputs on queries."""

    def step(x: Tensor, h: Tensor) -> Tensor:
        driven = x @ weights["input_weight"].mT + weights["hidden_bias"].mT
        return (driven + h @ weights["recurrent_weight"].mT).tanh()

    h = xs.new_zeros(xs.shape[1], 4) if before is None else before
    for x in xs:
        h = step(x, h)
    return h, step(queries, h) @ weights["output_weight"].mT + weights["output_bias"].mT


def after_stream(learner: Learner, episodes: Episodes) -> Rollout:
    rollout = Rollout(learner, episodes, draw(learner, episodes, seeded()))
    rollout.advance(0, episodes.presentations)
    return rollout
