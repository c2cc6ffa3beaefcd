"""Polynomial rules: the named ones among them, against loops, at zero, and their meta-gradient."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from metaplastic import (
    Backprop,
    Delta,
    DirectFeedback,
    Hebb,
    Learner,
    LocalSignals,
    Oja,
    PlasticityRule,
    SquaredError,
    SynapseGroup,
    Unrolled,
)
from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.rules import Coefficient, Polynomial
from tests.helpers import (
    assert_close,
    deviation,
    meta_gradient,
    mlp,
    normal,
    raw,
    regression,
    seeded,
    shake,
    slope_error,
    unit_direction,
)

GRANULARITIES = ("synapse", "neuron", "layer", "network")
OJA = {"110": 1.0, "021": -1.0}


def bound(terms: dict[str, float], n_out: int, n_in: int, seed: int = 50, **options) -> Polynomial:
    """Fitting a group, with every theta at random."""
    rule = Polynomial(terms, **options).bind(SynapseGroup("layer0_weight", n_out, n_in)).double()
    for i, p in enumerate(rule.parameters()):
        p.data = normal(*p.shape, seed=seed + i)
    return rule


def every(degree: int, factors: int) -> dict[str, float]:
    return Polynomial.full(degree, factors).describe()["terms"]


def change(rule: PlasticityRule, weight: Tensor, signals: LocalSignals) -> Tensor:
    found, traces = rule.update(weight, signals, {}, rule.coefficients())
    assert traces == {}
    return found.detach()


# --- the named rules among them ---


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("reduction", ["positions", "examples", "sum"])
def test_b28_polynomial_is_hebb_and_oja(rate, reduction):
    x, y, weight = normal(6, 4), normal(6, 3, seed=1), normal(3, 4, seed=2)
    signals = LocalSignals(x, y, sites=2)
    for terms, family in (({"110": 1.0}, Hebb), (OJA, Oja)):
        rule = Polynomial(terms, rate=rate, reduction=reduction).double()
        named = family(rate, 0.0, granularity="layer", bounded=False, reduction=reduction).double()
        found, wanted = change(rule, weight, signals), change(named, weight, signals)
        assert bool(((found - wanted).abs() <= 1e-12 * wanted.abs()).all())


def test_b28_gradients_of_the_thetas_are_closed_forms():
    x, y, weight, g = (normal(*s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (3, 4), (3, 4)]))
    weight.requires_grad_()
    rule = Polynomial(OJA, rate=0.3, granularity="layer").double()
    found, _ = rule.update(weight, LocalSignals(x, y), {}, rule.coefficients())
    (found * g).sum().backward()
    hebb, energy = y.mT @ x / 5, y.square().mean(0).unsqueeze(-1)
    wanted = {"110": 0.3 * (hebb * g).sum(), "021": 0.3 * (energy * weight * g).sum()}
    for term, slope in wanted.items():
        found = rule.get_parameter(f"theta_{term}.raw").grad
        assert deviation(found, slope.reshape(1, 1)) < 1e-12
    assert deviation(weight.grad, -0.3 * energy * g) < 1e-12


@pytest.mark.parametrize("kind", ["error", "target"])
def test_reading_the_teaching_signal_it_is_the_delta_rule(kind):
    x, y, t, weight = (normal(*s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (5, 3), (3, 4)]))
    rule = Polynomial({"110": 1.0}, rate=0.2, teaching=True).double()
    delta = Delta(0.2, derivative=False, reduction="positions").double()
    signals = LocalSignals(x, y, t, kind)
    assert rule.needs == {"teaching"}
    assert deviation(change(rule, weight, signals), change(delta, weight, signals)) < 1e-12
    with pytest.raises(CompatibilityError, match="teaching signal"):
        change(rule, weight, LocalSignals(x, y))


# --- against a loop ---


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("factors", [3, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("reduction", "wide"), [("positions", True), ("examples", False), ("sum", True)]
)
def test_b30_update_against_double_loop(granularity, factors, padded, reduction, wide):
    n, n_out, n_in, sites = 4, 2, 3, 2
    x, y, weight = normal(n, n_in), normal(n, n_out, seed=1), normal(n_out, n_in, seed=2)
    r = normal(n, n_out if wide else 1, seed=3)
    shown = [1.0, 1.0, 0.0, 0.0] if padded else [1.0] * n
    rows = torch.tensor(shown, dtype=torch.float64).unsqueeze(-1) if padded else None
    terms = every(2, factors)
    rule = bound(terms, n_out, n_in, rate=0.7, granularity=granularity, reduction=reduction)
    thetas = {
        t: rule.get_parameter(f"theta_{t}.raw").detach().expand(n_out, n_in).tolist() for t in terms
    }
    count = {"sum": 1, "positions": sum(shown), "examples": sum(shown) / sites}[reduction]
    wanted = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        for j in range(n_in):
            for k in range(n):
                seen = (x[k, j], y[k, i], weight[i, j], r[k, i if wide else 0])
                for term, theta in thetas.items():
                    product = theta[i][j]
                    for value, exponent in zip(seen, term, strict=False):
                        product *= float(value) ** int(exponent)
                    wanted[i, j] += 0.7 * shown[k] * product / count
    before = [v.clone() for v in (x, y, weight, r)]
    found = change(rule, weight, LocalSignals(x, y, modulator=r, weight=rows, sites=sites))
    assert deviation(found, wanted) < 1e-12
    assert all(torch.equal(u, v) for u, v in zip(before, (x, y, weight, r), strict=True))


def test_padding_leaves_no_trace():
    x, y, weight = normal(3, 4), normal(3, 2, seed=1), normal(2, 4, seed=2)
    rule = bound(every(2, 3), 2, 4)
    rows = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    found = change(rule, weight, LocalSignals(x, y, weight=rows))
    assert deviation(found, change(rule, weight, LocalSignals(x[:2], y[:2]))) < 1e-14
    assert not change(rule, weight, LocalSignals(x, y, weight=0 * rows)).any()


@pytest.mark.parametrize("term", ["000", "100", "010", "001", "003", "9990", "0008"])
def test_a_term_alone_has_the_shape_of_the_weights(term):
    x, y, weight, r = (normal(*s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (3, 4), (5, 1)]))
    rule = Polynomial({term: 2.0}).double()
    found = change(rule, weight, LocalSignals(x, y, modulator=r))
    a, b, c, d = map(int, term.ljust(4, "0"))
    wanted = 2 * torch.einsum("ni,nj->ij", y**b * r**d, x**a) / 5 * weight**c
    assert deviation(found, wanted) < 1e-12


# --- algebra ---


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    terms=st.sets(st.sampled_from(sorted(every(3, 3))), min_size=1, max_size=6),
    n=st.integers(1, 5),
    n_out=st.integers(1, 3),
    n_in=st.integers(1, 3),
)
def test_it_is_linear_in_its_thetas_and_rows_have_no_order(seed, terms, n, n_out, n_in):
    x, y = normal(n, n_in, seed=seed), normal(n, n_out, seed=seed + 1)
    weight, order = normal(n_out, n_in, seed=seed + 2), torch.randperm(n, generator=seeded(seed))
    rule = bound(dict.fromkeys(terms, 0.0), n_out, n_in, seed=seed, granularity="synapse")
    plain, alone = change(rule, weight, LocalSignals(x, y)), torch.zeros_like(weight)
    for rows in (order, torch.cat([order, order])):
        other = change(rule, weight, LocalSignals(x[rows], y[rows]))
        assert torch.allclose(other, plain, rtol=1e-11, atol=1e-11)
    for term in terms:
        single = bound({term: 0.0}, n_out, n_in, granularity="synapse")
        theta = rule.get_parameter(f"theta_{term}.raw").data
        single.get_parameter(f"theta_{term}.raw").data = 2 * theta
        alone = alone + change(single, weight, LocalSignals(x, y)) / 2
    assert torch.allclose(alone, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("terms", [every(2, 3), every(2, 4), OJA, {"000": 0.0}])
def test_slopes_where_everything_is_zero(terms):
    """Powers 0 are 1 and have slope 0 also there; every slope is finite."""
    n, n_out, n_in = 3, 2, 4
    rule = bound(terms, n_out, n_in)
    leaves = [torch.zeros(s, dtype=torch.float64) for s in ((n, n_in), (n, n_out), (n_out, n_in))]
    x, y, weight, r = (v.requires_grad_() for v in [*leaves, torch.zeros(n, 1).double()])
    signals = LocalSignals(x, y, modulator=r)
    found, _ = rule.update(weight, signals, {}, rule.coefficients())
    theta = {
        t: p.item() for t, p in zip(terms, (p.detach() for p in rule.parameters()), strict=True)
    }
    constant = next((v for t, v in theta.items() if not t.strip("0")), 0.0)
    assert torch.equal(found, torch.full_like(found, constant))
    slopes = torch.autograd.grad(
        found.sum(), (x, y, weight), materialize_grads=True, allow_unused=True
    )
    first = [
        next((v for t, v in theta.items() if t[:3] == e and not t[3:].strip("0")), 0.0)
        for e in ("100", "010", "001")
    ]
    factors = (n_out / n, n_in / n, 1.0)
    for slope, value, factor in zip(slopes, first, factors, strict=True):
        assert torch.allclose(slope, torch.full_like(slope, value * factor), rtol=1e-12, atol=0)


@pytest.mark.parametrize("factors", [3, 4])
def test_gradcheck_in_everything_it_reads(factors):
    rule = bound(every(2, factors), 2, 3, granularity="neuron")
    names, values = zip(*rule.coefficients().items(), strict=True)
    seen = [normal(*s, seed=i) for i, s in enumerate([(4, 3), (4, 2), (2, 3), (4, 1)])]

    def moved(x: Tensor, y: Tensor, weight: Tensor, r: Tensor, *values: Tensor) -> Tensor:
        coefficients = dict(zip(names, values, strict=True))
        return rule.update(weight, LocalSignals(x, y, modulator=r), {}, coefficients)[0]

    leaves = tuple(v.detach().requires_grad_() for v in (*seen, *values))
    assert torch.autograd.gradcheck(moved, leaves, fast_mode=True)


# --- options ---


@pytest.mark.parametrize(
    ("degree", "factors", "count"), [(2, 3, 27), (2, 4, 81), (0, 3, 1), (9, 3, 1000)]
)
def test_full_has_every_term_at_zero(degree, factors, count):
    rule = Polynomial.full(degree, factors, l1=0.1, granularity="layer")
    thetas = {n: m for n, m in rule.named_children() if n != "rate"}
    assert len(thetas) == count
    assert {len(n) for n in thetas} == {len("theta_") + factors}
    for theta in thetas.values():
        assert isinstance(theta, Coefficient)
        assert (theta.value, theta.l1, theta.granularity) == (0.0, 0.1, "layer")
    assert rule.needs == (frozenset({"modulator"}) if factors == 4 else frozenset())


@pytest.mark.parametrize(
    "terms",
    [{}, {"11": 1.0}, {"11000": 1.0}, {"1,1,0": 1.0}, {"110": 1.0, "1101": 1.0}, {"²10": 1.0}],
)
def test_exponents_that_cannot_be_read(terms):
    with pytest.raises(ConfigurationError, match="one digit each"):
        Polynomial(terms)


def test_wrong_options_are_named():
    for degree, factors in ((10, 3), (-1, 3), (2, 2), (2, 5)):
        with pytest.raises(ConfigurationError, match=f"degree={degree}, factors={factors}"):
            Polynomial.full(degree, factors)
    with pytest.raises(ConfigurationError, match="reduction"):
        Polynomial(OJA, reduction="mean")


def test_a_modulator_is_asked_for_and_must_come():
    assert Polynomial({"1100": 1.0}).needs == frozenset()
    rule = Polynomial({"1101": 1.0}).double()
    assert rule.needs == {"modulator"}
    with pytest.raises(CompatibilityError, match="modulator, which nobody sent"):
        change(rule, normal(3, 4), LocalSignals(normal(5, 4), normal(5, 3)))


def test_it_is_described_by_what_json_can_hold():
    rule = Polynomial.full(1, 3, rate=0.5, l1=0.25)
    told = json.loads(json.dumps(rule.describe()))
    assert told.pop("type") == "Polynomial"
    again = Polynomial(**told)
    assert again.describe() == rule.describe()
    assert [n for n, _ in again.named_children()] == [n for n, _ in rule.named_children()]


# --- many episodes, coefficients and the meta-gradient ---


@pytest.mark.parametrize("factors", [3, 4])
def test_vmap_equals_the_loop(factors):
    x, y, weight, r = (
        normal(6, *s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (3, 4), (5, 1)])
    )
    rule = bound(every(2, factors), 3, 4)

    def one(weight: Tensor, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        return change(rule, weight, LocalSignals(x, y, modulator=r))

    each = [one(*values) for values in zip(weight, x, y, r, strict=True)]
    assert deviation(vmap(one)(weight, x, y, r), torch.stack(each)) < 1e-13


def learner(rule: Polynomial, scale: float = 0.02) -> Learner:
    credit = DirectFeedback() if rule.needs else Backprop()
    made = Learner(mlp(3, 6, 5, 2), credit, {"*": rule}, SquaredError())
    return shake(made, 4, plasticity=scale, feedback=0.3)


@pytest.mark.parametrize("teaching", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_meta_gradient_against_central_differences(granularity, teaching):
    rule = Polynomial.full(rate=0.5, granularity=granularity, teaching=teaching)
    made, episodes = learner(rule), regression(2, 4, 3, 3, 2)
    gradient = meta_gradient(made, episodes)
    loop = meta_gradient(made, episodes, Unrolled(batching="loop"))
    assert_close(loop, gradient, 1e-12)
    patterns = ["", "theta_1", "theta_0", "network"] + (["feedback"] if teaching else [])
    for seed, pattern in enumerate(patterns):
        direction = unit_direction(made, seed, pattern)
        assert slope_error(made, episodes, direction, gradient) < 1e-6, pattern


def test_meta_gradient_at_zero_thetas_with_a_learned_rate():
    rule = Polynomial.full(rate=Coefficient(0.5, bound="exp", role="control"))
    made, episodes = learner(rule, scale=0.0), regression(2, 4, 3, 3, 2)
    gradient = meta_gradient(made, episodes)
    direction = unit_direction(made, 0, "theta")
    assert len(direction) == 27
    assert slope_error(made, episodes, direction, gradient) < 1e-6
    for name, slope in gradient.items():
        if name.startswith("rules"):
            assert bool(slope.any()) == ("theta" in name), name


def test_one_number_for_each_neuron_is_a_row_of_equal_ones():
    episodes = regression(2, 3, 3, 3, 2)
    made = {
        g: learner(Polynomial.full(granularity=g, rate=0.5), 0.0) for g in ("synapse", "neuron")
    }
    for i, size in enumerate((6, 5, 2)):
        for k, term in enumerate(every(2, 3)):
            values = 0.05 * normal(size, 1, seed=100 * i + k)
            raw(made["neuron"], f"layer{i}_weight", f"theta_{term}").data = values
            fine = raw(made["synapse"], f"layer{i}_weight", f"theta_{term}")
            fine.data = values.expand(fine.shape).clone()
    signals, weight = LocalSignals(normal(4, 6), normal(4, 5, seed=2)), normal(5, 6, seed=1)
    assert torch.equal(*(change(m.rules["layer1_weight"], weight, signals) for m in made.values()))
    fine, coarse = (meta_gradient(made[g], episodes) for g in ("synapse", "neuron"))
    for name in coarse:
        wanted = fine[name].sum(1, keepdim=True) if name.startswith("rules") else fine[name]
        assert deviation(coarse[name], wanted) < 1e-11, name
