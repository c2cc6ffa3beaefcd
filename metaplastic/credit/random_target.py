"""Direct random target projection."""

from __future__ import annotations

from torch import Tensor

from metaplastic.credit.direct_feedback import DirectFeedback
from metaplastic.signals import Kind, Origin, Teacher


class DirectRandomTarget(DirectFeedback):
    """Hidden layers get the target through fixed random weights and read it as their error.

    The target stands in for the error, whose sign it has up to the feedback weights, so that a
    layer can learn before the output is known; only the last layer gets the error itself (Frenkel,
    Lefebvre & Bol 2021).

    Args:
        weights: ``"fixed"`` as published, ``"learned"`` or ``"resampled"``.
        scale: factor on the standard deviation of the feedback weights.
    """

    def __init__(self, weights: Origin = "fixed", scale: float = 1.0) -> None:
        super().__init__("target", weights=weights, scale=scale)

    @property
    def kind(self) -> Kind:
        return "error"

    def top(self, teacher: Teacher, output: Tensor) -> tuple[Tensor, Tensor]:
        return teacher.target, teacher.error(output)
