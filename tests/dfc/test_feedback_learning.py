"""What feedback is told of its noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metaplastic import Delta, LayeredNetwork, Learner, SquaredError
from metaplastic.control import Chain, Goal, jacobian, moments, ornstein_uhlenbeck
from metaplastic.credit import FeedbackControl, StrongFeedbackControl
from metaplastic.credit.feedback_learning import Noise, noise_phase
from tests.dfc.fed import fed, feedback_of, stream
from tests.dfc.parts import angles, constants, sequential

SILENT = {"initial": "random", "scale": 1e-9}


@pytest.mark.parametrize(
    ("credit", "limit"),
    [
        (FeedbackControl(feedback_learning="forward-noise", **SILENT), 20),
        (
            FeedbackControl(
                feedback_learning="noise-phase",
                noise={"steps": 200, "tau": 0.005, "leak": 0.5},
                chunk=50,
                **SILENT,
            ),
            25,
        ),
        (
            StrongFeedbackControl(
                "dynamic",
                feedback_learning="single-phase",
                dt=0.002,
                steps=300,
                chunk=50,
                gain=1.0,
                noise={"sigma": 0.05, "tau_filter": 0.3},
                **SILENT,
            ),
            25,
        ),
    ],
)
def test_dfc_t14_the_first_step_from_no_feedback_points_along_the_jacobian(credit, limit) -> None:
    sizes, batch = (8, 12, 10, 4), 1024
    made = fed(credit, 1.0, 0.0, sizes, nn.Tanh)
    state = made.start(batch)
    names = [f"layer{i}_feedback" for i in range(3)]
    none = {name: torch.zeros_like(state["weights"][name]) for name in names}
    state = {**state, "weights": state["weights"] | none}
    given = stream(made, 3, batch)
    with torch.no_grad():
        record = made.field(state, given)
    network = made.network
    assert isinstance(network, LayeredNetwork)
    jacobians = jacobian(*Chain.of(network, state["weights"], given.x))
    off = angles(tuple(record[name] for name in names), jacobians)
    assert max(off) < limit, off


def test_feedback_is_told_of_moments_and_the_controls_right_after_them() -> None:
    """-v_fb[k] u[k+1]^T / (T - 1) / sigma^2, whatever the stretches."""
    options = {"sigma": 0.05, "sigma_output": 0.002, "steps": 12}
    for chunk in (1, 5, 20):
        credit = FeedbackControl(feedback_learning="noise-phase", noise=options, chunk=chunk)
        made = fed(credit, 1.0, 0.0, (5, 6, 3), nn.Tanh)
        state, given = made.start(4), stream(made, 2, 4)
        network = made.network
        assert isinstance(network, LayeredNetwork)
        chain, units = Chain.of(network, state["weights"], given.x)
        feedback = tuple(q.detach() for q in feedback_of(state["weights"]))
        assert given.noise is not None
        noise = Noise.of(options)
        along = list(noise_phase(chain, units, feedback, given.noise, noise))
        with torch.no_grad():
            found = made.field(state, given)
        for i, sigma in enumerate((0.05, 0.01)):  # the floor is 0.01
            wanted = torch.zeros_like(feedback[i])
            for k in range(11):
                for b in range(4):
                    u = along[k + 1].control[b]
                    wanted -= torch.outer(along[k].apical[i][b], u) / 11 / 4 / sigma**2
            assert torch.allclose(found[f"layer{i}_feedback"], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 30])
def test_a_single_phase_is_told_of_the_filtered_control(chunk: int) -> None:
    dt, steps, options = 0.002, 11, {"sigma": 0.05, "tau_filter": 0.02, "tau_noise": 0.04}
    credit = StrongFeedbackControl(
        "dynamic",
        feedback_learning="single-phase",
        dt=dt,
        tau=0.02,
        steps=steps,
        chunk=chunk,
        noise=options,
    )
    made = fed(credit, 1.0, 0.0, (5, 6, 3), nn.Tanh)
    state, given = made.start(4), stream(made, 2, 4)
    network = made.network
    assert isinstance(network, LayeredNetwork)
    chain, units = Chain.of(network, state["weights"], given.x)
    feedback = feedback_of(state["weights"])
    assert float(made.step(state, given)["credit"]["unconverged"]) == 0
    assert given.noise is not None
    noise = ornstein_uhlenbeck(given.noise, [6, 3], [0.05, 0.05], dt, 0.04)
    goal = Goal(given.teacher.target)
    of = constants(1e-3, 2.0, dt, 0.02)
    along = list(moments(chain, feedback, goal, of, units, steps, noise))
    wanted = [torch.zeros_like(q) for q in feedback]
    mean = along[1].control
    for k in range(steps - 1):
        u = along[k + 1].control
        if k > 0:
            mean = 0.1 * u + 0.9 * mean
        for i in range(2):
            rows = along[k].apical[i].mT @ (u - mean) / 4
            wanted[i] -= (1 + 0.02 / 0.04) ** (1 - i) * rows / 0.05**2 / (steps - 1)
    with torch.no_grad():
        found = made.field(state, given)
    for i in range(2):
        assert torch.allclose(found[f"layer{i}_feedback"], wanted[i], rtol=1e-10, atol=1e-12)


def test_feedback_without_a_rule_stays() -> None:
    credit = FeedbackControl(feedback_learning="noise-phase", noise={"steps": 4})
    made = Learner(
        sequential((5, 6, 3), nn.Tanh), credit, Delta(0.1, derivative=False), SquaredError()
    )
    state = made.start(4)
    after = made.step(state, stream(made, 1, 4))
    for name in made.credit.groups():
        assert torch.equal(after["weights"][name], state["weights"][name])
