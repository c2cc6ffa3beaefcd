"""The named learners at rest: their field, their meta-gradients and their options."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Consolidated,
    CrossEntropy,
    Episodes,
    Implicit,
    LayeredNetwork,
    Learner,
    LeastControl,
    Objective,
    SquaredError,
    ThroughRest,
)
from metaplastic.errors import ConfigurationError
from metaplastic.recipes import RECIPES, recipe
from tests.helpers import (
    assert_close,
    classification,
    gradients,
    meta_gradient,
    mlp,
    normal,
    presentation,
    regression,
    seeded,
)

NAMES = [name for name, known in RECIPES.items() if known.rest is not None]
BACKPROP = [name for name in NAMES if name != "flp-lcp"]
OBJECTIVES = [SquaredError(), CrossEntropy()]


def named(name: str, objective: Objective | None = None, seed: int = 1, **options) -> Learner:
    """A named learner of 9 inputs, 5 tanh units and 3 outputs in float64."""
    known = recipe(name)
    network = LayeredNetwork(nn.Sequential(nn.Flatten(), *mlp(9, 5, 3)))
    chosen = known.configure(options)
    return known.build(network, objective or CrossEntropy(), chosen, seeded(seed)).double()


def shown(learner: Learner, count: int) -> Episodes:
    """Six support examples and six queries of each episode."""
    if isinstance(learner.objective, CrossEntropy):
        return classification(count, 3, 2, (1, 3, 3), 3, queries=6)
    episodes = regression(count, 3, 2, 9, 3, queries=6)
    return replace(episodes, support_x=0.5 * episodes.support_x, query_x=0.5 * episodes.query_x)


def method(name: str, **options):
    known = recipe(name)
    assert known.rest is not None
    return known.rest(known.configure(options))


def test_the_learners_at_rest_are_these():
    assert NAMES == [
        "lcp", "lcp-direct", "lcp-contrastive", "imaml", "t1-t2", "maml-rest", "flp-lcp",
    ]  # fmt: skip
    assert all(recipe(name).smooth and not recipe(name).whole for name in NAMES)
    assert not any(known.smooth for name, known in RECIPES.items() if name not in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_and_bias_is_plastic_and_consolidated(name):
    learner = named(name)
    assert learner.plastic == set(learner.network.groups())
    assert {g.role for g in learner.network.groups().values()} == {"weight", "bias"}
    assert all(isinstance(rule, Consolidated) for rule in learner.rules.values())


def proximal(
    weights: list[Tensor], begin: list[Tensor], x: Tensor, y: Tensor, strength: list[float],
    classes: bool,
) -> Tensor:  # fmt: skip
    """Mean support loss of a network with one hidden layer, and the pull to where it began."""
    w1, b1, w2, b2 = weights
    total = torch.zeros((), dtype=x.dtype)
    for example, target in zip(x, y, strict=True):
        output = w2 @ torch.tanh(w1 @ example.flatten() + b1.flatten()) + b2.flatten()
        if classes:
            total = total + (output.exp().sum().log() - output[target]) / len(x)
        else:
            total = total + 0.5 * ((output - target) ** 2).sum() / len(x)
    for w, first, pull in zip(weights, begin, strength, strict=True):
        total = total + 0.5 * pull * ((w - first) ** 2).sum()
    return total


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["numbers", "classes"])
@pytest.mark.parametrize("name", BACKPROP)
@pytest.mark.parametrize("count", [1, 4])
def test_the_field_is_minus_the_gradient_of_the_proximal_loss(name, objective, count):
    classes = isinstance(objective, CrossEntropy)
    learner = named(name, objective, strength=0.7, rate=0.2)
    pulls = [0.7, 0.2, 1.3, 0.4]
    names = list(learner.network.groups())
    for group, pull in zip(names, pulls, strict=True):
        rule = learner.rules[group]
        assert isinstance(rule, Consolidated)
        assert torch.allclose(rule.strength(), torch.tensor(0.2 * 0.7).double())
        rule.strength.assign(torch.full_like(rule.strength(), 0.2 * pull))
    x = normal(count, 1, 3, 3)
    y = torch.arange(count) % 3 if classes else normal(count, 3, seed=1)
    state = learner.start(count)
    begin = [state["weights"][n].detach() for n in names]
    moved = [w + 0.1 * normal(*w.shape, seed=9 + i) for i, w in enumerate(begin)]
    state["weights"] = state["weights"] | dict(zip(names, moved, strict=True))
    field = learner.field(state, presentation(learner, x, y))
    free = [w.clone().requires_grad_() for w in moved]
    wanted = torch.autograd.grad(proximal(free, begin, x, y, pulls, classes), free)
    for n, g in zip(names, wanted, strict=True):
        assert torch.allclose(field[n], -0.2 * g, rtol=1e-10, atol=1e-13), n


@pytest.mark.parametrize(
    ("objective", "count"), [(SquaredError(), 1), (CrossEntropy(), 3)], ids=["numbers", "classes"]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_settle_in_single_precision(name, objective, count):
    learner = named(name, objective).float()
    episodes = shown(learner, count)
    given, before = copy.deepcopy(episodes), copy.deepcopy(learner.state_dict())
    for p in learner.parameters():
        p.grad = None
    outcome = method(name).gradient(learner, episodes)
    assert outcome.kept == tuple(range(count))
    assert outcome.residual is not None
    assert float(outcome.residual.max()) < 0.01
    found = gradients(learner)
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert all(bool(g.any()) for n, g in found.items() if "strength" in n or "layer0" in n)
    assert torch.equal(episodes.support_x, given.support_x)
    assert torch.equal(episodes.query_y, given.query_y)
    assert all(torch.equal(before[n], v) for n, v in learner.state_dict().items())


def test_the_methods_agree_where_they_should():
    """Under weak control three ways lead to the implicit gradient and two to T1-T2."""
    episodes = shown(named("lcp"), 2)
    options = {"rate": 0.3, "steps": 60}
    weak = {**options, "beta": 1e-5}
    found = {
        name: meta_gradient(
            named(name, **options),
            episodes,
            method(name, **(weak if name.startswith("lcp") else options)),
        )
        for name in BACKPROP
    }
    for name in ("lcp", "lcp-contrastive", "maml-rest"):
        assert_close(found[name], found["imaml"], 1e-3)
    assert_close(found["lcp-direct"], found["t1-t2"], 1e-3)
    exact, crude = (torch.cat([g.flatten() for g in found[n].values()]) for n in ("imaml", "t1-t2"))
    assert torch.cosine_similarity(exact, crude, dim=0) < 0.99


# --- feedback and local plasticity ---


@pytest.mark.parametrize("variant", ["inversion", "direct", "contrastive"])
def test_fixed_feedback_stays_at_the_random_start(variant):
    learned, fixed = named("flp-lcp"), named("flp-lcp", feedback="fixed")
    groups = set(learned.credit.groups())
    assert groups
    roles = {group["name"] for group in fixed.param_groups()}
    assert roles == {group["name"] for group in learned.param_groups()} - {"feedback"}
    assert not any("feedback" in name for name, _ in fixed.named_parameters())
    before = {name: value.clone() for name, value in fixed.credit.weights().items()}
    for name, value in learned.credit.weights().items():
        assert torch.equal(value, before[name])
    episodes = shown(fixed, 2)
    chosen = method("flp-lcp", feedback="fixed", variant=variant)
    optimizer = torch.optim.SGD(fixed.parameters(), lr=0.1)
    found = meta_gradient(fixed, episodes, chosen)
    assert any(bool(g.any()) for g in found.values())
    optimizer.step()
    for name, value in fixed.credit.weights().items():
        assert torch.equal(value, before[name])
    found = meta_gradient(learned, episodes, method("flp-lcp", variant=variant))
    feedback = [g for name, g in found.items() if "feedback" in name]
    assert len(feedback) == 2  # of the hidden layer and of the output
    assert all(bool(g.any()) for g in feedback)


def test_the_error_reaches_the_last_layer_through_feedback_too():
    learner = named("flp-lcp")
    x, y = normal(2, 1, 3, 3), torch.tensor([0, 2])
    state = learner.start(2)
    field = learner.field(state, presentation(learner, x, y))
    blind = {n: torch.zeros_like(w) if "feedback" in n else w for n, w in state["weights"].items()}
    other = learner.field({**state, "weights": blind}, presentation(learner, x, y))
    assert len(field) == 4
    assert all(not torch.allclose(field[name], other[name]) for name in field)


# --- options ---


def test_options_reach_the_method():
    way = {"steps": 7, "momentum": 0.2, "memory": 0, "tolerance": 0.5}
    given = {"rate": 0.5, **way}
    for name, variant, unit in (
        ("lcp", "inversion", 0.25), ("lcp-direct", "direct", 0.5),
        ("lcp-contrastive", "contrastive", 0.5),
    ):  # fmt: skip
        wanted = LeastControl(variant=variant, beta=0.4 * unit, **way)
        assert method(name, beta=0.4, **given) == wanted
        assert method("flp-lcp", variant=variant, beta=0.4, **given) == wanted
    assert method("imaml", terms=3, damping=0.1, **given) == Implicit(
        solver="cg", terms=3, damping=0.1, **way
    )
    assert method("t1-t2", **given) == Implicit(solver="identity", **way)
    assert method("maml-rest", **given) == ThroughRest(**way)
    assert method("maml-rest").tolerance == math.inf


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_point_and_control_do_not_depend_on_the_rate(name):
    """Nor does the gradient, but for its size where the identity stands for the field's slope."""
    episodes = shown(named(name), 2)
    found, losses = [], []
    for rate, steps in ((0.2, 200), (0.1, 400)):
        options = {"rate": rate, "steps": steps, "memory": 0, "momentum": 0.0, "tolerance": 1e-6}
        learner = named(name, **options)
        outcome = method(name, **options).gradient(learner, episodes)
        assert outcome.kept == (0, 1)
        losses.append(outcome.loss)
        flat = torch.cat([g.flatten() for g in gradients(learner).values()])
        found.append(flat / rate if name in ("lcp-direct", "t1-t2") else flat)
    assert torch.allclose(*losses, rtol=1e-6)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_strength_is_an_option(name):
    learner = named(name, strength=0.4, strength_granularity="neuron")
    for group, kept in learner.start()["coefficients"].items():
        assert kept["strength"].shape == (learner.network.groups()[group].n_out, 1)
        pull = 0.1 * 0.4  # times the rate
        assert torch.allclose(kept["strength"], torch.full_like(kept["strength"], pull))
    fixed = named(name, learned=False)
    assert not any("strength" in n for n, _ in fixed.named_parameters())
    assert sum("strength" in n for n, _ in learner.named_parameters()) == 4


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_are_refused(name):
    with pytest.raises(ConfigurationError, match="tolerance"):
        method(name, tolerance=-1.0)
    with pytest.raises(ConfigurationError, match="has no option"):
        recipe(name).configure({"nudge": 1.0})
    assert ("beta" in asdict(recipe(name).options)) == ("lcp" in name)


def test_a_wrong_variant_is_refused():
    with pytest.raises(ConfigurationError, match="variant"):
        method("flp-lcp", variant="optimal")
    with pytest.raises(ConfigurationError, match="weights"):
        named("flp-lcp", feedback="frozen")


def test_one_seed_draws_one_feedback():
    first, again, other = (named("flp-lcp", seed=seed) for seed in (1, 1, 2))
    values, same, others = (learner.credit.weights() for learner in (first, again, other))
    assert all(torch.equal(v, same[n]) for n, v in values.items())
    assert any(not torch.equal(v, others[n]) for n, v in values.items())
