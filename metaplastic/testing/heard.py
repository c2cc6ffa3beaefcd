"""What a credit sends."""

from __future__ import annotations

from metaplastic.hinge import Apply
from metaplastic.learner import Learner
from metaplastic.rules import PlasticityRule
from metaplastic.signals import LocalSignals, Presentation, State
from metaplastic.testing.parts import FIELDS


def rules_of(learner: Learner) -> dict[str, PlasticityRule]:
    """The rule of every plastic group."""
    return {n: r for n, r in learner.rules.items() if isinstance(r, PlasticityRule)}


class Listen(Apply):
    """Keeps what every group is sent."""

    def __init__(self, rules: dict[str, PlasticityRule]) -> None:
        super().__init__(rules)
        self.heard: list[tuple[str, LocalSignals]] = []

    def __call__(self, state: State, signals: dict[str, LocalSignals], share: float = 1.0) -> State:
        self.heard += signals.items()
        return super().__call__(state, signals, share)


def assert_sent(learner: Learner, shown: Presentation, state: State, *, all_groups: bool) -> None:
    """Every plastic group is sent what its rule asked for, in the shapes of LocalSignals.

    Feedback synapses need not be sent all that the network's are: they are held to it where their
    rule is the learner's own (``all_groups``).
    """
    listen = Listen(rules_of(learner))
    learner.credit.present(learner.network, state, shown, listen)
    assert {name for name, _ in listen.heard} == set(learner.plastic)
    for name, seen in listen.heard:
        group, needs = learner.groups()[name], listen.needs[name]
        rows = seen.pre.shape[0]
        assert rows == shown.x.shape[0] * seen.sites
        widths = {
            "pre": {group.n_in},
            "post": {group.n_out},
            "teaching": {group.n_out},
            "gain": {group.n_out},
            "pre_teaching": {group.n_in},
            "modulator": {1, group.n_out},
        }
        for field, allowed in widths.items():
            value = getattr(seen, field)
            if field in FIELDS and field not in needs:
                assert value is None, f"{name} was sent {field}, which nobody asked for"
            elif value is not None or all_groups or name in learner.network.groups():
                assert value is not None, f"{name} was not sent {field}"
                assert value.shape[0] == rows, (name, field)
                assert value.shape[1] in allowed, (name, field)
