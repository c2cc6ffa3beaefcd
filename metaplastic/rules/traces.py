"""What rules with a trace share."""

from __future__ import annotations

from torch import Tensor

from metaplastic.errors import CompatibilityError
from metaplastic.signals import LocalSignals


def shown(signals: LocalSignals) -> Tensor | float:
    """How much of a presentation this is, a scalar: 1, or 0 where every row is padding. A trace
    decays in proportion, so that padding leaves it as it was.
    """
    if signals.weight is None:
        return 1.0
    total = signals.weight.sum()
    return total / total.clamp(min=1.0)


def third_factor(signals: LocalSignals) -> Tensor:
    """The modulator, (N, 1) or (N, n_out).

    Raises:
        CompatibilityError: where there is none.
    """
    if signals.modulator is None:
        raise CompatibilityError(
            "this rule reads a modulator, which nobody sent: add 'modulator' to its `needs`, or "
            "take a network or a credit that has one."
        )
    return signals.modulator
