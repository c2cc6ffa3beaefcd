"""Networks, learners and credits that the tests of errors sent down share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    CreditAssignment,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    PlasticityRule,
    Presentation,
)
from metaplastic.credit import (
    DirectRandomTarget,
    FeedbackAlignment,
    KolenPollack,
    SignSymmetry,
    WeightMirror,
)
from metaplastic.signals import State
from tests.helpers import classification, mlp, normal, presentation, seeded

WAYS = 3
SHAPES = {"mlp": (5,), "conv": (2, 5, 4)}
MIRROR = Delta(0.5, derivative=False, decay=0.1)
CREDITS: dict[str, Callable[[], CreditAssignment]] = {
    "backprop": Backprop,
    "alignment": FeedbackAlignment,
    "alignment, learned": lambda: FeedbackAlignment("learned"),
    "alignment, resampled": lambda: FeedbackAlignment("resampled", scale=0.7),
    "Kolen-Pollack": KolenPollack,
    "Kolen-Pollack, learned": lambda: KolenPollack("learned"),
    "mirror": lambda: WeightMirror(sigma=1.0),
    "mirror, learned": lambda: WeightMirror("learned", sigma=0.5),
    "signs": SignSymmetry,
    "signs, fixed": lambda: SignSymmetry("fixed"),
    "signs, learned": lambda: SignSymmetry("learned", scale=0.5),
    "signs, resampled": lambda: SignSymmetry("resampled"),
    "signs, presentation": lambda: SignSymmetry("presentation"),
    "direct": lambda: DirectFeedback(weights="fixed"),
    "random target": DirectRandomTarget,
    "random target, learned": lambda: DirectRandomTarget("learned"),
    "random target, resampled": lambda: DirectRandomTarget("resampled"),
}
every_credit = pytest.mark.parametrize("credit", CREDITS)
both_networks = pytest.mark.parametrize("network", SHAPES)


def dense(activation: type[nn.Module] = nn.Tanh) -> LayeredNetwork:
    return LayeredNetwork(mlp(5, 7, 6, 4, WAYS, activation=activation))


def conv(activation: type[nn.Module] = nn.Tanh) -> LayeredNetwork:
    chain = nn.Sequential(
        nn.Conv2d(2, 3, 2, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(8, 6),
        activation(),
        nn.Linear(6, WAYS),
    ).double()
    for i, parameter in enumerate(chain.parameters()):
        parameter.data = 0.4 * normal(*parameter.shape, seed=50 + i)
    return LayeredNetwork(chain, input_shape=SHAPES["conv"])


NETWORKS = {"mlp": dense, "conv": conv}


def make(
    credit: CreditAssignment,
    network: LayeredNetwork | nn.Sequential,
    rule: PlasticityRule | None = None,
    **options,
) -> Learner:
    """A classifier all of whose synapses are plastic; feedback that is taught learns too."""
    rules = {"role:feedback": MIRROR} if isinstance(credit, WeightMirror) else {}
    rules["*"] = rule or Delta(0.3)
    return Learner(network, credit, rules, **options).double()


def batch(network: str, count: int = 3) -> tuple[Tensor, Tensor]:
    return normal(count, *SHAPES[network], seed=7), torch.arange(count) % WAYS


def shown_to(learner: Learner, x: Tensor, y: Tensor) -> Presentation:
    """What ``adapt(x, y)`` shows, with the noise that the credit wants."""
    noise = learner.credit.noise(learner.network, (1, 1, len(x)), seeded(3))
    noise = None if noise is None else noise[0, 0].double()
    return replace(presentation(learner, x, y), noise=noise)


def tied(learner: Learner) -> State:
    """The state at the beginning, the feedback equal to the forward weights."""
    state = learner.start(3)
    copied = {
        name: state["weights"][name.replace("feedback", "weight")]
        for name in learner.credit.groups()
    }
    assert copied
    return {**state, "weights": state["weights"] | copied}


def episodes_for(network: str, seed: int = 0) -> Episodes:
    return classification(3, 4, 2, SHAPES[network], WAYS, seed=seed)
