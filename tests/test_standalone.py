"""Training without an outer loop: changes written into ``.grad``."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metaplastic import (
    Backprop,
    CrossEntropy,
    Delta,
    DirectFeedback,
    FeedbackControl,
    KolenPollack,
    Learner,
    Oja,
    SquaredError,
)
from metaplastic.control import Chain, gain_bound, jacobian
from metaplastic.errors import ConfigurationError, UnconvergedWarning
from metaplastic.networks import LayeredNetwork
from metaplastic.signals import State
from tests.helpers import deviation, mlp, normal, presentation, seeded, shake

RULES = {
    "role:feedback": Delta(0.5, derivative=False, decay=0.1),
    "*": Delta(1.0, derivative=False),
}


def classifier(rule, credit=None) -> Learner:
    """Tanh layers 4-6-5-3 in float64, every Parameter at random."""
    learner = Learner(mlp(4, 6, 5, 3), credit or DirectFeedback("error"), rule)
    return shake(learner, 1, plasticity=0.2, mixing=0.2, feedback=0.2)


def controlled(**options) -> Learner:
    credit = FeedbackControl(weights="learned", feedback_learning="forward-noise", **options)
    return classifier(RULES, credit)


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    return normal(size, 4, seed=7), torch.randint(3, (size,), generator=seeded(8))


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("task", ["classes", "regression"])
def test_assign_grads_with_backprop_and_delta_is_the_gradient_of_the_mean_loss(task, size):
    network, reference = mlp(4, 6, 5, 3), mlp(4, 6, 5, 3)
    objective = CrossEntropy() if task == "classes" else SquaredError()
    learner = Learner(network, Backprop(), {"*": Delta(1.0)}, objective).double()
    x, y = batch(size)
    if task == "classes":
        wanted = F.cross_entropy(reference(x), y, reduction="none")
        wanted.mean().backward()
    else:
        y = normal(size, 3)
        wanted = (reference(x) - y).square().mean(-1)
        (1.5 * wanted.mean()).backward()  # the error is that of half the summed square
    with torch.inference_mode():
        loss = learner.assign_grads(x, y)
    assert deviation(loss, wanted) < 1e-13
    for found, true in zip(network.parameters(), reference.parameters(), strict=True):
        assert deviation(found.grad, true.grad) < 1e-13


@pytest.mark.parametrize("size", [1, 4])
def test_assign_grads_with_fixed_random_feedback_is_direct_feedback_alignment(size):
    """Minus (B_l e) o phi'(a_l) x^T, averaged; the last layer gets its true gradient."""
    learner = classifier(Delta(1.0), DirectFeedback(weights="fixed"))
    x, y = batch(size)
    learner.assign_grads(x, y)
    weights = {n: w.detach() for n, w in learner.start()["weights"].items()}
    pre, error = [x], 0
    for i in range(3):
        a = pre[-1] @ weights[f"layer{i}_weight"].mT + weights[f"layer{i}_bias"].mT
        pre.append(a if i == 2 else a.tanh())
    error = F.one_hot(y, 3) - pre[-1].softmax(-1)
    for i in range(3):
        sent = error if i == 2 else error @ weights[f"layer{i}_feedback1"].mT
        slope = 1 if i == 2 else 1 - pre[i + 1] ** 2
        wanted = -torch.einsum("bi,bj->ij", sent * slope, pre[i]) / size
        assert deviation(learner.network.parameter(f"layer{i}_weight").grad, wanted) < 1e-12
    assert learner.network.parameter("layer0_bias").grad is None


def test_assign_grads_with_sgd_is_one_inner_step():
    learner = classifier({"*": Oja(0.1)})
    x, y = batch()
    wanted = learner.step(learner.start(3), presentation(learner, x, y))["weights"]
    learner.assign_grads(x, y)
    torch.optim.SGD(learner.network.parameters(), lr=1.0).step()
    for name in learner.plastic:
        assert deviation(learner.network.weights()[name], wanted[name]) < 1e-14


# --- some groups alone ---


def test_feedback_alone_gets_its_changes_and_the_weights_none() -> None:
    learner, alone = controlled(), controlled()
    x, y = batch()
    wanted = learner.assign_grads(x, y, seeded(1))
    loss = alone.assign_grads(x, y, seeded(1), only="role:feedback")
    assert torch.equal(loss, wanted)
    found, every = gradients(alone), gradients(learner)
    assert found.keys() == {f"credit.layer{i}_feedback" for i in range(3)}
    assert all(torch.equal(found[n], every[n]) and bool(found[n].any()) for n in found)


