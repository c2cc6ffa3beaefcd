"""Which Parameters the outer loop trains, and at what rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from metaplastic.errors import ConfigurationError
from metaplastic.rules import Coefficient

ROLES = ("initial", "feedback", "plasticity", "mixing", "control")
"""What a Parameter is for: each has a rate of its own in the outer loop."""


def groups_by_role(
    network: nn.Module, credit: nn.Module, rules: nn.Module, lr: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Optimiser groups of a learner's parts, see ``Learner.param_groups``.

    Raises:
        ConfigurationError: for a rate of another role.
    """
    unknown = set(rates) - set(ROLES)
    if unknown:
        raise ConfigurationError(f"roles are {', '.join(ROLES)}; got {sorted(unknown)}.")
    found: dict[str, list[nn.Parameter]] = {role: [] for role in ROLES}
    taken: set[int] = set()
    coefficients = [
        m for part in (network, credit, rules) for m in part.modules() if isinstance(m, Coefficient)
    ]
    # A coefficient says its role itself; the rest goes by the part that it belongs to.
    owners = [(m.role, m) for m in coefficients]
    owners += [("initial", network), ("feedback", credit), ("plasticity", rules)]
    for role, module in owners:
        for parameter in module.parameters():
            if id(parameter) not in taken:
                taken.add(id(parameter))
                found[role].append(parameter)
    return [
        {"params": parameters, "lr": rates.get(role, lr), "name": role}
        for role, parameters in found.items()
        if parameters
    ]


def frozen_to_buffers(module: nn.Module) -> None:
    """Make a Parameter that is not trained a buffer, so that loops over ``parameters()`` which read
    ``.grad`` find a tensor everywhere.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.data)
