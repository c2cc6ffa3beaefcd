"""The options of deep feedback control, and whether they go together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from torch import nn

from metaplastic.credit.controller_feedback import Initial
from metaplastic.credit.feedback_learning import FeedbackLearning, NoiseOptions
from metaplastic.errors import ConfigurationError
from metaplastic.signals import Origin

Mode = Literal["analytic", "steady", "dynamic"]
Difference = Literal["rate", "voltage"]


class ControlOptions(TypedDict, total=False):
    """Every option of FeedbackControl but ``mode`` and ``nudge``."""

    leak: float | nn.Module
    gain: float | nn.Module
    tau: float
    dt: float
    steps: int
    apical: float | None
    proactive: bool
    instant: bool
    average: bool
    every: int
    chunk: int
    iterations: int
    halvings: int
    tolerance: float
    difference: Difference
    disturbance: float
    weights: Origin
    initial: Initial
    scale: float
    feedback_learning: FeedbackLearning
    noise: NoiseOptions | None


def check_numbers(**numbers: float | Callable) -> None:
    """Raise ConfigurationError for a number below 0."""
    wrong = {n: v for n, v in numbers.items() if isinstance(v, int | float) and not v >= 0}
    if wrong:
        raise ConfigurationError(f"numbers of a controller are from 0, got {wrong}.")
