"""Networks at rest under control: the least-control principle (Meulemans et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metaplastic.equilibrium.algebra import rows, solve_regular


class Point(Protocol):
    """A network g at potentials v (B, S), the last K of them its output."""

    called: Tensor
    """g(v), (B, S)."""

    def transposed(self, error: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """g'(v)^T error, (B, S) -> (B, S), or the same with other weights in place of its own."""
        ...


class Field(Protocol):
    """A network as a field, dv/dt = g(v) - v; its outputs send nothing."""

    @property
    def outputs(self) -> int:
        """K"""
        ...

    def at(self, state: Tensor) -> Point:
        """The network at potentials (B, S)."""
        ...


class Feedback(Protocol):
    """How the control at the output, (B, K), reaches all units."""

    def spread(self, point: Point, reached: Tensor) -> Tensor:
        """One sweep: what reached the units before -> what reaches them now, (B, S), but for the
        outputs, of which the controller takes care.
        """
        ...

    def reach(self, point: Point, outputs: int) -> Tensor:
        """Where that leads to: Q of psi = Q u, (B, S, K)."""
        ...


@dataclass(frozen=True)
class Inversion:
    """psi = g'(v)^T psi + D^T u, dynamic inversion, whose Q is that of the least control; with
    ``weights`` in place of the network's own in g'^T, that of Kolen-Pollack feedback.
    """

    weights: Mapping[str, Tensor] | None = None

    def spread(self, point: Point, reached: Tensor) -> Tensor:
        return point.transposed(reached, self.weights)

    def reach(self, point: Point, outputs: int) -> Tensor:
        back = rows(lambda error: point.transposed(error, self.weights), point.called).mT
        eye = torch.eye(back.shape[-1], dtype=back.dtype, device=back.device)
        last = eye[:, -outputs:].expand(len(back), -1, -1)
        return solve_regular(eye - back, last)


@dataclass(frozen=True)
class Direct:
    """psi = Q u with one Q for all states, (S, K), the identity at the outputs."""

    matrix: Tensor

    def spread(self, point: Point, reached: Tensor) -> Tensor:
        return reached[:, -self.matrix.shape[-1] :] @ self.matrix.mT

    def reach(self, point: Point, outputs: int) -> Tensor:
        return self.matrix.expand(len(point.called), -1, -1)


@dataclass(frozen=True)
class Controlled:
    r"""v = g(v) + psi, where a leaky integral and proportional controller of the output error e
    rests: u = beta e with beta = k_i / leak + k_p.

    In the step psi and u are counted in units of s = beta / (1 + beta): both stay of the size of
    the error from weak control (s = 0: recurrent backpropagation) to hard control (s = 1: the error
    at the output is 0).

    Args:
        field: g.
        error: e of an output, (B, K) -> (B, K).
        strength: s, 0..1.
        feedback: from u to psi.
    """

    field: Field
    error: Callable[[Tensor], Tensor]
    strength: float
    feedback: Feedback

    def start(self, state: Tensor) -> Tensor:
        """Potentials (B, S) without control, (B, 2 S)."""
        return torch.cat([state, torch.zeros_like(state)], dim=-1)

    def step(self, both: Tensor) -> Tensor:
        """One sweep of potentials and psi / s, (B, 2 S) -> (B, 2 S). The outputs obey at once, and
        the controller's time constant is s / beta = 1 - s, so that a sweep solves a lone output.
        """
        state, reached = both.chunk(2, dim=-1)
        point, last = self.field.at(state), self.field.outputs
        moved = point.called + self.strength * reached
        control = self.strength * reached[:, -last:] + self.error(moved[:, -last:])
        spread = self.feedback.spread(point, reached)
        return torch.cat([moved, spread[:, :-last], control], dim=-1)

    def newton(self, both: Tensor, moved: Tensor) -> Tensor:
        """One step of Newton's method, (B, 2 S) -> (B, 2 S), with Q for a constant; the slope of
        the error is a difference.
        """
        del moved
        state, _ = both.chunk(2, dim=-1)
        point, last = self.field.at(state), self.field.outputs
        eye = torch.eye(state.shape[-1], dtype=state.dtype, device=state.device)
        ahead = eye - rows(point.transposed, state)
        reach = self.feedback.reach(point, last)
        output = state[:, -last:]
        slope = torch.cat(
            [torch.zeros_like(ahead[:, :last, :-last]), _slope(self.error, output)], dim=-1
        )
        leak = (1 - self.strength) * eye[-last:, -last:].expand(len(state), -1, -1)
        upper = torch.cat([ahead, -self.strength * reach], dim=-1)
        lower = torch.cat([-slope, leak], dim=-1)
        wanted = torch.cat([point.called - state, self.error(output)], dim=-1)
        found = solve_regular(torch.cat([upper, lower], dim=-2), wanted.unsqueeze(-1))
        control = reach @ found[:, -last:]
        return torch.cat([state + found[:, :-last, 0], control.squeeze(-1)], dim=-1)


@dataclass(frozen=True)
class Energy:
    """The minimum over v of F = |v - g(v)|^2 / 2 + beta L by gradient descent, where psi = v - g(v)
    is the least control.

    Args:
        controlled: the same problem by dynamic inversion, with 0 < s < 1.
    """

    controlled: Controlled

    def step(self, state: Tensor) -> Tensor:
        """A step along minus the gradient of F / (1 + beta), (B, S) -> (B, S)."""
        strength, last = self.controlled.strength, self.controlled.field.outputs
        point = self.controlled.field.at(state)
        control = state - point.called
        inner = (1 - strength) * (point.transposed(control) - control)
        outer = strength * self.controlled.error(state[:, -last:])
        return state + torch.cat([inner[:, :-last], inner[:, -last:] + outer], dim=-1)

    def newton(self, state: Tensor, moved: Tensor) -> Tensor:
        """A step of the Gauss-Newton method, that of dynamic inversion."""
        del moved
        both = self.controlled.start(state)
        return self.controlled.newton(both, both).chunk(2, dim=-1)[0]


def _slope(error: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """The Jacobian of the error at an output, (B, K, K), by central differences."""
    eye = torch.eye(output.shape[-1], dtype=output.dtype, device=output.device)
    width = torch.finfo(output.dtype).eps ** (1 / 3)
    sides = [error(output + sign * width * unit) for unit in eye for sign in (1.0, -1.0)]
    slopes = [(up - down) / (2 * width) for up, down in zip(sides[::2], sides[1::2], strict=True)]
    return torch.stack(slopes, dim=-1)
