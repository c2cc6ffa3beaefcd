"""The subspace rules: what they converge to, their algebra, and their meta-gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from metaplastic import (
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
from metaplastic.errors import ConfigurationError
from metaplastic.rules import Coefficient, OjaSubspace, Sanger
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

FAMILIES = (OjaSubspace, Sanger)
SPREAD = [4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
ORDERED = [4.0, 3.0, 2.0, 0.5, 0.5, 0.25]

families = pytest.mark.parametrize("family", FAMILIES)


# --- what they converge to ---


def components(spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """64 rows x whose X^T X / N has these eigenvalues exactly, and the eigenvectors as columns."""
    n = len(spectrum)
    basis = torch.linalg.qr(normal(n, n, seed=seed))[0]
    rows = torch.linalg.qr(normal(64, n, seed=seed + 1))[0] * 64**0.5
    return rows * torch.tensor(spectrum, dtype=torch.float64).sqrt() @ basis.mT, basis


def converged(rule: PlasticityRule, x: Tensor, outputs: int, steps: int) -> Tensor:
    """The weights of ``outputs`` linear units after so many steps on all rows."""
    weight = 0.3 * normal(outputs, x.shape[1], seed=7)
    coefficients = rule.double().coefficients()
    with torch.no_grad():
        for _ in range(steps):
            weight = (
                weight + rule.update(weight, LocalSignals(x, x @ weight.mT), {}, coefficients)[0]
            )
    return weight


def averaged(family: type[Hebb]) -> Hebb:
    return family(0.05, 0.0, granularity="layer", bounded=False, reduction="positions")


def test_b16_averaged_oja_finds_the_first_component():
    x, basis = components(SPREAD)
    for rule in (averaged(Oja), OjaSubspace(0.05, 0.0), Sanger(0.05, 0.0)):
        (w,) = converged(rule, x, 1, 500)
        assert abs(float(w.norm()) - 1) < 1e-9
        assert 1 - abs(float(w @ basis[:, 0])) / float(w.norm()) < 1e-9


def test_b17_subspace_projector():
    """Rows become orthonormal and span the three leading components, in no order."""
    x, basis = components(ORDERED)
    weight = converged(OjaSubspace(0.05, 0.0), x, 3, 1000)
    assert float((weight @ weight.mT - torch.eye(3)).abs().max()) < 1e-9
    leading = basis[:, :3]
    assert float((weight.mT @ weight - leading @ leading.mT).abs().max()) < 1e-9
    assert float((weight @ leading).abs().min()) > 1e-2


def test_b18_stochastic_oja():
    """One row at a time."""
    spread = torch.tensor(SPREAD, dtype=torch.float64).sqrt()
    basis = torch.linalg.qr(normal(6, 6, seed=0))[0]
    rule = Oja(0.002, 0.0, granularity="layer", bounded=False).double()
    weight, coefficients = 0.3 * normal(1, 6, seed=7), rule.coefficients()
    with torch.no_grad():
        for x in normal(4000, 1, 6, seed=1) * spread @ basis.mT:
            change, _ = rule.update(weight, LocalSignals(x, x @ weight.mT), {}, coefficients)
            weight = weight + change
    assert abs(float(weight[0] @ basis[:, 0])) / float(weight.norm()) > 0.9


def test_b19_plain_hebb_blows_up():
    x, _ = components(SPREAD)
    assert float(converged(averaged(Hebb), x, 1, 500).norm()) > 1e30


def test_b20_sanger_orders_components():
    x, basis = components(ORDERED)
    weight = converged(Sanger(0.05, 0.0), x, 3, 1500)
    assert deviation((weight @ basis[:, :3]).abs(), torch.eye(3).double()) < 1e-9
    mixture = converged(OjaSubspace(0.05, 0.0), x, 3, 1500)
    assert deviation((mixture @ basis[:, :3]).abs(), torch.eye(3).double()) > 1e-2


# --- algebra ---


def bound(family: type[OjaSubspace], n_out: int, n_in: int, **options) -> OjaSubspace:
    """Fitting a group, with random plasticity."""
    rule = family(0.1, **options).bind(SynapseGroup("layer0_weight", n_out, n_in)).double()
    rule.plasticity.raw.data = normal(*rule.plasticity.raw.shape, seed=50)
    return rule


def change(rule: PlasticityRule, weight: Tensor, signals: LocalSignals) -> Tensor:
    return rule.update(weight, signals, {}, rule.coefficients())[0]


@families
@pytest.mark.parametrize("granularity", ["synapse", "neuron", "layer", "network"])
@pytest.mark.parametrize("reduction", ["positions", "examples", "sum"])
@pytest.mark.parametrize("padded", [False, True])
def test_update_against_a_triple_loop(family, granularity, reduction, padded):
    n, n_out, n_in, sites = 6, 3, 4, 2
    x, y, t = normal(n, n_in), normal(n, n_out, seed=1), normal(n, n_out, seed=2)
    shown = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0] if padded else [1.0] * n
    rows = torch.tensor(shown, dtype=torch.float64).unsqueeze(-1) if padded else None
    weight = normal(n_out, n_in, seed=3)
    rule = bound(family, n_out, n_in, mix=0.3, granularity=granularity, reduction=reduction)
    p = rule.plasticity().detach().expand(n_out, n_in)
    count = {"sum": 1, "positions": sum(shown), "examples": sum(shown) / sites}[reduction]
    wanted = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        for j in range(n_in):
            for k in range(n):
                z = [0.3 * float(t[k, o]) + 0.7 * float(y[k, o]) for o in range(n_out)]
                seen = range(i + 1) if family is Sanger else range(n_out)
                rest = float(x[k, j]) - sum(z[o] * float(weight[o, j]) for o in seen)
                wanted[i, j] += shown[k] * float(p[i, j]) * z[i] * rest / count
    signals = LocalSignals(x, y, t, weight=rows, sites=sites)
    before = [v.clone() for v in (x, y, t, weight)]
    assert deviation(change(rule, weight, signals), wanted) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, t, weight), strict=True))


@families
def test_padding_leaves_no_trace(family):
    x, y, weight = normal(3, 4), normal(3, 2, seed=1), normal(2, 4, seed=2)
    rule = bound(family, 2, 4, mix=0.0)
    rows = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    found = change(rule, weight, LocalSignals(x, y, weight=rows))
    assert deviation(found, change(rule, weight, LocalSignals(x[:2], y[:2]))) < 1e-15
    assert not change(rule, weight, LocalSignals(x, y, weight=0 * rows)).any()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), n=st.integers(1, 5), n_out=st.integers(1, 4), n_in=st.integers(1, 4)
)
def test_rows_have_no_order_and_a_mean_no_number(seed, n, n_out, n_in):
    x, y = normal(n, n_in, seed=seed), normal(n, n_out, seed=seed + 1)
    weight, order = normal(n_out, n_in, seed=seed + 2), torch.randperm(n, generator=seeded(seed))
    for family in FAMILIES:
        rule = bound(family, n_out, n_in, mix=0.0, granularity="synapse")
        plain = change(rule, weight, LocalSignals(x, y))
        for rows in (order, torch.cat([order, order])):
            other = change(rule, weight, LocalSignals(x[rows], y[rows]))
            assert torch.allclose(other, plain, rtol=1e-12, atol=1e-13)
        rule.plasticity.raw.data *= 2
        assert torch.equal(change(rule, weight, LocalSignals(x, y)), 2 * plain)


@families
def test_one_output_is_oja(family):
    x, y, t, weight = (normal(*s, seed=i) for i, s in enumerate([(5, 4), (5, 1), (5, 1), (1, 4)]))
    oja = Oja(0.3, 0.2, granularity="layer", bounded=False, reduction="positions").double()
    signals = LocalSignals(x, y, t)
    found = change(family(0.3, 0.2).double(), weight, signals)
    assert deviation(found, change(oja, weight, signals)) < 1e-12


def test_sanger_differs_from_the_subspace_rule_above_the_last_row_only():
    x, y, weight = normal(5, 4), normal(5, 3, seed=1), normal(3, 4, seed=2)
    whole, ordered = (
        change(family(1.0, 0.0).double(), weight, LocalSignals(x, y)) for family in FAMILIES
    )
    assert torch.allclose(whole[-1], ordered[-1], rtol=1e-12, atol=0)
    assert bool(((whole[:-1] - ordered[:-1]).abs() > 1e-3).all())


@families
def test_what_it_reads(family):
    assert family(mix=0.0).needs == frozenset()
    assert family(mix=0.5).needs == family(mix=1.0).needs == {"teaching"}
    assert family.scope == "group"
    with pytest.raises(ConfigurationError, match="reduction"):
        family(reduction="mean")
    with pytest.raises(ConfigurationError, match="granularity is 'neuron'"):
        family(mix=Coefficient(0.5, granularity="synapse"))


@pytest.mark.parametrize("family", [*FAMILIES, Hebb, Oja])
def test_mixing_by_neuron(family):
    """Each neuron with a share of its own is a layer of neurons with one share each."""
    x, y, t, weight = (normal(*s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (5, 3), (3, 4)]))
    rule = family(0.3, Coefficient(0.5, granularity="neuron", role="mixing"))
    rule = rule.bind(SynapseGroup("layer0_weight", 3, 4)).double()
    rule.mix.raw.data = normal(3, 1, seed=9)
    mix = rule.mix().mT
    blended = LocalSignals(x, mix * t + (1 - mix) * y)
    found = change(rule, weight, LocalSignals(x, y, t))
    assert deviation(found, change(rule, weight, blended)) < 1e-12


# --- many episodes, coefficients and the meta-gradient ---


@families
def test_vmap_equals_the_loop(family):
    x, y, t, weight = (
        normal(6, *s, seed=i) for i, s in enumerate([(5, 4), (5, 3), (5, 3), (3, 4)])
    )
    rule = bound(family, 3, 4, mix=0.4)

    def one(weight: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return change(rule, weight, LocalSignals(x, y, t))

    each = [one(*values) for values in zip(weight, x, y, t, strict=True)]
    assert deviation(vmap(one)(weight, x, y, t), torch.stack(each)) < 1e-13


def learner(family: type[OjaSubspace], granularity: str, scale: float = 0.05) -> Learner:
    rule = family(0.02, 0.4, granularity=granularity)
    made = Learner(mlp(3, 6, 5, 2), DirectFeedback(bias=True), {"*": rule}, SquaredError())
    return shake(made, 4, plasticity=scale, mixing=0.2, feedback=0.3)


@families
@pytest.mark.parametrize("granularity", ["synapse", "neuron", "layer", "network"])
def test_meta_gradient_against_central_differences(family, granularity):
    made, episodes = learner(family, granularity), regression(2, 5, 3, 3, 2)
    gradient = meta_gradient(made, episodes)
    loop = meta_gradient(made, episodes, Unrolled(batching="loop"))
    assert_close(loop, gradient, 1e-12)
    for seed, pattern in enumerate(("", "plasticity", "mix", "feedback", "network")):
        direction = unit_direction(made, seed, pattern)
        assert slope_error(made, episodes, direction, gradient) < 1e-6, pattern


@families
def test_one_number_for_each_neuron_is_a_row_of_equal_ones(family):
    episodes = regression(2, 4, 3, 3, 2)
    made = {g: learner(family, g, scale=0.0) for g in ("synapse", "neuron")}
    for i, size in enumerate((6, 5, 2)):
        values = 0.05 * normal(size, 1, seed=i)
        raw(made["neuron"], f"layer{i}_weight", "plasticity").data = values
        fine = raw(made["synapse"], f"layer{i}_weight", "plasticity")
        fine.data = values.expand(fine.shape).clone()
    x, weight = normal(4, 6), normal(5, 6, seed=1)
    signals = LocalSignals(x, normal(4, 5, seed=2), normal(4, 5, seed=3))
    changes = [change(m.rules["layer1_weight"], weight, signals) for m in made.values()]
    assert torch.equal(*changes)
    fine, coarse = (meta_gradient(made[g], episodes) for g in ("synapse", "neuron"))
    for name in coarse:
        wanted = fine[name].sum(1, keepdim=True) if "plasticity" in name else fine[name]
        assert deviation(coarse[name], wanted) < 1e-12, name
