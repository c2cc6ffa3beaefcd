"""The inner loop compiled by Numba for a CPU: neurons, synapses, and the loops over them.

All of it stands in one file because Numba keeps compiled code on disk until the file of the
function itself changes, and not when that of a function called by it does.

What a rule makes of a presentation is, for every family here, the change

    P o (sum_b a_b x_b - c w)

of a row w of weights, with a (B,) and c from signals of its neuron alone: see Hebb, Oja and Delta.

Neuron by neuron (``forward_rows``): where the teaching signal does not depend on the output, a
neuron's weights through all presentations follow from its inputs alone; the loop over
presentations is the innermost one, and a row of weights never leaves the cache.

The adjoints start anew from kept weights every ``segment`` presentations and never run a rule
backwards, which would lose all digits in single precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from metaplastic.kernels.neuron import DELTA, OJA, RELU, SIGMOID, TANH

# Sums may be taken in another order, as in any matrix product; NaN and infinity keep their meaning.
compiled = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "nsz", "arcp", "contract", "afn"},
)


@intrinsic
def borrowed(typing: Any, array: Any) -> Any:
    """The same array without a count of references, which its views would keep in the innermost
    loop. Whoever lends it holds on to it.
    """
    del typing

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), codegen


# --- neurons ---


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
def signal(code, y, teaching, share, mix, multiplier, a):
    """Fills a (B,) from activity, teaching signal and share (B,) each; returns c."""
    zero = y.dtype.type(0)
    if code.family == DELTA:
        for b in range(y.shape[0]):
            error = teaching[b] - y[b] if code.target else teaching[b]
            if code.derivative:
                error *= slope(code.activation, y[b])
            a[b] = share[b] * error
        return zero
    energy = zero
    for b in range(y.shape[0]):
        z = blend(y[b], teaching[b], mix)
        a[b] = z
        energy += share[b] * z * z
    factor = multiplier / (y.dtype.type(1) + energy) if code.bounded else multiplier
    for b in range(y.shape[0]):
        a[b] *= share[b] * factor
    return energy * factor if code.family == OJA else zero


@compiled
def signal_adjoint(code, y, teaching, share, mix, multiplier, ga, gc, g_teaching, gy, gu):
    """From the gradients of a and c: fills that of the teaching signal, adds to gy that of the
    activity, fills gu with what goes straight to the potential; returns the gradient of mix.
    """
    zero, one = y.dtype.type(0), y.dtype.type(1)
    if code.family == DELTA:
        for b in range(y.shape[0]):
            g = ga[b] * share[b]
            gu[b] = zero
            if code.derivative:
                error = teaching[b] - y[b] if code.target else teaching[b]
                gu[b] = g * error * bend(code.activation, y[b])
                g *= slope(code.activation, y[b])
            g_teaching[b] = g
            if code.target:
                gy[b] -= g
        return zero
    energy, g_factor = zero, zero
    for b in range(y.shape[0]):
        z = blend(y[b], teaching[b], mix)
        energy += share[b] * z * z
        g_factor += ga[b] * share[b] * z
    factor = multiplier / (one + energy) if code.bounded else multiplier
    g_energy = zero
    if code.family == OJA:
        g_factor += gc * energy
        g_energy = gc * factor
    if code.bounded:
        g_energy -= g_factor * factor / (one + energy)
    g_mix = zero
    for b in range(y.shape[0]):
        z = blend(y[b], teaching[b], mix)
        gz = share[b] * (ga[b] * factor + (g_energy + g_energy) * z)
        g_teaching[b] = mix * gz
        gy[b] += (one - mix) * gz
        g_mix += gz * (teaching[b] - y[b])
        gu[b] = zero
    return g_mix


# --- synapses: functions of one row, w, p and their gradients (d,), x and its gradient (B, d) ---


@compiled
def dot(w, x):
    """W . x of (d,) each."""
    total = w.dtype.type(0)
    for j in range(w.shape[0]):
        total += w[j] * x[j]
    return total


@compiled
def _wanted(w, x, a, c, wanted):
    """Fills wanted (d,) with sum_b a_b x_b - c w."""
    for j in range(w.shape[0]):
        wanted[j] = -c * w[j]
    for b in range(x.shape[0]):
        own, shown = a[b], x[b]
        for j in range(w.shape[0]):
            wanted[j] += own * shown[j]


@compiled
def learn(w, p, x, a, c, wanted):
    """Moves w; wanted (d,) is room to work in."""
    _wanted(w, x, a, c, wanted)
    for j in range(w.shape[0]):
        w[j] += p[j] * wanted[j]


@compiled
def learn_one(w, p, x, a, c):
    """The same of one example, x (d,)."""
    for j in range(w.shape[0]):
        w[j] += p[j] * (a * x[j] - c * w[j])


@compiled
def relearn(w, after, p, x, a, c, wanted):
    """Fills ``after``, a row other than w, with what w moves to."""
    _wanted(w, x, a, c, wanted)
    for j in range(w.shape[0]):
        after[j] = w[j] + p[j] * wanted[j]


@compiled
def relearn_one(w, after, p, x, a, c):
    """The same of one example."""
    for j in range(w.shape[0]):
        after[j] = w[j] + p[j] * (a * x[j] - c * w[j])


@compiled
def ask(gw, p, x, w, wanted, gp, moved, ga):
    """From the gradient gw of the moved w: adds that of p, fills that of a (B,) and moved (d,) with
    gw o p, returns that of c.
    """
    gc = w.dtype.type(0)
    for j in range(w.shape[0]):
        m = gw[j] * p[j]
        moved[j] = m
        gc -= m * w[j]
    for j in range(w.shape[0]):
        gp[j] += gw[j] * wanted[j]
    for b in range(x.shape[0]):
        ga[b] = dot(moved, x[b])
    return gc


@compiled
def ask_one(gw, p, x, w):
    """The gradients of a and c of one example."""
    ga, gc = w.dtype.type(0), w.dtype.type(0)
    for j in range(w.shape[0]):
        m = gw[j] * p[j]
        ga += m * x[j]
        gc -= m * w[j]
    return ga, gc


@compiled
def tell(gw, x, w, a, c, gu, moved, gx, with_x):
    """What is left to do once the gradient gu (B,) of the potential is known: turns gw into the
    gradient of w before it moved, and adds that of x where asked.
    """
    for j in range(w.shape[0]):
        gw[j] -= c * moved[j]
    for b in range(x.shape[0]):
        own, g, shown = a[b], gu[b], x[b]
        if with_x:
            g_shown = gx[b]
            for j in range(w.shape[0]):
                g_shown[j] += own * moved[j] + g * w[j]
        for j in range(w.shape[0]):
            gw[j] += g * shown[j]


@compiled
def tell_one(gw, p, x, w, a, c, gu, gp, gx):
    """The same of one example, and adds the gradient of p."""
    for j in range(w.shape[0]):
        g_w, w_j, x_j = gw[j], w[j], x[j]
        m = g_w * p[j]
        gp[j] += g_w * (a * x_j - c * w_j)
        gx[j] += a * m + gu * w_j
        gw[j] = g_w + gu * x_j - c * m


@compiled
def tell_one_below(gw, p, x, w, a, c, gu, gp):
    """The same where nobody asks for the gradient of x."""
    for j in range(w.shape[0]):
        g_w, x_j = gw[j], x[j]
        gp[j] += g_w * (a * x_j - c * w[j])
        gw[j] = g_w + gu * x_j - c * (g_w * p[j])


# --- neuron by neuron ---


@compiled
def _own(e, tensor):
    """The index of an episode's own part, 0 where all share one."""
    return e if tensor.shape[0] > 1 else 0


