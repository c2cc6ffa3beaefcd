"""Newton's method beside the simulation that it stands for."""

from __future__ import annotations

import pytest
import torch

from metaplastic import Delta, FeedbackControl, Learner, StrongFeedbackControl
from studies.reproduce.newton import compare
from tests.helpers import mlp, normal

CONTROLLER = {"gain": 2.0, "dt": 0.04, "tau": 0.2}


@pytest.mark.parametrize("credit", [FeedbackControl("steady"), StrongFeedbackControl("dynamic")])
def test_both_find_the_same_control(credit) -> None:
    """Whatever the credit's own mode, and leave the learner as it was."""
    learner = Learner(mlp(6, 8, 7, 3), credit, Delta(1.0, derivative=False)).double()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    y = torch.tensor([0, 2, 1, 1])
    found = compare(learner, normal(4, 6), y, nudge=0.5, leak=0.05, repeats=1, **CONTROLLER)
    assert found.difference < 1e-8
    assert 50 <= found.steps < 50_000
    assert all(torch.equal(before[n], v) for n, v in learner.state_dict().items())


def test_a_simulation_that_ends_too_early_is_told_from_it() -> None:
    learner = Learner(mlp(6, 8, 3), FeedbackControl(), Delta(1.0, derivative=False)).double()
    y = torch.tensor([0, 2])
    found = compare(
        learner, normal(2, 6), y, nudge=0.5, leak=0.05, repeats=1, limit=50, **CONTROLLER
    )
    assert found.steps == 50
    assert found.difference > 1e-3
