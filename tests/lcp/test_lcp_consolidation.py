"""Consolidation: the pull to where the episode began, online and at rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import (
    Backprop,
    Consolidated,
    Delta,
    DirectFeedback,
    Eligibility,
    Learner,
    Oja,
    SquaredError,
    Unrolled,
    evaluate,
)
from metaplastic.signals import LocalSignals, SynapseGroup
from tests.helpers import (
    assert_close,
    deviation,
    final_weights,
    meta_gradient,
    mlp,
    normal,
    raw,
    regression,
    shake,
    slope_error,
    unit_direction,
)


def linear(strength: float, rate: float = 0.0, size: int = 3) -> Learner:
    chain = nn.Sequential(nn.Linear(size, 1, bias=False)).double()
    chain[0].weight.data = normal(1, size, seed=7)
    rule = Consolidated(Delta(rate or 1e-300, reduction="sum"), strength, granularity="synapse")
    return Learner(chain, Backprop(), rule, SquaredError()).double()


def test_a_stream_forgets_geometrically():
    """In closed form: one example, then nothing but zeros: W_0 + (1 - strength)^(T - 1) dW_1."""
    learner = linear(0.25, 0.1)
    episodes = regression(1, 6, 1, 3, 1)
    episodes.support_x[:, 1:] = 0.0
    begin = learner.network.weights()["layer0_weight"].detach()
    x, y = episodes.support_x[0, 0, 0], episodes.support_y[0, 0, 0]
    first = 0.1 * (y - begin @ x) * x
    wanted = begin + 0.75**5 * first
    assert deviation(final_weights(learner, episodes)["layer0_weight"][0], wanted) < 1e-14


def test_long_streams_of_the_same_examples_come_to_rest_at_ridge_regression():
    """(X^T X + lambda / rate) W = X^T y + lambda / rate W_0, shown 200 times."""
    learner, rate, strength = linear(0.2, 0.05), 0.05, 0.2
    one = regression(1, 1, 4, 3, 1)
    episodes = regression(1, 200, 4, 3, 1)
    episodes.support_x[:], episodes.support_y[:] = one.support_x, one.support_y
    x, y = one.support_x[0, 0], one.support_y[0, 0]
    begin = learner.network.weights()["layer0_weight"].detach()
    ridge = strength / rate
    matrix = x.mT @ x + ridge * torch.eye(3).double()
    wanted = torch.linalg.solve(matrix, x.mT @ y + ridge * begin.mT).mT
    assert deviation(final_weights(learner, episodes)["layer0_weight"][0], wanted) < 1e-10


def test_without_strength_it_is_the_rule():
    episodes = regression(2, 3, 2, 3, 2)

    def made(rule) -> Learner:
        credit = DirectFeedback("error", bias=True)
        learner = Learner(mlp(3, 4, 2), credit, rule, SquaredError())
        return shake(learner, 1, feedback=0.2)

    plain = made(Oja(0.2))
    other = made(Consolidated(Oja(0.2), 0.0))
    assert_close(final_weights(other, episodes), final_weights(plain, episodes), 1e-14)
    wanted, found = meta_gradient(plain, episodes), meta_gradient(other, episodes)
    renamed = {n.replace(".rule.", "."): g for n, g in found.items()}
    assert_close(renamed, wanted, 1e-12)


@pytest.mark.parametrize("inner", [Oja(0.2), Delta(0.1, learned=True), Eligibility(0.1, 3.0)])
def test_one_presentation_is_the_rule_s_change_and_the_pull(inner):
    rule = Consolidated(inner, 0.3)
    group = SynapseGroup("layer0_weight", 4, 3)
    bound, alone = rule.bind(group).double(), inner.bind(group).double()
    weight, begin = normal(4, 3, seed=1), normal(4, 3, seed=2)
    fields = {n: normal(5, 4, seed=i) for i, n in enumerate(sorted(inner.needs), 5)}
    seen = LocalSignals(pre=normal(5, 3, seed=3), post=normal(5, 4, seed=4), **fields)
    traces, own = alone.init(begin), bound.init(begin)
    for _ in range(2):
        wanted, traces = alone.update(weight, seen, traces, alone.coefficients())
        found, own = bound.update(weight, seen, own, bound.coefficients())
        assert deviation(found, wanted + 0.3 * (begin - weight)) < 1e-14


def test_all_its_numbers_are_meta_learned_online():
    """The pull, what is pulled to, and the inner rule's own."""
    learner = Learner(
        mlp(3, 4, 2),
        DirectFeedback("error"),
        Consolidated(Oja(0.2, granularity="neuron"), 0.3, granularity="synapse"),
        SquaredError(),
    )
    shake(learner, 2, plasticity=0.1, control=0.3)
    episodes = regression(2, 4, 2, 3, 2)
    found = meta_gradient(learner, episodes)
    for part in ("strength", r"rule\.plasticity", "body"):
        along = unit_direction(learner, 3, part)
        assert along
        assert slope_error(learner, episodes, along, found) < 1e-7
    roles = {group["name"]: group["params"] for group in learner.param_groups()}
    assert any(p is raw(learner, "layer0_weight", "strength") for p in roles["control"])
    plasticity = raw(learner, "layer0_weight", "rule.plasticity")
    assert any(p is plasticity for p in roles["plasticity"])


def test_the_strength_s_own_options():
    fixed = Consolidated(Oja(0.1), 0.3, learned=False).bind(SynapseGroup("w", 4, 3))
    assert [n for n, _ in fixed.named_parameters() if "strength" in n] == []
    assert float(fixed.coefficients()["strength"]) == 0.3
    each = Consolidated(Oja(0.1), 0.3, granularity="synapse").bind(SynapseGroup("w", 4, 3))
    assert each.coefficients()["strength"].shape == (4, 3)
    plain = Consolidated(Oja(0.1), 0.3).with_rate(0.02)
    assert isinstance(plain.rule, Oja)
    assert float(plain.coefficients()["rule.plasticity"]) == 0.02
    assert float(plain.coefficients()["strength"].detach()) == pytest.approx(0.3)


def test_a_rule_can_be_consolidated_twice():
    """Two pulls add up."""
    episodes = regression(1, 3, 2, 3, 2)

    def after(rule):
        learner = Learner(mlp(3, 2), Backprop(), rule, SquaredError()).double()
        return final_weights(learner, episodes)

    once = after(Consolidated(Delta(0.1), 0.3))
    assert_close(after(Consolidated(Consolidated(Delta(0.1), 0.1), 0.2)), once, 1e-13)


def test_it_learns_online_within_a_meta_training_step():
    learner = Learner(
        mlp(3, 4, 2), Backprop(), Consolidated(Delta(0.1), 0.1), SquaredError()
    ).double()
    episodes = regression(3, 5, 2, 3, 2)
    before = float(evaluate(learner, episodes).loss.mean())
    optimizer = torch.optim.Adam(learner.parameters(), 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        Unrolled().gradient(learner, episodes)
        optimizer.step()
    assert float(evaluate(learner, episodes).loss.mean()) < 0.9 * before
