"""The file format of learned rules: safetensors, with JSON beside the tensors; nothing is pickled.

Tensors are ``coefficient/<group>/<name>`` and, of the credit itself, ``credit/<name>`` (free raw
values), and ``feedback/<group>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaplastic import credit as credits
from metaplastic import objectives, rules
from metaplastic.credit import CreditAssignment
from metaplastic.described import Described
from metaplastic.errors import ConfigurationError, MetaplasticError, RuleFileError
from metaplastic.objectives import Objective
from metaplastic.rules import PlasticityRule
from metaplastic.signals import SynapseGroup

FORMAT = 1
KEY = "metaplastic"

Description = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source(SynapseGroup):
    """A synapse group of the network that a rule was learned on."""

    pattern: str | None = None
    """The pattern that gave it its rule, None where it was not plastic."""


@dataclass(frozen=True)
class CreditCoefficient:
    """A coefficient of the credit itself, such as the leak of a controller."""

    raw: Tensor
    """Raw values, two-dimensional."""
    bound: str
    """The map from these to its values, see ``Coefficient``."""


@dataclass(frozen=True)
class LearnedRule:
    """What a rule file holds."""

    credit: Description
    """What the credit was made with, see ``Described.describe``."""
    rules: dict[str, Description | None]
    """The same of each pattern's rule."""
    objective: Description
    groups: dict[str, Source]
    coefficients: dict[str, dict[str, Tensor]]
    """{group: {coefficient: raw values}}, each broadcastable to (n_out, n_in)."""
    feedback: dict[str, Tensor]
    """{group: (n_out, n_in)}"""
    bounds: dict[str, dict[str, str]] = field(default_factory=dict)
    """{group: {coefficient: the map from raw values to its own}}; where there is none, as in older
    files, it is that of the coefficient which takes them."""
    own: dict[str, CreditCoefficient] = field(default_factory=dict)
    """The credit's own coefficients by name."""
    task: str | None = None
    """The task that it was learned on."""
    score: float | None = None
    """Its score there, as its author gives it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of what wrote the file."""

    def __post_init__(self) -> None:
        for name, values in self.coefficients.items():
            n_out, n_in = self.groups[name].n_out, self.groups[name].n_in
            for what, value in values.items():
                if tuple(value.shape) not in {(1, 1), (n_out, 1), (n_out, n_in)}:
                    raise RuleFileError(_misfit(f"coefficient {what}", value, self.groups[name]))
        for name, value in self.feedback.items():
            group = self.groups[name]
            if tuple(value.shape) != (group.n_out, group.n_in):
                raise RuleFileError(_misfit("feedback", value, group))
        for name, own in self.own.items():
            if own.raw.dim() != 2 or own.raw.numel() == 0:
                raise RuleFileError(
                    f"the credit's coefficient {name} is {tuple(own.raw.shape)} and has two "
                    "dimensions: the file is damaged."
                )


def write_rule(path: str | Path, learned: LearnedRule) -> None:
    """Write a learned rule, atomically.

    Raises:
        ConfigurationError: for arguments that JSON cannot hold.
    """
    from safetensors.torch import save_file

    path = Path(path)
    content = {
        "format": FORMAT,
        "credit": learned.credit,
        "rules": list(learned.rules.items()),
        "objective": learned.objective,
        "groups": [asdict(group) for group in learned.groups.values()],
        "own": {name: own.bound for name, own in learned.own.items()},
        "bounds": learned.bounds,
        "task": learned.task,
        "score": learned.score,
        "versions": {"metaplastic": _own_version(), "torch": torch.__version__},
    }
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as reason:
        raise ConfigurationError(
            f"this rule or credit was made with an argument that a file cannot hold ({reason}): "
            "give it numbers, words, and lists or dicts of them."
        ) from reason
    tensors = {f"feedback/{name}": value for name, value in learned.feedback.items()}
    tensors |= {f"credit/{name}": own.raw for name, own in learned.own.items()}
    for name, values in learned.coefficients.items():
        tensors |= {f"coefficient/{name}/{what}": value for what, value in values.items()}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, {KEY: text})
    os.replace(temporary, path)


