"""Rules that break the contract of rules, each with the test that must catch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaplastic import Coefficient, LocalSignals, PlasticityRule, SynapseGroup
from metaplastic.rules.traces import shown, third_factor
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.parts import EverySignal, conv
from metaplastic.testing.synapses import SynapseBench

Traces = dict[str, Tensor]


class Sound(PlasticityRule):
    """A three-factor rule with a trace, a decay and one coefficient for each neuron."""

    needs = frozenset({"teaching", "modulator"})

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.rate = Coefficient(rate, granularity="neuron")

    def with_rate(self, rate: float) -> PlasticityRule:
        return type(self)(rate)

    def init(self, weight: Tensor) -> Traces:
        return {"mean": torch.zeros_like(weight)}

    def update(self, weight, signals, traces, coefficients) -> tuple[Tensor, Traces]:
        factor = signals.error * third_factor(signals)
        product = signals.correlate(factor, signals.pre, "positions")
        mean = traces["mean"] + 0.5 * (product - shown(signals) * traces["mean"])
        change = coefficients["rate"] * mean - 0.01 * weight
        return shown(signals) * change, {"mean": mean}


Change = Callable[[Tensor, LocalSignals, Traces, dict[str, Tensor]], Tensor]


def plus(extra: Change) -> type[Sound]:
    """The sound rule with something added to its change."""

    class Broken(Sound):
        def update(self, weight, signals, traces, coefficients):
            change, after = super().update(weight, signals, traces, coefficients)
            return change + extra(weight, signals, traces, coefficients), after

    return Broken


def written(write: Change) -> type[Sound]:
    """The sound rule, which writes somewhere first."""

    class Broken(Sound):
        def update(self, weight, signals, traces, coefficients):
            write(weight, signals, traces, coefficients)
            return super().update(weight, signals, traces, coefficients)

    return Broken


def made(make: Callable[[Tensor, Traces], tuple[Tensor, Traces]]) -> type[Sound]:
    """The sound rule, its answer made into something else."""

    class Broken(Sound):
        def update(self, weight, signals, traces, coefficients):
            return make(*super().update(weight, signals, traces, coefficients))

    return Broken


class Reward(Sound):
    needs = frozenset({"teaching", "modulator", "reward"})


class Counting(Sound):
    calls = 0

    def update(self, weight, signals, traces, coefficients):
        self.calls += 1
        change, after = super().update(weight, signals, traces, coefficients)
        return change * self.calls, after


class LeaksThroughATrace(Sound):
    """Synapses see the rest of their neuron one presentation later."""

    def update(self, weight, signals, traces, coefficients):
        change, after = super().update(weight, signals, traces, coefficients)
        return change + 0.1 * traces["mean"].mean(1, keepdim=True), after


class Asks(Sound):
    def update(self, weight, signals, traces, coefficients):
        with torch.inference_mode(False), torch.enable_grad():
            w = torch.zeros(weight.shape, dtype=weight.dtype, requires_grad=True)
            torch.autograd.grad(w.sum(), w)
        return super().update(weight, signals, traces, coefficients)


class Branches(Sound):
    def update(self, weight, signals, traces, coefficients):
        change, after = super().update(weight, signals, traces, coefficients)
        if bool(change.abs().max() > 1e9):
            change = torch.zeros_like(change)
        return change, after


class SharesAll(Sound):
    def bind(self, group: SynapseGroup):
        return self


class NeverCopied(Sound):
    def bind(self, group: SynapseGroup):
        own = type(self)()
        own.rate = self.rate.bind(group)
        return own

    def __deepcopy__(self, memo):
        return self


class PlainParameter(Sound):
    """A learned number that is no Coefficient: files do not know it."""

    def __init__(self, rate: float = 0.3) -> None:
        super().__init__(rate)
        self.extra = nn.Parameter(torch.zeros((), dtype=torch.float64))


class NoPlainForm(Sound):
    def with_rate(self, rate: float) -> Any:
        return rate


def altered() -> Sound:
    rule = Sound()
    rule.rate = Coefficient(0.7, granularity="neuron")
    return rule


def unweighted(weight, signals, traces, coefficients) -> Tensor:
    return 0.1 * signals.post.mT @ signals.pre / signals.pre.shape[0]


def by_place(weight, signals, traces, coefficients) -> Tensor:
    place = torch.arange(1.0, 1.0 + signals.pre.shape[0]).to(weight)
    return 0.1 * (signals.post * place.unsqueeze(1)).mT @ signals.pre


RULE_CASES: list[tuple[str, str, Callable[[], PlasticityRule]]] = [
    ("declares_what_it_reads", "a signal that there is not", Reward),
    (
        "a_synapse_sees_its_own_units_alone",
        "other weights",
        plus(lambda w, s, t, c: 0.1 * w.mean(1, keepdim=True).expand_as(w)),
    ),
    (
        "a_synapse_sees_its_own_units_alone",
        "other neurons' activity",
        plus(lambda w, s, t, c: 0.1 * s.average(s.post, "sum").mean().expand_as(w)),
    ),
    (
        "a_synapse_sees_its_own_units_alone",
        "other inputs",
        plus(lambda w, s, t, c: 0.1 * s.pre.mean().expand_as(w)),
    ),
    (
        "a_synapse_sees_its_own_units_alone",
        "other coefficients",
        plus(lambda w, s, t, c: 0.1 * c["rate"].mean() * w),
    ),
    ("a_synapse_sees_its_own_units_alone", "a trace, later", LeaksThroughATrace),
    (
        "reads_the_signals_that_it_needs_and_no_others",
        "the slope, where it is there",
        plus(lambda w, s, t, c: 0 * w if s.gain is None else s.correlate(s.gain, s.pre, "sum")),
    ),
    (
        "one_modulator_is_as_many_alike",
        "a sum over neurons",
        plus(lambda w, s, t, c: s.average(s.modulator.sum(1, keepdim=True), "sum") * w),  # type: ignore[union-attr]
    ),
    (
        "moves_within_three_presentations",
        "no change at all",
        made(lambda change, after: (torch.zeros_like(change), after)),
    ),
    (
        "moves_within_three_presentations",
        "infinite",
        made(lambda change, after: (change / 0, after)),
    ),
    (
        "change_and_traces_keep_shape_precision_and_device",
        "single precision",
        made(lambda change, after: (change.float(), after)),
    ),
    (
        "change_and_traces_keep_shape_precision_and_device",
        "one number for all",
        made(lambda change, after: (change.mean().reshape(1, 1), after)),
    ),
    (
        "change_and_traces_keep_shape_precision_and_device",
        "a trace that grows",
        made(lambda change, after: (change, {"mean": after["mean"].repeat(2, 1)})),
    ),
    (
        "change_and_traces_keep_shape_precision_and_device",
        "another trace",
        made(lambda change, after: (change, after | {"new": change})),
    ),
    ("any_size_of_group", "one size", plus(lambda w, s, t, c: torch.ones(4, 3).to(w))),
    (
        "what_is_given_stays_as_it_was",
        "weights written to",
        written(lambda w, s, t, c: w.mul_(0.9)),
    ),
    (
        "what_is_given_stays_as_it_was",
        "signals written to",
        written(lambda w, s, t, c: s.pre.add_(1.0)),
    ),
    (
        "what_is_given_stays_as_it_was",
        "the dict of traces written to",
        written(lambda w, s, t, c: t.update(mean=t["mean"] + 1)),  # type: ignore[arg-type]
    ),
    ("the_answer_depends_on_the_arguments_alone", "memory", Counting),
    (
        "the_answer_depends_on_the_arguments_alone",
        "chance",
        plus(lambda w, s, t, c: torch.randn_like(w)),
    ),
    (
        "the_answer_depends_on_the_arguments_alone",
        "chance that is drawn and not used",
        plus(lambda w, s, t, c: 0 * torch.randn_like(w)),
    ),
    ("calls_no_autograd", "a gradient", Asks),
    ("vmap_equals_a_loop", "a branch on values", Branches),
    ("padding_leaves_no_trace", "rows without weights", plus(unweighted)),
    ("padding_leaves_no_trace", "a decay", plus(lambda w, s, t, c: -0.1 * w)),
    ("the_order_of_examples_does_not_matter", "rows by place", plus(by_place)),
    (
        "gradients_equal_finite_differences",
        "a constant weight",
        plus(lambda w, s, t, c: 0.1 * w.detach() ** 2),
    ),
    (
        "gradients_equal_finite_differences",
        "a constant coefficient",
        plus(lambda w, s, t, c: c["rate"].detach() * w),
    ),
    ("all_ways_through_the_loop_give_one_gradient", "a branch on values", Branches),
    ("all_ways_through_the_loop_give_one_gradient", "memory", Counting),
    (
        "meta_gradient_equals_central_differences",
        "a constant change",
        made(lambda change, after: (change.detach(), after)),
    ),
    ("a_template_binds_without_changing", "one for all groups", SharesAll),
    ("a_copy_is_the_same_rule_with_numbers_of_its_own", "itself", NeverCopied),
    ("its_description_makes_it_again", "changed after it was made", altered),
    ("a_file_brings_its_coefficients_back", "a plain Parameter", PlainParameter),
    ("its_plainest_form_is_a_rule", "a number", NoPlainForm),
]


def rule_pool(rule: PlasticityRule, tmp_path: Path) -> dict[str, Any]:
    return {
        "rule": rule,
        "bench": SynapseBench(rule),
        "loop": LearnerBench(conv(), EverySignal(), {"*": rule}),
        "tmp_path": tmp_path,
        "dtype": torch.float64,
        "kind": "error",
        "classes": True,
    }
