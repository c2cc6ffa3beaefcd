"""Linear systems A x = b of many episodes at once, A known by its products alone.

``times`` maps (E, P) to A x of each episode; ``right`` is b, (E, P). None asks the device whether
it is done: each takes ``terms`` products, and what is left is for the caller to measure.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def neumann(times: Product, right: Tensor, terms: int, rate: float) -> Tensor:
    """The first terms of x = rate sum_k (1 - rate A)^k b, which converges where the eigenvalues of
    rate A lie within 1 of 1: recurrent backpropagation.
    """
    x = torch.zeros_like(right)
    for _ in range(terms):
        x = x + rate * (right - times(x))
    return x


def conjugate_gradients(times: Product, right: Tensor, terms: int) -> Tensor:
    """For a symmetric A (Hestenes & Stiefel 1952). An episode in which a direction of negative or
    no curvature comes up stops where it is, as one does that is solved to rounding.
    """
    x, left, along = torch.zeros_like(right), right, right
    size = _dot(left, left)
    going, least = size > 0, torch.finfo(right.dtype).eps ** 2 * size
    for _ in range(terms):
        image = times(along)
        curvature = _dot(along, image)
        going = going & (curvature > 0) & (size > least)
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        x, left = x + step * along, left - step * image
        after = _dot(left, left)
        turn = torch.where(going, after / torch.where(going, size, 1.0), 0.0)
        along = torch.where(going, left + turn * along, 0.0)
        size = after
    return x


def gmres(times: Product, right: Tensor, terms: int) -> Tensor:
    """The x in the Krylov space of A and b that leaves the least residual (Saad & Schultz 1986);
    its ``terms`` + 1 directions are kept. An episode whose space is exhausted is solved exactly.
    """
    size = length(right)
    basis, columns = [_unit(right, size)], []
    for _ in range(terms):
        found = times(basis[-1])
        space = torch.stack(basis, 1)  # (E, k, P)
        scale = length(found)
        column = torch.zeros_like(space[:, :, 0])
        for _ in range(2):  # once more takes out what rounding left in
            share = (space @ found.unsqueeze(-1)).squeeze(-1)
            found = found - (share.unsqueeze(1) @ space).squeeze(1)
            column = column + share
        left = length(found)
        left = torch.where(left > 100 * torch.finfo(left.dtype).eps * scale, left, 0.0)
        columns.append(torch.cat([column, left], 1))
        basis.append(_unit(found, left))
    rows = terms + 1
    padded = [torch.nn.functional.pad(c, (0, rows - c.shape[1])) for c in columns]
    hessenberg = torch.stack(padded, 2)
    wanted = torch.nn.functional.pad(size, (0, terms)).unsqueeze(-1)
    shares = torch.linalg.pinv(_finite(hessenberg)) @ wanted
    return (shares.mT @ torch.stack(basis[:terms], 1)).squeeze(1)


def _finite(matrix: Tensor) -> Tensor:
    """0 for the matrix of an episode that is not finite, which pinv refuses for all."""
    fine = matrix.isfinite().flatten(1).all(1)[:, None, None]
    return torch.where(fine, matrix, 0.0)


def _unit(vector: Tensor, size: Tensor) -> Tensor:
    """The vector at length 1, or 0 where its size is 0."""
    return torch.where(size > 0, vector / torch.where(size > 0, size, 1.0), 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def length(vectors: Tensor) -> Tensor:
    """(E, P) -> (E, 1)"""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
