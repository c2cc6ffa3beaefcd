"""Rules whose outputs share the work: the principal subspace and the principal components."""

from __future__ import annotations

from torch import Tensor

from metaplastic.errors import check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.rules.mixing import mix_coefficient, mix_needs, mixed
from metaplastic.signals import LocalSignals, Reduction


class OjaSubspace(PlasticityRule):
    r"""Oja's subspace rule: dW = P o (<z x^T> - <z z^T> W), z as in Hebb (Oja 1989).

    Each synapse learns from what the layer as a whole leaves unexplained of its input,
    x - W^T z. On its own activity, z = W x, the rows come to span the leading principal subspace,
    in any basis. A sum over the outputs enters every synapse, so it is not local to one.

    Args:
        plasticity: initial P, free in sign: a number, or a Coefficient of your own.
        mix: initial share of the teaching signal in z, 0..1; 0 (the published rule) and 1 are
            fixed. A number is one for each layer.
        granularity: of P; a basis of the subspace is found where it is one number for each layer.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` (mean over examples) or
            ``"sum"``.
    """

    scope = "group"

    def __init__(
        self,
        plasticity: float | Coefficient = 0.0,
        mix: float | Coefficient = 0.5,
        *,
        granularity: Granularity = "layer",
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__()
        check_choice(reduction=(reduction, Reduction))
        if not isinstance(plasticity, Coefficient):
            plasticity = Coefficient(plasticity, granularity=granularity)
        self.plasticity, self.mix = plasticity, mix_coefficient(mix, "sigmoid")
        self.reduction: Reduction = reduction
        self.needs = mix_needs(self.mix)

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        change = self._change(weight, signals, mixed(signals, coefficients["mix"]))
        return coefficients["plasticity"] * change, traces

    def _change(self, weight: Tensor, signals: LocalSignals, z: Tensor) -> Tensor:
        # Without <z z^T>, which is large where there are more outputs than rows.
        return signals.correlate(z, signals.pre - z @ weight, self.reduction)


class Sanger(OjaSubspace):
    r"""Sanger's rule: dW = P o (<z x^T> - tril(<z z^T>) W), z as in Hebb (Sanger 1989).

    Each output sees what it and those before it leave unexplained, so that on its own activity row
    k becomes the k-th principal component. Arguments as for OjaSubspace.
    """

    def _change(self, weight: Tensor, signals: LocalSignals, z: Tensor) -> Tensor:
        explained = signals.correlate(z, z, self.reduction).tril() @ weight
        return signals.correlate(z, signals.pre, self.reduction) - explained
