"""What a layer does with one presentation, and its adjoint, compiled for a GPU.

All take a layer as ``shown`` gives it, and its gradients g as ``asked`` does.
Every function that writes ends with a barrier, so that all threads of its program may read it.
"""

from __future__ import annotations

import triton

from metaplastic.kernels.gpu_language import constexpr, tl
from metaplastic.kernels.gpu_layout import Adjoint, Layer
from metaplastic.kernels.gpu_neuron import (
    OJA,
    activity,
    bend,
    factors,
    factors_adjoint,
    signal,
    signal_adjoint,
    slope,
)
from metaplastic.kernels.gpu_tiles import downwards, entries, outer, read, spread, upwards, write


@triton.jit
def shown(layer, e, place, row, B):
    """The layer in episode e, with weights and signals from their ``place``-th on, at the
    presentation whose examples begin with the ``row``-th of all.
    """
    n, d = layer.n, layer.d
    return Layer(
        n, d,
        layer.weight + place * n * d,
        layer.plasticity + e * layer.plasticity_step,
        layer.plasticity_step,
        layer.mix + e * n,
        layer.bias + e * n,
        layer.share + row,
        layer.feedback + e * layer.feedback_step,
        layer.feedback_step,
        layer.x + row * d,
        layer.post + row * n,
        layer.teaching + row * n,
        layer.a + place * B * n,
        layer.c + place * n,
    )  # fmt: skip


@triton.jit
def asked(adjoint, layer, e, own, B, K):
    """The gradients of the layer in episode e, the ``own``-th whose signals lie in memory."""
    n, d = layer.n, layer.d
    return Adjoint(
        adjoint.weight + e * n * d,
        adjoint.plasticity + e * n * d,
        adjoint.mix + e * n,
        adjoint.bias + e * n,
        adjoint.feedback + e * n * K,
        adjoint.teaching + own * B * n,
        adjoint.potential + own * B * n,
        adjoint.sent + own * B * n,
    )


# --- activity, and errors through the weights ---


@triton.jit
def activate(layer, B, CODE: constexpr, BLOCKS: constexpr):
    """Fills post."""
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            u = upwards(layer.x, layer.weight, None, b, i, B, n, d, BLOCKS)
            u += entries(layer.bias, i, n)[None, :]
            write(layer.post, b, i, B, n, activity(u, CODE.activation))
    tl.debug_barrier()


@triton.jit
def send_down(layer, below, B, CODE: constexpr, BLOCKS: constexpr):
    """Fills below (B, d), the teaching signal there, with the error at the potentials through the
    weights; a is room to work in.
    """
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            steep = slope(read(layer.post, b, i, B, n), CODE.activation)
            write(layer.a, b, i, B, n, read(layer.teaching, b, i, B, n) * steep)
    tl.debug_barrier()
    spread(layer.a, layer.weight, below, B, n, d, False, BLOCKS)


@triton.jit
def send_down_adjoint(layer, g, g_below, B, CODE: constexpr, BLOCKS: constexpr):
    """From the gradient of the teaching signal below, (B, d): fills sent, adds those of teaching
    signal and potential.
    """
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            g_sent = upwards(g_below, layer.weight, None, b, i, B, n, d, BLOCKS)
            y, r = read(layer.post, b, i, B, n), read(layer.teaching, b, i, B, n)
            steep = slope(y, CODE.activation)
            gr = read(g.teaching, b, i, B, n) + g_sent * steep
            gu = read(g.potential, b, i, B, n) + g_sent * r * bend(y, CODE.activation)
            write(g.sent, b, i, B, n, r * steep)
            write(g.teaching, b, i, B, n, gr)
            write(g.potential, b, i, B, n, gu)
    tl.debug_barrier()


# --- the rule ---


@triton.jit
def _signal(layer, mix, b, i, B, CODE: constexpr):
    """See gpu_neuron.signal; of examples b and neurons i."""
    y, r = read(layer.post, b, i, B, layer.n), read(layer.teaching, b, i, B, layer.n)
    s = entries(layer.share, b, B)[:, None]
    return signal(y, r, s, mix[None, :], CODE.activation, CODE.family, CODE.target, CODE.derivative)


@triton.jit
def signals(layer, B, CODE: constexpr, MULTIPLIER: constexpr, BLOCKS: constexpr):
    """Fills a and c."""
    n = layer.n
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        mix = entries(layer.mix, i, n)
        energy = tl.zeros_like(mix)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            v, z = _signal(layer, mix, b, i, B, CODE)
            energy += tl.sum(v * z, axis=0)
        f, c = factors(energy, MULTIPLIER, CODE.family, CODE.bounded)
        tl.store(layer.c + i, c, mask=i < n)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            v, _ = _signal(layer, mix, b, i, B, CODE)
            write(layer.a, b, i, B, n, f[None, :] * v)
    tl.debug_barrier()


