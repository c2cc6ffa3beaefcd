"""Learned rules as files, and their way into other networks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from metaplastic.credit import CreditAssignment
from metaplastic.errors import RuleFileError, TransferError, check_choice
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.rule_file import (
    CreditCoefficient,
    LearnedRule,
    Source,
    read_rule,
    rebuild,
    write_rule,
)
from metaplastic.rules import Coefficient, PlasticityRule
from metaplastic.rules.coefficient import BOUNDS, Bound
from metaplastic.signals import Origin, SynapseGroup

Policy = Literal["exact", "pool"]
Action = Literal["exact", "pooled", "drawn", "initial"]
CREDIT = "credit"
"""Where a report names a group: the credit itself."""


@dataclass(frozen=True)
class Moved:
    """What became of one tensor of the new learner."""

    group: str
    """The synapse group, or ``credit`` for a coefficient of the credit itself."""
    what: str
    """``feedback``, or the name of a coefficient."""
    action: Action
    """``exact``: copied bit by bit; ``pooled``: the mean over the source group's synapses;
    ``drawn``: fresh random feedback; ``initial``: the rule's first value, nothing to take."""
    shape: tuple[int, ...]
    source: str | None = None
    """The group that it was taken from."""
    source_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TransferReport:
    """What was done, tensor by tensor; as text it is a table."""

    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        head = ("group", "what", "done", "shape", "from", "its shape")
        rows = [head] + [
            (m.group, m.what, m.action, _size(m.shape), m.source or "", _size(m.source_shape))
            for m in self.moved
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows]
        return "\n".join("  ".join(row).rstrip() for row in cells)


def save_rule(
    learner: Learner, path: str | Path, *, task: str | None = None, score: float | None = None
) -> None:
    """Write the learned rule to one safetensors file, atomically: what the rules and the credit
    were made with, every coefficient, the credit's own included, the feedback weights, and where
    they come from. The initial weights stay behind.

    Raises:
        ConfigurationError: for a rule or credit with arguments that a file cannot hold.
    """
    write_rule(path, replace(learned_rule(learner), task=task, score=score))


def load_rule(
    path: str | Path,
    for_network: Network | nn.Sequential | None = None,
    *,
    policy: Policy = "pool",
    generator: torch.Generator | None = None,
    known: Mapping[str, type] | None = None,
) -> tuple[CreditAssignment, dict[str, PlasticityRule | None]]:
    """The credit and the rules of a file, for ``Learner(network, *load_rule(path, network))``.

    Args:
        path: the file.
        for_network: the network that they are to fit; see ``transfer`` for how. Without one they
            come as templates, the feedback unbound and the coefficients at their first values.
        policy: see ``transfer``.
        generator: see ``transfer``.
        known: rules and credits of your own by class name.

    Raises:
        RuleFileError: for a file that cannot be used.
        TransferError: where the policy does not allow what the network would need.
    """
    learned = read_rule(path)
    if for_network is None:
        credit, rules, _ = rebuild(learned, known)
        return credit, rules
    # A copy, since a learner takes its network over.
    learner, _ = transfer(
        learned, copy.deepcopy(for_network), policy=policy, generator=generator, known=known
    )
    fixed = {p: None for p, r in learner.templates.items() if r is None}
    named = {
        f"name:{name}": rule
        for name, rule in _rules(learner).items()
        if learner.groups()[name].twin is None
    }
    return learner.credit, named | fixed


def transfer(
    source: Learner | LearnedRule | str | Path,
    network: Network | nn.Sequential,
    objective: Objective | None = None,
    *,
    policy: Policy = "pool",
    initial: Origin = "learned",
    generator: torch.Generator | None = None,
    known: Mapping[str, type] | None = None,
) -> tuple[Learner, TransferReport]:
    """A learner on another network with the rule that ``source`` has learned.

    A coefficient comes from the source's group of the same pattern and role that stands at the
    nearest relative depth (the same name, where the depths agree). Where the shapes agree it is
    copied bit by bit; else it is pooled: every synapse gets the mean over the source's. The
    credit's own coefficients go by name. Feedback weights are copied where name and shape agree,
    else drawn afresh.

    Args:
        source: a learner, a file or what ``read_rule`` made of it.
        network: the network; it is used as it is, as by Learner.
        objective: default the source's.
        policy: ``"pool"`` as above; ``"exact"`` refuses everything that is not a copy.
        initial: see Learner.
        generator: draws feedback weights.
        known: rules and credits of your own by class name.

    Raises:
        RuleFileError: for a file that cannot be used.
        TransferError: under ``"exact"``, naming the group and the shapes.
    """
    learned = learned_rule(source)
    credit, rules, own_objective = rebuild(learned, known)
    learner = Learner(
        network, credit, rules, objective or own_objective, initial=initial, generator=generator
    )
    return learner, load_into(learner, learned, policy=policy)


