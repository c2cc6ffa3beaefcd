"""Least control and implicit gradients of networks, gradient fields and local rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Backprop,
    Consolidated,
    CrossEntropy,
    Delta,
    DirectFeedback,
    Implicit,
    KolenPollack,
    LayeredNetwork,
    Learner,
    LeastControl,
    SquaredError,
)
from metaplastic.metagradient import Equilibrium
from metaplastic.metagradient.rest import Rest
from metaplastic.testing.oracles import central_difference
from tests.helpers import (
    assert_close,
    deviation,
    meta_gradient,
    mlp,
    presentation,
    seeded,
    shake,
    unit_direction,
)
from tests.lcp.parts import (
    at_rest,
    gradient_field,
    local_field,
    rest_by_hand,
    settled,
    shown,
)

BETA = 0.05
OPTIONS = {"steps": 50, "rate": 0.6, "tolerance": 1e-9}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def convolutional() -> Learner:
    """A trunk, a convolution with a norm behind it, and a fixed first bias."""
    chain = nn.Sequential(
        nn.Conv2d(2, 2, 2), nn.Tanh(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)
    )
    trunk = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh())
    network = LayeredNetwork(chain, trunk=trunk, input_shape=(1, 3, 3)).double()
    rules = {
        "name:layer0_bias": None,
        "*": Consolidated(Delta(0.1, learned=True, reduction="positions"), 1.0),
    }
    learner = Learner(network, Backprop(), rules, CrossEntropy())
    return shake(learner, 3, initial=0.2, control=0.1)


def aligning() -> Learner:
    """Feedback that is plastic too, and stays as at the start."""
    rule = Consolidated(Delta(0.5, learned=True, decay=0.05), 1.0)
    return shake(Learner(mlp(2, 4, 2), KolenPollack("learned"), rule, SquaredError()), 5)


LEARNERS = {
    "gradient": gradient_field,
    "local": local_field,
    "convolutional": convolutional,
    "aligning": aligning,
}


# --- against finite differences ---


@pytest.mark.parametrize("name", LEARNERS)
def test_the_implicit_gradient_is_the_slope_of_the_loss_at_rest(name):
    learner = LEARNERS[name]()
    episodes = shown(learner)
    method = Implicit(terms=25, **OPTIONS)
    found = meta_gradient(learner, episodes, method)

    def loss() -> float:
        return float(rest_by_hand(learner, episodes, 50, 0.6).mean())

    assert slope_error(learner, found, loss) < 1e-6


@pytest.mark.parametrize("name", LEARNERS)
def test_lcp_t21_the_least_control_gradient_is_the_slope_of_min_f(name):
    """F = |f|^2 / 2 + beta L, over beta, for all meta-parameters together."""
    learner = LEARNERS[name]()
    episodes = shown(learner)
    method = LeastControl("inversion", BETA, free_steps=0, **(OPTIONS | {"steps": 90}))
    found = meta_gradient(learner, episodes, method)

    def smallest() -> float:
        rest = settled(learner, episodes, method)
        assert float(rest.residual.max()) < 1e-9
        return float((rest.psi.square().sum(1) / 2 / BETA + rest.loss).mean())

    assert slope_error(learner, found, smallest) < 1e-6


@pytest.mark.parametrize("part", ["strength", "feedback", "plasticity", "mix", "body"])
def test_lcp_t21_every_part_of_a_local_learner_gets_its_own_slope(part):
    learner = local_field()
    episodes = shown(learner, 1)
    method = LeastControl("inversion", BETA, free_steps=0, **OPTIONS)
    found = meta_gradient(learner, episodes, method)

    def smallest() -> float:
        rest = settled(learner, episodes, method)
        return float(rest.psi.square().sum() / 2 / BETA + rest.loss)

    assert slope_error(learner, found, smallest, part) < 1e-6


def slope_error(learner: Learner, found: dict[str, Tensor], loss, part: str = "") -> float:
    along = unit_direction(learner, 1, part)
    wanted = float(sum((found[n] * d).sum() for n, d in along.items()))
    return abs(central_difference(learner, along, 1e-5, loss) - wanted) / abs(wanted)


# --- against each other ---


@pytest.mark.parametrize("make", [gradient_field, local_field])
@pytest.mark.parametrize("variant", ["inversion", "contrastive"])
def test_lcp_t16_weak_control_gives_the_implicit_gradient(make, variant):
    """The contrast does so for gradient fields only."""
    learner = make()
    episodes = shown(learner)
    solver = "cg" if make is gradient_field else "gmres"
    exact = meta_gradient(learner, episodes, Implicit(solver, 25, **OPTIONS))
    errors = []
    for beta in (1e-2, 1e-3):
        method = LeastControl(variant, beta, **OPTIONS)
        found = meta_gradient(learner, episodes, method)
        errors.append(float((flat(found) - flat(exact)).norm() / flat(exact).norm()))
    if variant == "contrastive" and make is local_field:
        assert errors[1] > 0.03
        return
    assert torch.cosine_similarity(flat(found), flat(exact), 0) > 0.9999
    assert errors[0] / errors[1] == pytest.approx(10, abs=1.5)


@pytest.mark.parametrize("make", [gradient_field, local_field])
def test_lcp_t17_weak_direct_control_gives_the_t1_t2_gradient(make):
    learner = make()
    episodes = shown(learner)
    exact = meta_gradient(learner, episodes, Implicit("identity", **OPTIONS))
    errors = []
    for beta in (1e-2, 1e-3):
        found = meta_gradient(learner, episodes, LeastControl("direct", beta, **OPTIONS))
        errors.append(float((flat(found) - flat(exact)).norm() / flat(exact).norm()))
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, abs=1.5)
    strong = meta_gradient(learner, episodes, Implicit(terms=25, **OPTIONS))
    assert torch.cosine_similarity(flat(found), flat(strong), 0) < 0.99


def test_lcp_t17_t1_t2_of_the_prior_is_lambda_times_the_slope():
    learner = gradient_field()
    episodes = shown(learner, 1)
    rest = settled(learner, episodes, Implicit("identity", **OPTIONS))
    found = meta_gradient(learner, episodes, Implicit("identity", **OPTIONS))
    weights = at_rest(learner, episodes).weights(rest.phi[0])
    weights = {n: w.clone().requires_grad_() for n, w in weights.items()}
    output = learner.network(episodes.query_x[0], weights)
    loss = (output - episodes.query_y[0]).square().mean()
    slopes = torch.autograd.grad(loss, list(weights.values()))
    for (name, slope), own in zip(
        zip(weights, slopes, strict=True), learner.network.groups(), strict=True
    ):
        parameter = learner.network.parameter(own)
        (which,) = (n for n, p in learner.named_parameters() if p is parameter)
        strength = learner.get_parameter(f"rules.{name}.strength.raw").exp()
        assert deviation(found[which], (strength * slope).reshape(parameter.shape)) < 1e-10


def test_lcp_t18_two_read_outs_agree_as_the_state_settles():
    """|f + psi| over |psi| with psi = -beta grad L."""
    learner = local_field()
    episodes = shown(learner)
    left = []
    for steps in (4, 8, 16, 32, 50):
        method = LeastControl("direct", 0.1, steps=steps, rate=0.6, free_steps=0)
        rest = settled(learner, episodes, method)
        fields = at_rest(learner, episodes)
        with torch.no_grad():
            gap = (fields.field(rest.phi) + rest.psi).norm(dim=1) / rest.psi.norm(dim=1)
        assert torch.allclose(rest.residual, gap, rtol=1e-9, atol=1e-14)
        left.append(float(rest.residual.max()))
    assert all(b < 0.5 * a for a, b in pairwise(left))
    assert left[-1] < 1e-9


METHODS = {
    "inversion": LeastControl("inversion", BETA, **OPTIONS),
    "direct": LeastControl("direct", BETA, **OPTIONS),
    "contrastive": LeastControl("contrastive", BETA, **OPTIONS),
    "implicit": Implicit(terms=25, **OPTIONS),
    "neumann": Implicit("neumann", 60, **OPTIONS),
}


@pytest.mark.parametrize("name", METHODS)
def test_lcp_t20_episodes_at_once_are_episodes_one_by_one(name):
    learner, method = local_field(), METHODS[name]
    episodes = shown(learner, 3)
    together = meta_gradient(learner, episodes, replace(method, batching="vmap"))
    alone = meta_gradient(learner, episodes, replace(method, batching="loop"))
    assert_close(together, alone, 1e-12)
    assert_close(meta_gradient(learner, episodes[[2, 0, 1]], method), alone, 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_lcp_t20_an_episode_that_needs_no_control_adds_nothing(name):
    learner, method = local_field(), METHODS[name]
    episodes = shown(learner, 2)
    rest = at_rest(learner, episodes)
    free = settled(learner, episodes, method if name == "implicit" else Implicit(**OPTIONS)).phi
    output = learner.network(
        episodes.query_x[1], {**learner.start()["weights"], **rest.weights(free[1])}
    )
    target = episodes.query_y.clone()
    target[1] = output.detach()
    solved = replace(episodes, query_y=target)
    alone = meta_gradient(learner, episodes[[0]], method)
    both = meta_gradient(learner, solved, replace(method, tolerance=0.05))
    assert_close({n: 2 * g for n, g in both.items()}, alone, 1e-8)


def test_lcp_t20_single_precision_comes_close():
    learner = local_field()
    episodes = shown(learner)
    method = LeastControl("inversion", BETA, steps=40, rate=0.8)
    exact = flat(meta_gradient(learner, episodes, method))
    learner.float()
    found = flat(meta_gradient(learner, episodes, method))
    assert found.dtype == torch.float32
    assert deviation(found.double(), exact) < 1e-4


def test_lcp_t22_direct_control_takes_no_second_derivative(monkeypatch):
    learner = local_field()
    episodes = shown(learner)
    plain, asked = torch.autograd.grad, []

    def first_order(*arguments, **options):
        asked.append(options.get("create_graph"))
        return plain(*arguments, **options)

    def refuse(*arguments: object) -> None:
        raise AssertionError("no product with the Jacobian of the field")

    field, graphs = learner.field, []

    def watched(state, shown):
        graphs.append(any(state["weights"][n].requires_grad for n in learner.network.groups()))
        return field(state, shown)

    monkeypatch.setattr(torch.autograd, "grad", first_order)
    monkeypatch.setattr(Rest, "linearised", refuse)
    monkeypatch.setattr(learner, "field", watched)
    meta_gradient(learner, episodes, LeastControl("direct", 0.1, **OPTIONS))
    assert not any(asked)
    assert len(asked) > 40
    assert not any(graphs)
    with pytest.raises(AssertionError, match="no product"):
        meta_gradient(learner, episodes, LeastControl("inversion", 0.1, **OPTIONS))


# --- what the field is ---


@pytest.mark.parametrize("name", LEARNERS)
def test_the_outcome_is_that_of_the_free_rest_point(name):
    learner = LEARNERS[name]()
    episodes = shown(learner, 3)
    wanted = rest_by_hand(learner, episodes, 50, 0.6)
    for method in (METHODS["inversion"], METHODS["implicit"]):
        outcome = method.gradient(learner, episodes)
        assert torch.allclose(outcome.loss, wanted, rtol=1e-9)
        assert outcome.residual is not None
        assert outcome.residual.shape == (3,)
        assert (outcome.accuracy is None) == (name != "convolutional")


def test_the_field_is_that_of_all_examples_at_once():
    """And its products with the Jacobian are those of autograd's."""
    learner = local_field()
    episodes = shown(learner, 2)
    rest = at_rest(learner, episodes)
    phi = rest.begin + 0.1 * torch.randn(rest.begin.shape, generator=seeded(), dtype=torch.float64)
    psi = torch.randn(phi.shape, generator=seeded(1), dtype=torch.float64)
    found, pull = rest.linearised(phi)
    for e in range(2):

        def field(own: Tensor, e: int = e) -> Tensor:
            state = learner.start(6)
            state = {**state, "weights": state["weights"] | rest.weights(own)}
            x, y = episodes.support_x[e].flatten(0, 1), episodes.support_y[e].flatten(0, 1)
            change = learner.field(state, presentation(learner, x, y))
            return torch.cat([change[n].flatten() for n in learner.network.groups()])

        jacobian = torch.autograd.functional.jacobian(field, phi[e])
        assert isinstance(jacobian, Tensor)
        assert deviation(found[e], field(phi[e])) < 1e-12
        assert deviation(pull(psi)[e], jacobian.mT @ psi[e]) < 1e-12
        assert deviation(jacobian, jacobian.mT) > 0.01


