"""Differentiable plasticity and Backpropamine against their equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metaplastic.errors import CompatibilityError, ConfigurationError
from metaplastic.rules import Backpropamine, Coefficient, DifferentiablePlasticity
from metaplastic.rules.differentiable import PlasticTrace
from metaplastic.signals import LocalSignals, SynapseGroup
from tests.helpers import deviation, normal
from tests.rules.scalar import Synapse

GROUP = SynapseGroup("layer0_weight", 4, 3)
RATE = 0.3
FORMS: dict[str, tuple[Callable[..., PlasticTrace], dict]] = {
    "decay": (DifferentiablePlasticity, {"form": "decay"}),
    "oja": (DifferentiablePlasticity, {"form": "oja"}),
    "clip": (DifferentiablePlasticity, {"form": "clip", "bound": 0.4}),
    "simple": (Backpropamine, {"form": "simple", "clip": None}),
    "simple-hard": (Backpropamine, {"form": "simple", "clip": "hard", "bound": 0.6}),
    "simple-soft": (Backpropamine, {"form": "simple", "clip": "soft", "bound": 0.6}),
    "retroactive": (Backpropamine, {"form": "retroactive", "clip": None}),
    "retroactive-hard": (Backpropamine, {"form": "retroactive", "clip": "hard"}),
    "retroactive-soft": (Backpropamine, {"form": "retroactive", "clip": "soft", "bound": 2.0}),
}
forms = pytest.mark.parametrize("form", FORMS)


def full(rows: int, columns: int, value: float) -> Tensor:
    return torch.full((rows, columns), value, dtype=torch.float64)


def bound_rule(form: str, alpha: float = 0.5, rate: float = RATE, **options) -> PlasticTrace:
    family, arguments = FORMS[form]
    rule = family(alpha=alpha, rate=rate, **(arguments | options)).bind(GROUP).double()
    if not (rule.alpha.granularity == "synapse" and rule.alpha.learned):
        return rule
    rule.alpha.raw.data += 0.3 * normal(4, 3, seed=1)
    return rule


def stream(steps: int, rows: int, modulators: int = 1, scale: float = 1.0) -> list[LocalSignals]:
    return [
        LocalSignals(
            pre=scale * normal(rows, 3, seed=10 * t),
            post=scale * normal(rows, 4, seed=10 * t + 1),
            modulator=normal(rows, modulators, seed=10 * t + 2).tanh(),
        )
        for t in range(steps)
    ]


def run(
    rule: PlasticTrace, shown: list[LocalSignals]
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Changes, and traces after each presentation."""
    weight = normal(4, 3, seed=99)
    traces, coefficients = rule.init(weight), rule.coefficients()
    changes, history = [], []
    for signals in shown:
        change, traces = rule.update(weight, signals, traces, coefficients)
        changes.append(change)
        history.append(traces)
    return changes, history


@forms
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("modulators", [1, 4])
def test_rules_equal_a_loop_over_synapses(form, rows, modulators):
    rule, shown = bound_rule(form), stream(6, rows, modulators)
    with torch.no_grad():
        changes, history = run(rule, shown)
    options = FORMS[form][1]
    alpha = rule.coefficients()["alpha"].detach()
    for i in range(4):
        for j in range(3):
            synapse = Synapse(
                options["form"],
                alpha=float(alpha[i, j]),
                rate=RATE,
                clip=options.get("clip", "hard"),
                bound=options.get("bound", 1.0),
            )
            for t, signals in enumerate(shown):
                m = signals.modulator[:, i if modulators > 1 else 0]
                wanted = synapse.change(
                    signals.post[:, i].tolist(), signals.pre[:, j].tolist(), m.tolist()
                )
                assert abs(float(changes[t][i, j]) - wanted) < 1e-14
                assert abs(float(history[t]["hebb"][i, j]) - synapse.trace["hebb"]) < 1e-14


