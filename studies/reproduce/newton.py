"""Newton's method beside the simulation that it stands for: how far apart, and how fast."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metaplastic.control import Chain, Constants, Goal, Units, newton
from metaplastic.control.simulate import advance, begin
from metaplastic.credit import FeedbackControl
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.rules import Delta
from metaplastic.signals import Teacher
from studies.reproduce.base import Setup
from studies.reproduce.control import mlp
from studies.reproduce.dfc import CONTROLLER, MNIST, NUDGE
from tasks.images import load_images

RESIDUAL = 1e-9
"""Of the control error against leak times control, relative to the error without control, where
the simulation ends."""
ASKED = 50
"""Moments between two looks at it."""


@dataclass(frozen=True)
class Comparison:
    """Both on the same examples in float64."""

    difference: float
    """Largest relative difference of an example's control."""
    steps: int
    """Euler steps that the simulation took."""
    newton: float
    """Median seconds."""
    simulation: float
    ratio: float
    """Median of newton / simulation over the repeats, which alternate."""


@torch.no_grad()
def compare(
    learner: Learner,
    x: Tensor,
    y: Tensor,
    *,
    nudge: float,
    leak: float,
    gain: float,
    dt: float,
    tau: float,
    repeats: int = 5,
    limit: int = 50_000,
) -> Comparison:
    """On examples x (B, *) with labels y (B,); the learner's credit holds the feedback."""
    network = learner.network
    assert isinstance(network, LayeredNetwork)
    weights = learner.start(len(x))["weights"]
    chain, still = Chain.of(network, weights, network.features(x))
    feedback = tuple(weights[name] for name in learner.credit.groups())
    error = Teacher(learner.objective, learner.encode(y, x.shape[:1])).error(still.output)
    goal = Goal(still.output + nudge * error)
    constants = Constants(x.new_full((1, 1), leak), x.new_full((1, 1), gain), dt, tau)

    def simulate() -> tuple[Tensor, int]:
        return _simulated(chain, still, feedback, goal, constants, limit)

    def solve() -> Tensor:
        return newton(chain, feedback, goal, constants.leak).control

    (simulated, steps), found = simulate(), solve()
    apart = torch.linalg.vector_norm(found - simulated, dim=-1)
    seconds = [(_timed(solve), _timed(simulate)) for _ in range(repeats)]
    return Comparison(
        difference=float((apart / torch.linalg.vector_norm(simulated, dim=-1)).max()),
        steps=steps,
        newton=statistics.median(a for a, _ in seconds),
        simulation=statistics.median(b for _, b in seconds),
        ratio=statistics.median(a / b for a, b in seconds),
    )


def _simulated(
    chain: Chain,
    still: Units,
    feedback: tuple[Tensor, ...],
    goal: Goal,
    constants: Constants,
    limit: int,
) -> tuple[Tensor, int]:
    moment = begin(still)
    first = torch.linalg.vector_norm(goal.error(still.output), dim=-1)
    for step in range(1, limit + 1):
        moment = advance(chain, feedback, goal, constants, moment)
        if step % ASKED == 0:
            rest = goal.error(moment.units.output) - constants.leak * moment.control
            if bool((torch.linalg.vector_norm(rest, dim=-1) < RESIDUAL * first).all()):
                return moment.control, step
    return moment.control, limit


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """``python -m studies.reproduce.newton``: on a batch of digits, in the network and under the
    constants of ``reproduce dfc``.
    """
    torch.set_num_threads(1)
    setup = Setup((1, 28, 28), 10, 0, MNIST.sizes["acceptance"], {})
    options = {**CONTROLLER, "dt": 0.02}
    learner = Learner(mlp(setup), FeedbackControl("steady"), Delta(1.0, derivative=False)).double()
    digits = load_images("mnist").train
    x, y = digits.x[: setup.sizes.batch].double(), digits.y[: setup.sizes.batch]
    print(f"{'nudge':>8} {'apart':>9} {'Newton':>9} {'simulation':>16} {'ratio':>7}")
    for nudge in (NUDGE, 0.1, 1.0):
        found = compare(learner, x, y, nudge=nudge, **options)
        steps = f"{found.steps} steps, {found.simulation:.2f} s"
        print(
            f"{nudge:8.2g} {found.difference:9.1e} {found.newton:7.3f} s {steps:>16} "
            f"{found.ratio:7.4f}"
        )


if __name__ == "__main__":
    main()
