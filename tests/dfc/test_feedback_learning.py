"""How feedback learns from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaplastic import Delta, LayeredNetwork, Learner, Presentation, SquaredError
from metaplastic.control import (
    Chain,
    Goal,
    jacobian,
    moments,
    ornstein_uhlenbeck,
    row_space_share,
    through_feedback,
)
from metaplastic.credit import CreditAssignment, FeedbackControl, StrongFeedbackControl
from metaplastic.credit.feedback_learning import HighPass, Noise, from_control, noise_phase
from metaplastic.testing.oracles import seeded
from metaplastic.testing.parts import Silent
from tests.dfc.parts import Plant, constants, degrees, plant, sequential, transposed
from tests.helpers import normal, presentation

LINEAR = (10, 20, 20, 5)


def fed(
    credit: CreditAssignment, rate: float, decay: float, sizes=LINEAR, activation=nn.Identity
) -> Learner:
    """Only the feedback learns."""
    rules = {
        "role:feedback": Delta(rate, derivative=False, decay=rate * decay),
        "role:weight": Silent(),
    }
    return Learner(sequential(sizes, activation), credit, rules, SquaredError())


def feedback_of(weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return tuple(w for name, w in weights.items() if name.endswith("_feedback"))


def stream(made: Learner, seed: int, batch: int) -> Presentation:
    network = made.network
    assert isinstance(network, LayeredNetwork)
    x = normal(batch, *network.layers[0].in_shape, seed=seed)
    noise = made.credit.noise(network, (1, 1, batch), seeded(seed))
    assert noise is not None
    given = presentation(made, x, torch.zeros(batch, network.outputs).double())
    return Presentation(given.x, given.teacher, noise=noise[0, 0].double())


def learn(phases: list[tuple[Learner, int]], batch: int = 128) -> tuple[Tensor, ...]:
    """The feedback after some updates of one learner after another."""
    weights, seed = None, 0
    for made, updates in phases:
        state = made.start(batch)
        if weights is not None:
            state = {**state, "weights": weights}
        with torch.no_grad():
            for _ in range(updates):
                seed += 1
                state = made.step(state, stream(made, seed, batch))
        weights = state["weights"]
    assert weights is not None
    return feedback_of(weights)


def linear_jacobian(sizes=LINEAR) -> Plant:
    return plant(sizes, nn.Identity)


@pytest.mark.parametrize("beta", [1e-3, 1.0])
def test_dfc_t11_the_noise_phase_has_its_fixed_point_in_the_row_space(beta: float) -> None:
    """Moment equations of a linear instantaneous network: l q^2 + a q = c in the eigenvectors."""
    leak, tau_a, sigma = 0.5, 0.3, 0.7
    j = linear_jacobian((4, 5, 4, 3)).stacked[0].numpy()
    outputs, units = j.shape
    q = 0.1 * np.random.default_rng(0).normal(size=(units, outputs))
    for _ in range(40000 if beta < 1 else 4000):
        q = q + (0.5 if beta < 1 else 0.05) * (
            -covariance(j, q, leak, tau_a, sigma) / sigma**2 - beta * q
        )
        if np.abs(covariance(j, q, leak, tau_a, sigma) / sigma**2 + beta * q).max() < 1e-12:
            break
    values, vectors = np.linalg.eigh(j @ j.T)
    c = leak / (2 * beta * (1 + leak * tau_a))
    roots = (-leak + np.sqrt(leak**2 + 4 * values * c)) / (2 * values)
    wanted = j.T @ (vectors * roots) @ vectors.T
    assert np.abs(q - wanted).max() < 1e-6 * np.abs(wanted).max()
    inside = np.linalg.pinv(j) @ j @ q
    assert np.linalg.norm(inside) / np.linalg.norm(q) > 1 - 1e-9
    assert np.linalg.eigvals(j @ q).real.min() > 0


def covariance(j, q, leak, tau_a, sigma) -> np.ndarray:
    """E[v_fb u^T] of the stationary state, from A S + S A^T + D = 0."""
    outputs, units = j.shape
    a = np.block([[-np.eye(units) / tau_a, q / tau_a], [-j, -leak * np.eye(outputs)]])
    d = np.zeros_like(a)
    d[:units, :units] = sigma**2 / tau_a**2 * np.eye(units)
    eye = np.eye(len(a))
    s = np.linalg.solve(np.kron(a, eye) + np.kron(eye, a), -d.flatten()).reshape(a.shape)
    return s[:units, units:]


def test_dfc_t11_a_long_noise_phase_has_these_moments() -> None:
    sizes = (3, 4, 2)
    given = plant(sizes, nn.Identity, batch=256)
    one = plant(sizes, nn.Identity)
    feedback = tuple(
        0.5 * q + 0.1 * normal(*q.shape, seed=i) for i, q in enumerate(transposed(one))
    )
    noise = Noise.of(
        {"sigma": 0.1, "leak": 0.5, "gain": 0.0, "dt": 0.01, "tau": 0.01, "steps": 6000}
    )
    xi = normal(256, 5999, 6)
    moved = torch.zeros(6, 2).double()
    before = None
    for k, now in enumerate(noise_phase(given.chain, given.units, feedback, xi, noise)):
        if before is not None and k > 2000:
            moved += torch.cat(before.apical, 1).mT @ now.control / 256 / 3999
        before = now
    wanted = covariance(one.stacked[0].numpy(), torch.cat(feedback).numpy(), 0.5, 0.3, 0.1)
    wanted = torch.from_numpy(wanted)
    assert float((moved - wanted).norm() / wanted.norm()) < 0.05


def angles(feedback: tuple[Tensor, ...], jacobians: tuple[Tensor, ...]) -> list[float]:
    """Between Q_i and the mean of J_i^T, in degrees."""
    return [degrees(q, j.mean(0).mT) for q, j in zip(feedback, jacobians, strict=True)]


def test_dfc_t12_the_noise_phase_turns_feedback_into_the_row_space() -> None:
    noise = {"sigma": 0.01, "leak": 0.5, "gain": 0.0, "dt": 0.001, "tau": 0.005, "steps": 300}
    credit = FeedbackControl(
        initial="random", feedback_learning="noise-phase", noise=noise, chunk=300
    )
    given = linear_jacobian()
    fast, slow = fed(credit, 0.5, 0.01), fed(credit, 0.1, 0.01)
    before = feedback_of(fast.start(1)["weights"])
    found = learn([(fast, 60), (slow, 20)])
    assert float(row_space_share(given.jacobians, before)[0]) < 0.8
    assert float(row_space_share(given.jacobians, found)[0]) > 0.99
    wanted = given.stacked[0].mT
    assert degrees(torch.cat(found), wanted) < 15
    assert degrees(torch.cat(found), torch.linalg.pinv(wanted.mT)) > degrees(
        torch.cat(found), wanted
    )
    assert float(torch.linalg.eigvals(through_feedback(given.jacobians, found)).real.min()) > 0


def test_dfc_t13_forward_noise_learns_the_transposed_jacobian() -> None:
    credit = FeedbackControl(initial="random", feedback_learning="forward-noise")
    given = linear_jacobian()
    found = learn([(fed(credit, r, 0.01), n) for r, n in ((0.02, 400), (0.002, 400))])
    assert float(row_space_share(given.jacobians, found)[0]) > 0.995
    assert degrees(torch.cat(found), given.stacked[0].mT) < 5


SILENT = {"initial": "random", "scale": 1e-9}


@pytest.mark.parametrize(
    ("credit", "limit"),
    [
        (FeedbackControl(feedback_learning="forward-noise", **SILENT), 15),
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
    sizes, batch = (8, 12, 10, 4), 512
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
        feedback = feedback_of(state["weights"])
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
            assert torch.allclose(
                found[f"layer{i}_feedback"], wanted, atol=1e-12 * wanted.abs().max()
            )


@pytest.mark.parametrize("chunk", [1, 4, 30])
def test_a_single_phase_is_told_of_the_filtered_control(chunk: int) -> None:
    dt, steps, options = 0.01, 11, {"sigma": 0.05, "tau_filter": 0.1, "tau_noise": 0.04}
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


def open_loop(sizes: tuple[int, ...], tau: float, tau_noise: float) -> list[Tensor]:
    """-E[v_fb u_hp^T] / sigma^2 of each layer without feedback, a linear network."""
    given = plant(sizes, nn.Identity, batch=256)
    feedback = tuple(torch.zeros(layer.units, sizes[-1]).double() for layer in given.chain.layers)
    dt, units, sums, count = 0.001, sum(sizes[1:]), None, 0
    xi = normal(256, 2500, units)
    noise = ornstein_uhlenbeck(xi, list(sizes[1:]), [0.1] * 3, dt, tau_noise)
    of = constants(0.0, 1.0, dt, tau)
    high_pass, before = HighPass(dt / 0.5), None
    for k, now in enumerate(
        moments(given.chain, feedback, Goal(given.units.output), of, given.units, 2500, noise)
    ):
        u = high_pass(now.control) if k else None
        if before is not None and u is not None and k > 500:
            told = [-b.mT @ u / 256 / 0.01 for b in before.apical]
            sums = told if sums is None else [s + t for s, t in zip(sums, told, strict=True)]
            count += 1
        before = now
    assert sums is not None
    return [s / count for s in sums]


def test_dfc_t15_the_layer_factor_makes_up_for_the_layers_above() -> None:
    sizes, tau, tau_noise = (6, 5, 5, 4), 0.02, 0.05
    j = plant(sizes, nn.Identity).jacobians
    found = open_loop(sizes, tau, tau_noise)
    along = [
        float((f * m[0].mT).sum() / m[0].square().sum()) for f, m in zip(found, j, strict=True)
    ]
    scales = Noise.of({"tau_noise": tau_noise, "sigma": 1.0}).layer_scales(3, tau)
    even = [a * s for a, s in zip(along, scales, strict=True)]
    assert even == pytest.approx([even[2]] * 3, rel=0.1)
    assert even[2] == pytest.approx(1 / (2 * tau_noise) / (1 + tau / tau_noise), rel=0.1)


def single_phase(filtered: bool, updates: int) -> tuple[float, float, float]:
    """The share of Q in the row space before and after, and the smallest eigenvalue of J Q: a tanh
    network held at random labels all the time, feedback learning from the noise.
    """
    batch, dt, tau, tau_noise, steps, sigma = 64, 0.002, 0.01, 0.05, 400, 0.05
    sizes = (8, 12, 10, 4)
    given = plant(sizes, batch=batch)
    goal = Goal(given.units.output + 0.5 * normal(batch, 4, seed=8))
    feedback = tuple(0.3 * normal(n, 4, seed=n) for n in (12, 10)) + (torch.eye(4).double(),)
    of = constants(0.5, 1.0, dt, tau)
    scales = Noise.of({"sigma": sigma, "tau_noise": tau_noise}).layer_scales(3, tau)
    high_pass = HighPass(dt / 0.3)
    now, moving, ratios = given.units, torch.zeros(batch, 26).double(), []
    for update in range(updates):
        xi = normal(batch, steps, 26, seed=update)
        noise = list(ornstein_uhlenbeck(xi, [12, 10, 4], [1.0] * 3, dt, tau_noise, moving))
        moving = torch.cat(noise[-1], 1)
        scaled = ([sigma * n for n in added] for added in noise)
        along = list(moments(given.chain, feedback, goal, of, now, steps + 1, scaled))
        mean = given.chain.run(
            [torch.stack([m.apical[i] for m in along[1:]]).mean(0) for i in range(3)]
        )
        ratios.append(row_space_share(jacobian(given.chain, mean), feedback).mean())
        pairs = list(zip(along[:-1], along[1:], strict=True))
        controls = [high_pass(m.control) if filtered else m.control for _, m in pairs]
        pre, post, factors = from_control(pairs, controls, scales)
        rows = len(pre)
        feedback = tuple(
            q + 0.03 * (f * p.mT @ pre / rows - 0.5 * q)
            for q, p, f in zip(feedback, post, factors, strict=True)
        )
        now = along[-1]
    least = torch.linalg.eigvals(through_feedback(jacobian(given.chain, mean), feedback)).real.min()
    return float(ratios[0]), float(ratios[-1]), float(least)


def test_dfc_t16_a_single_phase_aligns_feedback_under_control() -> None:
    before, after, least = single_phase(True, 40)
    assert before < 0.85
    assert after > 0.97
    assert least > 0
