"""Differentiable plasticity: a Hebbian trace beside every weight (Miconi et al. 2018, 2019)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.traces import shown, third_factor
from metaplastic.signals import LocalSignals, Reduction

TraceForm = Literal["decay", "oja", "clip"]
ModulatedForm = Literal["simple", "retroactive"]
Clip = Literal[None, "hard", "soft"]


class PlasticTrace(PlasticityRule):
    """Effective weight = w + alpha o H, with a trace H that starts each episode at 0.

    w is the group's initial weight, and the group's weight within the episode is the effective one:
    the rule keeps H and answers dW = alpha o (H_new - H_old).
    """

    def __init__(
        self, alpha: float | Coefficient, granularity: Granularity, reduction: Reduction
    ) -> None:
        super().__init__()
        check_choice(reduction=(reduction, Reduction))
        if not isinstance(alpha, Coefficient):
            alpha = Coefficient(alpha, granularity=granularity)
        self.alpha = alpha
        self.reduction: Reduction = reduction

    def init(self, weight: Tensor) -> Traces:
        return {"hebb": torch.zeros_like(weight)}

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        del weight
        after = self.advance(signals, traces, coefficients)
        return coefficients["alpha"] * (after["hebb"] - traces["hebb"]), after

    @abstractmethod
    def advance(
        self, signals: LocalSignals, traces: Traces, coefficients: dict[str, Tensor]
    ) -> Traces:
        """The traces after one presentation."""


class DifferentiablePlasticity(PlasticTrace):
    r"""H from Hebbian products of raw activity; weights w + alpha o H (Miconi et al. 2018).

    With x presynaptic, y postsynaptic and <> the reduction over rows:

    * ``"decay"``: H <- (1 - rate) H + rate <y x^T>
    * ``"oja"``: H <- H + rate (<y x^T> - <y^2> H)
    * ``"clip"``: H <- clip(H + rate <y x^T>, -bound, bound)

    Args:
        form: see above.
        alpha: initial plasticity of each synapse: a number, or a Coefficient of your own.
        rate: initial share of the present in H, 0..1, one number for the whole network: a number,
            or a Coefficient of your own.
        granularity: of alpha.
        bound: of ``"clip"``, positive.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` or ``"sum"``.

    Raises:
        ConfigurationError: for a bound that is not positive.
    """

    def __init__(
        self,
        form: TraceForm = "decay",
        alpha: float | Coefficient = 0.01,
        rate: float | Coefficient = 0.01,
        *,
        granularity: Granularity = "synapse",
        bound: float = 1.0,
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__(alpha, granularity, reduction)
        check_choice(form=(form, TraceForm))
        self.form: TraceForm = form
        self.rate = _share(rate)
        self.bound = _positive(bound)

    def advance(
        self, signals: LocalSignals, traces: Traces, coefficients: dict[str, Tensor]
    ) -> Traces:
        trace, rate = traces["hebb"], coefficients["rate"]
        product = rate * signals.correlate(signals.post, signals.pre, self.reduction)
        if self.form == "clip":
            return {"hebb": (trace + product).clamp(-self.bound, self.bound)}
        if self.form == "decay":
            lost = rate * shown(signals)
        else:
            lost = rate * signals.average(signals.post.square(), self.reduction)
        return {"hebb": (1 - lost) * trace + product}


class Backpropamine(PlasticTrace):
    r"""H gated by a modulator M that the network sets itself (Miconi et al. 2019).

    With x presynaptic, y postsynaptic and <> the reduction over rows:

    * ``"simple"``: H <- clip(H + <M y x^T>)
    * ``"retroactive"``: H <- clip(H + <M> E), and only then E <- (1 - rate) E + rate <y x^T>: the
      modulator reaches back to what was active before. With several rows E and M are each a mean
      over them, so that M acts on what all rows left behind.

    The clip is ``"hard"``, to -bound..bound; ``"soft"``, where a step d fades on its way to the
    bound, H + d - |d| H / bound (and a step longer than the bound ends there); or None.

    Args:
        form: see above.
        alpha: initial plasticity of each synapse: a number, or a Coefficient of your own.
        rate: of ``"retroactive"``, initial share of the present in E, 0..1, one number for the
            whole network: a number, or a Coefficient of your own.
        granularity: of alpha.
        clip: see above.
        bound: of the clip, positive.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` or ``"sum"``; M alone is always
            a mean.

    Raises:
        ConfigurationError: for a bound that is not positive.
    """

    needs = frozenset({"modulator"})

    def __init__(
        self,
        form: ModulatedForm = "simple",
        alpha: float | Coefficient = 0.01,
        rate: float | Coefficient = 0.01,
        *,
        granularity: Granularity = "synapse",
        clip: Clip = "hard",
        bound: float = 1.0,
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__(alpha, granularity, reduction)
        check_choice(form=(form, ModulatedForm), clip=(clip, Clip))
        self.form: ModulatedForm = form
        self.clip: Clip = clip
        self.bound = _positive(bound)
        if form == "retroactive":
            self.rate = _share(rate)

    def init(self, weight: Tensor) -> Traces:
        traces = super().init(weight)
        if self.form == "retroactive":
            traces["eligibility"] = torch.zeros_like(weight)
        return traces

    def advance(
        self, signals: LocalSignals, traces: Traces, coefficients: dict[str, Tensor]
    ) -> Traces:
        modulator = third_factor(signals)
        if self.form == "simple":
            step = signals.correlate(modulator * signals.post, signals.pre, self.reduction)
            return {"hebb": self._step(traces["hebb"], step)}
        eligibility, rate = traces["eligibility"], coefficients["rate"]
        step = signals.average(modulator, "positions") * eligibility
        product = rate * signals.correlate(signals.post, signals.pre, self.reduction)
        return {
            "hebb": self._step(traces["hebb"], step),
            "eligibility": (1 - rate * shown(signals)) * eligibility + product,
        }

    def _step(self, trace: Tensor, step: Tensor) -> Tensor:
        if self.clip == "soft":
            step = step - step.abs() * trace / self.bound
        trace = trace + step
        return trace if self.clip is None else trace.clamp(-self.bound, self.bound)


def _share(value: float | Coefficient) -> Coefficient:
    """A coefficient in 0..1 that the groups share."""
    if isinstance(value, Coefficient):
        return value
    return Coefficient(value, granularity="network", bound="sigmoid", role="control")


def _positive(bound: float) -> float:
    if not bound > 0:
        raise ConfigurationError(f"the bound of a trace is positive, got {bound}.")
    return bound
