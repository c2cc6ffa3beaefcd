"""Feedback and local plasticity (Lindsey & Litwin-Kumar 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaplastic.credit import DirectFeedback
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import CrossEntropy, Objective
from metaplastic.recipes.base import OUTER, Options, Recipe
from metaplastic.recipes.space import Log, OneMinus, Real, Space
from metaplastic.rules import Hebb, Oja
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.signals import Kind


@dataclass(frozen=True)
class FLPOptions(Options):
    """Feedback and local plasticity (Lindsey & Litwin-Kumar 2020)."""

    signal: Kind | None = None
    """``error`` or ``target``; None takes the target for classes and the error for regression."""
    plasticity: float | None = None
    """Initial plasticity of hidden layers; None takes 0.001 for a target signal and 0 for errors,
    whose loop through the output is unstable when it starts too strong."""
    output_plasticity: float | None = None
    """Initial plasticity of a clamped last layer; None takes 0.7 for a target, 0.5 for errors."""
    mix: float = 0.9
    """Initial share of the teaching signal in hidden layers."""
    granularity: Granularity = "synapse"
    hebbian: bool = False
    """Hebb instead of Oja."""
    depth: int = 1
    width: int | None = None
    rectify: bool = False
    feedback_bias: bool = False
    clamp: bool = True
    """The last layer's teaching signal is the signal itself, and alone; else it is fed back."""
    bounded: bool = True
    hidden_multiplier: float = 1.0
    """Fixed factor on the changes of hidden layers."""
    output_multiplier: float = 1.0
    """Fixed factor on the changes of a clamped last layer."""
    detach_error: bool = False


def _flp(
    network: Network, objective: Objective, options: FLPOptions, generator: torch.Generator
) -> Learner:
    signal = options.signal
    if signal is None:
        signal = "target" if isinstance(objective, CrossEntropy) else "error"
    credit = DirectFeedback(
        signal,
        depth=options.depth,
        width=options.width,
        rectify=options.rectify,
        bias=options.feedback_bias,
        output="clamp" if options.clamp else "feedback",
        detach_error=options.detach_error,
    )
    hidden_start, output_start = (0.001, 0.7) if signal == "target" else (0.0, 0.5)
    if options.plasticity is not None:
        hidden_start = options.plasticity
    if options.output_plasticity is not None:
        output_start = options.output_plasticity
    family = Hebb if options.hebbian else Oja
    shared = {
        "granularity": options.granularity,
        "bounded": options.bounded,
        "fan_in": options.bounded and signal == "error",
    }
    hidden = family(hidden_start, options.mix, multiplier=options.hidden_multiplier, **shared)
    rule: dict[str, Hebb | None] = {"role:bias": None, "*": hidden}
    if options.clamp:
        only_teaching = Coefficient(1.0, learned=False, role="mixing")
        rule = {
            "role:bias": None,
            "position:last": family(
                output_start, only_teaching, multiplier=options.output_multiplier, **shared
            ),
            "*": hidden,
        }
    return Learner(network, credit, rule, objective, generator=generator)


_FAITHFUL = FLPOptions(
    initial_rate=1e-4,
    feedback_rate=1e-4,
    plasticity_rate=1e-8,
    mixing_rate=1e-4,
    plasticity=0.0,
    mix=0.5,
    rectify=True,
    feedback_bias=True,
    clamp=False,
    bounded=False,
)

_SPACE: Space = {
    **OUTER,
    "feedback_rate": Log(1e-4, 0.1),
    "plasticity_rate": Log(1e-4, 0.1),
    "mix": OneMinus(0.5, 0.99),
}
_FREE: Space = {
    "initial_rate": Log(1e-5, 1e-2),
    "feedback_rate": Log(1e-5, 1e-2),
    "plasticity_rate": Log(1e-10, 1e-5),
    "mixing_rate": Log(1e-5, 1e-2),
    "mix": Real(0.0, 1.0),
}

RECIPES = (
    # The options that are given: python -m studies search --task glyphs-continual --learner flp
    #     --preset quick --trials 16 --seed 1000; the others were set by hand.
    Recipe(
        "flp",
        "meta-learned direct feedback x Oja, bounded",
        _flp,
        FLPOptions(
            initial_rate=3.4e-3,
            feedback_rate=3.7e-4,
            plasticity_rate=1.4e-4,
            clip=1.76,
            mix=0.94,
        ),
        space=_SPACE,
        tuned_on="glyphs",
    ),
    Recipe(
        "flp-faithful", "as published: free, may diverge", _flp, _FAITHFUL, _FAITHFUL, space=_FREE
    ),
)
