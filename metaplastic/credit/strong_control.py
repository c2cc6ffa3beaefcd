"""Strong deep feedback control."""

from __future__ import annotations

from typing import Literal, Self, Unpack

import torch
from torch import nn

from metaplastic.control import Goal, Units
from metaplastic.credit.base import Needs
from metaplastic.credit.control_options import ControlOptions
from metaplastic.credit.feedback_control import FeedbackControl
from metaplastic.errors import CompatibilityError, ConfigurationError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.objectives import CrossEntropy, SquaredError
from metaplastic.signals import Presentation, State

StrongMode = Literal["steady", "dynamic"]
DEFAULTS: ControlOptions = {"tau": 0.01, "dt": 0.001, "iterations": 20, "halvings": 6}
"""Where they differ from FeedbackControl's: the label is far, and the network fast."""


class StrongFeedbackControl(FeedbackControl):
    """Deep feedback control to the label itself: learning is to need less control, ||Q u||^2
    (Meulemans et al. 2022).

    Under SquaredError the error is e = y - r_L; under CrossEntropy e = y_soft - softmax(r_L), with
    ``probability`` of the right class and the others sharing the rest, behind a linear output
    layer.

    Args:
        mode: ``"steady"`` or ``"dynamic"``; the linearised network says nothing this far out.
        probability: of the right class, above 1 / K and below 1, which no softmax reaches.
        options: those of FeedbackControl but ``nudge``; by default tau=0.01, dt=0.001,
            iterations=20 and halvings=6. Under CrossEntropy mode "steady" needs a leak above 0.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    def __init__(
        self,
        mode: StrongMode = "steady",
        *,
        probability: float = 0.99,
        **options: Unpack[ControlOptions],
    ) -> None:
        check_choice(mode=(mode, StrongMode))
        if not 0.0 < probability < 1.0:
            raise ConfigurationError(
                f"probability lies between 0 and 1 (a softmax reaches neither), got {probability}."
            )
        unknown = sorted(options.keys() - ControlOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(ControlOptions.__annotations__)
            raise ConfigurationError(
                f"StrongFeedbackControl has no option {', '.join(unknown)}; its options are mode, "
                f"probability, {known}."
            )
        chosen: ControlOptions = {**DEFAULTS, **options}
        super().__init__(mode, **chosen)
        self.probability = probability
        self._linear_output = True

    def bind(self, network: Network, needs: Needs, generator: torch.Generator) -> Self:
        own = super().bind(network, needs, generator)
        assert isinstance(network, LayeredNetwork)
        own._linear_output = isinstance(network.layers[-1].activation, nn.Identity)
        return own

    def numbers(self) -> dict[str, float | nn.Module]:
        return {"leak": self.leak, "gain": self.gain}

    def goal(self, presentation: Presentation, units: Units, numbers: State) -> Goal:
        """What the output is steered to.

        Raises:
            CompatibilityError: for an objective that is neither of the two, or CrossEntropy on
                outputs that are not linear.
            ConfigurationError: for CrossEntropy without a leak in mode "steady".
        """
        teacher = presentation.teacher
        if isinstance(teacher.objective, SquaredError):
            return Goal(teacher.target)
        if not isinstance(teacher.objective, CrossEntropy):
            raise CompatibilityError(
                "StrongFeedbackControl drives the output to a label under SquaredError or "
                f"CrossEntropy, got {type(teacher.objective).__name__}: take FeedbackControl."
            )
        if not self._linear_output:
            raise CompatibilityError(
                "under CrossEntropy StrongFeedbackControl needs a linear output layer: leave out "
                "the activation function behind the last Linear."
            )
        if self.mode == "steady" and self.leak == 0.0:
            raise ConfigurationError(
                "under CrossEntropy mode='steady' needs a leak above 0: a softmax does not see "
                "what all logits have in common, so that without one there are many steady states."
            )
        others = (1 - self.probability) / max(units.output.shape[-1] - 1, 1)
        target = others + (self.probability - others) * teacher.target
        return Goal(target, softmax=True)
