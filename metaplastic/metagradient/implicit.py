"""The implicit gradient at the rest point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.metagradient.equilibrium import SETTLE, Equilibrium, Settled
from metaplastic.metagradient.linear_solvers import Product, conjugate_gradients, gmres, neumann
from metaplastic.metagradient.rest import Rest, relative

Solver = Literal["gmres", "cg", "neumann", "identity"]


@dataclass(frozen=True)
class Implicit(Equilibrium):
    r"""The gradient of the query loss at the free rest point, by the implicit function theorem.

    At f(phi, theta) = 0 with J = df/dphi it is d_theta L - (d_theta f)^T v, where J^T v = grad L
    (Rajeswaran et al. 2019 for gradient fields). The residual is the larger of |f| over the field
    at the start, and of what the solver left over |grad L|. Further arguments as for
    ``Equilibrium``.

    Args:
        solver: of the linear system. ``"gmres"`` for any field; ``"cg"`` (conjugate gradients) for
            fields that are gradients, such as backpropagation at one rate, where J is symmetric; it
            stops an episode at negative curvature. ``"neumann"`` is recurrent backpropagation
            (Pineda 1987, Almeida 1987), with ``rate`` as its own; ``"identity"`` takes -1 for J,
            which is T1-T2 (Luketina et al. 2016) and needs no derivative of the field by phi.
        terms: products with J^T.
        damping: added to -J.

    Raises:
        ConfigurationError: for fewer than one term, or a negative damping.
    """

    remedy = f"{SETTLE}; or more terms, damping, or another solver"
    solver: Solver = "gmres"
    terms: int = 20
    damping: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(solver=(self.solver, Solver))
        if self.terms < 1:
            raise ConfigurationError(f"terms counts products, from 1; got {self.terms}.")
        if not self.damping >= 0.0:
            raise ConfigurationError(f"damping is 0 or more; got {self.damping}.")

    def settle(self, rest: Rest) -> Settled:
        first = rest.field(rest.begin)
        phi = self.free(rest)
        slope = rest.slope(phi)
        if self.solver == "identity":
            psi, residual = -slope, relative(rest.field(phi), first, first)
        else:
            field, pull = rest.linearised(phi)

            def times(v: Tensor) -> Tensor:
                return self.damping * v - pull(v)

            psi = self._solve(times, -slope)
            solved = relative(times(psi) + slope, slope, slope)
            residual = torch.maximum(relative(field, first, first), solved)
        return Settled(phi, psi, residual, *rest.scores(phi))

    def _solve(self, times: Product, right: Tensor) -> Tensor:
        if self.solver == "neumann":
            return neumann(times, right, self.terms, self.rate)
        solve = conjugate_gradients if self.solver == "cg" else gmres
        return solve(times, right, self.terms)
