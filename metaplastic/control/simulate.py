"""A controlled network in time, by forward Euler steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from metaplastic.control.chain import Chain, Units
from metaplastic.control.goal import Goal


@dataclass(frozen=True)
class Constants:
    """Of a controller and of the network's dynamics; times in units of the controller's own."""

    leak: Tensor
    """a, on the whole control u: du_int/dt = e - a u."""
    gain: Tensor
    """k_p of u = u_int + k_p e."""
    dt: float
    tau: float
    """Time constant of the potentials, at least dt."""
    apical: float | None = None
    """Time constant of the apical compartments; None for instantaneous ones."""
    proactive: bool = True
    """Apical compartments see the new control already, not the one before."""
    instant: bool = True
    """Layers see the new activity of the layer below already, not the one before."""

    @property
    def pace(self) -> float:
        """Share of the way that a potential goes in one step; tau is not below dt."""
        return min(1.0, self.dt / self.tau)

    @property
    def apical_pace(self) -> float:
        """The same of an apical compartment."""
        return 1.0 if self.apical is None else self.dt / self.apical


class Moment(NamedTuple):
    """The controlled network at one moment."""

    units: Units
    apical: tuple[Tensor, ...]
    """v_fb, (B, n_i) of each layer."""
    control: Tensor
    """u, (B, K)"""
    integral: Tensor
    """u_int, (B, K)"""


def begin(units: Units) -> Moment:
    """The feed-forward state, without control."""
    still = torch.zeros_like(units.output)
    return Moment(units, tuple(torch.zeros_like(v) for v in units.potential), still, still)


def advance(
    chain: Chain,
    feedback: Sequence[Tensor],
    goal: Goal,
    constants: Constants,
    before: Moment,
    noise: Sequence[Tensor] | None = None,
    running: Tensor | None = None,
) -> Moment:
    """The next moment (Meulemans et al. 2021).

    Args:
        chain: the controlled layers.
        feedback: Q_i (n_i, K).
        goal: the control error.
        constants: of the dynamics.
        before: the moment before.
        noise: what is added to each apical compartment, (B, n_i), or None.
        running: (B, 1) the examples that are controlled; the others get neither control nor noise.
    """
    error = goal.error(before.units.output)
    integral = before.integral + constants.dt * (error - constants.leak * before.control)
    control = integral + constants.gain * error
    if running is not None:
        still = torch.zeros_like(control)
        integral, control = (torch.where(running, c, still) for c in (integral, control))
    seen = control if constants.proactive else before.control
    basal, apical, potential, rate = [], [], [], []
    for i, q in enumerate(feedback):
        basal.append(chain.basal(i, rate if constants.instant else before.units.rate))
        reached = seen @ q.mT
        if constants.apical is not None:
            reached = torch.lerp(before.apical[i], reached, constants.apical_pace)
        if noise is not None:
            added = noise[i]
            if running is not None:
                added = torch.where(running, added, torch.zeros_like(added))
            reached = reached + added
        apical.append(reached)
        aim = reached + basal[-1]
        potential.append(torch.lerp(before.units.potential[i], aim, constants.pace))
        rate.append(chain.rate(i, potential[-1]))
    return Moment(
        Units(tuple(basal), tuple(potential), tuple(rate)), tuple(apical), control, integral
    )


def moments(
    chain: Chain,
    feedback: Sequence[Tensor],
    goal: Goal,
    constants: Constants,
    start: Units | Moment,
    steps: int,
    noise: Iterable[Sequence[Tensor]] | None = None,
    running: Tensor | None = None,
) -> Iterator[Moment]:
    """``steps`` moments one by one, the first of them the start; none is kept here. ``noise`` has
    one entry for each moment but the first.
    """
    now = start if isinstance(start, Moment) else begin(start)
    yield now
    arriving = iter(repeat(None) if noise is None else noise)
    for _ in range(steps - 1):
        now = advance(chain, feedback, goal, constants, now, next(arriving), running)
        yield now


def diverges(last: Moment, goal: Goal, first: Tensor) -> Tensor:
    """(B, 1) whether the control error has grown from ``first`` (B, K), or is not finite."""
    was, now = (
        torch.linalg.vector_norm(e, dim=-1, keepdim=True)
        for e in (first, goal.error(last.units.output))
    )
    finite = last.control.isfinite().all(-1, keepdim=True) & now.isfinite()
    return ~(finite & (now <= was))
