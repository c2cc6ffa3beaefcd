"""Deep feedback control under the delta rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from metaplastic.credit import CreditAssignment, FeedbackControl, StrongFeedbackControl
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import DELTA, DeltaOptions, Recipe
from metaplastic.recipes.space import Log, Space
from metaplastic.rules import Coefficient, Delta

Mode = Literal["analytic", "steady"]


@dataclass(frozen=True)
class ControlOptions(DeltaOptions):
    """Learners whose teaching signal is what a controller of the output does to every layer."""

    leak: float = 1.0
    """Initial leak of the controller."""
    learned_leak: bool = True
    """Whether the outer loop trains the leak, through its logarithm."""
    derivative: bool = False
    """Whether the difference that control makes is multiplied by the slope of the activation."""
    iterations: int = 4
    """Newton steps of mode ``"steady"``."""
    halvings: int = 1
    """How often each of them may be halved."""

    def rule(self) -> Delta:
        """The rule of the plastic weights."""
        return Delta(
            self.rate,
            granularity=self.granularity,
            learned=self.learned,
            derivative=self.derivative,
        )

    def shared(self) -> dict[str, Any]:
        """What both kinds of control are made with."""
        return {
            "leak": _number(self.leak, self.learned_leak),
            "iterations": self.iterations,
            "halvings": self.halvings,
            "weights": "learned",
        }


@dataclass(frozen=True)
class NudgingOptions(ControlOptions):
    """Deep feedback control (Meulemans et al. 2021)."""

    mode: Mode = "analytic"
    nudge: float = 1.0
    """How far the target lies from the output, in units of the error."""
    learned_nudge: bool = False
    """Whether the outer loop trains it; for small values it does what the inner rate does."""


@dataclass(frozen=True)
class StrongOptions(ControlOptions):
    """Strong deep feedback control (Meulemans et al. 2022)."""

    iterations: int = 8
    halvings: int = 2
    probability: float = 0.99
    """Of the right class, under CrossEntropy."""


def _dfc(
    network: Network, objective: Objective, options: NudgingOptions, generator: torch.Generator
) -> Learner:
    nudge = _number(options.nudge, options.learned_nudge)
    credit = FeedbackControl(options.mode, nudge=nudge, **options.shared())
    return _learner(network, credit, objective, options, generator)


def _strong(
    network: Network, objective: Objective, options: StrongOptions, generator: torch.Generator
) -> Learner:
    credit = StrongFeedbackControl("steady", probability=options.probability, **options.shared())
    return _learner(network, credit, objective, options, generator)


def _learner(
    network: Network,
    credit: CreditAssignment,
    objective: Objective,
    options: ControlOptions,
    generator: torch.Generator,
) -> Learner:
    return Learner(network, credit, options.rule(), objective, generator=generator)


def _number(value: float, learned: bool) -> float | Coefficient:
    """A number of the controller, positive where it is learned."""
    return Coefficient(value, bound="exp", role="control") if learned else value


_SPACE: Space = {**DELTA, "feedback_rate": Log(1e-4, 0.1), "leak": Log(0.03, 10.0)}

# Options that are given: python -m studies search --task glyphs-continual --learner NAME
#     --preset quick --trials 16 --seed 1000
RECIPES = (
    Recipe(
        "dfc",
        "learned feedback control x delta",
        _dfc,
        NudgingOptions(
            initial_rate=4.2e-3,
            feedback_rate=9.2e-3,
            control_rate=0.053,
            clip=0.71,
            rate=0.029,
            leak=1.5,
        ),
        space=_SPACE,
        tuned_on="glyphs",
    ),
    Recipe(
        "strong-dfc",
        "learned feedback control to the label x delta",
        _strong,
        StrongOptions(
            initial_rate=2.2e-3,
            feedback_rate=0.036,
            control_rate=0.013,
            clip=6.4,
            rate=0.018,
            leak=0.16,
        ),
        space=_SPACE,
        tuned_on="glyphs",
    ),
)
