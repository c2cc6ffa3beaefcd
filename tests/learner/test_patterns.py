"""Which rule each group follows, and rules and credits that do not go together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from metaplastic import Backprop, Delta, DirectFeedback, Hebb, Learner, Network, Oja, PlasticityRule
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.signals import LocalSignals, State, SynapseGroup
from tests.helpers import mlp, normal, raw, shake


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ({"*": "a"}, {f"layer{i}_{k}": "a" for i in range(3) for k in ("weight", "bias")}),
        ({"role:weight": "a"}, {f"layer{i}_weight": "a" for i in range(3)}),
        ({"position:last": "a"}, {"layer2_weight": "a", "layer2_bias": "a"}),
        ({"position:-1": "a"}, {"layer2_weight": "a", "layer2_bias": "a"}),
        ({"position:first": "a"}, {"layer0_weight": "a", "layer0_bias": "a"}),
        ({"position:1": "a"}, {"layer1_weight": "a", "layer1_bias": "a"}),
        ({"name:layer[01]_w*": "a"}, {"layer0_weight": "a", "layer1_weight": "a"}),
        (
            {"role:bias": None, "position:last": "b", "*": "a"},
            {"layer0_weight": "a", "layer1_weight": "a", "layer2_weight": "b"},
        ),
        ({"*": "a", "position:last": "b"}, dict.fromkeys(["layer0_weight"], "a")),
        (
            {"name:layer1_*": None, "role:weight": "b"},
            {"layer0_weight": "b", "layer2_weight": "b"},
        ),
    ],
)
def test_first_matching_pattern_wins(patterns, wanted):
    rules = {"a": Oja(0.1), "b": Hebb(0.1), None: None}
    learner = Learner(mlp(4, 6, 5, 3), DirectFeedback(), {p: rules[k] for p, k in patterns.items()})
    found = {n: "b" if not r.decays else "a" for n, r in learner.rules.items()}
    assert {n: found[n] for n in wanted} == wanted
    assert learner.plastic == found.keys()
    if "*" not in patterns:
        assert found == wanted


def test_a_rule_alone_means_the_weights_and_none_means_nothing():
    assert Learner(mlp(4, 5, 3), DirectFeedback(), Oja()).plastic == {
        "layer0_weight",
        "layer1_weight",
    }
    learner = Learner(mlp(4, 5, 3), Backprop(), None).double()
    x, y = normal(2, 4), torch.tensor([0, 2])
    fast = learner.clone()
    fast.adapt(x, y)
    assert torch.equal(fast(x), learner(x))


@pytest.mark.parametrize(
    "pattern", ["role:feedback", "name:conv*", "position:3", "position:7", "position:-4"]
)
def test_a_pattern_without_a_match_is_an_error(pattern):
    with pytest.raises(ConfigurationError, match="matches no synapse group"):
        Learner(mlp(4, 6, 5, 3), DirectFeedback(), {pattern: Oja(), "*": Hebb()})


@pytest.mark.parametrize("pattern", ["last", "position:top", "rule:weight", ""])
def test_a_malformed_pattern_is_an_error(pattern):
    with pytest.raises(ConfigurationError, match="a rule pattern is"):
        Learner(mlp(4, 6, 5, 3), DirectFeedback(), {pattern: Oja()})


def test_groups_do_not_share_coefficients_unless_they_are_of_the_network():
    own = Learner(mlp(4, 6, 3), DirectFeedback(), Oja(0.1, granularity="synapse"))
    assert raw(own, "layer0_weight", "plasticity").shape == (6, 4)
    assert raw(own, "layer1_weight", "plasticity").shape == (3, 6)
    one = Learner(mlp(4, 6, 3), DirectFeedback(), Oja(0.1, granularity="network"))
    assert one.rules["layer0_weight"].plasticity is one.rules["layer1_weight"].plasticity
    assert one.rules["layer0_weight"].mix is not one.rules["layer1_weight"].mix


@pytest.mark.parametrize("granularity", ["synapse", "network"])
def test_the_users_rule_and_credit_are_templates(granularity):
    rule, credit = Oja(0.1, granularity=granularity), DirectFeedback()
    before = copy.deepcopy(rule.state_dict())
    learner = shake(Learner(mlp(4, 6, 3), credit, rule), plasticity=1.0)
    assert all(torch.equal(v, before[n]) for n, v in rule.state_dict().items())
    assert list(credit.parameters()) == []
    assert all(v.dtype == before[n].dtype for n, v in rule.state_dict().items())
    assert learner.credit is not credit
    other = Learner(mlp(4, 6, 3), credit, rule)
    assert {id(p) for p in other.rules.parameters()}.isdisjoint(
        id(p) for p in learner.rules.parameters()
    )


class Silent(PlasticityRule):
    """Asks for a signal that no credit of the tests sends."""

    needs = frozenset({"modulator"})

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: dict[str, Tensor],
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros_like(weight), traces


def test_a_rule_that_needs_what_the_credit_does_not_send_is_an_error():
    with pytest.raises(CompatibilityError, match=r"Silent on layer0_weight needs \['modulator'\]"):
        Learner(mlp(4, 3), DirectFeedback(), Silent())


def test_a_credit_that_cannot_run_through_the_network_is_an_error():
    class Field(Network):
        def forward(
            self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
        ) -> Tensor:
            return features

        def parameter(self, group: str) -> Tensor:
            raise KeyError(group)

        def groups(self) -> dict[str, SynapseGroup]:
            return {}

        def weights(self) -> dict[str, Tensor]:
            return {}

        def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
            return {}

    with pytest.raises(CompatibilityError, match="runs through a LayeredNetwork, got a Field"):
        Learner(Field(), Backprop(), Delta())
