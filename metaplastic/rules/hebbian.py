"""Hebb and Oja on activity mixed with the teaching signal (Lindsey & Litwin-Kumar 2020)."""

from __future__ import annotations

from torch import Tensor

from metaplastic.errors import check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.mixing import mix_coefficient, mix_needs, mixed
from metaplastic.signals import LocalSignals, Reduction


class Hebb(PlasticityRule):
    r"""Hebbian plasticity: dW = P o <z x^T>, with z = mix * teaching + (1 - mix) * post.

    x is presynaptic, <> the reduction over examples, P the plasticity, o elementwise; the teaching
    signal enters raw, whatever its kind. This is the published rule when ``bounded`` is False
    (free P, free mix, reduction ``"sum"``).

    ``bounded``, the default, deviates from the paper to stay stable: P = tanh(raw),
    mix = sigmoid(raw), and dW is divided by 1 + <z^2> of the postsynaptic unit, so that for Oja one
    step never overshoots its fixed point. The normaliser is differentiated by the outer loop.

    Args:
        plasticity: initial P: a number, or a Coefficient of your own.
        mix: initial share of the teaching signal in z, 0..1 when bounded; 0 or 1 are then fixed.
        granularity: of P; ``mix`` is one number for each layer.
        bounded: see above.
        reduction: ``"examples"`` (mean over examples), ``"positions"`` (mean over rows) or
            ``"sum"``; default the mean over rows when bounded, the sum when not.
        multiplier: fixed factor on dW (100 on hidden layers in the published classifier).
        fan_in: divide dW by the number of presynaptic units. For error signals: with |P| < 1 the
            loop from error to output and back then stays stable whatever the width.
    """

    def __init__(
        self,
        plasticity: float | Coefficient = 0.0,
        mix: float | Coefficient = 0.5,
        *,
        granularity: Granularity = "synapse",
        bounded: bool = True,
        reduction: Reduction | None = None,
        multiplier: float = 1.0,
        fan_in: bool = False,
    ) -> None:
        super().__init__()
        self.reduction: Reduction = reduction or ("positions" if bounded else "sum")
        check_choice(reduction=(self.reduction, Reduction))
        if not isinstance(plasticity, Coefficient):
            plasticity = Coefficient(
                plasticity, granularity=granularity, bound="tanh" if bounded else "none"
            )
        self.plasticity = plasticity
        self.mix = mix_coefficient(mix, "sigmoid" if bounded else "none")
        self.bounded, self.multiplier, self.fan_in = bounded, multiplier, fan_in
        self.needs = mix_needs(self.mix)

    def with_rate(self, rate: float) -> Hebb:
        fixed = Coefficient(rate, learned=False)
        return type(self)(**{**self._arguments, "plasticity": fixed})

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        z = mixed(signals, coefficients["mix"])
        multiplier = self.multiplier / (signals.pre.shape[1] if self.fan_in else 1)
        energy = signals.average(z * z, self.reduction)
        # Factors of one neuron go into z, which is small, and not into dW.
        if self.bounded:
            factor = multiplier / (1 + energy)
            z = z * factor.mT
        else:
            factor = multiplier
            z = z if factor == 1 else z * factor
        change = signals.correlate(z, signals.pre, self.reduction)
        if self.decays:
            change = change - energy * factor * weight
        return coefficients["plasticity"] * change, traces

    decays = False
    """Whether the postsynaptic energy pulls the weights back."""


class Oja(Hebb):
    r"""Oja's rule: dW = P o (<z x^T> - <z^2> W), z as in Hebb (Oja 1982; Lindsey & Litwin-Kumar).

    The second term is a decay in proportion to the postsynaptic energy: each neuron regresses its
    inputs on its own activity. Arguments as for Hebb.
    """

    decays = True
