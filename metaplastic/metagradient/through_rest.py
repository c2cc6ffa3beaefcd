"""Backpropagation through the way to the rest point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError
from metaplastic.metagradient.equilibrium import Equilibrium, Settled
from metaplastic.metagradient.rest import Rest, relative


@dataclass(frozen=True)
class ThroughRest(Equilibrium):
    """The exact gradient of the query loss after ``steps`` steps without control, by
    backpropagation through all of them: what ``Implicit`` tends to with more steps, without a rest
    point as its condition, in memory that grows with the steps.

    The residual is |f| over the field at the start. Further arguments as for ``Equilibrium``, but
    for ``memory``: near a rest point acceleration has no derivative in single precision.

    Raises:
        ConfigurationError: for a memory.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory:
            raise ConfigurationError(
                f"ThroughRest goes back through plain steps; got memory={self.memory}: take "
                "momentum, or another method."
            )

    def settle(self, rest: Rest) -> Settled:
        first, phi = rest.field(rest.begin), self.free(rest)
        residual = relative(rest.field(phi), first, first)
        return Settled(phi, torch.zeros_like(phi), residual, *rest.scores(phi))

    def score(self, rest: Rest, settled: Settled) -> Tensor:
        return rest.scores(self.free(rest))[0]
