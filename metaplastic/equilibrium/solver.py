"""Rest points of maps, example by example, and their derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from metaplastic.equilibrium.algebra import Anderson, jacobian, length, solve_regular
from metaplastic.errors import ConfigurationError, check_choice

Step = Callable[[Tensor], Tensor]
"""A map of states (B, n), each row on its own."""
Correction = Callable[[Tensor, Tensor], Tensor]
"""The next state of a state and its image."""
Method = Literal["sweeps", "anderson", "newton"]
SWEEPS: dict[Method, int] = {"sweeps": 200, "anderson": 100, "newton": 12}
ROUNDING = 8.0
"""A relative residual of so many rounding errors is none."""
DENSE = 512
"""The largest n whose Jacobian (n, n) is made for the derivative of a rest point."""


class SolverOptions(TypedDict, total=False):
    """How a rest point is sought."""

    method: Method
    """Damped ``"sweeps"``, the same with ``"anderson"`` acceleration, or ``"newton"`` steps, for
    few units."""
    sweeps: int
    """Largest number of them; by default 200, 100 or 12."""
    tolerance: float
    """Largest residual |T(z) - z| / (1 + |z|) of a rest point; at least the precision's own."""
    damping: float
    """Share of the way that a sweep goes, above 0 up to 1."""
    memory: int
    """Number of differences that Anderson acceleration remembers."""
    every: int
    """Sweeps between two questions whether all examples are at rest."""
    backward: int
    """Sweeps that the derivative goes back through, where there are more than 512 numbers."""


@dataclass(frozen=True)
class Solver:
    """The options, complete and checked; see SolverOptions."""

    method: Method = "sweeps"
    sweeps: int = 0
    tolerance: float = 1e-6
    damping: float = 1.0
    memory: int = 5
    every: int = 10
    backward: int = 50

    @classmethod
    def of(cls, given: SolverOptions | None) -> Solver:
        """With the defaults for what is not given.

        Raises:
            ConfigurationError: for an option that there is not, or a number out of range.
        """
        given = given or {}
        unknown = sorted(given.keys() - SolverOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(SolverOptions.__annotations__)
            raise ConfigurationError(f"solver options are {known}; got {unknown}.")
        method = given.get("method", "sweeps")
        check_choice(method=(method, Method))
        made = cls(**{"sweeps": SWEEPS[method], **given})
        counts = made.sweeps, made.memory, made.every, made.backward
        if min(counts) < 1 or not made.tolerance > 0 or not 0 < made.damping <= 1:
            raise ConfigurationError(
                "of the solver options sweeps, memory, every and backward are at least 1, "
                f"tolerance is above 0 and damping above 0 up to 1; got {given}."
            )
        return made


class Rest(NamedTuple):
    """Where a map stands still, or where it was left."""

    state: Tensor
    """(B, n)"""
    residual: Tensor
    """(B, 1) |T(z) - z| / (1 + |z|)."""
    sweeps: Tensor
    """(B, 1) how many the example took."""
    found: Tensor
    """(B, 1) whether the residual is within the tolerance."""


def rest(
    step: Step,
    start: Tensor,
    solver: Solver,
    newton: Correction | None = None,
    *,
    scale: float = 1.0,
) -> Rest:
    """The rest point of ``step`` that is reached from ``start`` (B, n).

    An example that is at rest stays where it is, so that none depends on those beside it; the loop
    ends early where all are, if it may ask. Where gradients are enabled the state has the rest
    point's derivative (the implicit function theorem), for examples that were found.

    Args:
        step: T, whose derivative is that of what it is made of.
        start: states.
        solver: the method and its limits.
        newton: the step of Newton's method, which may be approximate.
        scale: factor on the tolerance.

    Raises:
        ConfigurationError: for Newton's method where there is no such step.
    """
    if solver.method == "newton" and newton is None:
        raise ConfigurationError(
            "method='newton' is not there for this map: take 'sweeps' or 'anderson'."
        )
    with torch.no_grad():
        found = _sought(step, start.detach(), solver, newton, scale)
    return _with_derivative(step, found, solver) if torch.is_grad_enabled() else found


def _sought(
    step: Step, state: Tensor, solver: Solver, newton: Correction | None, scale: float
) -> Rest:
    correct = _correction(solver, newton)
    limit = max(scale * solver.tolerance, ROUNDING * torch.finfo(state.dtype).eps)
    sweeps = torch.zeros_like(state[:, :1])
    for k in range(solver.sweeps):
        moved = step(state)
        moving = _residual(state, moved) > limit
        if k % solver.every == 0 and not _may_move(moving):
            break
        state = torch.where(moving, correct(state, moved), state)
        sweeps = sweeps + moving
    residual = _residual(state, step(state))
    return Rest(state, residual, sweeps, residual <= limit)


def _correction(solver: Solver, newton: Correction | None) -> Correction:
    if solver.method == "newton" and newton is not None:
        return newton
    if solver.method == "anderson":
        return Anderson(solver.memory, solver.damping)
    return lambda state, moved: torch.lerp(state, moved, solver.damping)


def _residual(state: Tensor, moved: Tensor) -> Tensor:
    return length(moved - state) / (1 + length(state))


def _may_move(moving: Tensor) -> bool:
    """Whether any example moves, as far as one may ask: yes under vmap and in compiled code."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(moving.any())
    except RuntimeError:
        return True


def _with_derivative(step: Step, found: Rest, solver: Solver) -> Rest:
    """The same numbers with a graph: dz = (1 - T')^-1 dT, exact for up to DENSE numbers, and summed
    up over ``backward`` sweeps beyond.
    """
    state = torch.where(found.found, found.state, torch.zeros_like(found.state))
    if state.shape[-1] <= DENSE:
        with torch.no_grad():
            slope = jacobian(step, state)
            eye = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
        shift = solve_regular(eye - slope, (step(state) - state).unsqueeze(-1)).squeeze(-1)
    else:
        shift = state
        for _ in range(solver.backward):
            shift = torch.lerp(shift, step(shift), solver.damping)
    shift = torch.where(found.found, shift, torch.zeros_like(shift))
    return found._replace(state=found.state + (shift - shift.detach()))
