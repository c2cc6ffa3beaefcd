"""How well feedback is suited to control, and how much of it is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaplastic.control.jacobian import through_feedback


def row_space_share(
    jacobians: Sequence[Tensor], feedback: Sequence[Tensor], damping: float = 0.0
) -> Tensor:
    """||P Q|| / ||Q|| of each example, (B,) in 0..1, P the projection onto the row space of J: 1
    where the feedback meets the condition for Gauss-Newton targets (Meulemans et al. 2021).
    ``damping`` is added to J J^T where that has no inverse.
    """
    j, q = torch.cat(tuple(jacobians), -1), torch.cat(tuple(feedback))
    gram = j @ j.mT
    gram = gram + damping * torch.eye(len(gram[0]), dtype=j.dtype, device=j.device)
    inside = j.mT @ torch.linalg.solve(gram, j @ q)
    return torch.linalg.matrix_norm(inside) / torch.linalg.matrix_norm(q)


def control_energy(control: Tensor, feedback: Sequence[Tensor]) -> Tensor:
    """H = ||Q u||^2 / 2 of each example, (B, K) -> (B,) (Meulemans et al. 2022)."""
    return 0.5 * (control @ torch.cat(tuple(feedback)).mT).square().sum(-1)


def control_to_drive(
    control: Tensor, feedback: Sequence[Tensor], drive: Sequence[Tensor]
) -> Tensor:
    """||Q_i u|| / ||W_i r_{i-1} + b_i|| of each layer and example, (layers, B)."""
    return torch.stack(
        [
            torch.linalg.vector_norm(control @ q.mT, dim=-1) / torch.linalg.vector_norm(v, dim=-1)
            for q, v in zip(feedback, drive, strict=True)
        ]
    )


def control_angle(
    control: Tensor, jacobians: Sequence[Tensor], feedback: Sequence[Tensor], error: Tensor
) -> Tensor:
    """The angle between Q u and the smallest change that removes ``error`` (B, K) to first order,
    J^+ error, in degrees, (B,).
    """
    j = torch.cat(tuple(jacobians), -1)
    wanted = (torch.linalg.pinv(j) @ error.unsqueeze(-1)).squeeze(-1)
    given = control @ torch.cat(tuple(feedback)).mT
    u, v = (w / torch.linalg.vector_norm(w, dim=-1, keepdim=True) for w in (given, wanted))
    across, along = (torch.linalg.vector_norm(w, dim=-1) for w in (u - v, u + v))
    return torch.rad2deg(2 * torch.atan2(across, along))


def gain_bound(
    jacobians: Sequence[Tensor], feedback: Sequence[Tensor], gain: float, dt: float, tau: float
) -> Tensor:
    """k_p |lambda|_max(J Q) dt / tau of each example, (B,); below about 5, forward Euler steps of a
    stable controller stay stable.
    """
    values = torch.linalg.eigvals(through_feedback(jacobians, feedback))
    return gain * values.abs().amax(-1) * min(1.0, dt / tau)