def test_weights_alone_learn_from_feedback_as_it_stands() -> None:
    """As under the same feedback without a rule."""
    alone = controlled()
    still = classifier(
        {"role:feedback": None, "*": Delta(1.0, derivative=False)},
        FeedbackControl(weights="learned"),
    )
    still.load_state_dict(alone.state_dict(), strict=False)
    x, y = batch()
    alone.assign_grads(x, y, seeded(1), only=("role:weight", "role:bias"))
    still.assign_grads(x, y)
    found, wanted = gradients(alone), gradients(still)
    assert found.keys() == wanted.keys()
    assert all(deviation(found[n], wanted[n]) < 1e-13 for n in wanted)


def test_what_is_left_out_keeps_its_gradient_and_twins_learn_together() -> None:
    learner = classifier({"role:weight": Delta(1.0)}, KolenPollack("learned"))
    x, y = batch()
    kept = torch.ones(6, 4).double()
    learner.network.parameter("layer0_weight").grad = kept
    learner.assign_grads(x, y, only="name:layer2_weight")
    assert learner.network.parameter("layer0_weight").grad is kept
    found = gradients(learner)
    assert [n for n in found if n.startswith("credit")] == ["credit.layer2_feedback"]
    names = {n: p for n, p in learner.named_parameters()}
    own = [n for n in found if not n.startswith("credit")]
    assert {names[n].shape for n in own} == {(6, 4), (3, 5)}


@pytest.mark.parametrize("only", ["role:none", "layer0_weight", ("role:weight", "name:layer9*")])
def test_a_pattern_that_matches_nothing_is_refused(only) -> None:
    learner = controlled()
    with pytest.raises(ConfigurationError, match="pattern"):
        learner.assign_grads(*batch(), seeded(1), only=only)
    assert gradients(learner) == {}


# --- what is told ---


def test_an_observer_sees_the_state_after_the_presentation() -> None:
    learner, seen = controlled(), []
    x, y = batch()
    learner.assign_grads(x, y, seeded(1), observe=seen.append)
    (state,) = seen
    noise = learner.noise((1, 1, 3), seeded(1))
    assert noise is not None
    shown = replace(presentation(learner, x, y), noise=noise[0, 0])
    wanted: State = learner.step(learner.start(3), shown)
    for name, w in wanted["weights"].items():
        assert torch.equal(state["weights"][name], w), name


def test_examples_that_were_lost_are_told_with_the_gain_bound() -> None:
    """And how many; nobody warns where none was."""
    made = {"mode": "dynamic", "dt": 0.2, "tau": 0.2, "steps": 400, "leak": 0.1}
    calm, wild = (
        Learner(mlp(4, 6, 5, 3), FeedbackControl(gain=gain, **made), {"*": Delta(1.0)})
        for gain in (0.05, 200.0)
    )
    x, y = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calm.assign_grads(x, y)
    with pytest.warns(UnconvergedWarning, match="3 of 3 examples") as told:
        wild.assign_grads(x, y)
    assert isinstance(wild.network, LayeredNetwork)
    weights = {name: w.detach() for name, w in wild.start()["weights"].items()}
    chain, units = Chain.of(wild.network, weights, x)
    feedback = [weights[f"layer{i}_feedback"] for i in range(3)]
    bound = gain_bound(jacobian(chain, units), feedback, 200.0, 0.2, 0.2).max()
    assert float(bound) > 5
    assert f"{float(bound):.3g}" in str(told[0].message)
    fast = wild.clone()
    with pytest.warns(UnconvergedWarning, match="3 of 3 examples"):
        fast.adapt(x, y)


def test_a_steady_state_that_was_not_found_is_told() -> None:
    learner = Learner(mlp(4, 6, 5, 3), FeedbackControl("steady"), {"*": Delta(1.0)}, SquaredError())
    y = normal(3, 3)
    y[1] = torch.inf
    with pytest.warns(UnconvergedWarning, match=r"1 of 3 examples.*no steady state"):
        learner.assign_grads(normal(3, 4), y)
