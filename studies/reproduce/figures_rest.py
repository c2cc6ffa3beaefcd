"""The pictures of networks at rest under control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.report import Picture
from studies.reproduce.figures import CURVES, probe_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from studies.reproduce.outcome import Outcome


def angle_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Angle of the update to the gradient by epoch."""
    return probe_figure(outcomes, "gradient_angle", "Update to gradient descent (degrees)")


def size_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """The size of the control by epoch."""
    return probe_figure(outcomes, "control_size", "Size of the control, |ψ|² / 2")


def twin_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Angle of the feedback matrices to the forward weights by epoch."""
    return probe_figure(outcomes, "twin_angle", "Feedback to forward weights (degrees)")


def share_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Share of linear feedback in the columns of the optimal one by epoch."""
    return probe_figure(
        outcomes, "row_space_share", "Share of Q in the optimal columns", bottom=None
    )


def sweeps_figure(outcomes: Sequence[Outcome]) -> Figure | None:
    """Sweeps to the rest by epoch."""
    return probe_figure(outcomes, "sweeps", "Sweeps to the controlled rest")


REST_PICTURES = (
    CURVES,
    Picture(
        "angle",
        "How far the update points away from gradient descent at the free rest, mean over the "
        "weight matrices, on some training images. Epoch 0 is before any learning.",
        angle_figure,
    ),
    Picture(
        "control-size",
        "How much control brings the network to where its controller rests, |ψ|² / 2, mean over "
        "some training images: what least control makes small.",
        size_figure,
    ),
    Picture(
        "twin-angle",
        "How far the matrices that Kolen-Pollack feedback goes through point away from the forward "
        "weights that they stand for.",
        twin_figure,
    ),
    Picture(
        "condition",
        "How much of linear feedback Q lies in the columns of the optimal one, at which the "
        "control is the least there is, ||P Q|| / ||Q||, mean over some training images.",
        share_figure,
    ),
    Picture(
        "sweeps",
        "How many sweeps of the solver an example takes to its rest under control, mean over some "
        "training images.",
        sweeps_figure,
    ),
)
