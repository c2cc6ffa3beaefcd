"""The ABCD family of Hebbian rules (Najarro & Risi 2020; Pedersen & Risi 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.signals import LocalSignals, Reduction

Variant = Literal["A", "AD", "ABC", "ABCD", "ABC+D", "ABCD+D"]
"""Which terms there are; ``+D`` is one outside the bracket, which the rate does not multiply."""


class ABCD(PlasticityRule):
    r"""Hebbian terms with coefficients of their own: dW = rate o (A o <y x^T> + B o <x> + C o <y>
    + D) + D_out, x presynaptic, y postsynaptic.

    No teaching signal enters. The published start, every coefficient drawn from N(0, 1), is
    ``nn.init.normal_`` over ``learner.rules.parameters()``. With the default zeros nothing moves
    and the terms, but not the rate, have a meta-gradient.

    Args:
        variant: the terms: ``"A"``, ``"AD"``, ``"ABC"``, ``"ABCD"``, ``"ABC+D"`` (D outside the
            bracket) or ``"ABCD+D"`` (one inside, one outside).
        rate: initial rate, free in sign: a number, or a Coefficient of your own
            (``Coefficient(1.0, learned=False)`` for the variants without a rate).
        A: initial coefficient of <y x^T>, default 0: a number, or a Coefficient; likewise the next.
        B: of <x>.
        C: of <y>.
        D: of 1, inside the bracket.
        D_out: of 1, outside the bracket.
        granularity: of all that are given as numbers.
        normalise: divide the weights by their largest absolute value after each change, so that it
            is 1; weights that are all 0 stay so. The division belongs to the change that is
            returned, and is differentiated by the outer loop.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` (mean over examples) or
            ``"sum"`` of the whole expression; over a mean of rows D enters once.

    Raises:
        ConfigurationError: for a coefficient that the variant does not have.
    """

    def __init__(
        self,
        variant: Variant = "ABCD",
        *,
        rate: float | Coefficient = 0.1,
        A: float | Coefficient | None = None,
        B: float | Coefficient | None = None,
        C: float | Coefficient | None = None,
        D: float | Coefficient | None = None,
        D_out: float | Coefficient | None = None,
        granularity: Granularity = "synapse",
        normalise: bool = False,
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__()
        check_choice(variant=(variant, Variant), reduction=(reduction, Reduction))
        inside, _, outside = variant.partition("+")
        names = [*inside, *(["D_out"] if outside else [])]
        values = {"A": A, "B": B, "C": C, "D": D, "D_out": D_out}
        for name, value in values.items():
            if value is not None and name not in names:
                raise ConfigurationError(
                    f"the variant {variant!r} has the coefficients {', '.join(names)}, and {name} "
                    "is none of them: leave it out, or take another variant."
                )
        for name, value in {"rate": rate, **{name: values[name] for name in names}}.items():
            if not isinstance(value, Coefficient):
                value = Coefficient(value or 0.0, granularity=granularity)
            setattr(self, name, value)
        self.normalise = normalise
        self.reduction: Reduction = reduction
        self.scope = "group" if normalise else "synapse"

    def with_rate(self, rate: float) -> ABCD:
        """The Hebbian term alone."""
        fixed = Coefficient(rate, learned=False)
        one = Coefficient(1.0, learned=False)
        return type(self)(
            "A", rate=fixed, A=one, normalise=self.normalise, reduction=self.reduction
        )

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        pre, post, value = signals.pre, signals.post, coefficients
        shown = signals.average(torch.ones_like(post[:, :1]), self.reduction)
        change = value["A"] * signals.correlate(post, pre, self.reduction)
        if "B" in value:
            change = change + value["B"] * signals.average(pre, self.reduction).mT
        if "C" in value:
            change = change + value["C"] * signals.average(post, self.reduction)
        if "D" in value:
            change = change + value["D"] * shown
        change = value["rate"] * change
        if "D_out" in value:
            change = change + value["D_out"] * shown
        if self.normalise:
            change = torch.where(shown > 0, _normalised(weight + change) - weight, 0.0)
        return change, traces


def _normalised(weight: Tensor) -> Tensor:
    """Weights (n_out, n_in) over their largest absolute value."""
    largest = weight.abs().amax((0, 1), keepdim=True)
    return weight / torch.where(largest > 0, largest, 1.0)
