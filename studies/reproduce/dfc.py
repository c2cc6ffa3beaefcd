"""Deep feedback control on MNIST (Meulemans et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaplastic.credit import FeedbackControl
from studies.reproduce.base import Method, Setup, Sizes, Trainee
from studies.reproduce.control import (
    BP,
    FALLING,
    backprop,
    controlled,
    direct_feedback,
    given,
    mnist,
)
from studies.reproduce.figures import CONTROL_PICTURES
from studies.reproduce.paper import Paper

NUDGE = 0.0779 / 128
"""Of each example: the published one moves the output along the gradient of a batch's mean loss."""
CONTROLLER: dict[str, Any] = {"leak": 1.389e-3, "gain": 2.0, "tau": 0.2}
SHORT_LEAK = 10.0
"""In short trainings: of 0.001 to 1000, about the best on validation images."""
TIMES: dict[str, dict[str, Any]] = {
    "full": {"dt": 0.02, "steps": 1000, "every": 1},
    "acceptance": {"dt": 0.04, "steps": 100, "every": 4},
    "quick": {"dt": 0.04, "steps": 60, "every": 4},
    "smoke": {"dt": 0.04, "steps": 20, "every": 4},
}
"""Of the simulation, by preset."""
FORWARD_NOISE: dict[str, Any] = {
    "learning": "forward-noise",
    "noise": {"sigma": 0.01},
    "first_lr": 1e-3,
    "feedback_lr": 1e-3,
    "feedback_decay": 1.0,
    "before": 1,
    "extra": 2,
}
"""Feedback learns from the cheap one of the published rules; a noise phase takes hours more."""
RATES: dict[str, dict[str, Any]] = {
    "full": {
        "bp": BP,
        "dfa": {"lr": 2.63e-4, "eps": 2.5e-8, "betas": (0.99, 0.99)},
        "fixed": {"lr": 6.043e-5 / 0.1, "eps": 1.33e-8 / (2 * 0.1 / 128), "betas": (0.99, 0.99)},
        "trained": {"lr": 9.266e-5 / 0.0779, "eps": 9.45e-8 / (2 * NUDGE), "betas": (0.99, 0.99)},
    }
}
"""Of Adam. The published update is twice a mean difference under a nudge; here it has the size of
the loss gradient, and so has eps."""
SHORT: dict[str, Any] = dict.fromkeys(("bp", "dfa", "fixed", "trained"), FALLING)


def control(setup: Setup) -> Trainee:
    """Of a method's ``mode``, with feedback fixed or learned."""
    options = setup.options
    credit = FeedbackControl(options["mode"], **given(setup, "nudge", "leak", "gain"))
    return controlled(setup, credit, 1 / options["nudge"])


MODES = {
    "dfc-ssa": ("analytic", "analytic steady state"),
    "dfc-ss": ("steady", "steady state"),
    "dfc": ("dynamic", "simulated in time, learning all along"),
}


def methods(preset: str) -> Sequence[Method]:
    """Every method."""
    rates: Mapping[str, Any] = RATES.get(preset, SHORT)
    found = [
        Method("bp", "backpropagation", backprop, rates["bp"]),
        Method(
            "dfa",
            "direct feedback alignment",
            direct_feedback,
            rates["dfa"],
        ),
    ]
    constants = {"nudge": NUDGE, **CONTROLLER, **TIMES[preset]}
    if preset != "full":
        constants["leak"] = SHORT_LEAK
    for name, (mode, about) in MODES.items():
        own = {"mode": mode, **constants}
        trained = {**own, **FORWARD_NOISE, **rates["trained"]}
        fixed = {**own, **rates["fixed"]}
        found += [
            Method(name, f"{about}; feedback learned", control, trained),
            Method(
                f"{name}-fixed",
                f"{about}; feedback fixed",
                control,
                fixed,
            ),
        ]
    return found


MNIST = mnist(methods, Sizes(images=55_000, epochs=100, seeds=(0, 1, 2, 3, 4)))
PAPER = Paper(
    name="dfc",
    title="Credit assignment through deep feedback control",
    source="Meulemans et al. 2021",
    about="deep feedback control on MNIST, with fixed and with learned feedback",
    parts={"mnist": MNIST},
    pictures=CONTROL_PICTURES,
)