@pytest.mark.parametrize("clip", [None, "hard", "soft"])
def test_b12_retroactive_with_rate_one_lags_simple_by_one_step(clip):
    """One modulator throughout (a power of two, which rounds nothing): the trace of the retroactive
    rule is the simple rule's of the step before, exactly. A modulator that varies meets the
    products of the step before.
    """
    rules = {
        form: bound_rule(form, rate=1.0, clip=clip, bound=0.8) for form in ("simple", "retroactive")
    }
    shown = [replace(s, modulator=full(1, 1, 0.5)) for s in stream(6, 1)]
    simple, retroactive = (run(rule, shown)[1] for rule in rules.values())
    assert torch.equal(retroactive[0]["hebb"], torch.zeros(4, 3).double())
    for now, before in zip(retroactive[1:], simple[:-1], strict=True):
        assert torch.equal(now["hebb"], before["hebb"])
    assert not torch.equal(retroactive[-1]["hebb"], simple[-1]["hebb"])

    shown = stream(6, 1)
    late = [replace(b, modulator=a.modulator) for a, b in zip(shown[1:], shown[:-1], strict=True)]
    retroactive, simple = run(rules["retroactive"], shown)[1], run(rules["simple"], late)[1]
    for now, other in zip(retroactive[1:], simple, strict=True):
        torch.testing.assert_close(now["hebb"], other["hebb"], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("form", ["clip", "simple-hard", "simple-soft", "retroactive-hard"])
@pytest.mark.parametrize("bound", [0.3, 1.0])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_b13_trace_never_leaves_the_clip(form, bound, scale):
    with torch.no_grad():
        _, history = run(bound_rule(form, bound=bound), stream(60, 2, scale=scale))
    largest = max(float(traces["hebb"].abs().max()) for traces in history)
    assert (bound if scale == 3.0 else 0.1) <= largest <= bound


def test_a_soft_clip_fades_a_hard_one_cuts():
    """A steady small step: the soft trace closes in on the bound by a constant factor."""
    d, bound = 0.05, 0.8
    signals = LocalSignals(
        pre=torch.ones(1, 3).double(),
        post=full(1, 4, d),
        modulator=torch.ones(1, 1).double(),
    )
    _, soft = run(bound_rule("simple-soft", bound=bound), [signals] * 30)
    _, hard = run(bound_rule("simple-hard", bound=bound), [signals] * 30)
    for t in range(30):
        wanted = bound * (1 - (1 - d / bound) ** (t + 1))
        assert deviation(soft[t]["hebb"], full(4, 3, wanted)) < 1e-12
        assert deviation(hard[t]["hebb"], full(4, 3, min(bound, d * (t + 1)))) < 1e-12


def test_the_soft_clip_has_the_slope_of_a_plain_step_where_nothing_moves():
    """At d = 0 and H = 0 both sides agree that dH / dd = 1."""
    rule = bound_rule("simple-soft")
    m = torch.zeros(1, 1).double().requires_grad_()
    signals = LocalSignals(
        pre=torch.ones(1, 3).double(), post=torch.ones(1, 4).double(), modulator=m
    )
    (slope,) = torch.autograd.grad(run(rule, [signals])[1][-1]["hebb"].sum(), m)
    assert float(slope) == 12.0


@pytest.mark.parametrize("steps", [1, 7])
def test_constant_activity_has_closed_forms(steps):
    x, y, rate = 0.7, -0.4, 0.2
    signals = LocalSignals(pre=full(2, 3, x), post=full(2, 4, y))
    wanted = {
        "decay": x * y * (1 - (1 - rate) ** steps),
        "oja": x / y * (1 - (1 - rate * y * y) ** steps),
        "clip": max(-0.3, rate * x * y * steps),
    }
    for form, value in wanted.items():
        rule = bound_rule(form, rate=rate, **({"bound": 0.3} if form == "clip" else {}))
        changes, history = run(rule, [signals] * steps)
        assert deviation(history[-1]["hebb"], full(4, 3, value)) < 1e-12
        total = torch.stack(changes).sum(0)
        assert deviation(total, rule.coefficients()["alpha"] * value) < 1e-12


@forms
def test_padding_leaves_no_trace(form):
    """Padded rows do not count; a presentation of padding alone changes nothing, bit for bit."""
    rule, shown = bound_rule(form), stream(4, 3)
    weight = torch.tensor([[1.0], [0.0], [1.0]]).double()
    padded = [replace(s, weight=weight) for s in shown]
    kept = [
        replace(s, pre=s.pre[[0, 2]], post=s.post[[0, 2]], modulator=s.modulator[[0, 2]])
        for s in shown
    ]
    found, wanted = run(rule, padded), run(rule, kept)
    for a, b in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    nothing = replace(shown[2], weight=torch.zeros(3, 1).double())
    changes, history = run(rule, [*shown[:2], nothing, shown[3]])
    assert torch.equal(changes[2], torch.zeros(4, 3).double())
    assert all(torch.equal(history[2][n], history[1][n]) for n in history[1])
    assert torch.equal(changes[3], run(rule, [*shown[:2], shown[3]])[0][2])


@forms
@pytest.mark.parametrize("reduction", ["sum", "examples", "positions"])
def test_reductions_scale_the_product(form, reduction):
    """Six rows of three places each: sums are 6 times, examples 3 times the mean over rows."""
    factor = {"sum": 6.0, "examples": 3.0, "positions": 1.0}[reduction]
    shown = [replace(s, sites=3) for s in stream(1, 6)]
    if "retroactive" in form:  # nothing is eligible at first
        found, wanted = (
            run(bound_rule(form, reduction=r), shown)[1][0]["eligibility"]
            for r in (reduction, "positions")
        )
    else:
        free = {"bound": 100.0} if form in ("clip", "simple-hard") else {}
        if form == "simple-soft":
            free = {"bound": 100.0}
        found, wanted = (
            run(bound_rule(form, reduction=r, **free), shown)[1][0]["hebb"]
            for r in (reduction, "positions")
        )
    assert deviation(found, factor * wanted) < 1e-12


@forms
def test_rules_run_under_vmap_and_leave_their_inputs(form):
    rule, shown = bound_rule(form), stream(3, 2)
    coefficients = rule.coefficients()
    weights = normal(5, 4, 3)
    one = {n: 0.1 * normal(5, 4, 3, seed=5) for n in rule.init(weights[0])}
    before = {n: v.clone() for n, v in one.items()}

    def step(weight: Tensor, traces: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return rule.update(weight, shown[0], traces, coefficients)

    change, traces = torch.func.vmap(step)(weights, one)
    for e in range(5):
        alone, its = step(weights[e], {n: v[e] for n, v in one.items()})
        torch.testing.assert_close(change[e], alone, rtol=1e-14, atol=1e-16)
        for name, value in its.items():
            torch.testing.assert_close(traces[name][e], value, rtol=1e-14, atol=1e-16)
    assert all(torch.equal(before[n], one[n]) for n in one)


@forms
@pytest.mark.parametrize("granularity", ["synapse", "neuron", "layer", "network"])
def test_alpha_takes_every_granularity(form, granularity):
    family, options = FORMS[form]
    rule = family(alpha=0.5, rate=RATE, granularity=granularity, **options).bind(GROUP).double()
    found = run(rule, stream(3, 2))[0]
    wanted = run(family(alpha=0.5, rate=RATE, **options).bind(GROUP).double(), stream(3, 2))[0]
    assert deviation(torch.stack(found), torch.stack(wanted)) < 1e-14
    assert rule.alpha.role == "plasticity"


def test_coefficients_may_be_ones_own():
    rate = Coefficient(0.2, granularity="neuron", bound="sigmoid")
    rule = DifferentiablePlasticity(alpha=Coefficient(1.0, learned=False), rate=rate).bind(GROUP)
    assert rule.rate().shape == (4, 1)
    assert {n for n, _ in rule.named_parameters()} == {"rate.raw"}


def test_only_the_forms_that_read_a_rate_have_one():
    assert dict(Backpropamine("simple").named_parameters()).keys() == {"alpha.raw"}
    rates = {"alpha.raw", "rate.raw"}
    assert dict(Backpropamine("retroactive").named_parameters()).keys() == rates
    assert dict(DifferentiablePlasticity("oja").named_parameters()).keys() == rates
    assert DifferentiablePlasticity().rate.role == "control"


def test_wrong_options_and_signals_are_errors():
    with pytest.raises(ConfigurationError, match="form must be one of"):
        DifferentiablePlasticity("simple")
    with pytest.raises(ConfigurationError, match="clip must be one of"):
        Backpropamine(clip="none")
    with pytest.raises(ConfigurationError, match="bound of a trace is positive, got 0"):
        Backpropamine(bound=0.0)
    with pytest.raises(ConfigurationError, match="lies in"):
        DifferentiablePlasticity(rate=1.5)
    with pytest.raises(CompatibilityError, match="reads a modulator, which nobody sent"):
        run(bound_rule("simple"), [replace(stream(1, 1)[0], modulator=None)])
