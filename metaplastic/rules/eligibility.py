"""Three-factor plasticity: what was active stays eligible for what comes later."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.traces import shown, third_factor
from metaplastic.signals import LocalSignals, Reduction

ThirdFactor = Literal["modulator", "teaching"]


class Eligibility(PlasticityRule):
    r"""E <- (1 - 1/tau) E + <y x^T>, then dW = rate o M E (reviewed by Gerstner et al. 2018).

    x is presynaptic, y postsynaptic activity, <> the reduction over rows and M the mean over rows
    of the third factor: the modulator, or each neuron's own error. E is updated first, so that the
    present activity is eligible at once.

    Args:
        rate: initial inner-loop rate, positive: a number, or a Coefficient of your own.
        tau: initial time constant of E in presentations, from 1 (no memory, and then fixed); or a
            Coefficient of your own for the share 1 - 1/tau that E keeps.
        third: M is the ``"modulator"`` or the error of the ``"teaching"`` signal.
        granularity: of the rate; tau is one number for each layer.
        learned: whether the outer loop trains rate and tau.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` or ``"sum"``.

    Raises:
        ConfigurationError: for a tau below 1.
    """

    def __init__(
        self,
        rate: float | Coefficient = 0.1,
        tau: float | Coefficient = 10.0,
        *,
        third: ThirdFactor = "modulator",
        granularity: Granularity = "layer",
        learned: bool = True,
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__()
        check_choice(third=(third, ThirdFactor), reduction=(reduction, Reduction))
        if not isinstance(rate, Coefficient):
            rate = Coefficient(
                rate, granularity=granularity, bound="exp", learned=learned, role="control"
            )
        if not isinstance(tau, Coefficient):
            if not tau >= 1:
                raise ConfigurationError(f"tau counts presentations, from 1; got {tau}.")
            tau = Coefficient(1 - 1 / tau, bound="sigmoid", learned=learned, role="control")
        self.rate, self.kept = rate, tau
        self.third: ThirdFactor = third
        self.reduction: Reduction = reduction
        self.needs = frozenset({third})

    def init(self, weight: Tensor) -> Traces:
        return {"eligibility": torch.zeros_like(weight)}

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        del weight
        third = signals.error if self.third == "teaching" else third_factor(signals)
        lost = (1 - coefficients["kept"]) * shown(signals)
        product = signals.correlate(signals.post, signals.pre, self.reduction)
        eligibility = (1 - lost) * traces["eligibility"] + product
        factor = coefficients["rate"] * signals.average(third, "positions")
        return factor * eligibility, {"eligibility": eligibility}
