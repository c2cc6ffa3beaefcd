"""Coefficients of a rule: one number for each synapse, neuron, layer, or for the whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.signals import SynapseGroup

Granularity = Literal["synapse", "neuron", "layer", "network"]
Bound = Literal["none", "tanh", "sigmoid", "exp"]
Role = Literal["plasticity", "mixing", "control"]


@dataclass(frozen=True)
class _Map:
    """A map from free raw values onto ``low < value < high``, and its inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[float], float]
    low: float
    high: float


BOUNDS: dict[str, _Map] = {
    "none": _Map(lambda raw: raw, lambda v: v, -math.inf, math.inf),
    "tanh": _Map(torch.tanh, math.atanh, -1.0, 1.0),
    "sigmoid": _Map(torch.sigmoid, lambda v: math.log(v / (1 - v)), 0.0, 1.0),
    "exp": _Map(torch.exp, math.log, 0.0, math.inf),
}


class Coefficient(nn.Module):
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

    Raises:
        ConfigurationError: for a value outside the range.
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
        at_end = value in (limits.low, limits.high)
        self.value, self.granularity, self.role = float(value), granularity, role
        self.learned = learned and not at_end
        self.bound: Bound = bound if self.learned else "none"
        self._fill((1, 1))

    def bind(self, group: SynapseGroup) -> Coefficient:
        """A coefficient of its own for one group; itself where the network shares it."""
        if self.granularity == "network":
            return self
        own = copy.deepcopy(self)
        sizes = {"synapse": (group.n_out, group.n_in), "neuron": (group.n_out, 1)}
        own._fill(sizes.get(self.granularity, (1, 1)))
        return own

    def _fill(self, shape: tuple[int, int]) -> None:
        # In double precision until the learner gives it that of its network.
        raw = torch.full(shape, BOUNDS[self.bound].inverse(self.value), dtype=torch.float64)
        if self.learned:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)

    def forward(self) -> Tensor:
        return BOUNDS[self.bound].forward(self.raw)