def load_into(
    learner: Learner, source: Learner | LearnedRule | str | Path, *, policy: Policy = "pool"
) -> TransferReport:
    """Give a learner the coefficients and feedback weights of ``source``, as ``transfer`` does; its
    rules and credit must be of the same kinds.

    Raises:
        RuleFileError: for a file that cannot be used, or one of other rules; the learner is then
            as it was, as it is after a TransferError.
    """
    check_choice(policy=(policy, Policy))
    learned = learned_rule(source)
    _check_kinds(learner, learned)
    planned = _plan_coefficients(learner, learned) + _plan_feedback(learner, learned)
    planned += _plan_own(learner, learned)
    if policy == "exact":
        for moved, _ in planned:
            if moved.action != "exact":
                raise TransferError(
                    f"{moved.what} of {moved.group} is {_size(moved.shape)} and the learned rule "
                    f"has {_size(moved.source_shape) or 'none'}"
                    f"{'' if moved.source is None else f' in {moved.source}'}: policy='pool' would "
                    f"have it {moved.action}."
                )
    _check_range(learner, learned, planned)
    for moved, value in planned:
        if value is not None and moved.what == "feedback":
            with torch.no_grad():
                learner.credit.weights()[moved.group].copy_(value)
        elif value is not None:
            coefficient = _holder(learner, moved.group)[moved.what]
            if moved.action == "exact" and _bound(learned, moved, coefficient) == coefficient.bound:
                with torch.no_grad():
                    coefficient.raw.copy_(value)
            else:
                values = _values(learned, moved, coefficient, value)
                coefficient.assign(values if moved.action == "exact" else values.mean())
    return TransferReport(tuple(moved for moved, _ in planned))


Plan = list[tuple[Moved, Tensor | None]]


def _plan_coefficients(learner: Learner, learned: LearnedRule) -> Plan:
    plan: Plan = []
    groups = learner.groups()
    for name, rule in _rules(learner).items():
        origin = _nearest(groups[name], learner.patterns[name], learned)
        for what, coefficient in _coefficients(rule).items():
            shape = tuple(coefficient.raw.shape)
            if origin is None:
                plan.append((Moved(name, what, "initial", shape), None))
                continue
            value = learned.coefficients[origin][what]
            action = "exact" if value.shape == coefficient.raw.shape else "pooled"
            moved = Moved(name, what, action, shape, origin, tuple(value.shape))
            plan.append((moved, value))
    return plan


def _plan_feedback(learner: Learner, learned: LearnedRule) -> Plan:
    plan: Plan = []
    if learner.credit.resampled:
        return plan
    for name, own in learner.credit.weights().items():
        value = learned.feedback.get(name)
        fits = value is not None and value.shape == own.shape
        source = None if value is None else name
        source_shape = None if value is None else tuple(value.shape)
        action: Action = "exact" if fits else "drawn"
        moved = Moved(name, "feedback", action, tuple(own.shape), source, source_shape)
        plan.append((moved, value if fits else None))
    return plan


def _plan_own(learner: Learner, learned: LearnedRule) -> Plan:
    plan: Plan = []
    for what, coefficient in _own(learner.credit).items():
        shape, value = tuple(coefficient.raw.shape), learned.own[what].raw
        action = "exact" if value.shape == coefficient.raw.shape else "pooled"
        plan.append((Moved(CREDIT, what, action, shape, CREDIT, tuple(value.shape)), value))
    return plan


def _bound(learned: LearnedRule, moved: Moved, coefficient: Coefficient) -> Bound:
    """The map that the raw values were learned through."""
    known = learned.bounds.get(moved.source or "", {})
    return cast(Bound, known.get(moved.what, coefficient.bound))


def _values(learned: LearnedRule, moved: Moved, coefficient: Coefficient, raw: Tensor) -> Tensor:
    return BOUNDS[_bound(learned, moved, coefficient)].forward(raw)


def _check_range(learner: Learner, learned: LearnedRule, planned: Plan) -> None:
    for moved, raw in planned:
        if raw is None or moved.what == "feedback":
            continue
        coefficient = _holder(learner, moved.group)[moved.what]
        limits, values = BOUNDS[coefficient.bound], _values(learned, moved, coefficient, raw)
        if bool(((values < limits.low) | (values > limits.high)).any()):
            raise RuleFileError(
                f"the learned {moved.what} of {moved.source} reaches from "
                f"{float(values.min()):.3g} to {float(values.max()):.3g}, and that of "
                f"{moved.group} lies between {limits.low:g} and {limits.high:g}: give it the bound "
                "that it was learned with."
            )


