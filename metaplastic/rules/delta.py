"""The delta rule."""

from __future__ import annotations

from torch import Tensor

from metaplastic.errors import check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.traces import shown
from metaplastic.signals import LocalSignals, Reduction


class Delta(PlasticityRule):
    """Error times slope times presynaptic activity: dW = rate o <(error o gain) x^T> - decay o W.

    With errors by backpropagation this is gradient descent.

    Args:
        rate: initial inner-loop rate, positive: a number, or a Coefficient of your own.
        granularity: of the rate (``"synapse"`` with backpropagation is Meta-SGD).
        learned: whether the outer loop trains the rate, through its logarithm.
        derivative: whether the error is multiplied by the slope of the activation function.
        reduction: ``"examples"`` (mean over examples, as the gradient of a mean loss), ``"sum"``
            or ``"positions"``.
        decay: share of the weight lost at each presentation, 0..1: a fixed number, or a Coefficient
            of your own.
    """

    def __init__(
        self,
        rate: float | Coefficient = 0.1,
        *,
        granularity: Granularity = "layer",
        learned: bool = False,
        derivative: bool = True,
        reduction: Reduction = "examples",
        decay: float | Coefficient = 0.0,
    ) -> None:
        super().__init__()
        check_choice(reduction=(reduction, Reduction))
        if not isinstance(decay, Coefficient):
            decay = Coefficient(decay, bound="sigmoid", learned=False, role="control")
        self.decay = decay
        self._decays = decay.learned or decay.value != 0.0
        if not isinstance(rate, Coefficient):
            rate = Coefficient(
                rate, granularity=granularity, bound="exp", learned=learned, role="control"
            )
        self.rate = rate
        self.derivative = derivative
        self.reduction: Reduction = reduction
        self.needs = frozenset({"teaching", "gain"} if derivative else {"teaching"})

    def with_rate(self, rate: float) -> Delta:
        fixed = Coefficient(rate, learned=False, role="control")
        return type(self)(**{**self._arguments, "rate": fixed})

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        error = signals.error
        if self.derivative and signals.gain is not None:
            error = error * signals.gain
        rate = coefficients["rate"]
        if rate.shape[-1] == 1:  # less to multiply before the outer product than after it
            change = signals.correlate(error * rate.mT, signals.pre, self.reduction)
        else:
            change = rate * signals.correlate(error, signals.pre, self.reduction)
        if self._decays:
            change = change - coefficients["decay"] * shown(signals) * weight
        return change, traces
