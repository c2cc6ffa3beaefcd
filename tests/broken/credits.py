"""Credits that break the contract of credits, each with the test that must catch it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaplastic import (
    CreditAssignment,
    DirectFeedback,
    LocalSignals,
    Oja,
    Presentation,
    SynapseGroup,
)
from metaplastic.signals import Learn, State
from metaplastic.testing.loop import LearnerBench
from metaplastic.testing.parts import mlp


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
