"""Input modulation under the delta rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaplastic.credit import InputModulation
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import DELTA, DeltaOptions, Recipe
from metaplastic.recipes.space import Log, Space
from metaplastic.rules import Delta
from metaplastic.signals import Origin


@dataclass(frozen=True)
class ModulationOptions(DeltaOptions):
    """PEPITA (Dellaferrera & Kreiman 2022)."""

    feedback: Origin = "learned"
    """Where the projection of the error to the input comes from."""
    scale: float = 1.0
    """Of the projection as it is drawn, in units of the published one."""

    def rule(self) -> Delta:
        """The rule of the plastic weights."""
        return Delta(
            self.rate, granularity=self.granularity, learned=self.learned, derivative=False
        )


def _pepita(
    network: Network, objective: Objective, options: ModulationOptions, generator: torch.Generator
) -> Learner:
    credit = InputModulation(options.feedback, options.scale, sign=-1)
    return Learner(network, credit, options.rule(), objective, generator=generator)


_SPACE: Space = {**DELTA, "feedback_rate": Log(1e-4, 0.1), "scale": Log(0.1, 100.0)}

RECIPES = (
    Recipe(
        "pepita",
        "learned modulation of the input by the error x delta",
        _pepita,
        ModulationOptions(),
        space=_SPACE,
    ),
)