def test_the_order_of_the_stream_is_not_in_it():
    learner: Learner = local_field()
    episodes = shown(learner)
    method: Equilibrium = METHODS["inversion"]
    turned = replace(
        episodes, support_x=episodes.support_x.flip(1), support_y=episodes.support_y.flip(1)
    )
    assert_close(
        meta_gradient(learner, turned, method), meta_gradient(learner, episodes, method), 1e-9
    )


def test_padding_changes_nothing():
    learner = local_field()
    episodes = shown(learner)
    ones = torch.ones(2, 3, 2).double()
    padded = replace(
        episodes,
        support_x=torch.cat([episodes.support_x, 7 + episodes.support_x[:, :, :1]], 2),
        support_y=torch.cat([episodes.support_y, 7 + episodes.support_y[:, :, :1]], 2),
        support_weight=torch.cat([ones, 0 * ones[:, :, :1]], 2),
    )
    for name in ("inversion", "implicit"):
        wanted = meta_gradient(learner, episodes, METHODS[name])
        assert_close(meta_gradient(learner, padded, METHODS[name]), wanted, 1e-9)


def test_what_is_resampled_is_drawn_once_for_an_episode():
    """The slope of the loss by the coefficients, under the same draws."""
    credit = DirectFeedback("error", weights="resampled", scale=0.3)
    rule = Consolidated(Delta(0.2, learned=True), 1.0)
    learner = Learner(mlp(2, 4, 2), credit, rule, SquaredError(), initial="resampled").double()
    episodes, method = shown(learner), Implicit(terms=25, **OPTIONS)
    found = meta_gradient(learner, episodes, method, seeded(3))
    loop = replace(method, batching="loop")
    assert_close(meta_gradient(learner, episodes, loop, seeded(3)), found, 1e-12)

    def loss() -> float:
        return float(method.gradient(learner, episodes, generator=seeded(3)).loss.mean())

    assert slope_error(learner, found, loss) < 1e-6
    other = meta_gradient(learner, episodes, method, seeded(4))
    assert all(not torch.equal(other[n], g) for n, g in found.items())
