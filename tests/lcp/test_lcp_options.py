"""Who is refused, who is left out, and what the options do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from metaplastic import (
    Backprop,
    Coefficient,
    Consolidated,
    Delta,
    Divergence,
    Hebb,
    Implicit,
    Learner,
    LeastControl,
    MetaTraining,
    Oja,
    RecurrentNetwork,
    SignSymmetry,
    SquaredError,
    ThroughRest,
    Unsettled,
    Unsupervised,
    WeightMirror,
)
from metaplastic.errors import CompatibilityError, ConfigurationError
from tests.helpers import assert_close, gradients, meta_gradient, mlp, regression, seeded, shake
from tests.lcp.parts import bilevel, gradient_field, local_field, settled, shown

METHODS = {
    "inversion": LeastControl("inversion", 0.05, steps=40, rate=0.6),
    "direct": LeastControl("direct", 0.05, steps=40, rate=0.6),
    "contrastive": LeastControl("contrastive", 0.05, steps=40, rate=0.6),
    "implicit": Implicit(steps=40, rate=0.6),
    "cg": Implicit("cg", steps=40, rate=0.6),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_episode_that_does_not_settle_is_left_out_and_told(name):
    """The middle one's inputs are so large that its steps overshoot."""
    learner, method = gradient_field(), METHODS[name]
    episodes = shown(learner, 3)
    wild = replace(episodes, support_x=episodes.support_x.clone())
    wild.support_x[1] *= 9
    wanted = meta_gradient(learner, episodes[[0, 2]], method)
    learner.zero_grad()
    outcome = method.gradient(learner, wild)
    assert_close(gradients(learner), wanted, 1e-9)
    assert outcome.kept == (0, 2)
    assert outcome.residual is not None
    assert float(outcome.residual.max()) <= method.tolerance
    (lost,) = outcome.diverged
    assert isinstance(lost, Unsettled)
    assert not lost.residual <= method.tolerance
    assert str(lost).startswith("episode 1: the weights did not settle (residual ")
    assert "take more steps" in str(lost)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("factor", [1e200, 1e3])
def test_no_gradient_is_ever_not_a_number(name, factor):
    learner = gradient_field()
    learner.rules["layer0_weight"].requires_grad_(True)
    episodes = shown(learner, 2)
    episodes.support_y.mul_(factor)
    outcome = METHODS[name].gradient(learner, episodes)
    assert len(outcome.kept) + len(outcome.diverged) == 2
    assert all(bool(g.isfinite().all()) for g in gradients(learner).values())


def test_relu_units_that_do_not_settle_give_no_gradient():
    """A rest point on a kink is none for dynamic inversion: it says so instead of guessing."""
    rule = Consolidated(Oja(0.3, 0.6), 0.05)
    credit = Backprop()
    learner = Learner(mlp(2, 6, 2, activation=nn.ReLU), credit, rule, SquaredError())
    shake(learner, 1, initial=0.3)
    episodes = shown(learner, 8)
    method = LeastControl("inversion", 1.0, steps=30)
    outcome = method.gradient(learner, episodes)
    assert len(outcome.diverged) > 0
    assert all(isinstance(lost, Divergence) for lost in outcome.diverged)


def test_a_rule_without_a_rest_point_is_told_to_be_consolidated():
    """Plain Hebb grows for ever."""
    learner = shake(Learner(mlp(2, 4, 2), Unsupervised(), Hebb(0.3, 0.0), SquaredError()))
    outcome = Implicit(steps=50).gradient(learner, shown(learner))
    assert outcome.kept == ()
    assert "stronger consolidation" in str(outcome.diverged[0])
    consolidated = Learner(
        mlp(2, 4, 2), Unsupervised(), Consolidated(Hebb(0.3, 0.0), 0.8), SquaredError()
    )
    assert Implicit(steps=50).gradient(shake(consolidated), shown(learner)).diverged == ()


def test_conjugate_gradients_report_negative_curvature():
    """Far from a minimum, where the steps are too short to leave: nothing is solved there."""
    rule = Consolidated(Delta(1.0, reduction="sum"), Coefficient(1e-3, learned=False))
    bent = Learner(mlp(2, 4, 2), Backprop(), rule, SquaredError()).double()
    still = Implicit("cg", 60, steps=1, rate=1e-9, tolerance=1e6)
    residual = settled(bent, regression(6, 3, 2, 2, 2), still).residual
    assert bool(residual.isfinite().all())
    outcome = replace(still, tolerance=0.99).gradient(bent, regression(6, 3, 2, 2, 2))
    assert outcome.kept == ()
    assert "another solver" in str(outcome.diverged[0])


