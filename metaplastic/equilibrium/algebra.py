"""Linear algebra of small batches, one matrix for each example."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap


def length(vectors: Tensor) -> Tensor:
    """(B, n) -> (B, 1)"""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def rows(transposed: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The matrices of a linear map x -> M x by its transpose, (B, m) -> (B, n) of each example on
    its own: (B, m, n). ``like`` (B, m).
    """
    eye = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return vmap(lambda unit: transposed(unit.expand_as(like)), out_dims=1)(eye)


def jacobian(step: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
    """T' at states (B, n), (B, n, n), by forward differentiation, which a checkpoint allows."""
    eye = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)

    def along(unit: Tensor) -> Tensor:
        return jvp(step, (state,), (unit.expand_as(state),))[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch itself, at its first use
        return vmap(along, out_dims=-1)(eye)


def solve_regular(matrix: Tensor, right: Tensor) -> Tensor:
    """Solutions (B, n, m) of (B, n, n) and (B, n, m), 0 where the matrix is singular; what is
    singular is taken out first, so that it leaves no NaN in a gradient.
    """
    with torch.no_grad():
        tried, info = torch.linalg.solve_ex(matrix, right)
        finite = tried.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        regular = (info == 0).unsqueeze(-1).unsqueeze(-1) & finite
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    safe = torch.where(regular, matrix, eye)
    return torch.linalg.solve_ex(safe, torch.where(regular, right, torch.zeros_like(right)))[0]


class Anderson:
    """The combination of the last states whose residual is smallest (Anderson 1965), a least
    squares problem for each example, in differences of successive states. Where that made the
    residual grow, a damped sweep follows.

    Args:
        memory: number of differences.
        damping: share of the residual that is added.
    """

    def __init__(self, memory: int, damping: float) -> None:
        self.memory, self.damping = memory, damping
        self._last: tuple[Tensor, ...] | None = None
        self._swept: list[Tensor] = []
        self._residuals: list[Tensor] = []

    def __call__(self, state: Tensor, moved: Tensor) -> Tensor:
        """The next state after ``state`` (B, n) and its image."""
        residual = moved - state
        swept, size = state + self.damping * residual, length(residual)
        last, self._last = self._last, (swept, residual, size)
        if last is None:
            return swept
        self._swept = [*self._swept, swept - last[0]][-self.memory :]
        self._residuals = [*self._residuals, residual - last[1]][-self.memory :]
        steps, residuals = torch.stack(self._swept, -2), torch.stack(self._residuals, -2)
        gram = residuals @ residuals.mT
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        matrix = gram + torch.finfo(gram.dtype).eps * trace * eye
        share = solve_regular(matrix, (residuals * residual.unsqueeze(-2)).sum(-1, keepdim=True))
        combined = swept - (share.mT @ steps).squeeze(-2)
        return torch.where(size > last[2], swept, combined)
