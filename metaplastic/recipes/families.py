"""Rule families whose coefficients do not depend on the shape of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaplastic.credit import FeedbackAlignment
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import Options, Recipe
from metaplastic.recipes.space import Log, Real, Space
from metaplastic.rules import Pool
from metaplastic.rules.coefficient import Granularity
from metaplastic.signals import Origin, Reduction


@dataclass(frozen=True)
class PoolOptions(Options):
    """A pool of three-factor terms (Shervani-Tabar & Rosenbaum 2023)."""

    terms: str = "F0 F1 F2 F4 F9"
    """The terms that take part; see ``metaplastic.rules.Pool``."""
    theta: float = 0.01
    """Initial coefficient of F0; the others begin at 0."""
    l1: float = 0.1
    """Weight of sum |theta| in the meta-loss."""
    granularity: Granularity = "network"
    reduction: Reduction = "positions"
    feedback: Origin = "resampled"
    initial: Origin = "resampled"
    input_beta: float = 10.0
    """Slope of the input units, see ``FeedbackAlignment``."""


def _pool(
    network: Network, objective: Objective, options: PoolOptions, generator: torch.Generator
) -> Learner:
    terms = {name: options.theta if name == "F0" else 0.0 for name in options.terms.split()}
    rule = Pool(terms, granularity=options.granularity, l1=options.l1, reduction=options.reduction)
    credit = FeedbackAlignment(options.feedback, input_beta=options.input_beta, linked=True)
    return Learner(network, credit, rule, objective, initial=options.initial, generator=generator)


_SPACE: Space = {
    "plasticity_rate": Log(1e-4, 0.02),
    "theta": Log(1e-3, 0.1),
    "clip": Log(0.1, 10.0),
}

RECIPES = (
    Recipe(
        "pool",
        "random feedback x a pool of three-factor terms",
        _pool,
        PoolOptions(),
        space={**_SPACE, "l1": Real(0.0, 1.0)},
    ),
    Recipe(
        "pool-f0",
        "the pool's first term alone: feedback alignment with one learned rate",
        _pool,
        PoolOptions(terms="F0"),
        space=_SPACE,
    ),
)
