"""Gradient learners: backpropagation, and direct feedback, under the delta rule."""

from __future__ import annotations

import torch

from metaplastic.credit import Backprop, DirectFeedback
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import Objective
from metaplastic.recipes.base import DeltaOptions, Options, Recipe


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


RECIPES = (
    Recipe("oml", "backprop x delta, second order", _oml, DeltaOptions()),
    Recipe("oml-1", "backprop x delta, first order", _oml, DeltaOptions(), first_order=True),
    Recipe("maml", "backprop x delta in every layer", _maml, DeltaOptions(), whole=True),
    Recipe("anil", "backprop x delta in the last layer", _anil, DeltaOptions()),
    Recipe("feedback-delta", "learned direct feedback x delta", _feedback_delta, DeltaOptions()),
    Recipe("dfa", "fixed random direct feedback x delta", _dfa, DeltaOptions()),
    Recipe("none", "no inner updates: meta-trained weights alone", _none, Options()),
)
