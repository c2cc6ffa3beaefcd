"""What a named learner is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from metaplastic.errors import ConfigurationError
from metaplastic.learner import Learner
from metaplastic.metagradient import Equilibrium
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.parameters import ROLES
from metaplastic.recipes.space import Log, Space
from metaplastic.rules import Delta
from metaplastic.rules.coefficient import Granularity


@dataclass(frozen=True)
class Options:
    """Outer-loop options that every learner has: one rate for each role, and the clip."""

    initial_rate: float = 1e-3
    """Outer rate of the initial weights, the trunk and the norms."""
    feedback_rate: float = 1e-3
    plasticity_rate: float = 1e-3
    mixing_rate: float = 1e-3
    control_rate: float = 1e-2
    """Outer rate of inner-loop rates, which are trained through their logarithm."""
    clip: float = 1.0
    """Bound on the norm of the meta-gradient."""

    def param_groups(self, learner: Learner) -> list[dict[str, Any]]:
        """Optimiser groups of a learner under these rates."""
        return learner.param_groups(**{role: getattr(self, f"{role}_rate") for role in ROLES})


OUTER: Space = {"initial_rate": Log(1e-4, 0.1), "clip": Log(0.1, 10.0)}
"""What a search varies in every learner with initial weights of its own."""


@dataclass(frozen=True)
class DeltaOptions(Options):
    """Learners whose synapses follow an error by the delta rule."""

    rate: float = 0.1
    """Initial inner-loop rate."""
    learned: bool = True
    """Whether the outer loop trains the inner-loop rate."""
    granularity: Granularity = "layer"

    def rule(self) -> Delta:
        """The rule of the plastic weights."""
        return Delta(self.rate, granularity=self.granularity, learned=self.learned)


DELTA: Space = {**OUTER, "rate": Log(1e-3, 1.0), "control_rate": Log(1e-3, 0.1)}
"""What a search varies in learners of the delta rule."""


@dataclass(frozen=True)
class Recipe:
    """One named learner."""

    name: str
    about: str
    build: Callable[[Network, Objective, Any, torch.Generator], Learner]
    """(network, objective, options, generator of the feedback weights) -> Learner."""
    options: Options
    """The default options."""
    published: Options | None = None
    """The published setting, where it differs."""
    first_order: bool = False
    """Its meta-gradient is first order."""
    whole: bool = False
    """Every layer is plastic: the network has no trunk."""
    space: Space = field(default_factory=dict)
    """The options that a search varies."""
    tuned_on: str = ""
    """The family of tasks on which a search set the default options; empty where none did."""
    rest: Callable[[Any], Equilibrium] | None = None
    """Options -> its own meta-gradient at rest; None where it has none."""
    smooth: bool = False
    """Its plastic hidden layers have tanh units: a rest point needs a smooth field."""

    def configure(self, values: Mapping[str, Any]) -> Options:
        """The default options with some values replaced.

        Raises:
            ConfigurationError: for an option that this learner does not have.
        """
        known = asdict(self.options)
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigurationError(
                f"learner {self.name} has no option {', '.join(unknown)}; it has "
                f"{', '.join(known)}."
            )
        return replace(self.options, **values)
