"""Hebb and Oja on given signals: algebra, closed forms and locality."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaplastic import Delta, Hebb, LocalSignals, Oja, PlasticityRule, SynapseGroup
from tests.helpers import deviation, normal, seeded

SEEDS = st.integers(0, 10_000)
SIZES = {"batch": st.integers(1, 5), "n_out": st.integers(1, 4), "n_in": st.integers(1, 4)}


def apply(rule: PlasticityRule, weight: Tensor, signals: LocalSignals, **values: Tensor) -> Tensor:
    """The change that a rule wants, under coefficients given by name."""
    coefficients = {"mix": torch.zeros(1, 1).to(weight)} | values
    return rule.update(weight, signals, rule.init(weight), coefficients)[0]


def drawn(batch: int, n_out: int, n_in: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw z (B, n_out), x (B, n_in), W and P (n_out, n_in)."""
    return (
        normal(batch, n_out, seed=seed),
        normal(batch, n_in, seed=seed + 1),
        normal(n_out, n_in, seed=seed + 2),
        normal(n_out, n_in, seed=seed + 3),
    )


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, **SIZES)
def test_flp_P03_hebb_is_plasticity_times_a_sum_of_outer_products(batch, n_out, n_in, seed):
    z, x, weight, p = drawn(batch, n_out, n_in, seed)
    for rule in (Hebb(bounded=False), Oja(bounded=False)):
        whole = apply(rule, weight, LocalSignals(x, z), plasticity=p)
        parts = [
            apply(rule, weight, LocalSignals(x[[b]], z[[b]]), plasticity=p) for b in range(batch)
        ]
        assert torch.allclose(whole, torch.stack(parts).sum(0), rtol=1e-12, atol=1e-12)
    hebb = apply(Hebb(bounded=False), weight, LocalSignals(x, z), plasticity=p)
    outer = sum(torch.outer(z[b], x[b]) for b in range(batch))
    assert torch.allclose(hebb, p * outer, rtol=1e-12, atol=1e-12)
    assert int(torch.linalg.matrix_rank(hebb / p)) <= batch


