"""Learners at rest: whole support sets under consolidation, each with its own meta-gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from metaplastic.credit import Backprop, DirectFeedback
from metaplastic.learner import Learner
from metaplastic.metagradient import Equilibrium, Implicit, LeastControl, ThroughRest
from metaplastic.metagradient.least_control import Variant
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import OUTER, Options, Recipe
from metaplastic.recipes.space import Log, OneMinus, Space
from metaplastic.rules import Consolidated, Delta, Oja, PlasticityRule
from metaplastic.rules.coefficient import Granularity
from metaplastic.signals import Origin


@dataclass(frozen=True)
class RestOptions(Options):
    """Learners whose weights settle where what the support set asks for and a pull back to the
    initial weights balance.
    """

    control_rate: float = 1e-3
    rate: float = 0.1
    """Factor on all changes, a step's to the rest point as a presentation's in a stream; where the
    rest point is does not depend on it."""
    steps: int = 30
    """To the rest point."""
    memory: int = 5
    """Anderson acceleration by so many of the last steps; 0 is none."""
    momentum: float = 0.0
    """Share of the last step that is added to the next, where there is no acceleration."""
    tolerance: float | None = 0.01
    """An episode with a larger residual is left out of the meta-gradient; None leaves none out."""
    strength: float = 1.0
    """Initial strength of the pull; times ``rate`` it is what a step or presentation takes back."""
    strength_granularity: Granularity = "layer"
    learned: bool = True
    """Whether the outer loop trains the strength, through its logarithm."""

    def consolidated(self, rule: PlasticityRule) -> Consolidated:
        """A rule with a rest point."""
        granularity, learned = self.strength_granularity, self.learned
        pull = self.rate * self.strength
        return Consolidated(rule, pull, granularity=granularity, learned=learned)

    def way(self) -> dict[str, Any]:
        """The way to the rest point, as every method at rest is told it."""
        return {
            "steps": self.steps,
            "momentum": self.momentum,
            "memory": self.memory,
            "tolerance": math.inf if self.tolerance is None else self.tolerance,
        }


@dataclass(frozen=True)
class ImplicitOptions(RestOptions):
    """The implicit gradient, by a linear system."""

    terms: int = 20
    """Products with the Jacobian, at most."""
    damping: float = 0.0
    """Added to the diagonal."""


@dataclass(frozen=True)
class LeastControlOptions(RestOptions):
    """The least-control principle (Meulemans et al. 2022)."""

    beta: float = 0.01
    """Strength of the control at ``rate`` 1; two phases need more of it in single precision."""

    def control(self, variant: Variant) -> LeastControl:
        """The same control whatever the rate: |psi|^2 and, first order, psi are in its units."""
        unit = self.rate**2 if variant == "inversion" else self.rate
        return LeastControl(variant=variant, beta=self.beta * unit, **self.way())


@dataclass(frozen=True)
class LeastControlFLPOptions(LeastControlOptions):
    """Least control over feedback and local plasticity."""

    variant: Variant = "inversion"
    """How control is found, see ``LeastControl``."""
    feedback: Origin = "learned"
    """Where the feedback weights come from; ``"fixed"`` leaves them as drawn."""
    plasticity: float = 0.03
    """Initial plasticity."""
    mix: float = 0.9
    """Initial share of the teaching signal."""
    granularity: Granularity = "synapse"
    """Of the plasticity."""


def _backprop(
    network: Network, objective: Objective, options: RestOptions, generator: torch.Generator
) -> Learner:
    """In every layer minus rate times the gradient of loss + strength / 2 |W - W_0|^2; for
    SquaredError the loss is half the summed square.
    """
    rule = options.consolidated(Delta(options.rate, learned=False))
    return Learner(network, Backprop(), {"*": rule}, objective, generator=generator)


def _flp(
    network: Network,
    objective: Objective,
    options: LeastControlFLPOptions,
    generator: torch.Generator,
) -> Learner:
    credit = DirectFeedback("error", weights=options.feedback, output="feedback")
    rule = Oja(
        options.plasticity,
        options.mix,
        granularity=options.granularity,
        multiplier=options.rate,
    )
    return Learner(
        network, credit, {"*": options.consolidated(rule)}, objective, generator=generator
    )


def _controlled(variant: Variant) -> Callable[[LeastControlOptions], Equilibrium]:
    return lambda options: options.control(variant)


def _flp_controlled(options: LeastControlFLPOptions) -> Equilibrium:
    return options.control(options.variant)


def _implicit(options: ImplicitOptions) -> Equilibrium:
    return Implicit(solver="cg", terms=options.terms, damping=options.damping, **options.way())


def _first_order(options: RestOptions) -> Equilibrium:
    return Implicit(solver="identity", **options.way())


def _through(options: RestOptions) -> Equilibrium:
    return ThroughRest(**options.way())


def _recipe(
    name: str,
    about: str,
    options: RestOptions,
    rest: Callable[[Any], Equilibrium],
    space: Space,
    build: Callable[..., Learner] = _backprop,
) -> Recipe:
    return Recipe(name, about, build, options, space=space, rest=rest, smooth=True)


_REST: Space = {**OUTER, "strength": Log(0.1, 10.0)}
_CONTROL: Space = {**_REST, "beta": Log(1e-3, 1.0)}
_FLP: Space = {
    **_CONTROL,
    "feedback_rate": Log(1e-4, 0.1),
    "plasticity_rate": Log(1e-4, 0.1),
    "mix": OneMinus(0.5, 0.99),
}

RECIPES = (
    _recipe(
        "lcp",
        "consolidated backprop at rest, least control by dynamic inversion",
        LeastControlOptions(),
        _controlled("inversion"),
        _CONTROL,
    ),
    _recipe(
        "lcp-direct",
        "consolidated backprop at rest, least control straight from the queries, first order",
        LeastControlOptions(beta=0.1),
        _controlled("direct"),
        _CONTROL,
    ),
    _recipe(
        "lcp-contrastive",
        "consolidated backprop at rest, two phases: with and without control",
        LeastControlOptions(beta=0.1),
        _controlled("contrastive"),
        _CONTROL,
    ),
    _recipe(
        "imaml",
        "consolidated backprop at rest, implicit gradient by conjugate gradients",
        ImplicitOptions(),
        _implicit,
        _REST,
    ),
    _recipe(
        "t1-t2",
        "consolidated backprop at rest, implicit gradient with the identity for a Hessian",
        RestOptions(),
        _first_order,
        _REST,
    ),
    _recipe(
        "maml-rest",
        "consolidated backprop, gradient through all steps to the rest point",
        RestOptions(steps=100, memory=0, momentum=0.5, tolerance=None),
        _through,
        _REST,
    ),
    _recipe(
        "flp-lcp",
        "consolidated Oja on learned feedback at rest, least control",
        LeastControlFLPOptions(),
        _flp_controlled,
        _FLP,
        _flp,
    ),
)
