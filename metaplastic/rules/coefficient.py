"""Coefficients of a rule: one number for each synapse, neuron, layer, or for the whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metaplastic.described import Described
from metaplastic.errors import ConfigurationError, ShapeError, check_choice
from metaplastic.signals import SynapseGroup

Granularity = Literal["synapse", "neuron", "layer", "network"]
Bound = Literal["none", "tanh", "sigmoid", "exp"]
Role = Literal["plasticity", "mixing", "control"]


@dataclass(frozen=True)
class _Map:
    """A map from free raw values onto ``low < value < high``, and its inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float
    high: float


BOUNDS: dict[str, _Map] = {
    "none": _Map(lambda raw: raw, lambda value: value, -math.inf, math.inf),
    "tanh": _Map(torch.tanh, torch.atanh, -1.0, 1.0),
    "sigmoid": _Map(torch.sigmoid, torch.logit, 0.0, 1.0),
    "exp": _Map(torch.exp, torch.log, 0.0, math.inf),
}


class Coefficient(Described, nn.Module):
    """A coefficient of a plasticity rule, learned by the outer loop or fixed.

    Calling it gives its value, (n_out, n_in) for ``synapse``, (n_out, 1) for ``neuron`` (one for
    each postsynaptic unit), (1, 1) for ``layer`` and ``network``; all of them broadcast over the
    weights. ``network`` shares one number between all groups.

    Args:
        value: initial value, the same everywhere.
        granularity: how many numbers there are.
        bound: the range that training keeps it in, by a map from free raw values: ``"none"``,
            ``"tanh"`` (-1, 1), ``"sigmoid"`` (0, 1) or ``"exp"`` (0, inf).
        learned: False makes it a buffer. A value at the end of its range (mix = 1) cannot be
            reached by the map and is therefore fixed too.
        role: the outer loop's rate that applies: ``plasticity``, ``mixing`` or ``control``.
        l1: weight of the sum of its absolute values in the meta-loss, to leave few coefficients.

    Raises:
        ConfigurationError: for a value outside the range, or a negative ``l1``.
    """

    raw: Tensor

    def __init__(
        self,
        value: float = 0.0,
        *,
        granularity: Granularity = "layer",
        bound: Bound = "none",
        learned: bool = True,
        role: Role = "plasticity",
        l1: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice(
            granularity=(granularity, Granularity), bound=(bound, Bound), role=(role, Role)
        )
        limits = BOUNDS[bound]
        if not limits.low <= value <= limits.high:
            raise ConfigurationError(
                f"a coefficient bound by {bound!r} lies in [{limits.low}, {limits.high}], got "
                f"{value}."
            )
        if not 0.0 <= l1 < math.inf:
            raise ConfigurationError(f"l1 is a weight from 0, got {l1}.")
        at_end = value in (limits.low, limits.high)
        self.value, self.granularity, self.role = float(value), granularity, role
        self.l1 = l1
        self.learned = learned and not at_end
        self.bound: Bound = bound if self.learned else "none"
        # In double precision until the learner gives it that of its network.
        first = torch.full((1, 1), self.value, dtype=torch.float64)
        self._hold(BOUNDS[self.bound].inverse(first))

    def bind(self, group: SynapseGroup) -> Coefficient:
        """A coefficient of its own for one group, at this one's value; itself where the network
        shares it.

        Raises:
            ShapeError: for one that was bound to a group of another size.
        """
        if self.granularity == "network":
            return self
        own = copy.deepcopy(self)
        own._hold(self.raw.detach().expand(self.shape(group)).clone())
        return own

    def shape(self, group: SynapseGroup) -> tuple[int, int]:
        """The shape of its values for one group.

        Raises:
            ShapeError: for one that was bound to a group of another size.
        """
        sizes = {"synapse": (group.n_out, group.n_in), "neuron": (group.n_out, 1)}
        wanted = sizes.get(self.granularity, (1, 1))
        if any(a not in (1, b) for a, b in zip(self.raw.shape, wanted, strict=True)):
            raise ShapeError(
                f"{group.name} takes coefficients {wanted} and these are {tuple(self.raw.shape)}: "
                "metaplastic.portable.transfer pools what does not fit."
            )
        return wanted

    def _hold(self, raw: Tensor) -> None:
        if self.learned:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)

    def forward(self) -> Tensor:
        return self.value_of(self.raw)

    def value_of(self, raw: Tensor) -> Tensor:
        """The values that raw ones stand for."""
        return BOUNDS[self.bound].forward(raw)

    def assign(self, values: Tensor) -> None:
        """Take on values within its range, broadcast to its shape, in place."""
        with torch.no_grad():
            self.raw.copy_(BOUNDS[self.bound].inverse(values.to(self.raw)))

    def penalty(self) -> Tensor:
        """``l1`` times the sum of absolute values, a scalar; its slope at 0 is taken to be 0."""
        return self.l1 * self().abs().sum()