def test_flp_P03_mean_is_the_sum_over_the_number_of_examples():
    """Bitwise for a power of two, where dividing first loses nothing."""
    for family in (Hebb, Oja):
        for batch, tolerance in ((4, 0.0), (3, 1e-15)):
            z, x, weight, p = drawn(batch, 5, 6, 0)
            total = apply(family(bounded=False), weight, LocalSignals(x, z), plasticity=p)
            mean = apply(
                family(bounded=False, reduction="examples"),
                weight,
                LocalSignals(x, z),
                plasticity=p,
            )
            assert deviation(mean * batch, total) <= tolerance


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, **SIZES)
def test_flp_P04_oja_descends_the_regression_of_inputs_on_own_activity(batch, n_out, n_in, seed):
    z, x, weight, p = drawn(batch, n_out, n_in, seed)
    free = weight.clone().requires_grad_()
    loss = 0.5 * (x.unsqueeze(1) - z.unsqueeze(-1) * free).square().sum()
    (slope,) = torch.autograd.grad(loss, free)
    change = apply(Oja(bounded=False), weight, LocalSignals(x, z), plasticity=p)
    assert torch.allclose(change, -p * slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bounded", [False, True])
def test_flp_P05_constant_activity_contracts_to_the_fixed_point(bounded):
    """The error e goes to (1 - P s) e, entry by entry; bounded to (1 - P s / (1 + s)) e."""
    z, x, weight, _ = drawn(4, 3, 5, 0)
    share = 0.25 if bounded else 1.0
    s = share * z.square().sum(0).unsqueeze(-1)
    fixed = share * (z.mT @ x) / s
    p = torch.rand(3, 5, generator=seeded(4), dtype=torch.float64)
    p = p if bounded else 1.9 * p / s
    shrink = 1 - p * s / (1 + s) if bounded else 1 - p * s
    rule = Oja(bounded=bounded)
    for _ in range(500):
        after = weight + apply(rule, weight, LocalSignals(x, z), plasticity=p)
        assert float((after - fixed - shrink * (weight - fixed)).abs().max()) < 1e-12
        weight = after
    quick = shrink.abs() < 0.95
    assert int(quick.sum()) > 8
    assert deviation(weight[quick], fixed[quick]) < 1e-9


def test_flp_P05_overshooting_plasticity_diverges():
    z, x, weight, _ = drawn(4, 3, 5, 0)
    s = z.square().sum(0).unsqueeze(-1)
    fixed, error = (z.mT @ x) / s, []
    for _ in range(40):
        error.append(float((weight - fixed).abs().max()))
        weight = weight + apply(Oja(bounded=False), weight, LocalSignals(x, z), plasticity=2.5 / s)
    assert error[-1] > 1e6 * error[0]


def test_flp_P05_own_activity_finds_the_leading_eigenvector():
    """Classical Oja: z = w x, eigenvalues 4, 2, 1, 1, 1."""
    basis = torch.linalg.qr(normal(5, 5, seed=0))[0]
    spread = torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    x = torch.linalg.qr(normal(64, 5, seed=1))[0] @ torch.diag(spread.sqrt()) @ basis.mT * 8
    weight = 0.1 * normal(1, 5, seed=2)
    p = torch.full((1, 1), 0.05, dtype=torch.float64)
    for _ in range(400):
        signals = LocalSignals(x, x @ weight.mT)
        weight = weight + apply(
            Oja(bounded=False, reduction="examples"), weight, signals, plasticity=p
        )
    assert abs(float(weight.norm()) - 1) < 1e-9
    assert abs(float(weight[0] @ basis[:, 0])) / float(weight.norm()) > 1 - 1e-9


RULES: dict[str, PlasticityRule] = {
    "hebb": Hebb(bounded=False),
    "oja": Oja(bounded=False),
    "hebb, bounded": Hebb(),
    "oja, bounded": Oja(),
    "delta": Delta(),
}


@pytest.mark.parametrize("name", RULES)
def test_flp_P07_a_synapse_sees_only_its_own_two_units(name):
    """Bitwise: the change of (i, j) stays as it is when everything but unit i, unit j, its own
    weight and its own plasticity is replaced.
    """
    i, j, rule = 1, 2, RULES[name]
    batch, n_out, n_in = 4, 3, 5

    def change(seed: int) -> tuple[float, Tensor]:
        fields = {"pre": n_in, "post": n_out, "teaching": n_out, "gain": n_out}
        own = {"pre": j, "post": i, "teaching": i, "gain": i}
        values = {}
        for n, (field, size) in enumerate(fields.items()):
            values[field] = normal(batch, size, seed=seed + n)
            values[field][:, own[field]] = normal(batch, seed=1000 + n)
        weight, p = normal(n_out, n_in, seed=seed + 10), normal(n_out, n_in, seed=seed + 11)
        weight[i, j], p[i, j] = 0.7, 0.3
        mix = torch.full((1, 1), 0.4, dtype=torch.float64)
        signals = LocalSignals(**values)
        delta = apply(rule, weight, signals, plasticity=p, rate=p, mix=mix)
        return float(delta[i, j]), delta

    (one, whole), (two, other) = change(0), change(500)
    assert one == two
    assert (whole != other).sum() == n_out * n_in - 1


def test_flp_P08_full_mixing_leaves_the_teaching_signal_alone():
    """At mix = 1 the change does not depend on the neuron's own activity, however large."""
    z, x, weight, p = (t.float() for t in drawn(4, 3, 5, 0))
    mix = torch.ones(1, 1)

    def change(post: Tensor) -> Tensor:
        signals = LocalSignals(x, post, z)
        return apply(Oja(bounded=False), weight, signals, plasticity=p, mix=mix)

    silent = change(torch.zeros_like(z))
    assert torch.equal(change(1e5 * normal(4, 3, seed=9).float()), silent)
    assert not torch.equal(silent, torch.zeros_like(silent))


@pytest.mark.parametrize("reduction", ["sum", "examples"])
def test_delta_reads_a_target_as_wanted_activity_and_hebb_takes_it_raw(reduction):
    z, x, weight, p = drawn(3, 4, 5, 0)
    post, gain = normal(3, 4, seed=8), normal(3, 4, seed=9)
    share = 1 / 3 if reduction == "examples" else 1.0
    wanted = {"error": z, "target": z - post}
    one = torch.ones(1, 1, dtype=torch.float64)
    for kind, error in wanted.items():
        signals = LocalSignals(x, post, z, kind, gain)
        change = apply(Delta(reduction=reduction), weight, signals, rate=p)
        assert deviation(change, share * p * torch.einsum("bi,bj->ij", error * gain, x)) < 1e-14
        hebb = Hebb(bounded=False, reduction=reduction)
        change = apply(hebb, weight, signals, plasticity=p, mix=one)
        assert deviation(change, share * p * (z.mT @ x)) < 1e-14


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("granularity", ["neuron", "layer", "network"])
def test_flp_P13_coarser_plasticity_is_the_same_number_repeated(granularity, bounded):
    group = SynapseGroup("layer0_weight", 3, 5)
    rule = Oja(0.0, granularity=granularity, bounded=bounded).bind(group).double()
    fine = Oja(0.0, granularity="synapse", bounded=bounded).bind(group).double()
    rule.plasticity.raw.data = normal(*rule.plasticity.raw.shape, seed=1)
    fine.plasticity.raw.data = rule.plasticity.raw.expand(3, 5).clone()
    assert rule.plasticity.raw.shape == {"neuron": (3, 1)}.get(granularity, (1, 1))
    z, x, weight, _ = drawn(4, 3, 5, 0)
    signals = LocalSignals(x, z, normal(4, 3, seed=8))
    one, _ = rule.update(weight, signals, {}, rule.coefficients())
    two, _ = fine.update(weight, signals, {}, fine.coefficients())
    assert torch.equal(one, two)


def test_flp_P15_hebb_is_linear_in_plasticity():
    z, pre, weight, p = drawn(3, 4, 5, 0)
    single = apply(Hebb(bounded=False), weight, LocalSignals(pre, z), plasticity=p)
    double = apply(Hebb(bounded=False), weight, LocalSignals(pre, z), plasticity=2 * p)
    assert torch.equal(double, 2 * single)
