"""The ABCD family: against loops, its limits, the normalisation, and its meta-gradient."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from metaplastic import (
    DirectFeedback,
    Hebb,
    LayeredNetwork,
    Learner,
    LocalSignals,
    SquaredError,
    SynapseGroup,
    Unrolled,
)
from metaplastic.errors import ConfigurationError
from metaplastic.rules import ABCD, Coefficient, Polynomial
from metaplastic.rules.abcd import Variant
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
    show,
    slope_error,
    unit_direction,
)

GRANULARITIES = ("synapse", "neuron", "layer", "network")
VARIANTS = get_args(Variant)
NAMES = {
    "A": ["rate", "A"],
    "AD": ["rate", "A", "D"],
    "ABC": ["rate", "A", "B", "C"],
    "ABCD": ["rate", "A", "B", "C", "D"],
    "ABC+D": ["rate", "A", "B", "C", "D_out"],
    "ABCD+D": ["rate", "A", "B", "C", "D", "D_out"],
}

variants = pytest.mark.parametrize("variant", VARIANTS)


def bound(variant: Variant, n_out: int, n_in: int, seed: int = 50, **options) -> ABCD:
    """Fitting a group, with every coefficient at random."""
    rule = ABCD(variant, **options).bind(SynapseGroup("layer0_weight", n_out, n_in)).double()
    for i, p in enumerate(rule.parameters()):
        p.data = normal(*p.shape, seed=seed + i)
    return rule


def change(rule: ABCD | Polynomial | Hebb, weight: Tensor, signals: LocalSignals) -> Tensor:
    found, traces = rule.update(weight, signals, {}, rule.coefficients())
    assert traces == {}
    return found.detach()


# --- against a loop ---


@variants
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("reduction", ["positions", "examples", "sum"])
@pytest.mark.parametrize("padded", [False, True])
def test_b30_update_against_double_loop(variant, granularity, reduction, padded):
    n, n_out, n_in, sites = 6, 3, 4, 2
    x, y, weight = normal(n, n_in), normal(n, n_out, seed=1), normal(n_out, n_in, seed=2)
    shown = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0] if padded else [1.0] * n
    rows = torch.tensor(shown, dtype=torch.float64).unsqueeze(-1) if padded else None
    rule = bound(variant, n_out, n_in, granularity=granularity, reduction=reduction)
    names = [name for name, _ in rule.named_children()]
    assert names == NAMES[variant]
    value = {n: v.detach().expand(n_out, n_in).tolist() for n, v in rule.coefficients().items()}
    none = torch.zeros(n_out, n_in).tolist()
    a, b, c, d, out = (value.get(k, none) for k in ("A", "B", "C", "D", "D_out"))
    count = {"sum": 1, "positions": sum(shown), "examples": sum(shown) / sites}[reduction]
    wanted = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        for j in range(n_in):
            for k in range(n):
                pre, post = float(x[k, j]), float(y[k, i])
                inside = a[i][j] * post * pre + b[i][j] * pre + c[i][j] * post + d[i][j]
                wanted[i, j] += shown[k] * (value["rate"][i][j] * inside + out[i][j]) / count
    before = [v.clone() for v in (x, y, weight)]
    found = change(rule, weight, LocalSignals(x, y, weight=rows, sites=sites))
    assert deviation(found, wanted) < 1e-12
    assert all(torch.equal(u, v) for u, v in zip(before, (x, y, weight), strict=True))


@variants
@pytest.mark.parametrize("normalise", [False, True])
def test_padding_leaves_no_trace(variant, normalise):
    x, y, weight = normal(3, 4), normal(3, 2, seed=1), normal(2, 4, seed=2)
    rule = bound(variant, 2, 4, normalise=normalise)
    rows = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    found = change(rule, weight, LocalSignals(x, y, weight=rows))
    assert deviation(found, change(rule, weight, LocalSignals(x[:2], y[:2]))) < 1e-14
    assert not change(rule, weight, LocalSignals(x, y, weight=0 * rows)).any()


# --- algebra and limits ---


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 5),
    n_out=st.integers(1, 4),
    n_in=st.integers(1, 4),
    variant=st.sampled_from(VARIANTS),
)
def test_rows_have_no_order_and_a_mean_no_number(seed, n, n_out, n_in, variant):
    x, y = normal(n, n_in, seed=seed), normal(n, n_out, seed=seed + 1)
    weight, order = normal(n_out, n_in, seed=seed + 2), torch.randperm(n, generator=seeded(seed))
    rule = bound(variant, n_out, n_in)
    plain = change(rule, weight, LocalSignals(x, y))
    for rows in (order, torch.cat([order, order])):
        other = change(rule, weight, LocalSignals(x[rows], y[rows]))
        assert torch.allclose(other, plain, rtol=1e-12, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), variant=st.sampled_from(VARIANTS))
def test_the_change_is_affine_in_each_coefficient(seed, variant):
    """Three equidistant values of one coefficient give three equidistant changes."""
    x, y, weight = normal(3, 4, seed=seed), normal(3, 2, seed=seed + 1), normal(2, 4, seed=seed + 2)
    rule = bound(variant, 2, 4, seed=seed + 3)
    for name in NAMES[variant]:
        p = rule.get_parameter(f"{name}.raw")
        start, direction, changes = p.data, normal(2, 4, seed=seed + 99), []
        for step in (-1, 0, 1):
            p.data = start + step * direction
            changes.append(change(rule, weight, LocalSignals(x, y)))
        p.data = start
        low, middle, high = changes
        assert torch.allclose(low + high, 2 * middle, rtol=1e-12, atol=1e-12)
        assert float((high - low).abs().max()) > 1e-6


def test_b29_abcd_without_bcd_is_polynomial_110():
    x, y, weight = normal(5, 4), normal(5, 3, seed=1), normal(3, 4, seed=2)
    group, a = SynapseGroup("layer0_weight", 3, 4), normal(3, 4, seed=3)
    polynomial = Polynomial({"110": 0.0}, rate=0.3, granularity="synapse").bind(group).double()
    polynomial.get_parameter("theta_110.raw").data = a.clone()
    hebb = Hebb(0.3, 0.0, granularity="layer", bounded=False, reduction="positions").double()
    signals = LocalSignals(x, y)
    for variant in VARIANTS:
        rule = ABCD(variant, rate=0.3).bind(group).double()
        rule.get_parameter("A.raw").data = a.clone()
        assert deviation(change(rule, weight, signals), change(polynomial, weight, signals)) < 1e-12
        assert deviation(change(rule, weight, signals) / a, change(hebb, weight, signals)) < 1e-12


def test_the_outer_d_is_not_multiplied_by_the_rate():
    x, y, weight = normal(3, 4), normal(3, 2, seed=1), normal(2, 4, seed=2)
    still = ABCD("ABCD+D", rate=0.0, A=1.0, B=2.0, C=3.0, D=4.0, D_out=0.25, granularity="layer")
    assert torch.equal(
        change(still, weight, LocalSignals(x, y)), torch.full((2, 4), 0.25, dtype=torch.float64)
    )


def test_a_fixed_rate_and_coefficients_of_ones_own():
    own = Coefficient(0.5, granularity="neuron", bound="tanh")
    rule = ABCD("AD", rate=Coefficient(1.0, learned=False), A=own)
    rule = rule.bind(SynapseGroup("layer0_weight", 3, 4))
    shapes = {name: tuple(p.shape) for name, p in rule.named_parameters()}
    assert shapes == {"A.raw": (3, 1), "D.raw": (3, 4)}
    assert float(rule.coefficients()["rate"]) == 1.0


def test_wrong_options_are_named():
    with pytest.raises(ConfigurationError, match=r"variant must be one of .*'ABCD\+D'; got 'BC'"):
        ABCD("BC")
    with pytest.raises(ConfigurationError, match="'AD' has the coefficients A, D, and B is none"):
        ABCD("AD", B=1.0)
    with pytest.raises(ConfigurationError, match="D_out is none of them"):
        ABCD("ABCD", D_out=Coefficient())
    with pytest.raises(ConfigurationError, match="reduction"):
        ABCD(reduction="mean")


def test_what_it_depends_on():
    assert ABCD().needs == frozenset()
    assert (ABCD().scope, ABCD(normalise=True).scope) == ("synapse", "group")


# --- normalisation ---


def test_b31_normalised_weights_have_maximum_one():
    rule = bound("ABCD", 4, 6, normalise=True, rate=0.0)
    rule.get_parameter("rate.raw").data *= 0.05
    weight = 0.1 * normal(4, 6, seed=2)
    for step in range(50):
        x = normal(3, 6, seed=100 + step)
        signals = LocalSignals(x, (x @ weight.mT).tanh())
        free = bound("ABCD", 4, 6)
        free.get_parameter("rate.raw").data *= 0.05
        moved = weight + change(free, weight, signals)
        weight = weight + change(rule, weight, signals)
        assert float(weight.abs().max()) == 1.0
        assert deviation(weight, moved / moved.abs().max()) < 1e-14


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-12, 0.1, 1.0, 30.0]))
def test_b31_any_change_keeps_the_maximum_to_rounding(seed, scale):
    weight = scale * normal(3, 4, seed=seed)
    rule = bound("ABCD+D", 3, 4, seed=seed, normalise=True)
    signals = LocalSignals(normal(2, 4, seed=seed + 1), normal(2, 3, seed=seed + 2))
    after = weight + change(rule, weight, signals)
    assert abs(float(after.abs().max()) - 1) <= 4.5e-16 * max(1, float(weight.abs().max()))


def test_b31_weights_that_are_all_zero_stay_so():
    rule = ABCD("A", A=0.5, normalise=True).bind(SynapseGroup("layer0_weight", 2, 3)).double()
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    signals = LocalSignals(torch.zeros(4, 3).double(), normal(4, 2))
    after = weight + rule.update(weight, signals, {}, rule.coefficients())[0]
    assert torch.equal(after, torch.zeros_like(after))
    slopes = torch.autograd.grad((after * normal(2, 3)).sum(), [weight, *rule.parameters()])
    assert all(bool(s.isfinite().all()) for s in slopes)


def test_b31_the_division_is_differentiated():
    x, y, weight = normal(3, 4), normal(3, 2, seed=1), normal(2, 4, seed=2).requires_grad_()
    rule = bound("ABCD+D", 2, 4, normalise=True)
    names, values = zip(*rule.coefficients().items(), strict=True)

    def after(weight: Tensor, *values: Tensor) -> Tensor:
        coefficients = dict(zip(names, values, strict=True))
        return weight + rule.update(weight, LocalSignals(x, y), {}, coefficients)[0]

    leaves = [v.detach().requires_grad_() for v in values]
    assert torch.autograd.gradcheck(after, (weight, *leaves), atol=1e-7)


# --- many episodes, coefficients and the meta-gradient ---


@variants
@pytest.mark.parametrize("normalise", [False, True])
def test_vmap_equals_the_loop(variant, normalise):
    x, y, weight = (normal(6, *s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (3, 4)]))
    rule = bound(variant, 3, 4, normalise=normalise)

    def one(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return change(rule, weight, LocalSignals(x, y))

    each = [one(*values) for values in zip(weight, x, y, strict=True)]
    assert deviation(vmap(one)(weight, x, y), torch.stack(each)) < 1e-13


def learner(rule: ABCD, scale: float = 0.1) -> Learner:
    made = Learner(mlp(3, 6, 5, 2), DirectFeedback(), {"*": rule}, SquaredError())
    return shake(made, 4, plasticity=scale)


def check_meta_gradient(made: Learner) -> dict[str, Tensor]:
    episodes = regression(2, 5, 3, 3, 2)
    gradient = meta_gradient(made, episodes)
    assert_close(meta_gradient(made, episodes, Unrolled(batching="loop")), gradient, 1e-12)
    for seed, pattern in enumerate(("", r"rules.*rate", r"rules.*[ABCD]", "network")):
        direction = unit_direction(made, seed, pattern)
        assert slope_error(made, episodes, direction, gradient) < 1e-6, pattern
    return gradient


@variants
@pytest.mark.parametrize("normalise", [False, True])
def test_meta_gradient_of_every_variant(variant, normalise):
    check_meta_gradient(learner(ABCD(variant, rate=0.3, A=0.1, normalise=normalise)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_meta_gradient_at_every_granularity(granularity):
    check_meta_gradient(learner(ABCD("ABCD+D", rate=0.3, granularity=granularity)))


def test_learning_can_start_from_zeros():
    made, episodes = learner(ABCD("ABCD+D"), scale=0.0), regression(2, 5, 3, 3, 2)
    for name, slope in meta_gradient(made, episodes).items():
        if "rules" in name:
            assert bool(slope.any()) == ("rate" not in name), name


def test_b31_every_layer_has_maximum_one_also_a_convolution():
    chain = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
    network = LayeredNetwork(chain.double(), input_shape=(1, 3, 3))
    made = Learner(network, DirectFeedback(), ABCD(A=0.3, normalise=True), SquaredError())
    shake(made, 4, plasticity=0.1)
    for i, p in enumerate(network.parameters()):
        p.data = 0.3 * normal(*p.shape, seed=20 + i)
    after = show(made, normal(3, 2, 1, 3, 3), normal(3, 2, 2, seed=1))["weights"]
    for name in made.plastic:
        assert abs(float(after[name].detach().abs().max()) - 1) < 3e-16


def test_one_number_for_each_neuron_is_a_row_of_equal_ones():
    episodes = regression(2, 4, 3, 3, 2)
    made = {g: learner(ABCD("ABCD+D", granularity=g), 0.0) for g in ("synapse", "neuron")}
    for i, size in enumerate((6, 5, 2)):
        for k, name in enumerate(NAMES["ABCD+D"]):
            values = 0.3 * normal(size, 1, seed=10 * i + k)
            raw(made["neuron"], f"layer{i}_weight", name).data = values
            fine = raw(made["synapse"], f"layer{i}_weight", name)
            fine.data = values.expand(fine.shape).clone()
    signals = LocalSignals(normal(4, 6), normal(4, 5, seed=2))
    weight = normal(5, 6, seed=1)
    assert torch.equal(*(change(m.rules["layer1_weight"], weight, signals) for m in made.values()))
    fine, coarse = (meta_gradient(made[g], episodes) for g in ("synapse", "neuron"))
    for name in coarse:
        wanted = fine[name].sum(1, keepdim=True) if "layer" in name else fine[name]
        if name.startswith("rules"):
            assert deviation(coarse[name], wanted) < 1e-11, name
