"""The simulation against a loop over numbers, and its noise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from metaplastic.control import (
    Goal,
    diverges,
    euler_maruyama,
    gain_bound,
    moments,
    ornstein_uhlenbeck,
)
from tests.dfc.parts import constants, delta, last_moment, noisy_transposed, plant, transposed
from tests.helpers import normal

SIZES = (5, 6, 4, 3)


def by_hand(given, feedback, target, of, steps, noise):
    """One example, with numpy vectors and a loop over time and layers."""
    weights = [w.numpy() for w in given.chain.weights]
    biases = [b.numpy()[:, 0] for b in given.chain.biases]
    q = [f.numpy() for f in feedback]
    count, inlet = len(weights), given.chain.inlet[0].numpy()
    v = [u[0].numpy().copy() for u in given.units.potential]
    r = [np.tanh(u) for u in v[:-1]] + [v[-1].copy()]
    apical = [np.zeros_like(u) for u in v]
    u_int = control = np.zeros(len(target))
    leak, gain = float(of.leak), float(of.gain)
    for k in range(steps - 1):
        e = target - r[-1]
        u_int = u_int + of.dt * (e - leak * control)
        new = u_int + gain * e
        seen = new if of.proactive else control
        control, old = new, [x.copy() for x in r]
        for i in range(count):
            below = inlet if i == 0 else (r if of.instant else old)[i - 1]
            basal = weights[i] @ below + biases[i]
            tau_a = of.dt if of.apical is None else of.apical
            apical[i] = apical[i] + of.dt / tau_a * (q[i] @ seen - apical[i]) + noise[k][i]
            v[i] = v[i] + of.dt / max(of.tau, of.dt) * (apical[i] + basal - v[i])
            r[i] = v[i] if i == count - 1 else np.tanh(v[i])
    return np.concatenate([*v, *apical, control, u_int])


@pytest.mark.parametrize(
    ("proactive", "instant", "apical", "tau"),
    [*product((True, False), (True, False), (None, 0.1), (0.2,)), (True, True, None, 0.001)],
)
def test_a_step_is_that_of_a_loop_over_numbers(proactive, instant, apical, tau) -> None:
    given = plant(SIZES)
    feedback = noisy_transposed(given, 0.1)
    of = constants(tau=tau, apical=apical, proactive=proactive, instant=instant)
    target = given.units.output + delta(0.3, outputs=3)
    xi = normal(1, 11, 13)
    sigmas = [0.1, 0.2, 0.3]
    noise = list(euler_maruyama(xi, [6, 4, 3], sigmas, of.dt, apical))
    *_, last = moments(given.chain, feedback, Goal(target), of, given.units, 12, noise)
    tau_a = of.dt if apical is None else apical
    scale = np.repeat(sigmas, [6, 4, 3]) * np.sqrt(of.dt) / tau_a
    added = [np.split(scale * row.numpy(), [6, 10]) for row in xi[0]]
    wanted = by_hand(given, feedback, target[0].numpy(), of, 12, added)
    parts = [*last.units.potential, *last.apical, last.control, last.integral]
    assert np.abs(torch.cat(parts, 1)[0].numpy() - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_moments_go_on_where_they_are_taken_up() -> None:
    given = plant(SIZES, batch=2)
    feedback = noisy_transposed(given, 0.1)
    goal = Goal(given.units.output + delta(0.3, 2, 3))
    whole = list(moments(given.chain, feedback, goal, constants(), given.units, 9))
    again = list(moments(given.chain, feedback, goal, constants(), whole[4], 5))
    assert torch.equal(whole[8].control, again[4].control)
    assert torch.equal(whole[8].units.output, again[4].units.output)


def test_dfc_t15_filtered_noise_has_its_variance() -> None:
    tau, dt, sigma = 0.05, 0.001, 0.3
    xi = normal(64, 6000, 8)
    moving = torch.stack([n[0] for n in ornstein_uhlenbeck(xi, [8], [sigma], dt, tau)])[500:]
    wanted = sigma**2 / (2 * tau)
    assert float(moving.square().mean()) == pytest.approx(wanted, rel=0.02)


def test_dfc_t15_each_stage_takes_its_share_of_the_noise() -> None:
    """E[n y_m] = var (1 + tau_v / tau_e)^-m behind m low-pass stages."""
    tau, dt, tau_v = 0.05, 0.0005, 0.02
    xi = normal(64, 8000, 8)
    stages = [torch.zeros(64, 8).double() for _ in range(4)]
    sums, var = torch.zeros(4), 0.0
    for k, (n,) in enumerate(ornstein_uhlenbeck(xi, [8], [1.0], dt, tau)):
        arriving = n
        for m in range(4):
            stages[m] = stages[m] + dt / tau_v * (arriving - stages[m])
            arriving = stages[m]
        if k >= 1000:
            var += float(n.square().mean())
            sums += torch.tensor([float((n * s).mean()) for s in stages])
    kept = [float(sums[0]) / var] + [float(sums[m] / sums[m - 1]) for m in (1, 2, 3)]
    assert kept == pytest.approx([1 / (1 + tau_v / tau)] * 4, rel=0.02)


@pytest.mark.parametrize(
    ("dt", "times", "bound_from", "bound_to", "lost"),
    [(0.02, 3.0, 0.0, 5.0, False), (0.2, 60.0, 11.0, 1e9, True)],
)
def test_dfc_t21_the_gain_bound_tells_what_diverges(dt, times, bound_from, bound_to, lost) -> None:
    given = plant(batch=2)
    feedback = tuple(times * q for q in transposed(given))
    goal = Goal(given.units.output + delta(0.1, 2))
    bound = gain_bound(given.jacobians, feedback, 2.0, dt, 0.2)
    assert bool(((bound > bound_from) & (bound < bound_to)).all())
    last = last_moment(given, feedback, goal, constants(dt=dt), 400)
    gone = diverges(last, goal, goal.error(given.units.output))
    assert gone.flatten().tolist() == [lost, lost]
