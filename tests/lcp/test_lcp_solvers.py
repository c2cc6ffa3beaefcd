"""Linear solvers against dense ones, and what they do where there is no solution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metaplastic.metagradient.linear_solvers import conjugate_gradients, gmres, neumann
from tests.helpers import deviation, normal

SIZE = 7


def system(episodes: int, *, symmetric: bool, skew: float = 0.3) -> tuple[Tensor, Tensor]:
    """Matrices (E, P, P) with eigenvalues around 1, and right sides (E, P)."""
    noise = 0.2 * normal(episodes, SIZE, SIZE, seed=1)
    matrix = torch.eye(SIZE).double() + (noise @ noise.mT if symmetric else skew * noise)
    return matrix, normal(episodes, SIZE, seed=2)


def product(matrix: Tensor):
    return lambda x: (matrix @ x.unsqueeze(-1)).squeeze(-1)


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, right.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("episodes", [1, 3])
def test_each_solves_its_kind_of_system(episodes):
    matrix, right = system(episodes, symmetric=True)
    wanted = solved(matrix, right)
    assert deviation(conjugate_gradients(product(matrix), right, SIZE), wanted) < 1e-12
    assert deviation(gmres(product(matrix), right, SIZE), wanted) < 1e-12
    assert deviation(neumann(product(matrix), right, 200, 0.5), wanted) < 1e-12
    matrix, right = system(episodes, symmetric=False, skew=3.0)
    wanted = solved(matrix, right)
    assert deviation(gmres(product(matrix), right, SIZE), wanted) < 1e-10
    assert deviation(conjugate_gradients(product(matrix), right, SIZE), wanted) > 1e-3


def test_more_terms_than_dimensions_stay_at_the_solution():
    for symmetric in (True, False):
        matrix, right = system(2, symmetric=symmetric)
        wanted = solved(matrix, right)
        assert deviation(gmres(product(matrix), right, 3 * SIZE), wanted) < 1e-12
        if symmetric:
            assert deviation(conjugate_gradients(product(matrix), right, 40), wanted) < 1e-12


def test_neumann_sums_the_series():
    matrix, right = system(2, symmetric=False)
    step = torch.eye(SIZE).double() - 0.4 * matrix
    term, wanted = 0.4 * right, torch.zeros_like(right)
    for _ in range(5):
        wanted = wanted + term
        term = product(step)(term)
    assert deviation(neumann(product(matrix), right, 5, 0.4), wanted) < 1e-14


def test_gmres_leaves_the_least_residual_of_its_space():
    matrix, right = system(1, symmetric=False, skew=3.0)
    found = gmres(product(matrix), right, 3)
    powers = [right[0]]
    for _ in range(2):
        powers.append(matrix[0] @ powers[-1])
    space = torch.stack(powers, 1)
    best = torch.linalg.lstsq(matrix[0] @ space, right[0].unsqueeze(1)).solution
    assert deviation(found[0], (space @ best).squeeze(1)) < 1e-10


def test_conjugate_gradients_stop_at_negative_curvature():
    """At the last point before it, and in that episode alone."""
    matrix, right = system(2, symmetric=True)
    bent = matrix.clone()
    bent[0] = torch.diag(torch.tensor([3.0, 2.0, -1.0, 1.0, 1.0, 1.0, 1.0]).double())
    right[0] = torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]).double()
    found = conjugate_gradients(product(bent), right, SIZE)
    assert deviation(found[1], solved(matrix, right)[1]) < 1e-12
    r = right[0]
    first = (r @ r) / (r @ bent[0] @ r) * r
    left = r - bent[0] @ first
    along = left + (left @ left) / (r @ r) * r
    assert float(r @ bent[0] @ r) > 0 > float(along @ bent[0] @ along)
    assert deviation(found[0], first) < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_episode_that_is_not_finite_spoils_no_other(bad):
    matrix, right = system(3, symmetric=True)
    wanted = solved(matrix, right)
    broken = matrix.clone()
    broken[1, 0, 0] = bad
    for solve in (conjugate_gradients, gmres):
        found = solve(product(broken), right, SIZE)
        assert deviation(found[[0, 2]], wanted[[0, 2]]) < 1e-12


def test_nothing_to_solve_is_solved_by_nothing():
    matrix, _ = system(2, symmetric=True)
    zero = torch.zeros(2, SIZE).double()
    for found in (
        conjugate_gradients(product(matrix), zero, 4),
        gmres(product(matrix), zero, 4),
        neumann(product(matrix), zero, 4, 0.5),
    ):
        assert torch.equal(found, zero)


def test_conjugate_gradients_stop_where_single_precision_ends():
    """More products than are needed, as where squares fall below the smallest number."""
    eigenvalues = torch.linspace(1.0, 30.0, 12).expand(3, 12)
    right = normal(3, 12).float()
    found = conjugate_gradients(lambda v: eigenvalues * v, right, 60)
    assert torch.allclose(found, right / eigenvalues, rtol=1e-5)
