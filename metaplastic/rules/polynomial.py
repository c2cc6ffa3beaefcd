"""Rules as polynomials of what a synapse sees (Confavreux et al. 2020; Mehta et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor

from metaplastic.errors import CompatibilityError, ConfigurationError, check_choice
from metaplastic.rules.base import PlasticityRule, Traces
from metaplastic.rules.coefficient import Coefficient, Granularity
from metaplastic.signals import LocalSignals, Reduction

PREFIX = "theta_"


class Polynomial(PlasticityRule):
    r"""A Taylor series: dW = rate o sum theta_abc o <x^a y^b> o W^c, x presynaptic, y postsynaptic.

    With a fourth exponent the terms are theta_abcd o <x^a y^b r^d> o W^c, r the modulator. Hebb is
    ``Polynomial({"110": 1.0})`` and Oja ``Polynomial({"110": 1.0, "021": -1.0})``.

    Args:
        terms: the initial theta of each term by its exponents, one digit each in the order x, y,
            w (, r): ``"021"`` is y^2 w. Each becomes a Coefficient, ``theta_021``.
        rate: a fixed factor on the whole, or a Coefficient of your own.
        granularity: of every theta; the published rules are one for the network.
        l1: weight of the thetas' absolute values in the meta-loss, to leave few terms.
        learned: whether the outer loop trains the thetas.
        teaching: y is the teaching signal as an error instead of the activity, so that ``"110"`` is
            a delta rule without slope.
        reduction: ``"positions"`` (mean over rows), ``"examples"`` (mean over examples) or
            ``"sum"``.

    Raises:
        ConfigurationError: for exponents that are not three or four digits, or no term.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        *,
        rate: float | Coefficient = 1.0,
        granularity: Granularity = "network",
        l1: float = 0.0,
        learned: bool = True,
        teaching: bool = False,
        reduction: Reduction = "positions",
    ) -> None:
        super().__init__()
        check_choice(reduction=(reduction, Reduction))
        lengths = {len(term) for term in terms}
        if lengths not in ({3}, {4}) or not all(t.isascii() and t.isdigit() for t in terms):
            raise ConfigurationError(
                "terms are {'110': 1.0, ...}: exponents of x, y and w, or of x, y, w and r, one "
                f"digit each, all terms alike; got {sorted(terms)}."
            )
        self.rate = rate if isinstance(rate, Coefficient) else Coefficient(rate, learned=False)
        for term, value in terms.items():
            theta = Coefficient(value, granularity=granularity, learned=learned, l1=l1)
            setattr(self, PREFIX + term, theta)
        self.teaching = teaching
        self.reduction: Reduction = reduction
        modulated = any(term[3:].strip("0") for term in terms)
        asked = {"teaching": teaching, "modulator": modulated}
        self.needs = frozenset(name for name, wanted in asked.items() if wanted)

    @classmethod
    def full(cls, degree: int = 2, factors: int = 3, **options: Any) -> Self:
        """All (degree + 1) ** factors terms at 0, of x, y, w (3 factors) and r (4); ``options`` are
        the other arguments.

        Raises:
            ConfigurationError: for a degree outside 0..9, or another number of factors.
        """
        if not 0 <= degree <= 9 or factors not in (3, 4):
            raise ConfigurationError(
                f"degree is 0..9 and factors 3 or 4; got degree={degree}, factors={factors}."
            )
        digits = "0123456789"[: degree + 1]
        return cls({"".join(term): 0.0 for term in product(digits, repeat=factors)}, **options)

    def with_rate(self, rate: float) -> Polynomial:
        """The Hebbian term alone."""
        return type(self)(
            {"110": rate}, learned=False, teaching=self.teaching, reduction=self.reduction
        )

    def update(
        self,
        weight: Tensor,
        signals: LocalSignals,
        traces: Traces,
        coefficients: dict[str, Tensor],
    ) -> tuple[Tensor, Traces]:
        thetas = {
            tuple(map(int, name.removeprefix(PREFIX).ljust(4, "0"))): theta
            for name, theta in coefficients.items()
            if name.startswith(PREFIX)
        }
        means = self._means(signals, {(a, b, d) for a, b, _, d in thetas})
        by_weight: dict[int, Tensor] = {}
        for (a, b, c, d), theta in thetas.items():
            term = theta * means[a, b, d]
            by_weight[c] = by_weight[c] + term if c in by_weight else term
        highest = max(by_weight)
        change = by_weight[highest]
        for c in reversed(range(highest)):  # Horner's scheme
            change = change * weight
            if c in by_weight:
                change = change + by_weight[c]
        return (coefficients["rate"] * change).expand_as(weight), traces

    def _means(
        self, signals: LocalSignals, exponents: set[tuple[int, int, int]]
    ) -> dict[tuple[int, int, int], Tensor]:
        """<x^a y^b r^d> by (a, b, d), each broadcastable to (n_out, n_in)."""
        x, y, r = (max(column) for column in zip(*exponents, strict=True))
        pre = _powers(signals.pre, x)
        post = _powers(signals.error if self.teaching else signals.post, y)
        third = _powers(self._modulator(signals), r) if r else []
        found = {}
        for a, b, d in exponents:
            factor = post[b] * third[d] if d else post[b]
            found[a, b, d] = signals.correlate(factor, pre[a], self.reduction)
        return found

    def _modulator(self, signals: LocalSignals) -> Tensor:
        if signals.modulator is None:
            raise CompatibilityError(
                "this rule reads the modulator, which nobody sent: use a credit that sends one, or "
                "terms of x, y and w alone."
            )
        return signals.modulator


def _powers(value: Tensor, highest: int) -> list[Tensor]:
    """Powers 0..highest of (N, a); the first, (N, 1), is 1 also at 0, where its slope is 0."""
    powers = [torch.ones_like(value[:, :1])]
    for _ in range(highest):
        powers.append(value if len(powers) == 1 else powers[-1] * value)
    return powers
