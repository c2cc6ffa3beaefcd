"""Backpropagation through the sweeps to a rest point."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from metaplastic.networks import EquilibriumNetwork
from metaplastic.networks.base import Needs
from metaplastic.networks.populations import WiredField
from metaplastic.signals import LocalSignals, Presentation


def through_time(
    network: EquilibriumNetwork,
    field: WiredField,
    presentation: Presentation,
    needs: Needs,
    sweeps: int,
) -> dict[str, LocalSignals]:
    """What synapses see in the sweeps from potentials of 0, as so many sites each: with Delta the
    gradient of the loss after the last sweep, for a chain as soon as there are as many as layers.
    """
    points, state = [], field.still()
    for _ in range(sweeps):
        points.append(field.at(state))
        state = points[-1].called
    error = presentation.teacher.error(state[:, -field.outputs :])
    still = torch.zeros_like(state[:, : -field.outputs])
    psi = torch.cat([still, error], dim=-1)
    seen = []
    for point in reversed(points):
        seen.append(network.signals(point, needs, psi=psi, weight=presentation.weight))
        psi = point.transposed(psi)
    batch = len(state)
    return {name: _joined([signals[name] for signals in seen], batch) for name in seen[0]}


def _joined(seen: list[LocalSignals], batch: int) -> LocalSignals:
    def joined(name: str) -> Tensor | None:
        parts = [getattr(signals, name) for signals in seen]
        if parts[0] is None:
            return None
        return torch.stack([p.unflatten(0, (batch, -1)) for p in parts], dim=1).flatten(0, 2)

    first = seen[0]
    fields = ("pre", "post", "teaching", "gain", "weight")
    return replace(first, **{n: joined(n) for n in fields}, sites=first.sites * len(seen))
