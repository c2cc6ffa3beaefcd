"""The pictures of credit that modulates the input: accuracy and angles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.report import Picture
from studies.reproduce.figures import CURVES, probe_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from studies.reproduce.outcome import Outcome


def hidden_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Angle of the hidden layers' updates to the gradient by epoch."""
    return probe_figure(outcomes, "hidden_angle", "Hidden update to descent (degrees)", top=110)


def projection_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Angle of the feedback to the forward chain by epoch."""
    return probe_figure(
        outcomes, "projection_angle", "Feedback to forward weights (degrees)", bottom=None
    )


MODULATION_PICTURES = (
    CURVES,
    Picture(
        "hidden-angle",
        "How far the hidden layer's update points away from gradient descent on the same images: "
        "at 90 degrees the two have nothing in common. Epoch 0 is before any learning.",
        hidden_figure,
    ),
    Picture(
        "projection-angle",
        "How far F, which sends the error to the input, points away from the product of the "
        "transposed forward weights: below 90 degrees the network has come to agree with its "
        "feedback.",
        projection_figure,
    ),
)