@triton.jit
def signals_adjoint(layer, g, B, CODE: constexpr, MULTIPLIER: constexpr, BLOCKS: constexpr):
    """From the gradients of the moved weights and, in ``sent``, of a: fills those of potential and
    teaching signal, adds that of mix.
    """
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        mix = entries(layer.mix, i, n)
        energy = tl.zeros_like(mix)
        gf, gc, gm = energy, energy, energy
        if CODE.family == OJA:
            total = tl.zeros((BLOCKS.n, BLOCKS.d), layer.weight.dtype.element_ty)
            for begin in range(0, d, BLOCKS.d):
                j = begin + tl.arange(0, BLOCKS.d)
                moved = read(g.weight, i, j, n, d) * read(layer.plasticity, i, j, n, d)
                total -= moved * read(layer.weight, i, j, n, d)
            gc += tl.sum(total, axis=1)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            v, z = _signal(layer, mix, b, i, B, CODE)
            energy += tl.sum(v * z, axis=0)
            gf += tl.sum(v * read(g.sent, b, i, B, n), axis=0)
        f, _ = factors(energy, MULTIPLIER, CODE.family, CODE.bounded)
        ge = factors_adjoint(energy, f, gf, gc, CODE.family, CODE.bounded)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            y, r = read(layer.post, b, i, B, n), read(layer.teaching, b, i, B, n)
            gu, gr, one_mix = signal_adjoint(
                y, r, entries(layer.share, b, B)[:, None], mix[None, :],
                f[None, :] * read(g.sent, b, i, B, n), ge[None, :], tl.zeros_like(y),
                CODE.activation, CODE.family, CODE.target, CODE.derivative,
            )  # fmt: skip
            write(g.potential, b, i, B, n, gu)
            write(g.teaching, b, i, B, n, gr)
            gm += tl.sum(one_mix, axis=0)
        tl.store(g.mix + i, entries(g.mix, i, n) + gm, mask=i < n)
    tl.debug_barrier()


@triton.jit
def learn(layer, after, B, BLOCKS: constexpr):
    """Fills ``after`` (n, d), which may be the weights themselves, with what they move to."""
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        c = entries(layer.c, i, n)[:, None]
        for begin in range(0, d, BLOCKS.d):
            j = begin + tl.arange(0, BLOCKS.d)
            w = read(layer.weight, i, j, n, d)
            change = outer(layer.a, layer.x, i, j, B, n, d, BLOCKS) - c * w
            write(after, i, j, n, d, w + read(layer.plasticity, i, j, n, d) * change)
    tl.debug_barrier()


@triton.jit
def learn_adjoint(layer, g, g_below, B, BLOCKS: constexpr):
    """Turns the gradient of the moved weights into that before; adds those of plasticity and bias.
    What the errors that went down through the weights make of these comes from sent and g_below.
    """
    n, d = layer.n, layer.d
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        c = entries(layer.c, i, n)[:, None]
        gb = entries(g.bias, i, n)
        for begin in range(0, B, BLOCKS.b):
            gb += tl.sum(read(g.potential, begin + tl.arange(0, BLOCKS.b), i, B, n), axis=0)
        tl.store(g.bias + i, gb, mask=i < n)
        for begin in range(0, d, BLOCKS.d):
            j = begin + tl.arange(0, BLOCKS.d)
            gw, w = read(g.weight, i, j, n, d), read(layer.weight, i, j, n, d)
            change = outer(layer.a, layer.x, i, j, B, n, d, BLOCKS) - c * w
            gp = read(g.plasticity, i, j, n, d) + gw * change
            gw -= c * gw * read(layer.plasticity, i, j, n, d)
            gw += outer(g.potential, layer.x, i, j, B, n, d, BLOCKS)
            if g_below is not None:
                gw += outer(g.sent, g_below, i, j, B, n, d, BLOCKS)
            write(g.plasticity, i, j, n, d, gp)
            write(g.weight, i, j, n, d, gw)
    tl.debug_barrier()


@triton.jit
def shown_adjoint(layer, g, b, j, B, BLOCKS: constexpr):
    """The gradient of what the layer sees, before that of the weights changes."""
    n, d = layer.n, layer.d
    found = downwards(layer.a, g.weight, layer.plasticity, b, j, B, n, d, BLOCKS)
    return found + downwards(g.potential, layer.weight, None, b, j, B, n, d, BLOCKS)
