"""Learners that have kernels, and the comparison of the fused engine with the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metaplastic import (
    Coefficient,
    CreditAssignment,
    Delta,
    DirectFeedback,
    Episodes,
    Hebb,
    LayeredNetwork,
    Learner,
    Objective,
    Oja,
    PlasticityRule,
    Unrolled,
)
from tests.helpers import assert_close, mlp, seeded, shake

PLAIN, FUSED = Unrolled(engine="plain"), Unrolled(engine="fused")
WAYS = 3
RULES: dict[str, Callable[[], PlasticityRule]] = {
    "oja": lambda: Oja(0.1, 0.9),
    "oja of one number a layer, divided by the inputs": lambda: Oja(
        0.1, 0.3, granularity="layer", fan_in=True, multiplier=2.0
    ),
    "oja of one number a neuron": lambda: Oja(
        0.1, Coefficient(0.4, granularity="neuron", bound="sigmoid"), granularity="neuron"
    ),
    "oja as published": lambda: Oja(0.02, 0.5, bounded=False),
    "oja on teaching alone": lambda: Oja(0.1, 1.0),
    "oja without teaching": lambda: Oja(0.1, 0.0),
    "hebb": lambda: Hebb(0.1, 0.7),
    "hebb of one number, mean over examples": lambda: Hebb(
        0.05, 0.7, granularity="network", bounded=False, reduction="examples"
    ),
    "delta": lambda: Delta(0.1, learned=True),
    "delta without slope, a rate for each synapse": lambda: Delta(
        0.1, learned=True, granularity="synapse", derivative=False, reduction="sum"
    ),
}
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.Sigmoid, nn.Identity)


def learner(
    rule: PlasticityRule,
    credit: DirectFeedback | None = None,
    activation: type[nn.Module] = nn.Tanh,
    noise: float = 0.3,
    **options: Any,
) -> Learner:
    network = LayeredNetwork(mlp(5, 6, 4, WAYS, activation=activation))
    made = Learner(network, credit or DirectFeedback("target"), {"role:weight": rule}, **options)
    return shake(made, plasticity=noise, mixing=0.2, control=0.1, feedback=0.2)


def gradients(
    learner: Learner, episodes: Episodes, method: Unrolled, seed: int | None = None
) -> dict[str, Tensor]:
    """The loss and the meta-gradient of a copy, by name."""
    own = copy.deepcopy(learner)
    outcome = method.gradient(own, episodes, generator=None if seed is None else seeded(seed))
    assert not outcome.diverged
    grads = {n: p.grad for n, p in own.named_parameters() if p.grad is not None}
    return {"loss": outcome.loss, **grads}


def assert_same(learner: Learner, episodes: Episodes, seed: int | None = None) -> None:
    """To 1e-10 in every gradient, with nothing given mutated."""
    tensors = [getattr(episodes, n) for n in ("support_x", "support_y", "query_x")]
    before = [t.clone() for t in tensors] + [p.clone() for p in learner.parameters()]
    wanted = gradients(learner, episodes, PLAIN, seed)
    found = gradients(learner, episodes, FUSED, seed)
    assert_close(found, wanted, 1e-10)
    assert any(bool(value.any()) for name, value in wanted.items() if name != "loss")
    for old, new in zip(before, [*tensors, *learner.parameters()], strict=True):
        assert torch.equal(old, new)


def own_error(
    rule: PlasticityRule,
    credit: CreditAssignment,
    objective: Objective | None = None,
    activation: type[nn.Module] = nn.Tanh,
    **options: Any,
) -> Learner:
    network = LayeredNetwork(mlp(5, 6, 4, WAYS, activation=activation))
    made = Learner(network, credit, {"role:weight": rule}, objective, **options)
    return shake(made, plasticity=0.1, mixing=0.2, control=0.1, feedback=0.2)
