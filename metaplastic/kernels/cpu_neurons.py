"""Neurons: activity, and the signals of a change and their adjoint, compiled for a CPU."""

from __future__ import annotations

import numpy as np

from metaplastic.kernels.cpu_compiler import compiled, summing
from metaplastic.kernels.neuron import DELTA, OJA, RELU, SIGMOID, TANH


@compiled
def activity(code, u):
    """Y at potential u."""
    if code == RELU:
        return max(u, type(u)(0))
    if code == TANH:
        return np.tanh(u)
    if code == SIGMOID:
        return type(u)(1) / (type(u)(1) + np.exp(-u))
    return u


@compiled
def slope(code, y):
    """dy/du where the activity is y."""
    one = type(y)(1)
    if code == RELU:
        return one if y > 0 else one - one
    if code == TANH:
        return one - y * y
    if code == SIGMOID:
        return y * (one - y)
    return one


@compiled
def bend(code, y):
    """d2y/du2 where the activity is y."""
    one = type(y)(1)
    if code == TANH:
        return -(y + y) * (one - y * y)
    if code == SIGMOID:
        return (one - y - y) * y * (one - y)
    return one - one


@compiled
def blend(y, teaching, mix):
    """The z of Hebb and Oja, exact at mix 0 and 1."""
    one = type(mix)(1)
    if mix + mix < one:
        return y + mix * (teaching - y)
    return teaching - (one - mix) * (teaching - y)


@compiled
def _delta(code, y, teaching):
    """The error of Delta, times the slope where its rule says so."""
    error = teaching - y if code.target else teaching
    return error * slope(code.activation, y) if code.derivative else error


@compiled
def _delta_adjoint(code, y, teaching, g):
    """The gradients of teaching signal, activity and potential from that of the error."""
    zero = type(y)(0)
    gu = zero
    if code.derivative:
        error = teaching - y if code.target else teaching
        gu = g * error * bend(code.activation, y)
        g = g * slope(code.activation, y)
    return g, -g if code.target else zero, gu


@compiled
def _factor(code, multiplier, energy):
    """Of Hebb and Oja, on the whole change."""
    return multiplier / (type(energy)(1) + energy) if code.bounded else multiplier


@compiled
def _energy_adjoint(code, energy, factor, g_factor, gc):
    """The gradients of factor and energy, from what the change makes of both."""
    g_energy = type(energy)(0)
    if code.family == OJA:
        g_factor += gc * energy
        g_energy = gc * factor
    if code.bounded:
        g_energy -= g_factor * factor / (type(energy)(1) + energy)
    return g_energy


@summing
def _energy(y, teaching, share, mix):
    """<z^2>"""
    energy = y.dtype.type(0)
    for b in range(y.shape[0]):
        z = blend(y[b], teaching[b], mix)
        energy += share[b] * z * z
    return energy


@summing
def _factor_adjoint(y, teaching, share, mix, ga):
    """Of the gradient of the factor, what comes through a."""
    g_factor = y.dtype.type(0)
    for b in range(y.shape[0]):
        g_factor += ga[b] * share[b] * blend(y[b], teaching[b], mix)
    return g_factor


@summing
def _mix_adjoint(y, teaching, gz):
    """From the gradient of z."""
    g_mix = y.dtype.type(0)
    for b in range(y.shape[0]):
        g_mix += gz[b] * (teaching[b] - y[b])
    return g_mix


@summing
def summed(values):
    """Of all of them."""
    total = values.dtype.type(0)
    for k in range(values.shape[0]):
        total += values[k]
    return total


@compiled
def signal(code, y, teaching, share, mix, multiplier, a):
    """Fills a (B,) from activity, teaching signal and share (B,) each; returns c."""
    zero = y.dtype.type(0)
    if code.family == DELTA:
        for b in range(y.shape[0]):
            a[b] = share[b] * _delta(code, y[b], teaching[b])
        return zero
    energy = _energy(y, teaching, share, mix)
    factor = _factor(code, multiplier, energy)
    for b in range(y.shape[0]):
        a[b] = blend(y[b], teaching[b], mix) * (share[b] * factor)
    return energy * factor if code.family == OJA else zero


@compiled
def signal_one(code, y, teaching, share, mix, multiplier):
    """Returns a and c of one example."""
    zero = type(y)(0)
    if code.family == DELTA:
        return share * _delta(code, y, teaching), zero
    z = blend(y, teaching, mix)
    energy = share * z * z
    factor = _factor(code, multiplier, energy)
    return share * z * factor, energy * factor if code.family == OJA else zero


@compiled
def signal_adjoint(code, y, teaching, share, mix, multiplier, ga, gc, g_teaching, gy, gu):
    """From the gradients of a and c: fills that of the teaching signal, adds to gy that of the
    activity, fills gu with what goes straight to the potential; returns the gradient of mix.
    """
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if code.family == DELTA:
        for b in range(y.shape[0]):
            g_teaching[b], g_y, gu[b] = _delta_adjoint(code, y[b], teaching[b], ga[b] * share[b])
            gy[b] += g_y
        return zero
    energy = _energy(y, teaching, share, mix)
    factor = _factor(code, multiplier, energy)
    g_factor = _factor_adjoint(y, teaching, share, mix, ga)
    g_energy = _energy_adjoint(code, energy, factor, g_factor, gc)
    for b in range(y.shape[0]):
        z = blend(y[b], teaching[b], mix)
        gu[b] = share[b] * (ga[b] * factor + (g_energy + g_energy) * z)
    g_mix = _mix_adjoint(y, teaching, gu)
    for b in range(y.shape[0]):
        g_teaching[b] = mix * gu[b]
        gy[b] += (one - mix) * gu[b]
        gu[b] = zero
    return g_mix


@compiled
def signal_adjoint_one(code, y, teaching, share, mix, multiplier, ga, gc):
    """Returns the gradients of teaching signal, activity, potential and mix of one example."""
    zero = type(y)(0)
    if code.family == DELTA:
        g_teaching, gy, gu = _delta_adjoint(code, y, teaching, ga * share)
        return g_teaching, gy, gu, zero
    z = blend(y, teaching, mix)
    energy = share * z * z
    factor = _factor(code, multiplier, energy)
    g_energy = _energy_adjoint(code, energy, factor, ga * share * z, gc)
    gz = share * (ga * factor + (g_energy + g_energy) * z)
    return mix * gz, (type(mix)(1) - mix) * gz, zero, gz * (teaching - y)
