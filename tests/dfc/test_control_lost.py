"""Examples for which no control is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from metaplastic import Backprop, Delta, Episodes, Presentation, Teacher, evaluate
from metaplastic.credit import FeedbackControl
from metaplastic.errors import UnconvergedWarning
from tests.dfc.learners import X, Y, field, learner
from tests.helpers import normal, presentation


def test_dfc_t21_examples_that_diverge_change_nothing_and_are_counted() -> None:
    """Under steps of dt = tau and feedback that is far too strong."""
    made = learner(FeedbackControl("dynamic", dt=0.2, tau=0.2, steps=400))
    state = made.start(4)
    strong = {n: 60 * w for n, w in state["weights"].items() if n.endswith("_feedback")}
    state = {**state, "weights": state["weights"] | strong}
    after = made.step(state, presentation(made, X, Y))
    assert float(after["credit"]["unconverged"]) == 4
    assert float(made.step(after, presentation(made, X, Y))["credit"]["unconverged"]) == 8
    for name, w in after["weights"].items():
        assert torch.equal(w, state["weights"][name]), name
    calm = learner(FeedbackControl("dynamic", steps=50))
    calm = calm.step(calm.start(4), presentation(calm, X, Y))
    assert float(calm["credit"]["unconverged"]) == 0


def test_dfc_t21_a_lost_example_counts_among_the_examples() -> None:
    """One without a control beside three others: the change is theirs times 3/4."""
    made = learner(FeedbackControl("steady"))
    y = Y.clone()
    y[0] = math.inf
    after = made.step(made.start(4), presentation(made, X, y))
    assert float(after["credit"]["unconverged"]) == 1
    others = field(made, X[1:], Y[1:])
    for name, before in made.start(4)["weights"].items():
        if name in made.plastic:
            wanted = before + 0.75 * others[name]
            assert torch.allclose(after["weights"][name], wanted, atol=1e-12), name


def test_dfc_t21_one_example_may_diverge_beside_others() -> None:
    """Through ReLUs that are silent for all but the first."""
    made = learner(FeedbackControl("dynamic", dt=0.1, steps=200), activation=nn.ReLU)
    x = X.clone()
    state = made.start(4)
    weights = {n: w.detach().clone() for n, w in state["weights"].items()}
    weights["layer0_weight"] = weights["layer0_weight"].abs()
    weights["layer0_bias"] = 0 * weights["layer0_bias"] - 0.01
    x = x.abs() * torch.tensor([[1.0], [-1e4], [-1e4], [-1e4]]).double()
    weights["layer0_feedback"] = 60 * weights["layer1_weight"].mT @ weights["layer2_weight"].mT
    weights["layer1_feedback"] = 0 * weights["layer1_feedback"]
    state = {**state, "weights": weights}
    with torch.no_grad():
        after = made.step(state, presentation(made, x, Y))
        assert float(after["credit"]["unconverged"]) == 1
        others = made.step(state, presentation(made, x[1:], Y[1:]))
        assert float(others["credit"]["unconverged"]) == 0
    for name, before in weights.items():
        wanted = before + 0.75 * (others["weights"][name] - before)
        assert torch.allclose(after["weights"][name], wanted, atol=1e-12), name


def test_padding_is_not_counted_among_the_lost() -> None:
    made = learner(FeedbackControl("steady"))
    y = Y.clone()
    y[:2] = math.inf
    weight = torch.tensor([[0.0], [1.0], [1.0], [1.0]]).double()
    teacher = Teacher(made.objective, y, weight)
    after = made.step(made.start(4), Presentation(X, teacher, weight))
    assert float(after["credit"]["unconverged"]) == 1
    assert all(bool(w.isfinite().all()) for w in after["weights"].values())


def test_an_evaluation_counts_and_tells_the_lost() -> None:
    """Of each episode: those whose target cannot be reached."""
    made = learner(FeedbackControl("steady"))
    y = normal(2, 3, 4, 3)
    y[1, 0, 2] = y[1, 2, 0] = 1e300
    shown = Episodes(normal(2, 3, 4, 5), y, normal(2, 2, 5), normal(2, 2, 3))
    with pytest.warns(UnconvergedWarning, match="2 of 24 examples"):
        found = evaluate(made, shown)
    assert found.unconverged is not None
    assert found.unconverged.tolist() == [0, 2]
    assert evaluate(made, shown[[0]]).unconverged.tolist() == [0]
    plain = learner(Backprop(), {"*": Delta(0.1)})
    assert evaluate(plain, shown[[0]]).unconverged is None
