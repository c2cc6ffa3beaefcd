"""What is done with the signals of a presentation."""

from __future__ import annotations

from torch import Tensor

from metaplastic.rules import PlasticityRule
from metaplastic.signals import LocalSignals, State


class Apply:
    """The learn of the inner loop: weights move by what the rules say."""

    def __init__(self, rules: dict[str, PlasticityRule]) -> None:
        self.rules = rules
        self.needs = {name: rule.needs for name, rule in rules.items()}

    def __call__(self, state: State, signals: dict[str, LocalSignals], share: float = 1.0) -> State:
        weights, traces = dict(state["weights"]), dict(state["rule"])
        for name, seen in signals.items():
            change, traces[name] = self.rules[name].update(
                weights[name], seen, traces[name], state["coefficients"][name]
            )
            change = change if share == 1.0 else share * change
            weights[name] = weights[name] + change
            self.record(name, change)
        return {**state, "weights": weights, "rule": traces}

    def record(self, name: str, change: Tensor) -> None:
        """Hook for those that keep the changes."""


class Record(Apply):
    """Applies, and adds up what each group was told to change."""

    def __init__(self, rules: dict[str, PlasticityRule]) -> None:
        super().__init__(rules)
        self.change: dict[str, Tensor] = {}

    def record(self, name: str, change: Tensor) -> None:
        self.change[name] = self.change[name] + change if name in self.change else change
