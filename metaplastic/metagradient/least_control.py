"""The least-control principle as a meta-gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.metagradient.equilibrium import Equilibrium, Settled
from metaplastic.metagradient.rest import Rest, relative

Variant = Literal["inversion", "direct", "contrastive"]
Found = tuple[Tensor, Tensor, Tensor]
"""phi and psi, (E, P), and the residual (E,)."""


@dataclass(frozen=True)
class LeastControl(Equilibrium):
    r"""Learning from the control psi that the plastic weights need to solve the queries as well
    (Meulemans et al. 2022).

    The controlled weights rest where f(phi, theta) + psi = 0, and the gradient is
    (beta d_theta L - (d_theta f)^T psi) / beta, one backward pass at one point, whatever theta is.
    Divided by beta it can be compared with the implicit gradient, and the two other limits are:

    * ``"inversion"``: psi flows to J^T psi = beta grad L with J = df/dphi. Exactly the gradient of
      min_phi |f|^2 / 2 + beta L, over beta; for beta -> 0 the implicit gradient with an error in
      proportion to beta, for beta -> inf that of the least control that solves the queries.
    * ``"direct"``: psi = -beta grad L, first order throughout; for beta -> 0 the T1-T2 gradient
      (``Implicit(solver="identity")``), not the implicit one.
    * ``"contrastive"``: the weights settle as under ``"direct"``, and psi is how far they moved
      from the free rest point; the field is taken halfway. For fields that are gradients this is
      equilibrium propagation (Scellier & Bengio 2017), for beta -> 0 the implicit gradient; for
      others it is not. Errors at rest enter divided by beta.

    The residual is the largest of |f + psi| over |psi|; for ``"inversion"``
    |J^T psi - beta grad L| over |beta grad L|; and |f| at the free point over the field at the
    start (``"contrastive"``: over |beta grad L|). Single precision needs a beta well above
    rounding. Further arguments as for ``Equilibrium``.

    Args:
        variant: see above.
        beta: strength of the control.
        free_steps: steps without control first, from the initial weights; None, as many as with.
            The reported loss is of their end. At 0 the control is there from the start, and the
            loss is that under control.
        symmetric: ``"contrastive"`` also settles under -beta, and psi is half the way between the
            two: an error in proportion to beta^2.

    Raises:
        ConfigurationError: for a beta that is not positive, a negative number of steps, and
            ``"contrastive"`` without a free phase or ``symmetric`` without ``"contrastive"``.
    """

    variant: Variant = "inversion"
    beta: float = 0.1
    free_steps: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(variant=(self.variant, Variant))
        if not 0.0 < self.beta < math.inf:
            raise ConfigurationError(f"beta must be positive and finite; got {self.beta}.")
        if self.free_steps is not None and self.free_steps < 0:
            raise ConfigurationError(f"free_steps counts steps, from 0; got {self.free_steps}.")
        if self.variant == "contrastive" and self.free_steps == 0:
            raise ConfigurationError("contrastive needs a free phase: free_steps=0 leaves none.")
        if self.symmetric and self.variant != "contrastive":
            raise ConfigurationError(f"symmetric is for contrastive; got {self.variant!r}.")

    def settle(self, rest: Rest) -> Settled:
        first = rest.field(rest.begin)
        count = self.steps if self.free_steps is None else self.free_steps
        free = self.relaxed(rest.field, rest.begin, count)
        settle = {
            "inversion": self._inversion,
            "direct": self._direct,
            "contrastive": self._contrastive,
        }[self.variant]
        phi, psi, residual = settle(rest, free, first)
        if count and self.variant != "contrastive":
            residual = torch.maximum(residual, relative(rest.field(free), first, first))
        return Settled(phi, psi, residual, *rest.scores(free if count else phi), self.beta)

    def _inversion(self, rest: Rest, phi: Tensor, first: Tensor) -> Found:
        def push(state: Tensor) -> Tensor:
            phi, psi = state.chunk(2, -1)
            field, pull = rest.linearised(phi)
            turn = pull(psi) - self.beta * rest.slope(phi)
            # The control of the next moment: without it weak damping makes Euler's method unstable.
            return torch.cat([field + psi + self.rate * turn, turn], -1)

        state = self.relaxed(push, torch.cat([phi, torch.zeros_like(phi)], -1))
        phi, psi = state.chunk(2, -1)
        field, pull = rest.linearised(phi)
        wanted = self.beta * rest.slope(phi)
        held = relative(field + psi, psi, first)
        return phi, psi, torch.maximum(held, relative(pull(psi) - wanted, wanted, first))

    def _direct(self, rest: Rest, phi: Tensor, first: Tensor) -> Found:
        phi, psi = self._nudged(rest, phi, self.beta)
        return phi, psi, relative(rest.field(phi) + psi, psi, first)

    def _contrastive(self, rest: Rest, free: Tensor, first: Tensor) -> Found:
        plus, control = self._nudged(rest, free, self.beta)
        residual = torch.maximum(
            relative(rest.field(free), control, first),
            relative(rest.field(plus) + control, control, first),
        )
        if not self.symmetric:
            return (plus + free) / 2, plus - free, residual
        minus, against = self._nudged(rest, free, -self.beta)
        other = relative(rest.field(minus) + against, against, first)
        return (plus + minus) / 2, (plus - minus) / 2, torch.maximum(residual, other)

    def _nudged(self, rest: Rest, phi: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """The rest point under psi = -beta grad L, and psi."""

        def push(phi: Tensor) -> Tensor:
            return rest.field(phi) - beta * rest.slope(phi)

        phi = self.relaxed(push, phi)
        return phi, -beta * rest.slope(phi)
