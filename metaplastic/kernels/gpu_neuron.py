"""What neurons do with the examples of a presentation, and its adjoint, compiled for a GPU.

All take one value for each example, or for each of both: activity y, teaching signal r, share s in
the change. The change of a neuron's weights w is dW = P o (f sum_b v_b x_b - c w), with the signal
v, and the factor f and the decay c that follow from the energy sum_b v_b z_b.
"""

from __future__ import annotations

import triton
import triton.language as tl

from metaplastic.kernels import neuron

RELU = tl.constexpr(neuron.RELU)
TANH = tl.constexpr(neuron.TANH)
SIGMOID = tl.constexpr(neuron.SIGMOID)
OJA = tl.constexpr(neuron.OJA)
DELTA = tl.constexpr(neuron.DELTA)


@triton.jit
def activity(u, ACTIVATION: tl.constexpr):
    """The activation function; u that is not a number stays so."""
    if ACTIVATION == RELU:
        y = tl.where(u < 0, 0.0, u)
    elif ACTIVATION == TANH:
        small = tl.exp(-2 * tl.abs(u))
        y = tl.where(u < 0, small - 1, 1 - small) / (1 + small)
    elif ACTIVATION == SIGMOID:
        small = tl.exp(-tl.abs(u))
        y = tl.where(u < 0, small, 1.0) / (1 + small)
    else:
        y = u
    return y


@triton.jit
def slope(y, ACTIVATION: tl.constexpr):
    """The activation function's derivative, from its value."""
    if ACTIVATION == RELU:
        found = tl.where(y <= 0, 0.0, 1.0)
    elif ACTIVATION == TANH:
        found = 1 - y * y
    elif ACTIVATION == SIGMOID:
        found = y * (1 - y)
    else:
        found = 1.0
    return found


@triton.jit
def bend(y, ACTIVATION: tl.constexpr):
    """The activation function's second derivative, from its value."""
    if ACTIVATION == TANH:
        found = -2 * y * (1 - y * y)
    elif ACTIVATION == SIGMOID:
        found = (1 - 2 * y) * y * (1 - y)
    else:
        found = 0.0
    return found


@triton.jit
def signal(
    y,
    r,
    s,
    mix,
    ACTIVATION: tl.constexpr,
    FAMILY: tl.constexpr,
    TARGET: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """The signal v, and z of the energy, which the delta rule has no use for."""
    if FAMILY == DELTA:
        v = s * (r - y) if TARGET else s * r
        if DERIVATIVE:
            v *= slope(y, ACTIVATION)
        z = v
    else:
        z = tl.where(mix < 0.5, y + mix * (r - y), r - (1 - mix) * (r - y))
        v = s * z
    return v, z


@triton.jit
def factors(energy, MULTIPLIER: tl.constexpr, FAMILY: tl.constexpr, BOUNDED: tl.constexpr):
    """The factor f and the decay c."""
    f = tl.zeros_like(energy) + 1
    if FAMILY != DELTA:
        f *= MULTIPLIER  # a number by itself would be rounded to single precision
        if BOUNDED:
            f /= 1 + energy
    c = energy * f if FAMILY == OJA else tl.zeros_like(energy)
    return f, c


@triton.jit
def factors_adjoint(energy, f, gf, gc, FAMILY: tl.constexpr, BOUNDED: tl.constexpr):
    """The gradient of the energy, from those of f and c."""
    g = tl.zeros_like(energy)
    if FAMILY == OJA:
        gf += gc * energy
        g = gc * f
    if BOUNDED:
        g -= gf * f / (1 + energy)
    return g


@triton.jit
def signal_adjoint(
    y,
    r,
    s,
    mix,
    gv,
    g_energy,
    gy,
    ACTIVATION: tl.constexpr,
    FAMILY: tl.constexpr,
    TARGET: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    """The gradients of the potential, of the teaching signal and of mix, from those of the signal,
    of the energy and of the activity.
    """
    g_potential = 0.0
    if FAMILY == DELTA:
        g_error = gv * s
        if DERIVATIVE:
            error = r - y if TARGET else r
            g_potential = g_error * error * bend(y, ACTIVATION)
            g_error *= slope(y, ACTIVATION)
        gr = g_error
        if TARGET:
            gy -= g_error
        g_mix = tl.zeros_like(y)
    else:
        z = tl.where(mix < 0.5, y + mix * (r - y), r - (1 - mix) * (r - y))
        gz = s * (gv + 2 * g_energy * z)
        gr = mix * gz
        gy += (1 - mix) * gz
        g_mix = gz * (r - y)
    return g_potential + gy * slope(y, ACTIVATION), gr, g_mix
