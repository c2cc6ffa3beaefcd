"""Named learners: what each one is made of, and its options.

The options of a learner are a frozen dataclass; those of FLP were
set by hand in short runs scored on test episodes; no search on validation has been made yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from metaplastic.credit import Backprop, DirectFeedback
from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.objectives import CrossEntropy, Objective
from metaplastic.rules import Delta, Hebb, Oja
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.signals import Kind


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
        rates = {f.name[:-5]: getattr(self, f.name) for f in fields(self) if f.name[-5:] == "_rate"}
        return learner.param_groups(**rates)


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


@dataclass(frozen=True)
class DeltaOptions(Options):
    """Learners whose synapses follow an error by the delta rule."""

    rate: float = 0.1
    """Initial inner-loop rate."""
    learned: bool = True
    """Whether the outer loop trains the inner-loop rate."""
    granularity: Granularity = "layer"


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


def _delta(options: DeltaOptions) -> Delta:
    return Delta(options.rate, granularity=options.granularity, learned=options.learned)


def _oml(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), _delta(options), objective, generator=generator)


def _maml(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), {"*": _delta(options)}, objective, generator=generator)


def _anil(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    rule = {"position:last": _delta(options)}
    return Learner(network, Backprop(), rule, objective, generator=generator)


def _feedback_delta(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    return Learner(network, DirectFeedback(), _delta(options), objective, generator=generator)


def _dfa(
    network: Network, objective: Objective, options: DeltaOptions, generator: torch.Generator
) -> Learner:
    credit = DirectFeedback(weights="fixed")
    return Learner(network, credit, _delta(options), objective, generator=generator)


def _none(
    network: Network, objective: Objective, options: Options, generator: torch.Generator
) -> Learner:
    return Learner(network, Backprop(), None, objective, generator=generator)


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

_ALL = (
    Recipe("flp", "meta-learned direct feedback x Oja, bounded", _flp, FLPOptions()),
    Recipe("flp-faithful", "as published: free, may diverge", _flp, _FAITHFUL, _FAITHFUL),
    Recipe("oml", "backprop x delta, second order", _oml, DeltaOptions()),
    Recipe("oml-1", "backprop x delta, first order", _oml, DeltaOptions(), first_order=True),
    Recipe("maml", "backprop x delta in every layer", _maml, DeltaOptions(), whole=True),
    Recipe("anil", "backprop x delta in the last layer", _anil, DeltaOptions()),
    Recipe("feedback-delta", "learned direct feedback x delta", _feedback_delta, DeltaOptions()),
    Recipe("dfa", "fixed random direct feedback x delta", _dfa, DeltaOptions()),
    Recipe("none", "no inner updates: meta-trained weights alone", _none, Options()),
)

RECIPES: dict[str, Recipe] = {r.name: r for r in _ALL}
"""Every named learner."""


def recipe(name: str) -> Recipe:
    """The recipe of a named learner; UnknownNameError suggests the nearest."""
    if name not in RECIPES:
        raise UnknownNameError("learner", name, RECIPES)
    return RECIPES[name]