def _nearest(group: SynapseGroup, pattern: str, learned: LearnedRule) -> str | None:
    """The source's plastic group that stands nearest, None where no group has the pattern."""
    found = {
        name: source
        for name, source in learned.groups.items()
        if name in learned.coefficients and source.pattern == pattern
    }
    same = {name: source for name, source in found.items() if source.role == group.role} or found

    def distance(name: str) -> tuple[float, bool]:
        gap = abs(_depth(same[name]) - _depth(group))
        return gap, gap > 0 or name != group.name

    return min(same, key=distance, default=None)


def _depth(group: SynapseGroup) -> float:
    """0 at the input side, 1 at the output."""
    return group.position / max(1, group.layers - 1)


def _check_kinds(learner: Learner, learned: LearnedRule) -> None:
    own = {p: None if r is None else r["type"] for p, r in learner.templates.items()}
    given = {p: None if r is None else r["type"] for p, r in learned.rules.items()}
    kinds = {type(learner.credit).__name__, *(k for k in own.values() if k)}
    other = {learned.credit["type"], *(k for k in given.values() if k)}
    names = {
        pattern: {
            n
            for name, c in learned.coefficients.items()
            for n in c
            if learned.groups[name].pattern == pattern
        }
        for pattern in given
    }
    fits = own == given and learned.credit["type"] == type(learner.credit).__name__
    for name, rule in _rules(learner).items():
        pattern = learner.patterns[name]
        fits = fits and (not names[pattern] or names[pattern] == _coefficients(rule).keys())
    if not fits:
        raise RuleFileError(
            f"the learned rule is of {', '.join(sorted(other))} under {sorted(given)}; the learner "
            f"has {', '.join(sorted(kinds))} under {sorted(own)}: build it with the same rules, or "
            "let transfer() build it."
        )
    bounds = {name: own.bound for name, own in learned.own.items()}
    wanted = {name: c.bound for name, c in _own(learner.credit).items()}
    if bounds != wanted:
        raise RuleFileError(
            f"the learned {learned.credit['type']} has coefficients of its own {_bounded(bounds)} "
            f"and the learner's has {_bounded(wanted)}: build it with the same ones; a file that "
            "lacks them is written again with save_rule."
        )


def learned_rule(source: Learner | LearnedRule | str | Path) -> LearnedRule:
    """What ``source`` has learned: of a learner, of a file (see ``read_rule``), or itself."""
    if isinstance(source, str | Path):
        return read_rule(source)
    if isinstance(source, LearnedRule):
        return source
    feedback = {} if source.credit.resampled else source.credit.weights()
    groups = source.groups()
    return LearnedRule(
        credit=source.credit.describe(),
        rules=source.templates,
        objective={"type": type(source.objective).__name__, **asdict(source.objective)},
        groups={
            name: Source(**asdict(group), pattern=source.patterns.get(name))
            for name, group in groups.items()
            if name in source.rules or name in feedback
        },
        coefficients={
            name: {n: c.raw.detach() for n, c in _coefficients(rule).items()}
            for name, rule in _rules(source).items()
        },
        feedback={name: value.detach() for name, value in feedback.items()},
        bounds={
            name: {n: c.bound for n, c in _coefficients(rule).items()}
            for name, rule in _rules(source).items()
        },
        own={n: CreditCoefficient(c.raw.detach(), c.bound) for n, c in _own(source.credit).items()},
    )


def _rules(learner: Learner) -> dict[str, PlasticityRule]:
    return {n: r for n, r in learner.rules.items() if isinstance(r, PlasticityRule)}


def _coefficients(rule: PlasticityRule) -> dict[str, Coefficient]:
    return {n: c for n, c in rule.named_modules() if isinstance(c, Coefficient)}


def _own(credit: CreditAssignment) -> dict[str, Coefficient]:
    return {n: c for n, c in credit.named_modules() if isinstance(c, Coefficient)}


def _holder(learner: Learner, group: str) -> dict[str, Coefficient]:
    """The coefficients of a group's rule, or the credit's own."""
    return _own(learner.credit) if group == CREDIT else _coefficients(_rules(learner)[group])


def _bounded(bounds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} (bound {bound!r})" for name, bound in bounds.items()) or "none"


def _size(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))
