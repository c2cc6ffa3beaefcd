"""The Jacobian of the output with respect to all potentials, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaplastic.control.chain import Chain, Units


def jacobian(chain: Chain, units: Units) -> tuple[Tensor, ...]:
    """J_i = dr_L / dv_i at ``units``, (B, K, n_i) for each controlled layer, by the recursion
    J_i = J_{i+1} W_{i+1} diag(phi_i'), from J_L = diag(phi_L').
    """
    last = len(chain.layers) - 1
    found = [torch.diag_embed(chain.slope(last, units))]
    for i in reversed(range(last)):
        found.append((found[-1] @ chain.weights[i + 1]) * chain.slope(i, units).unsqueeze(-2))
    return tuple(reversed(found))


def through_feedback(jacobians: Sequence[Tensor], feedback: Sequence[Tensor]) -> Tensor:
    """J Q = sum_i J_i Q_i, (B, K, K): how the control moves the output to first order."""
    return torch.stack([j @ q for j, q in zip(jacobians, feedback, strict=True)]).sum(0)
