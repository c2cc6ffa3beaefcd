"""What feedback becomes that learns under control."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaplastic.control import (
    Goal,
    jacobian,
    moments,
    ornstein_uhlenbeck,
    row_space_share,
    through_feedback,
)
from metaplastic.credit.feedback_learning import HighPass, Noise, from_control
from tests.dfc.parts import angles, constants, plant
from tests.helpers import normal


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


def single_phase(filtered: bool, updates: int) -> tuple[list[float], Tensor, Tensor]:
    """A tanh network held at random labels all the time, feedback learning from the noise: the
    share of Q in the row space before every update, the angles between the last change that was
    told and J_i^T, and J Q in the end.
    """
    batch, dt, tau, tau_noise, steps, sigma = 64, 0.002, 0.01, 0.05, 400, 0.05
    given = plant((8, 12, 10, 4), batch=batch)
    goal = Goal(given.units.output + 0.5 * normal(batch, 4, seed=8))
    feedback = (*(0.3 * normal(n, 4, seed=n) for n in (12, 10)), torch.eye(4).double())
    of = constants(0.5, 1.0, dt, tau)
    scales = Noise.of({"sigma": sigma, "tau_noise": tau_noise}).layer_scales(3, tau)
    high_pass = HighPass(dt / 0.3)
    now, moving, shares = given.units, torch.zeros(batch, 26).double(), []
    told, jacobians = feedback, given.jacobians
    for update in range(updates):
        xi = normal(batch, steps, 26, seed=update)
        noise = list(ornstein_uhlenbeck(xi, [12, 10, 4], [1.0] * 3, dt, tau_noise, moving))
        moving = torch.cat(noise[-1], 1)
        scaled = ([sigma * n for n in added] for added in noise)
        along = list(moments(given.chain, feedback, goal, of, now, steps + 1, scaled))
        held = [torch.stack([m.apical[i] for m in along[1:]]).mean(0) for i in range(3)]
        jacobians = jacobian(given.chain, given.chain.run(held))
        shares.append(float(row_space_share(jacobians, feedback).mean()))
        controls = [high_pass(m.control) if filtered else m.control for m in along[1:]]
        pre, post, factors = from_control(along[:-1], controls, scales)
        told = tuple(f * p.mT @ pre / len(pre) for p, f in zip(post, factors, strict=True))
        feedback = tuple(q + 0.03 * (t - 0.5 * q) for q, t in zip(feedback, told, strict=True))
        now = along[-1]
    off = torch.tensor(angles(told, jacobians))
    return shares, off, through_feedback(jacobians, feedback)


@pytest.mark.slow
def test_dfc_t16_a_single_phase_aligns_feedback_under_control() -> None:
    shares, _, loops = single_phase(True, 40)
    assert shares[0] < 0.85
    assert shares[-1] > 0.95
    assert float(torch.linalg.eigvals(loops).real.min()) > 0


def test_dfc_t16_the_mean_of_the_control_would_drown_the_noise() -> None:
    shares, off, _ = single_phase(False, 3)
    assert shares == sorted(shares, reverse=True)
    assert float(off.min()) > 60
    shares, _, _ = single_phase(True, 3)
    assert shares == sorted(shares)
