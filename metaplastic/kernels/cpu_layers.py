"""A layer at one presentation: learning, and its adjoint in two halves, compiled for a CPU.

The plasticity p is (n, d), or (n, 1) where all synapses of a neuron have one.
"""

from __future__ import annotations

from metaplastic.kernels.cpu_compiler import borrowed, compiled, within
from metaplastic.kernels.cpu_neurons import (
    activity,
    signal,
    signal_adjoint,
    signal_adjoint_one,
    signal_one,
    slope,
    summed,
)
from metaplastic.kernels.cpu_synapses import (
    ask_alike,
    ask_one,
    collect,
    dot,
    learn_alike,
    learn_one,
    products,
    relearn_alike,
    relearn_one,
    scatter,
    tell_alike,
    tell_alike_below,
    tell_one,
    tell_one_below,
)


@within
def part(tensor, e):
    """An episode's own part, or the one that all share."""
    return borrowed(tensor)[e if tensor.shape[0] > 1 else 0]


@compiled
def _alike(p, w):
    """Whether all synapses of a neuron have one plasticity."""
    return p.shape[1] < w.shape[1]


@within
def forwards(code, w, bias, x, post, room):
    """Fills post (B, n) from x (B, d); room (n, B)."""
    if x.shape[0] == 1:
        shown, seen = x[0], post[0]
        for i in range(w.shape[0]):
            seen[i] = activity(code.activation, dot(w[i], shown) + bias[i])
        return
    products(w, x, room)
    for b in range(x.shape[0]):
        for i in range(w.shape[0]):
            post[b, i] = activity(code.activation, room[i, b] + bias[i])


@within
def _wants(code, multiplier, w, mix, share, x, post, teaching, y, a, c, wanted):
    """Fills a (n, B), c (n,) and wanted (n, d) with sum_b a_b x_b - c w of every row."""
    for i in range(w.shape[0]):
        for b in range(x.shape[0]):
            y[b] = post[b, i]
        c[i] = signal(code, y, teaching[i], share, mix[i], multiplier, a[i])
        for j in range(w.shape[1]):
            wanted[i, j] = -c[i] * w[i, j]
    collect(wanted, a, x)


@compiled
def _moves(w, after, p, wanted):
    """Fills ``after``, which may be w itself."""
    for i in range(w.shape[0]):
        if _alike(p, w):
            for j in range(w.shape[1]):
                after[i, j] = w[i, j] + p[i, 0] * wanted[i, j]
        else:
            for j in range(w.shape[1]):
                after[i, j] = w[i, j] + p[i, j] * wanted[i, j]


@within
def learns(code, multiplier, w, p, mix, share, x, post, teaching, y, a, c, wanted):
    """Moves w (n, d); a (n, B), c (n,) and wanted (n, d) are room to work in."""
    if x.shape[0] == 1:
        shown, seen = x[0], post[0]
        for i in range(w.shape[0]):
            a_i, c = signal_one(code, seen[i], teaching[i, 0], share[0], mix[i], multiplier)
            if _alike(p, w):
                learn_alike(w[i], shown, p[i, 0] * a_i, p[i, 0] * c)
            else:
                learn_one(w[i], p[i], shown, a_i, c)
        return
    _wants(code, multiplier, w, mix, share, x, post, teaching, y, a, c, wanted)
    _moves(w, w, p, wanted)


@within
def relearns(code, multiplier, w, after, p, mix, share, x, post, teaching, y, a, c, wanted):
    """Fills ``after`` (n, d), a (n, B), c (n,) and, for more than one example, wanted (n, d)."""
    if x.shape[0] == 1:
        shown, seen = x[0], post[0]
        for i in range(w.shape[0]):
            a_i, c_i = signal_one(code, seen[i], teaching[i, 0], share[0], mix[i], multiplier)
            a[i, 0], c[i] = a_i, c_i
            if _alike(p, w):
                relearn_alike(w[i], after[i], shown, p[i, 0] * a_i, p[i, 0] * c_i)
            else:
                relearn_one(w[i], after[i], p[i], shown, a_i, c_i)
        return
    _wants(code, multiplier, w, mix, share, x, post, teaching, y, a, c, wanted)
    _moves(w, after, p, wanted)


@within
def asks(
    code, multiplier, gw, p, w, mix, share, x, post, teaching, a, c, wanted,
    gp, g_teaching, gy, gu, g_mix, y, ga, moved,
):  # fmt: skip
    """Fills g_teaching and gu (n, B), adds to gy (n, B), g_mix (n,) and gp, but for one example and
    p (n, d); for more than one example, fills moved (n, d) with gw o p, and ga (n, B)."""
    if x.shape[0] == 1:
        shown, seen = x[0], post[0]
        for i in range(w.shape[0]):
            if _alike(p, w):
                g_a, gc = ask_alike(gw[i], shown, w[i])
                gp[i, 0] += a[i, 0] * g_a + c[i] * gc
                g_a, gc = g_a * p[i, 0], gc * p[i, 0]
            else:
                g_a, gc = ask_one(gw[i], p[i], shown, w[i])
            g_t, g_y, g_u, g_m = signal_adjoint_one(
                code, seen[i], teaching[i, 0], share[0], mix[i], multiplier, g_a, gc
            )
            g_teaching[i, 0], gu[i, 0] = g_t, g_u
            gy[i, 0] += g_y
            g_mix[i] += g_m
        return
    for i in range(w.shape[0]):
        if _alike(p, w):
            gp[i, 0] += dot(gw[i], wanted[i])
            for j in range(w.shape[1]):
                moved[i, j] = gw[i, j] * p[i, 0]
        else:
            for j in range(w.shape[1]):
                moved[i, j] = gw[i, j] * p[i, j]
                gp[i, j] += gw[i, j] * wanted[i, j]
    products(moved, x, ga)
    for i in range(w.shape[0]):
        for b in range(x.shape[0]):
            y[b] = post[b, i]
        g_mix[i] += signal_adjoint(
            code, y, teaching[i], share, mix[i], multiplier,
            ga[i], -dot(moved[i], w[i]), g_teaching[i], gy[i], gu[i],
        )  # fmt: skip


@within
def tells(code, gw, p, w, x, post, a, c, gy, gu, gp, g_bias, gx, with_x, moved):
    """Turns gw into the gradient of the weights before they moved; adds to gp, g_bias (n,), and gx
    (B, d) where asked."""
    for i in range(w.shape[0]):
        for b in range(x.shape[0]):
            gu[i, b] += gy[i, b] * slope(code.activation, post[b, i])
        g_bias[i] += summed(gu[i])
        if x.shape[0] > 1:
            for j in range(w.shape[1]):
                gw[i, j] -= c[i] * moved[i, j]
        elif _alike(p, w):
            if with_x:
                tell_alike(gw[i], x[0], w[i], p[i, 0] * a[i, 0], p[i, 0] * c[i], gu[i, 0], gx[0])
            else:
                tell_alike_below(gw[i], x[0], p[i, 0] * c[i], gu[i, 0])
        elif with_x:
            tell_one(gw[i], p[i], x[0], w[i], a[i, 0], c[i], gu[i, 0], gp[i], gx[0])
        else:
            tell_one_below(gw[i], p[i], x[0], w[i], a[i, 0], c[i], gu[i, 0], gp[i])
    if x.shape[0] > 1:
        if with_x:
            scatter(gx, a, moved)
            scatter(gx, gu, w)
        collect(gw, gu, x)
