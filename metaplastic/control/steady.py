"""The steady state of a leaky integral controller, without a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metaplastic.control.chain import Chain, Units
from metaplastic.control.goal import Goal
from metaplastic.control.jacobian import jacobian, through_feedback

ROUNDING = 4.0
"""A residual of so many rounding errors is none."""


class Steady(NamedTuple):
    """A steady state, with 0 in place of a control that was not found."""

    control: Tensor
    """u, (B, K)"""
    found: Tensor
    """(B, 1) whether it was."""


def sent(control: Tensor, feedback: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Q_i u, (B, n_i) for each controlled layer."""
    return tuple(control @ q.mT for q in feedback)


def analytic(
    chain: Chain, units: Units, feedback: Sequence[Tensor], error: Tensor, leak: Tensor
) -> Steady:
    """The steady state of the network linearised at ``units``: (J Q + a I) u = e (Meulemans et al.
    2021), exact for linear networks.

    Args:
        chain: the controlled layers.
        units: their feed-forward activity.
        feedback: Q_i (n_i, K).
        error: e, the control error (B, K) there.
        leak: a, on the whole control u; broadcast over (B, K).
    """
    loop = _leaky(through_feedback(jacobian(chain, units), feedback), leak)
    control, found = _solve(loop, error)
    return Steady(control, found)


def newton(
    chain: Chain,
    feedback: Sequence[Tensor],
    goal: Goal,
    leak: Tensor,
    *,
    iterations: int = 8,
    halvings: int = 3,
    tolerance: float = 1e-5,
) -> Steady:
    """The steady state itself, the root u of e(r_L(u)) = a u, by damped Newton steps from u = 0.

    Every iteration takes the step or the first of its halves that lowers the residual, or none. One
    more step at the root, with its graph, has the derivative of the root (the implicit function
    theorem), and takes what is left of the residual from the root of the precision to rounding. An
    example that is that far stays; the loop ends early where none moves, if it may ask.

    Args:
        chain: the controlled layers.
        feedback: Q_i (n_i, K).
        goal: the control error.
        leak: a, on the whole control u; broadcast over (B, K).
        iterations: largest number of steps.
        halvings: how often a step may be halved.
        tolerance: largest residual before the last step, relative to the output and error at u = 0,
            of a root.
    """

    def residual(u: Tensor) -> tuple[Tensor, Units]:
        units = chain.run(sent(u, feedback))
        return goal.error(units.output) - leak * u, units

    def slope(units: Units) -> Tensor:
        through = through_feedback(jacobian(chain, units), feedback)
        return _leaky(goal.linked(units.output, through), leak)

    with torch.no_grad():
        u = torch.zeros_like(goal.target)
        left, units = residual(u)
        size = _length(left)
        eps, output = torch.finfo(size.dtype).eps, _length(units.output)
        enough = eps**0.5 * size + ROUNDING * eps * output  # the last step squares what is left
        limit = torch.maximum(enough, tolerance * (size + output))
        matrix = slope(units)
        for _ in range(iterations):
            step = torch.linalg.solve_ex(matrix, left.unsqueeze(-1))[0].squeeze(-1)
            unsettled = size > enough
            if not _any(unsettled):
                break
            start, waiting = u, unsettled
            for j in range(halvings + 1):
                tried = start + 0.5**j * step
                rest = _length(residual(tried)[0])
                better = waiting & (rest < size)
                u, size = torch.where(better, tried, u), torch.where(better, rest, size)
                waiting = waiting & ~better
                if not _any(waiting):
                    break
            if not _any(unsettled & ~waiting):
                break
            left, units = residual(u)
            matrix = slope(units)
        found = (size <= limit) & size.isfinite()
    step, regular = _solve(matrix, residual(u)[0])
    found = found & regular
    return Steady(torch.where(found, u + step, torch.zeros_like(u)), found)


def _any(mask: Tensor) -> bool:
    """Whether any is true, as far as one may ask: yes under vmap, where there is no answer, and on
    an accelerator, which would be waited for.
    """
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    try:
        return bool(mask.any())
    except RuntimeError:
        return True


def _leaky(through: Tensor, leak: Tensor) -> Tensor:
    return through + leak * torch.eye(through.shape[-1], dtype=through.dtype, device=through.device)


def _solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solution (B, K), 0 where the matrix (B, K, K) is singular, and where it is not (B, 1). What
    is singular is taken out first, so that it leaves no NaN in a gradient.
    """
    with torch.no_grad():
        tried, info = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))
        regular = (info == 0).unsqueeze(-1) & tried.squeeze(-1).isfinite().all(-1, keepdim=True)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    safe = torch.where(regular.unsqueeze(-1), matrix, eye)
    asked = torch.where(regular, right, torch.zeros_like(right))
    return torch.linalg.solve_ex(safe, asked.unsqueeze(-1))[0].squeeze(-1), regular


def _length(vectors: Tensor) -> Tensor:
    """(B, K) -> (B, 1)"""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