def read_rule(path: str | Path) -> LearnedRule:
    """Read a rule file.

    Raises:
        RuleFileError: for a file that is missing, damaged, newer than this version, or whose
            tensors do not have the shapes of its synapse groups.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as reason:
        raise RuleFileError(
            f"{path} is not a readable rule file ({type(reason).__name__}: {reason}): give one "
            "that save_rule wrote."
        ) from reason
    if content.get("format") != FORMAT:
        raise RuleFileError(
            f"{path} has format {content.get('format')} and this version reads {FORMAT}: install "
            f"metaplastic {content.get('versions', {}).get('metaplastic', 'of its writer')}."
        )
    try:
        return _parse(content, tensors)
    except MetaplasticError as reason:
        raise RuleFileError(f"{path}: {reason}") from reason
    except Exception as reason:
        raise RuleFileError(
            f"{path} is damaged ({type(reason).__name__}: {reason}): write it again with save_rule."
        ) from reason


def _parse(content: Description, tensors: dict[str, Tensor]) -> LearnedRule:
    coefficients: dict[str, dict[str, Tensor]] = {}
    feedback: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, value in tensors.items():
        kind, group, *what = name.split("/")
        if kind == "feedback":
            feedback[group] = value
        elif kind == "credit":
            own[group] = value
        else:
            coefficients.setdefault(group, {})[what[0]] = value
    bounds = content.get("own", {})  # files written before there were any have none
    return LearnedRule(
        credit=content["credit"],
        rules=dict(content["rules"]),
        objective=content["objective"],
        groups={group["name"]: Source(**group) for group in content["groups"]},
        coefficients=coefficients,
        feedback=feedback,
        bounds=content.get("bounds", {}),
        own={name: CreditCoefficient(value, bounds[name]) for name, value in own.items()},
        task=content["task"],
        score=content["score"],
        versions=content["versions"],
    )


def rebuild(
    learned: LearnedRule, known: Mapping[str, type] | None = None
) -> tuple[CreditAssignment, dict[str, PlasticityRule | None], Objective]:
    """The credit, the rules by pattern and the objective as they were made, without what they
    learned. ``known`` names rules and credits that are not the library's.

    Raises:
        RuleFileError: for a class that nobody knows, or that does not take these arguments.
    """
    table = {**vars(rules), **vars(credits), **vars(objectives), **(known or {})}
    credit = _make(learned.credit, table, CreditAssignment)
    made = {
        pattern: None if d is None else _make(d, table, PlasticityRule)
        for pattern, d in learned.rules.items()
    }
    return credit, made, _make(learned.objective, table, Objective)


def _make(description: Description, table: Mapping[str, Any], base: type) -> Any:
    values = dict(description)
    name = values.pop("type")
    kind = table.get(name)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise RuleFileError(
            f"the file asks for the {base.__name__} {name!r}, which this library does not have: "
            f"pass known={{{name!r}: {name}}} with its class."
        )
    try:
        return kind(
            **{
                key: _make(value, table, Described)
                if isinstance(value, dict) and "type" in value
                else value
                for key, value in values.items()
            }
        )
    except TypeError as reason:
        raise RuleFileError(
            f"{name} does not take what the file holds for it ({reason}): it was written for "
            "another version of that class."
        ) from reason


def _misfit(what: str, value: Tensor, group: SynapseGroup) -> str:
    return (
        f"{what} of {group.name} is {tuple(value.shape)}, which does not fit the "
        f"{group.n_out}x{group.n_in} synapses that it was learned on: the file is damaged."
    )


def _own_version() -> str:
    try:
        return version("metaplastic")
    except PackageNotFoundError:
        return "unknown"
