"""A pool of three-factor terms (Shervani-Tabar & Rosenbaum 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.signals import LocalSignals, Reduction

NAMES = tuple(f"F{r}" for r in range(10))


class Pool(PlasticityRule):
    r"""A sum of candidate terms, dW = sum_r theta_r <F_r>, of which the outer loop keeps a few.

    With x, y the presynaptic and postsynaptic activity and e, b the errors at the postsynaptic and
    presynaptic potentials (output - target, so that -e x^T descends the loss):

    ===  =========================  ===  =======================
    F0   -e x^T, pseudo-gradient    F5   -e (1^T y) x^T
    F1   -y b^T                     F6   -y (y^T W b) b^T
    F2   -e b^T, e-Hebb             F7   -e (y^T W b) x^T
    F3   -W                         F8   -y (x^T W^T e) b^T
    F4   -1 b^T                     F9   y x^T - y y^T W, Oja
    ===  =========================  ===  =======================

    The paper selects F0, F2 and F9 by an L1 penalty. The other terms were put together here from
    secondary sources, so their order and form may differ from the paper's. Needs a credit that
    carries the error from layer to layer.

    Args:
        terms: initial theta of every term that takes part, such as ``{"F0": 1e-3, "F9": 0.0}``;
            default all ten, F0 at 1e-3 and the others at 0.
        granularity: of each theta; ``"network"`` as published, one number for all layers.
        l1: weight of sum |theta| in the meta-loss.
        learned: whether the outer loop trains the thetas.
        reduction: over rows.

    Raises:
        ConfigurationError: for a term that there is not, or none.
    """

    needs = frozenset({"teaching", "gain", "pre_teaching"})
    scope = "group"

    def __init__(
        self,
        terms: Mapping[str, float] | None = None,
        *,
        granularity: Granularity = "network",
        l1: float = 0.0,
        learned: bool = True,
        reduction: Reduction = "examples",
    ) -> None:
        super().__init__()
        check_choice(reduction=(reduction, Reduction))
        values = {name: 1e-3 if name == "F0" else 0.0 for name in NAMES} if terms is None else terms
        unknown = sorted(set(values) - set(NAMES))
        if unknown or not values:
            raise ConfigurationError(
                f"terms are some of {', '.join(NAMES)}, got {', '.join(unknown) or 'none'}."
            )
        for name, value in values.items():
            self.add_module(
                name, Coefficient(value, granularity=granularity, learned=learned, l1=l1)
            )
        self.reduction: Reduction = reduction

    def with_rate(self, rate: float) -> Pool:
        """F0 alone: feedback alignment with one rate."""
        return type(self)({"F0": rate}, learned=False, reduction=self.reduction)

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        factors = _Factors(weight, signals)
        change = torch.zeros_like(weight)
        together: list[tuple[Tensor, Tensor]] = []
        for name, theta in coefficients.items():
            if name == "F3":
                ones = torch.ones_like(signals.post)
                change = change - theta * signals.average(ones, self.reduction) * weight
                continue
            left, right = TERMS[name](factors)
            if theta.shape[1] == 1:  # a factor of the neuron: it goes into the smaller tensor
                together.append((signals.share(left * theta.mT, self.reduction), right))
            else:
                change = change + theta * signals.correlate(left, right, self.reduction)
        if together:
            lefts, rights = zip(*together, strict=True)
            change = change + torch.cat(lefts).mT @ torch.cat(rights)
        return change, traces


class _Factors:
    """x, y, e, b of one presentation, (N, *)."""

    def __init__(self, weight: Tensor, signals: LocalSignals) -> None:
        assert signals.gain is not None
        assert signals.pre_teaching is not None
        self.w, self.x, self.y = weight, signals.pre, signals.post
        # The signals are wanted changes, the paper's errors their opposite.
        self.e, self.b = -signals.error * signals.gain, -signals.pre_teaching
        self._feedback: Tensor | None = None

    @property
    def feedback(self) -> Tensor:
        """y^T W b of each row, (N, 1), which two terms share."""
        if self._feedback is None:
            self._feedback = (self.y * (self.b @ self.w.mT)).sum(1, keepdim=True)
        return self._feedback

    @property
    def drive(self) -> Tensor:
        """x^T W^T e of each row, (N, 1)."""
        return ((self.x @ self.w.mT) * self.e).sum(1, keepdim=True)


TERMS: dict[str, Callable[[_Factors], tuple[Tensor, Tensor]]] = {
    "F0": lambda f: (-f.e, f.x),
    "F1": lambda f: (-f.y, f.b),
    "F2": lambda f: (-f.e, f.b),
    "F4": lambda f: (-torch.ones_like(f.y), f.b),
    "F5": lambda f: (-f.e * f.y.sum(1, keepdim=True), f.x),
    "F6": lambda f: (-f.y * f.feedback, f.b),
    "F7": lambda f: (-f.e * f.feedback, f.x),
    "F8": lambda f: (-f.y * f.drive, f.b),
    "F9": lambda f: (f.y, f.x - f.y @ f.w),
}
"""The two factors of every term, (N, n_out) and (N, n_in), to be averaged over rows; F3, which has
none, stands in ``update``."""
