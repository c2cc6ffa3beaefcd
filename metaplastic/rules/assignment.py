"""Which rule each synapse group follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from metaplastic.errors import ConfigurationError
from metaplastic.rules.base import PlasticityRule
from metaplastic.signals import SynapseGroup

Rules = PlasticityRule | Mapping[str, PlasticityRule | None] | None
"""One rule for every weight matrix, rules by pattern, or None."""


def by_pattern(rule: Rules) -> dict[str, PlasticityRule | None]:
    """Rules by pattern: one that stands alone is for ``role:weight``; None is for nothing."""
    if rule is None:
        return {}
    return {"role:weight": rule} if isinstance(rule, PlasticityRule) else dict(rule)


class Assigned(NamedTuple):
    """The rule of one group, and the pattern that gave it."""

    pattern: str
    rule: PlasticityRule


def assign_rules(
    patterns: Mapping[str, PlasticityRule | None],
    groups: Mapping[str, SynapseGroup],
    *,
    strict: bool = True,
) -> dict[str, Assigned]:
    """The rule of every plastic group, by name.

    Patterns are tried in the order given, and the first match wins: ``role:bias``,
    ``position:last``, ``position:first``, ``position:2``, ``name:layer3_*`` or ``*``. A group that
    has a twin goes with it.

    Raises:
        ConfigurationError: for a pattern that is malformed or, when ``strict``, matches no group
            that gets signals.
    """
    taught = {name: group for name, group in groups.items() if group.taught and group.twin is None}
    matches = {p: {n for n, g in taught.items() if _matches(p, g)} for p in patterns}
    for pattern, names in matches.items():
        if strict and not names and patterns[pattern] is not None:
            raise ConfigurationError(
                f"the rule pattern {pattern!r} matches no synapse group that gets a teaching "
                f"signal; those are {', '.join(taught)}."
            )
    found = {}
    for name in taught:
        pattern = next((p for p in patterns if name in matches[p]), None)
        chosen = None if pattern is None else patterns[pattern]
        if pattern is not None and chosen is not None:
            found[name] = Assigned(pattern, chosen)
    twins = {name: group.twin for name, group in groups.items() if group.twin in found}
    return found | {name: found[str(twin)] for name, twin in twins.items()}


def matching(patterns: Iterable[str], groups: Mapping[str, SynapseGroup]) -> frozenset[str]:
    """The groups that any of the patterns matches.

    Raises:
        ConfigurationError: for a pattern that is malformed or matches none of them.
    """
    found = {p: {name for name, group in groups.items() if _matches(p, group)} for p in patterns}
    for pattern, names in found.items():
        if not names:
            raise ConfigurationError(
                f"the pattern {pattern!r} matches none of the plastic groups {', '.join(groups)}."
            )
    return frozenset().union(*found.values())


def _matches(pattern: str, group: SynapseGroup) -> bool:
    if pattern == "*":
        return True
    kind, _, value = pattern.partition(":")
    if kind == "role":
        return group.role == value
    if kind == "name":
        return fnmatchcase(group.name, value)
    if kind == "position":
        named = {"first": 0, "last": group.layers - 1}
        try:
            wanted = named[value] if value in named else int(value)
        except ValueError:
            wanted = None
        if wanted is not None:
            return group.position in (wanted, wanted + group.layers)
    raise ConfigurationError(
        f"a rule pattern is 'role:...', 'position:first|last|NUMBER', 'name:GLOB' or '*', got "
        f"{pattern!r}."
    )
