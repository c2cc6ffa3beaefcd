"""Gradient learners: backpropagation, and direct feedback, under the delta rule."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metaplastic.credit import Backprop, DirectFeedback
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import DELTA, OUTER, DeltaOptions, Options, Recipe
from metaplastic.recipes.space import Log, Space


def _oml(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), options.rule(), objective, generator=generator)


def _maml(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), {"*": options.rule()}, objective, generator=generator)


def _anil(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    rule = {"position:last": options.rule()}
    return Learner(network, Backprop(), rule, objective, generator=generator)


def _feedback_delta(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, DirectFeedback(), options.rule(), objective, generator=generator)


def _dfa(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    credit = DirectFeedback(weights="fixed")
    return Learner(network, credit, options.rule(), objective, generator=generator)


def _none(
    network: Network, objective: Objective, options: Options, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), None, objective, generator=generator)


_FEEDBACK: Space = {**DELTA, "feedback_rate": Log(1e-4, 0.1)}


def _recipe(
    name: str,
    about: str,
    build: Callable[..., Learner],
    options: DeltaOptions | None = None,
    *,
    space: Space = DELTA,
    first_order: bool = False,
    whole: bool = False,
) -> Recipe:
    tuned_on = "" if options is None else "glyphs"
    options = options or DeltaOptions()
    return Recipe(name, about, build, options, None, first_order, whole, space, tuned_on)


# Options that are given: python -m studies search --task glyphs-continual --learner NAME
#     --preset quick --trials 16 --seed 1000
RECIPES = (
    _recipe(
        "oml",
        "backprop x delta, second order",
        _oml,
        DeltaOptions(initial_rate=2.2e-3, clip=0.42, rate=0.073, control_rate=0.077),
    ),
    _recipe("oml-1", "backprop x delta, first order", _oml, first_order=True),
    _recipe("maml", "backprop x delta in every layer", _maml, whole=True),
    _recipe("anil", "backprop x delta in the last layer", _anil),
    _recipe(
        "feedback-delta",
        "learned direct feedback x delta",
        _feedback_delta,
        DeltaOptions(
            initial_rate=0.013, feedback_rate=0.044, clip=1.85, rate=0.084, control_rate=0.018
        ),
        space=_FEEDBACK,
    ),
    _recipe(
        "dfa",
        "fixed random direct feedback x delta",
        _dfa,
        DeltaOptions(initial_rate=5.9e-3, clip=0.475, rate=0.965, control_rate=0.0985),
    ),
    Recipe("none", "no inner updates: meta-trained weights alone", _none, Options(), space=OUTER),
)
