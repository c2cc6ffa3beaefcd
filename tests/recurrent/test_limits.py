"""Recurrent plastic networks where they become simpler ones, and against those."""

from __future__ import annotations

import math

import pytest
import torch

from metaplastic import Episodes, Hebb, Learner, SquaredError
from metaplastic.credit import Unsupervised
from metaplastic.rules import Backpropamine
from tests.helpers import assert_close, deviation, meta_gradient, normal, regression, show
from tests.recurrent.parts import FORMS, MODULATED_FORMS, SILENT, after_stream, plain, recurrent


def silenced(form: str) -> Learner:
    """No alpha, or no modulator."""
    learner = recurrent(FORMS[form][0](), "scalar" if form in MODULATED_FORMS else None)
    if form in MODULATED_FORMS:
        for group in ("modulator_weight", "modulator_bias"):
            learner.network.parameter(group).data.zero_()
    else:
        for group in learner.plastic:
            learner.get_parameter(f"rules.{group}.alpha.raw").data.zero_()
    return learner


@pytest.mark.parametrize("form", FORMS)
def test_b10_no_alpha_or_no_modulator_is_the_static_network(form):
    learner = silenced(form)
    xs, ys, queries = normal(6, 1, 3), normal(6, 1, 2, seed=2), normal(5, 3, seed=3)
    fast = learner.clone()
    for x, y in zip(xs, ys, strict=True):
        fast.adapt(x, y)
    weights = learner.network.weights()
    assert torch.equal(fast(queries), plain(weights, xs, queries)[1])
    assert torch.equal(show(learner, xs, ys)["network"]["hidden"], plain(weights, xs, queries)[0])

    # What reaches the initial weights is backpropagation through time.
    episodes = Episodes(xs[None], ys[None], queries[None], normal(1, 5, 2, seed=4))
    found = meta_gradient(learner, episodes)
    loss = (plain(weights, xs, queries)[1] - episodes.query_y[0]).square().mean()
    names = [n for n in weights if not n.startswith("modulator")]
    wanted = torch.autograd.grad(loss, [learner.network.parameter(n) for n in names])
    kept = {n: found[f"network.{n}"] for n in names}
    assert_close(kept, dict(zip(names, wanted, strict=True)), 1e-12)


def test_a_network_without_rules_still_lives_through_the_stream():
    learner = recurrent(None)
    episodes = regression(3, 4, 1, 3, 2)
    outputs = after_stream(learner, episodes).outputs()
    for e in range(3):
        weights = learner.network.weights()
        wanted = plain(weights, episodes.support_x[e], episodes.query_x[e])[1]
        torch.testing.assert_close(outputs[e], wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("m", [0.4, -0.7])
def test_b11_constant_modulator_without_clip_is_additive_hebb(m):
    learner = recurrent(Backpropamine("simple", 0.5, clip=None), "scalar")
    learner.network.parameter("modulator_weight").data.zero_()
    learner.network.parameter("modulator_bias").data.fill_(math.atanh(m))
    hebb = Learner(
        learner.network,
        Unsupervised(),
        Hebb(0.0, SILENT, bounded=False, reduction="positions"),
        SquaredError(),
    )
    for group in learner.plastic:
        alpha = learner.get_parameter(f"rules.{group}.alpha.raw")
        hebb.get_parameter(f"rules.{group}.plasticity.raw").data = m * alpha.data
    xs, ys = normal(6, 2, 3), normal(6, 2, 2, seed=2)
    found, wanted = show(learner, xs, ys), show(hebb, xs, ys)
    assert_close(found["weights"], wanted["weights"], 1e-12)
    assert deviation(found["network"]["hidden"], wanted["network"]["hidden"]) < 1e-12
    for group, traces in found["rule"].items():
        alpha = learner.get_parameter(f"rules.{group}.alpha.raw")
        start = learner.network.weights()[group]
        assert deviation(start + alpha * traces["hebb"], found["weights"][group]) < 1e-12