@pytest.mark.parametrize(
    ("credit", "error"),
    [
        (WeightMirror(), "WeightMirror draws noise"),
        (SignSymmetry("presentation"), "SignSymmetry draws noise"),
    ],
)
def test_a_credit_with_noise_is_refused_by_name(credit, error):
    rule = Consolidated(Delta(0.1), 0.5)
    rules = {"*": rule}
    if isinstance(credit, WeightMirror):
        rules = {"role:feedback": Delta(0.1, derivative=False), "*": rule}
    learner = Learner(mlp(2, 4, 2), credit, rules, SquaredError())
    for method in METHODS.values():
        with pytest.raises(CompatibilityError, match=error):
            method.gradient(learner, shown(learner), generator=seeded())


def test_a_network_with_a_state_and_one_without_plastic_weights_are_refused():
    network = RecurrentNetwork(2, 4, 2)
    carried = Learner(network, Unsupervised(), Consolidated(Hebb(0.1, 0.0), 0.5), SquaredError())
    with pytest.raises(CompatibilityError, match="RecurrentNetwork carries a state"):
        Implicit().gradient(carried, regression(2, 3, 1, 2, 2))
    still = Learner(mlp(2, 4, 2), Backprop(), None, SquaredError())
    with pytest.raises(ConfigurationError, match="no weight of this network is plastic"):
        LeastControl().gradient(still, shown(still))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (LeastControl, {"variant": "x"}),
        (LeastControl, {"beta": 0.0}),
        (LeastControl, {"beta": float("nan")}),
        (LeastControl, {"free_steps": -1}),
        (LeastControl, {"free_steps": 0, "variant": "contrastive"}),
        (LeastControl, {"symmetric": True}),
        (LeastControl, {"steps": 0}),
        (LeastControl, {"rate": 0.0}),
        (LeastControl, {"momentum": 1.0}),
        (LeastControl, {"memory": -1}),
        (LeastControl, {"memory": 1, "momentum": 0.1}),
        (ThroughRest, {"memory": 1}),
        (LeastControl, {"tolerance": -1.0}),
        (LeastControl, {"batching": "all"}),
        (Implicit, {"solver": "lu"}),
        (Implicit, {"terms": 0}),
        (Implicit, {"damping": -0.1}),
    ],
)
def test_bad_options_are_refused(method, options):
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        method(**options)


def test_momentum_gets_to_the_same_place_sooner():
    q = bilevel()
    near = {}
    for momentum in (0.0, 0.4):
        for variant in ("inversion", "direct"):
            method = LeastControl(variant, 0.1, steps=40, rate=0.15, momentum=momentum)
            near[momentum, variant] = float(settled(q.learner, q.episodes, method).residual)
    assert near[0.4, "direct"] < 0.1 * near[0.0, "direct"]
    assert near[0.4, "inversion"] < 0.1 * near[0.0, "inversion"]


@pytest.mark.parametrize("variant", ["inversion", "direct", "contrastive"])
def test_acceleration_gets_to_the_same_place_in_fewer_steps(variant):
    """Its gradient too, of a field that is no gradient; without it so few steps are too few."""
    q = bilevel()
    few, many = {"steps": 25, "rate": 0.15}, {"steps": 2000, "rate": 0.15}
    plain = settled(q.learner, q.episodes, LeastControl(variant, 0.1, **few))
    fast = settled(q.learner, q.episodes, LeastControl(variant, 0.1, **few, memory=5))
    assert float(fast.residual) < 1e-6 < 1e-3 < float(plain.residual)
    learner = local_field()
    episodes = shown(learner, 3)
    wanted = meta_gradient(learner, episodes, LeastControl(variant, 0.1, **many))
    few["steps"] = 100
    found = meta_gradient(learner, episodes, LeastControl(variant, 0.1, **few, memory=5))
    assert_close(found, wanted, 1e-8)


def test_the_penalty_is_added_once():
    learner = gradient_field()
    episodes = shown(learner, 2)
    plain = meta_gradient(learner, episodes, METHODS["inversion"])
    for module in learner.modules():
        if isinstance(module, Coefficient):
            module.l1 = 0.1
    found = meta_gradient(learner, episodes, METHODS["inversion"])
    for name, parameter in learner.named_parameters():
        slope = 0.1 * parameter.exp() if name.endswith("strength.raw") else 0 * parameter
        torch.testing.assert_close(found[name] - plain[name], slope.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_local_learners_train_at_rest(name):
    learner = local_field()
    if name == "cg":
        learner = gradient_field()
    episodes = shown(learner, 4)
    training = MetaTraining(
        learner,
        lambda g: episodes,
        metagradient=METHODS[name],
        optimizer=torch.optim.Adam(learner.parameters(), 0.03),
    )
    losses = [report.loss for report in training.run(8) if report.loss is not None]
    assert len(losses) == 8
    assert losses[-1] < 0.95 * losses[0]
