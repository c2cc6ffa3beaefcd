"""Consolidation: a pull back to where the episode began."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.traces import shown
from metaplastic.signals import LocalSignals, SynapseGroup

INNER = "rule."
"""Prefix of the inner rule's coefficients and traces."""


class Consolidated(PlasticityRule):
    r"""Any rule with a pull back to the weights W_0 of the start of the episode:
    dW = dW_rule + strength o (W_0 - W).

    It gives a rule a rest point, which ``Implicit`` and ``LeastControl`` need. With Delta at rate 1
    on errors by backpropagation the change is minus the gradient of
    loss + strength / 2 |W - W_0|^2, the inner objective of implicit MAML (Rajeswaran et al. 2019).
    The outer loop learns W_0 through it, the prior of every synapse. A credit that tells a
    presentation in n pieces pulls n times by strength / n.

    Args:
        rule: what is consolidated.
        strength: initial strength of the pull at one presentation, positive, learned through its
            logarithm: a number, or a Coefficient of your own. At 2 or more a stream overshoots.
        granularity: of the strength.
        learned: whether the outer loop trains it.
    """

    def __init__(
        self,
        rule: PlasticityRule,
        strength: float | Coefficient = 0.1,
        *,
        granularity: Granularity = "layer",
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(strength, Coefficient):
            strength = Coefficient(
                strength, granularity=granularity, bound="exp", learned=learned, role="control"
            )
        self.rule, self.strength = rule, strength
        self.needs, self.scope = rule.needs, rule.scope

    def bind(self, group: SynapseGroup) -> Self:
        own = super().bind(group)
        own.rule = self.rule.bind(group)
        return own

    def coefficients(self) -> dict[str, Tensor]:
        return super().coefficients() | _outward(self.rule.coefficients())

    def with_rate(self, rate: float) -> Consolidated:
        return type(self)(**{**self._arguments, "rule": self.rule.with_rate(rate)})

    def init(self, weight: Tensor) -> Traces:
        return {"begin": weight, **_outward(self.rule.init(weight))}

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        begin = traces["begin"]
        change, after = self.rule.update(weight, signals, _inward(traces), _inward(coefficients))
        pull = coefficients["strength"] * shown(signals) * (begin - weight)
        return change + pull, {"begin": begin, **_outward(after)}


def _outward(own: dict[str, Tensor]) -> dict[str, Tensor]:
    return {INNER + name: value for name, value in own.items()}


def _inward(every: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: value for name, value in every.items() if name.startswith(INNER)}
    return {name.removeprefix(INNER): value for name, value in found.items()}
