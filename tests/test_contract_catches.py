"""The contracts catch what they are for: broken methods, each under the test that must fail."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaplastic import (
    Coefficient,
    CreditAssignment,
    Delta,
    DirectFeedback,
    Learner,
    LocalSignals,
    MetaGradient,
    Oja,
    Outcome,
    PlasticityRule,
    Presentation,
    SynapseGroup,
    Unrolled,
)
from metaplastic.rules.traces import shown, third_factor
from metaplastic.signals import Learn, State
from metaplastic.testing import CreditContract, MetaGradientContract, RuleContract
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.metagradient import MetaBench
from metaplastic.testing.parts import EverySignal, conv, mlp
from metaplastic.testing.synapses import SynapseBench

Traces = dict[str, Tensor]


# --- rules --------------------------------------------------------------------------------------


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


# --- credits ------------------------------------------------------------------------------------


class SoundCredit(DirectFeedback):
    """Learned direct feedback under noise."""

    def noise(self, network, lead, generator):
        return 0.1 * torch.randn(*lead, network.outputs, generator=generator)

    def present(self, network, state: State, presentation: Presentation, learn: Learn) -> State:
        noisy = Noisy(presentation, self.given_noise(presentation))
        return super().present(network, state, noisy.presentation, learn)


class Noisy:
    """A presentation whose teacher errs."""

    def __init__(self, presentation: Presentation, noise: Tensor) -> None:
        teacher = copy.copy(presentation.teacher)
        exact = teacher.error
        teacher.error = lambda output: exact(output) + noise  # type: ignore[method-assign]
        self.presentation = replace(presentation, teacher=teacher)


Before = Callable[[CreditAssignment, Any, State, Presentation], object]


def doing(what: Before) -> type[SoundCredit]:
    """The sound credit, which does something first."""

    class Broken(SoundCredit):
        def present(self, network, state, presentation, learn):
            what(self, network, state, presentation)
            return super().present(network, state, presentation, learn)

    return Broken


def sending(alter: Callable[[dict[str, LocalSignals], Any], dict]) -> type[SoundCredit]:
    """The sound credit, the signals being altered on the way."""

    class Broken(SoundCredit):
        def present(self, network, state, presentation, learn):
            class Altered:
                needs = learn.needs

                def __call__(
                    self, state: State, signals: dict[str, LocalSignals], share: float = 1.0
                ) -> State:
                    return learn(state, alter(signals, presentation))

            return super().present(network, state, presentation, Altered())

    return Broken


def each(**change: Callable[[LocalSignals], Any]) -> type[SoundCredit]:
    """Fields of all signals being altered."""

    def alter(signals: dict[str, LocalSignals], shown: Presentation) -> dict[str, LocalSignals]:
        return {
            name: replace(seen, **{field: f(seen) for field, f in change.items()})
            for name, seen in signals.items()
        }

    return sending(alter)


def asking(credit: CreditAssignment, network, state: State, presentation: Presentation) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        w = torch.zeros(3, requires_grad=True)
        torch.autograd.grad(w.sum(), w)


def branching(credit, network, state: State, presentation: Presentation) -> bool:
    return bool(presentation.x.sum() > 0)


def squeezing(signals: dict[str, LocalSignals], shown: Presentation) -> dict[str, LocalSignals]:
    assert shown.x.squeeze().dim() == 2
    return signals


class Remembers(SoundCredit):
    """A state that grows."""

    def present(self, network, state, presentation, learn):
        after = super().present(network, state, presentation, learn)
        return {**after, "credit": {**after["credit"], "last": presentation.x}}


class Unread(SoundCredit):
    """Feedback that nothing reads."""

    def feedback_groups(self, network, needs):
        yield from super().feedback_groups(network, needs)
        yield SynapseGroup("unread", 2, 2, "feedback", taught=False)


class SaysResampled(SoundCredit):
    """Noise that is the same whatever the seed."""

    def noise(self, network, lead, generator):
        return super().noise(network, lead, torch.Generator().manual_seed(0))


class DrawsAgain(SoundCredit):
    def bind(self, network, needs, generator):
        return super(SoundCredit, type(self)()).bind(network, needs, generator)


class CountingCredit(SoundCredit):
    calls = 0

    def feedback(self, layer, weights, sent):
        self.calls += 1
        return self.calls * super().feedback(layer, weights, sent)


class Extra(SoundCredit):
    """A factor drawn when it is bound, which is no feedback weight."""

    factor: Tensor
    kept = False
    """Whether it is a buffer at least."""

    def bind(self, network, needs, generator):
        own = super().bind(network, needs, generator)
        factor = torch.randn((), generator=generator, dtype=torch.float64)
        if self.kept:
            own.register_buffer("factor", factor)
        else:
            own.factor = factor
        return own

    def feedback(self, layer, weights, sent):
        return super().feedback(layer, weights, sent) * self.factor


class ExtraBuffer(Extra):
    kept = True


CREDIT_CASES: list[tuple[str, str, Callable[[], CreditAssignment]]] = [
    (
        "a_step_is_pure",
        "weights written to",
        doing(lambda c, n, s, p: s["weights"]["layer0_weight"].data.mul_(0.9)),
    ),
    ("a_step_is_pure", "examples written to", doing(lambda c, n, s, p: p.x.add_(1.0))),
    ("a_step_is_pure", "a state that grows", Remembers),
    ("a_step_is_pure", "double precision", each(pre=lambda s: s.pre.double())),
    ("calls_no_autograd", "a gradient", doing(asking)),
    (
        "every_plastic_group_moves",
        "a group left out",
        sending(lambda seen, shown: {n: s for n, s in seen.items() if n != "layer1_bias"}),
    ),
    ("sends_what_is_asked_for_and_no_more", "more", each(gain=lambda s: torch.ones_like(s.post))),
    ("sends_what_is_asked_for_and_no_more", "less", each(teaching=lambda s: None)),
    (
        "sends_what_is_asked_for_and_no_more",
        "another shape",
        each(post=lambda s: s.post[:, :1]),
    ),
    (
        "some_groups_learn_alone",
        "a signal shared out among those who ask",
        sending(
            lambda seen, shown: {
                n: replace(s, teaching=s.teaching / len(seen)) for n, s in seen.items()
            }
        ),
    ),
    ("padding_leaves_no_trace", "no weights", each(weight=lambda s: None)),
    ("all_ways_through_the_loop_give_one_gradient", "a branch on values", doing(branching)),
    ("all_ways_through_the_loop_give_one_gradient", "memory", CountingCredit),
    (
        "meta_gradient_equals_central_differences",
        "constant activity",
        each(pre=lambda s: s.pre.detach()),
    ),
    ("any_number_of_episodes_and_examples", "axes of 1 lost", sending(squeezing)),
    ("learned_feedback_has_a_gradient", "unread feedback", Unread),
    (
        "chance_comes_from_the_generator_alone",
        "global chance",
        doing(lambda c, n, s, p: random.random()),
    ),
    ("chance_comes_from_the_generator_alone", "a seed of its own", SaysResampled),
    (
        "what_is_given_stays_as_it_was",
        "Parameters written to",
        doing(lambda c, n, s, p: n.parameter("layer0_weight").data.mul_(0.9)),
    ),
    ("binding_again_keeps_its_weights", "drawn again", DrawsAgain),
    ("a_state_dict_brings_it_back", "a tensor that is no buffer", Extra),
    ("a_file_brings_it_back", "a buffer that is no feedback weight", ExtraBuffer),
]


def credit_pool(credit: CreditAssignment, tmp_path: Path) -> dict[str, Any]:
    return {
        "bench": LearnerBench(mlp(), credit, {"*": Oja(0.02)}),
        "tmp_path": tmp_path,
        "dtype": torch.float32,
        "classes": True,
        "exact": True,
        "sizes": (1, 1, 1, 1),
    }


# --- meta-gradients -----------------------------------------------------------------------------

After = Callable[[Learner, Outcome, int], Outcome | None]


def then(what: After, **options: Any) -> Callable[[], MetaGradient]:
    """Unrolled, and something afterwards, given the number of episodes."""

    @dataclass(frozen=True)
    class Broken(Unrolled):
        def gradient(self, learner, episodes, *, generator=None):
            outcome = super().gradient(learner, episodes, generator=generator)
            return what(learner, outcome, len(episodes)) or outcome

    return lambda: Broken(**options)


@dataclass(frozen=True)
class Overwrites(Unrolled):
    def gradient(self, learner, episodes, *, generator=None):
        learner.zero_grad()
        return super().gradient(learner, episodes, generator=generator)


def scaled(factor: Callable[[Outcome, int], float]) -> Callable[[], MetaGradient]:
    def scale(learner: Learner, outcome: Outcome, episodes: int) -> None:
        for p in learner.parameters():
            assert p.grad is not None
            p.grad.mul_(factor(outcome, episodes))

    return then(scale)


def step(learner: Learner, outcome: Outcome, episodes: int) -> None:
    torch.optim.SGD(learner.parameters(), lr=0.1).step()


def jitter(learner: Learner, outcome: Outcome, episodes: int) -> None:
    for p in learner.parameters():
        assert p.grad is not None
        p.grad.add_(torch.randn_like(p))


METAGRADIENT_CASES: list[tuple[str, str, Callable[[], MetaGradient]]] = [
    ("adds_to_what_is_there", "overwrites", Overwrites),
    ("never_steps", "a step", then(step)),
    ("chance_comes_from_the_generator_alone", "global chance", then(jitter)),
    (
        "its_outcome_says_how_the_learner_did",
        "another loss",
        then(lambda learner, o, n: replace(o, loss=2 * o.loss)),
    ),
    (
        "its_outcome_says_how_the_learner_did",
        "a graph",
        then(lambda learner, o, n: replace(o, loss=o.loss.requires_grad_())),
    ),
    (
        "its_outcome_says_how_the_learner_did",
        "no accuracy",
        then(lambda learner, o, n: replace(o, accuracy=None)),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "not reported",
        then(lambda learner, o, n: replace(o, diverged=())),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "a mean over all",
        scaled(lambda outcome, n: len(outcome.kept) / n),
    ),
    (
        "a_diverged_episode_is_left_out_and_reported",
        "not finite",
        scaled(lambda outcome, n: 1.0 if not outcome.diverged else float("nan")),
    ),
    (
        "nothing_is_left_where_all_diverged",
        "a mean over none",
        scaled(lambda outcome, n: 1.0 if outcome.kept else float("nan")),
    ),
    (
        "any_number_of_episodes_and_examples",
        "one too few",
        scaled(lambda outcome, n: float("inf") if n == 1 else 1.0),
    ),
    ("is_of_the_mean_over_episodes", "a sum", scaled(lambda outcome, n: n)),
    (
        "equals_the_unrolled_gradient",
        "first order",
        then(lambda learner, o, n: None, first_order=True),
    ),
    ("equals_the_unrolled_gradient", "nothing", scaled(lambda outcome, n: 0.0)),
]


def metagradient_pool(method: MetaGradient, tmp_path: Path) -> dict[str, Any]:
    rule = Oja(Coefficient(0.02, granularity="neuron", bound="tanh", l1=0.01))
    parts = LearnerBench(mlp(), DirectFeedback(bias=True), {"*": rule})
    following = Delta(0.1, learned=True)
    bench = MetaBench(method, parts)
    return {"meta": bench, "exact": True, "sizes": (1, 1, 1, 1), "following": following}


# --- all of them --------------------------------------------------------------------------------


KINDS: dict[type, tuple[list, Callable[[], Any], Callable[[Any, Path], dict[str, Any]]]] = {
    RuleContract: (RULE_CASES, Sound, rule_pool),
    CreditContract: (CREDIT_CASES, SoundCredit, credit_pool),
    MetaGradientContract: (METAGRADIENT_CASES, Unrolled, metagradient_pool),
}
CASES = [
    pytest.param(contract, test, broken, id=f"{contract.__name__}-{test}-{what}".replace(" ", "_"))
    for contract, (cases, _, _) in KINDS.items()
    for test, what, broken in cases
]


def call(contract: type, test: str, method: Any, tmp_path: Path) -> None:
    """One test of a contract, with whatever arguments it takes."""
    bound = getattr(contract(), f"test_{test}")
    pool = KINDS[contract][2](method, tmp_path)
    bound(**{name: pool[name] for name in inspect.signature(bound).parameters})


@pytest.mark.parametrize(("contract", "test", "broken"), CASES)
def test_a_broken_method_fails_where_it_must(contract, test, broken, tmp_path):
    call(contract, test, KINDS[contract][1](), tmp_path)
    with pytest.raises((AssertionError, RuntimeError)):  # the latter where torch finds it first
        call(contract, test, broken(), tmp_path)


@pytest.mark.parametrize("contract", KINDS)
def test_every_test_of_a_contract_has_caught_something(contract):
    tests = {n.removeprefix("test_") for n in dir(contract) if n.startswith("test_")}
    assert tests == {test for test, _, _ in KINDS[contract][0]}
