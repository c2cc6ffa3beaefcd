"""How linear feedback to a network at rest learns from noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaplastic.control import ornstein_uhlenbeck
from metaplastic.credit.feedback_learning import Noise
from metaplastic.equilibrium import Direct
from metaplastic.equilibrium.controlled import Field


def fluctuations(
    field: Field,
    state: Tensor,
    psi: Tensor,
    feedback: Direct,
    xi: Tensor,
    sizes: Sequence[int],
    noise: Noise,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The controller at work against noise around a rest point under control (Meulemans et al.
    2022): the change of its signal, u[k+1], (B x T, K), and what reached the units with the noise
    just before, Q u[k] + sigma eps[k], (B x T, n) for each population but the output.

    With fast units and little noise the mean of -post pre^T / sigma^2 points along
    (1 - g')^-T D^T, the columns of the optimal feedback.

    Args:
        field: g.
        state: the rest point, (B, S).
        psi: the control there, (B, S).
        feedback: Q.
        xi: normal numbers, (B, T, S - K).
        sizes: n of each population but the output.
        noise: of the controller and the noise.
    """
    last = field.outputs
    goal, potential = state[:, -last:], state
    control = integral = torch.zeros_like(goal)
    pace = min(1.0, noise.dt / noise.tau)
    controls, apical = [], []
    sigmas = noise.sigmas(len(sizes) + 1)[:-1]
    for eps in ornstein_uhlenbeck(xi, sizes, sigmas, noise.dt, noise.tau_noise):
        reached = control @ feedback.matrix.mT
        added = torch.cat([reached[:, :-last] + torch.cat(eps, dim=-1), reached[:, -last:]], -1)
        apical.append(added[:, :-last])
        aim = field.at(potential).called + psi + added
        potential = torch.lerp(potential, aim, pace)
        error = goal - potential[:, -last:]
        integral = integral + noise.dt * (error - noise.leak * control)
        control = integral + noise.gain * error
        controls.append(control)
    pre, post = (torch.stack(parts, dim=1).flatten(0, 1) for parts in (controls, apical))
    return pre, post.split(list(sizes), dim=-1)