@compiled
def forward_rows(
    code, multiplier, segment, blocks, first, last, keep,
    weight, plasticity, mix, bias, share, x, teaching, final, kept, own, post, wanted,
):  # fmt: skip
    """Episodes and blocks of rows ``first`` to ``last``; what is filled: final (E, n, d), kept
    (E, S, n, d) where asked, the activity as own (E, n, T, B) and post (E, T, B, n).
    """
    _forward_rows(
        code, multiplier, segment, blocks, first, last, keep,
        borrowed(weight), borrowed(plasticity), borrowed(mix), borrowed(bias), borrowed(share),
        borrowed(x), borrowed(teaching), borrowed(final), borrowed(kept), borrowed(own),
        borrowed(post), borrowed(wanted),
    )  # fmt: skip


@compiled
def _forward_rows(
    code, multiplier, segment, blocks, first, last, keep,
    weight, plasticity, mix, bias, share, x, teaching, final, kept, own, post, wanted,
):  # fmt: skip
    presentations, examples, n = x.shape[1], x.shape[2], final.shape[1]
    taught, a = np.empty(examples, x.dtype), np.empty(examples, x.dtype)
    for item in range(first, last):
        e, block = item // blocks, item % blocks
        begin_w, own_p, own_m = _own(e, weight), _own(e, plasticity), _own(e, mix)
        own_b, own_s = _own(e, bias), _own(e, share)
        for begin in range(0, presentations, segment):
            for i in range(block * n // blocks, (block + 1) * n // blocks):
                w, p, mixing, potential = (
                    final[e, i],
                    plasticity[own_p, i],
                    mix[own_m, i],
                    bias[own_b, i],
                )
                own_i = own[e, i]
                if begin == 0:
                    w[:] = weight[begin_w, i]
                if keep:
                    kept[e, begin // segment, i, :] = w
                for t in range(begin, min(presentations, begin + segment)):
                    y, x_t = own_i[t], x[e, t]
                    for b in range(examples):
                        u = dot(w, x_t[b]) + potential
                        y[b] = activity(code.activation, u)
                        post[e, t, b, i] = y[b]
                        taught[b] = teaching[e, t, b, i]
                    c = signal(code, y, taught, share[own_s, t], mixing, multiplier, a)
                    if examples == 1:
                        learn_one(w, p, x_t[0], a[0], c)
                    else:
                        learn(w, p, x_t, a, c, wanted)


@compiled
def backward_rows(
    code, multiplier, segment, blocks, first, last, with_post, with_x,
    plasticity, mix, share, x, teaching, kept, own, g_post,
    gw, gp, g_mix, g_bias, g_teaching, gx, rows, wanted, a, moved,
):  # fmt: skip
    """The adjoint of ``forward_rows``. gw (E, n, d) comes as the gradient of ``final`` and leaves
    as that of the weights; gp, g_mix, g_bias and gx (blocks, E, T, B, d) are added to, g_teaching
    is filled; rows (segment + 1, d), wanted (segment, d), a (segment, B) and moved (d,) are room to
    work in.
    """
    _backward_rows(
        code, multiplier, segment, blocks, first, last, with_post, with_x,
        borrowed(plasticity), borrowed(mix), borrowed(share), borrowed(x), borrowed(teaching),
        borrowed(kept), borrowed(own), borrowed(g_post), borrowed(gw), borrowed(gp),
        borrowed(g_mix), borrowed(g_bias), borrowed(g_teaching), borrowed(gx), borrowed(rows),
        borrowed(wanted), borrowed(a), borrowed(moved),
    )  # fmt: skip


@compiled
def _backward_rows(
    code, multiplier, segment, blocks, first, last, with_post, with_x,
    plasticity, mix, share, x, teaching, kept, own, g_post,
    gw, gp, g_mix, g_bias, g_teaching, gx, rows, wanted, a, moved,
):  # fmt: skip
    presentations, examples, n = x.shape[1], x.shape[2], gw.shape[1]
    kind, zero = x.dtype, x.dtype.type(0)
    taught, g_taught = np.empty(examples, kind), np.empty(examples, kind)
    ga, gy, gu = np.empty(examples, kind), np.empty(examples, kind), np.empty(examples, kind)
    decay = np.empty(segment, kind)
    for item in range(first, last):
        e, block = item // blocks, item % blocks
        own_p, own_m, own_s = _own(e, plasticity), _own(e, mix), _own(e, share)
        for s in range((presentations + segment - 1) // segment - 1, -1, -1):
            begin = s * segment
            end = min(presentations, begin + segment)
            for i in range(block * n // blocks, (block + 1) * n // blocks):
                p, mixing = plasticity[own_p, i], mix[own_m, i]
                gw_i, gp_i, own_i = gw[e, i], gp[e, i], own[e, i]
                gm, gb = zero, zero
                rows[0, :] = kept[e, s, i]
                for t in range(begin, end):
                    q = t - begin
                    for b in range(examples):
                        taught[b] = teaching[e, t, b, i]
                    decay[q] = signal(
                        code, own_i[t], taught, share[own_s, t], mixing, multiplier, a[q]
                    )
                    if examples == 1:
                        relearn_one(rows[q], rows[q + 1], p, x[e, t, 0], a[q, 0], decay[q])
                    else:
                        relearn(rows[q], rows[q + 1], p, x[e, t], a[q], decay[q], wanted[q])
                for t in range(end - 1, begin - 1, -1):
                    q = t - begin
                    y, w, x_t = own_i[t], rows[q], x[e, t]
                    if examples == 1:
                        ga[0], gc = ask_one(gw_i, p, x_t[0], w)
                    else:
                        gc = ask(gw_i, p, x_t, w, wanted[q], gp_i, moved, ga)
                    for b in range(examples):
                        taught[b] = teaching[e, t, b, i]
                        gy[b] = g_post[e, t, b, i] if with_post else zero
                    gm += signal_adjoint(
                        code, y, taught, share[own_s, t], mixing, multiplier,
                        ga, gc, g_taught, gy, gu,
                    )  # fmt: skip
                    for b in range(examples):
                        gu[b] += gy[b] * slope(code.activation, y[b])
                        gb += gu[b]
                        g_teaching[e, t, b, i] = g_taught[b]
                    if examples > 1:
                        gx_t = gx[block, e, t] if with_x else x_t
                        tell(gw_i, x_t, w, a[q], decay[q], gu, moved, gx_t, with_x)
                    elif with_x:
                        gx_t = gx[block, e, t, 0]
                        tell_one(gw_i, p, x_t[0], w, a[q, 0], decay[q], gu[0], gp_i, gx_t)
                    else:
                        tell_one_below(gw_i, p, x_t[0], w, a[q, 0], decay[q], gu[0], gp_i)
                g_mix[e, i] += gm
                g_bias[e, i] += gb
