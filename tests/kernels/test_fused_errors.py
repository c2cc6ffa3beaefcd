"""The fused engine where layers learn from the network's own error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from metaplastic import (
    Backprop,
    CreditAssignment,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Episodes,
    LayeredNetwork,
    Learner,
    Objective,
    Oja,
    SquaredError,
)
from tests.helpers import assert_close, classification, mlp, normal, regression, shake
from tests.kernels.fused import (
    ACTIVATIONS,
    FUSED,
    PLAIN,
    RULES,
    WAYS,
    assert_same,
    gradients,
    own_error,
)

pytest.importorskip("numba", reason="the fused engine on a CPU is compiled by Numba")

ERRORS: dict[str, Callable[[], CreditAssignment]] = {
    "clamped": lambda: DirectFeedback("error"),
    "fed back": lambda: DirectFeedback("error", output="feedback"),
    "resampled": lambda: DirectFeedback("error", weights="resampled"),
    "backprop": Backprop,
}
OBJECTIVES = (CrossEntropy(), SquaredError(), CrossEntropy(scale="batch"))


def episodes_for(
    objective: Objective | None, episodes: int, presentations: int, batch: int
) -> Episodes:
    if isinstance(objective, SquaredError):
        return regression(episodes, presentations, batch, 5, WAYS)
    return classification(episodes, presentations, batch, 5, WAYS)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("credit", ERRORS)
def test_errors_by_every_way(credit: str, objective: Objective, batch: int) -> None:
    """Six examples are neither one nor a whole number of fours."""
    for rule in (Oja(0.05, 0.8), Delta(0.1, learned=True)):
        made = own_error(rule, ERRORS[credit](), objective)
        seed = 1 if credit == "resampled" else None
        assert_same(made, episodes_for(objective, 2, 7, batch), seed)


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_on_errors(name: str, credit: str) -> None:
    assert_same(own_error(RULES[name](), ERRORS[credit]()), classification(2, 5, 2, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_function_on_errors(activation: type[nn.Module], credit: str) -> None:
    made = own_error(Delta(0.1, learned=True), ERRORS[credit](), activation=activation)
    assert_same(made, classification(2, 5, 3, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
@pytest.mark.parametrize("episodes", [1, 3])
@pytest.mark.parametrize("presentations", [1, 7, 100])
def test_every_length_on_errors(presentations: int, episodes: int, credit: str) -> None:
    made = own_error(Delta(0.02, learned=True), ERRORS[credit]())
    assert_same(made, classification(episodes, presentations, 1, 5, WAYS))


@pytest.mark.parametrize("credit", ["clamped", "backprop"])
def test_padding_on_errors(credit: str) -> None:
    weight = torch.ones(2, 5, 3)
    weight[0, 1, 2] = weight[1, 3] = 0
    shown = replace(classification(2, 5, 3, 5, WAYS), support_weight=weight)
    for scale in ("example", "batch"):
        made = own_error(Oja(0.05, 0.8), ERRORS[credit](), CrossEntropy(scale=scale))
        assert_same(made, shown)


def test_upper_layers_alone_behind_a_trunk() -> None:
    """Online-aware meta-learning: the lower layers stay as they are within an episode."""
    network = LayeredNetwork(
        mlp(6, 5, 5, 4, WAYS), trunk=nn.Linear(5, 6).double(), input_shape=(5,)
    )
    rules = {"name:layer0_*": None, "name:layer1_*": None, "role:weight": Delta(0.1, learned=True)}
    made = Learner(network, Backprop(), rules, initial="learned")
    assert_same(shake(made, initial=0.1), classification(3, 6, 2, 5, WAYS))


def test_single_precision_over_a_long_stream_of_errors() -> None:
    chain = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 5))
    for i, p in enumerate(chain.parameters()):
        p.data = 0.3 * normal(*p.shape, seed=i).float()
    for credit in (DirectFeedback("error"), Backprop()):
        own = copy.deepcopy(chain)
        made = Learner(LayeredNetwork(own), credit, {"role:weight": Delta(0.005, learned=True)})
        shown = classification(1, 600, 1, 24, 5).to(torch.device("cpu"), torch.float32)
        found = gradients(made, shown, FUSED)
        wanted = gradients(copy.deepcopy(made).double(), shown, PLAIN)
        assert_close({n: g.double() for n, g in found.items()}, wanted, 1e-4)
