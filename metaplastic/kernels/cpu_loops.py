"""The inner loop compiled by Numba for a CPU: neurons, synapses, and the loops over them.

All of it stands in one file because Numba keeps compiled code on disk until the file of the
function itself changes, and not when that of a function called by it does.

What a rule makes of a presentation is, for every family here, the change

    P o (sum_b a_b x_b - c w)

of a row w of weights, with a (B,) and c from signals of its neuron alone: see Hebb, Oja and Delta.

Neuron by neuron (``forward_rows``): where the teaching signal does not depend on the output, a
neuron's weights through all presentations follow from its inputs alone; the loop over
presentations is the innermost one, and a row of weights never leaves the cache.

Presentation by presentation (``forward_steps``): where it does, all layers go through the stream
together, and errors come straight from the output or down through the transposed weights.

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

# Arrays that lie close together go through a loop one number at a time, others in vectors. So that
# results do not depend on where the memory is, what writes is rounded in the order of the source;
# what only sums may be summed in any order, which is then that of vectors always. NaN and infinity
# keep their meaning.
EXACT = {"nsz", "arcp", "contract", "afn"}
compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT)
within = njit(cache=True, nogil=True, error_model="numpy", fastmath=EXACT, forceinline=True)
summing = njit(cache=True, nogil=True, error_model="numpy", fastmath={*EXACT, "reassoc"})


def _borrowed(typing: Any, array: Any) -> Any:
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


borrowed: Any = intrinsic(_borrowed)


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
def _sum(values):
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


# --- synapses: functions of one row, w, p and their gradients (d,), x and its gradient (B, d) ---


@summing
def dot(w, x):
    """W . x of (d,) each."""
    total = w.dtype.type(0)
    for j in range(w.shape[0]):
        total += w[j] * x[j]
    return total


@summing
def dots(w, x, found):
    """Fills found (B,) with w . x_b; four at a time, which share what is read of w."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        zero = w.dtype.type(0)
        s0, s1, s2, s3 = zero, zero, zero, zero
        for j in range(w.shape[0]):
            s0 += w[j] * x0[j]
            s1 += w[j] * x1[j]
            s2 += w[j] * x2[j]
            s3 += w[j] * x3[j]
        found[b], found[b + 1], found[b + 2], found[b + 3] = s0, s1, s2, s3
    for b in range(whole, x.shape[0]):
        found[b] = dot(w, x[b])


@compiled
def gather(total, a, x):
    """Adds sum_b a_b x_b to total (d,), four at a time."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        a0, a1, a2, a3 = a[b], a[b + 1], a[b + 2], a[b + 3]
        for j in range(total.shape[0]):
            total[j] = total[j] + a0 * x0[j] + a1 * x1[j] + a2 * x2[j] + a3 * x3[j]
    for b in range(whole, x.shape[0]):
        own, shown = a[b], x[b]
        for j in range(total.shape[0]):
            total[j] += own * shown[j]


@compiled
def spread(x, a, w):
    """Adds a_b w to every x_b of x (B, d)."""
    for b in range(x.shape[0]):
        own, shown = a[b], x[b]
        for j in range(w.shape[0]):
            shown[j] += own * w[j]


@compiled
def spread_two(x, a, w, c, v):
    """Adds a_b w + c_b v to every x_b."""
    for b in range(x.shape[0]):
        own, other, shown = a[b], c[b], x[b]
        for j in range(w.shape[0]):
            shown[j] += own * w[j] + other * v[j]


# With one example, x and its gradient are (d,) each. Where all synapses of a neuron have one
# plasticity, it goes with a and c instead, and most of the work is none.


@compiled
def learn_one(w, p, x, a, c):
    """Moves w."""
    for j in range(w.shape[0]):
        w[j] += p[j] * (a * x[j] - c * w[j])


@compiled
def learn_alike(w, x, a, c):
    """The same."""
    for j in range(w.shape[0]):
        w[j] += a * x[j] - c * w[j]


@compiled
def relearn_one(w, after, p, x, a, c):
    """Fills ``after`` with what w moves to."""
    for j in range(w.shape[0]):
        after[j] = w[j] + p[j] * (a * x[j] - c * w[j])


@compiled
def relearn_alike(w, after, x, a, c):
    """The same."""
    for j in range(w.shape[0]):
        after[j] = w[j] + (a * x[j] - c * w[j])


@summing
def ask_one(gw, p, x, w):
    """From the gradient gw of the moved w: those of a and c."""
    ga, gc = w.dtype.type(0), w.dtype.type(0)
    for j in range(w.shape[0]):
        m = gw[j] * p[j]
        ga += m * x[j]
        gc -= m * w[j]
    return ga, gc


@summing
def ask_alike(gw, x, w):
    """The same."""
    ga, gc = w.dtype.type(0), w.dtype.type(0)
    for j in range(w.shape[0]):
        ga += gw[j] * x[j]
        gc -= gw[j] * w[j]
    return ga, gc


@compiled
def tell_one(gw, p, x, w, a, c, gu, gp, gx):
    """What is left to do once the gradient gu of the potential is known: turns gw into the gradient
    of w before it moved, and adds those of p and x.
    """
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


@compiled
def tell_alike(gw, x, w, a, c, gu, gx):
    """Tells without p."""
    for j in range(w.shape[0]):
        g_w = gw[j]
        gx[j] += a * g_w + gu * w[j]
        gw[j] = g_w + gu * x[j] - c * g_w


@compiled
def tell_alike_below(gw, x, c, gu):
    """The same where nobody asks for the gradient of x."""
    for j in range(gw.shape[0]):
        gw[j] = gw[j] + gu * x[j] - c * gw[j]


# --- all synapses of a layer, w and its gradient (n, d): rows in pairs, which share what is read of
# x ---


@summing
def _dots_two(w, v, x, found, other):
    """Dots with both."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        zero = w.dtype.type(0)
        s0, s1, s2, s3 = zero, zero, zero, zero
        r0, r1, r2, r3 = zero, zero, zero, zero
        for j in range(w.shape[0]):
            s0 += w[j] * x0[j]
            s1 += w[j] * x1[j]
            s2 += w[j] * x2[j]
            s3 += w[j] * x3[j]
            r0 += v[j] * x0[j]
            r1 += v[j] * x1[j]
            r2 += v[j] * x2[j]
            r3 += v[j] * x3[j]
        found[b], found[b + 1], found[b + 2], found[b + 3] = s0, s1, s2, s3
        other[b], other[b + 1], other[b + 2], other[b + 3] = r0, r1, r2, r3
    for b in range(whole, x.shape[0]):
        found[b], other[b] = dot(w, x[b]), dot(v, x[b])


@compiled
def _gather_two(total, a, other, c, x):
    """Gathers both."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        a0, a1, a2, a3 = a[b], a[b + 1], a[b + 2], a[b + 3]
        c0, c1, c2, c3 = c[b], c[b + 1], c[b + 2], c[b + 3]
        for j in range(total.shape[0]):
            total[j] = total[j] + a0 * x0[j] + a1 * x1[j] + a2 * x2[j] + a3 * x3[j]
            other[j] = other[j] + c0 * x0[j] + c1 * x1[j] + c2 * x2[j] + c3 * x3[j]
    for b in range(whole, x.shape[0]):
        own, its, shown = a[b], c[b], x[b]
        for j in range(total.shape[0]):
            total[j] += own * shown[j]
            other[j] += its * shown[j]


@compiled
def products(w, x, found):
    """Fills found (n, B) with w_i . x_b."""
    whole = w.shape[0] - w.shape[0] % 2
    for i in range(0, whole, 2):
        _dots_two(w[i], w[i + 1], x, found[i], found[i + 1])
    if whole < w.shape[0]:
        dots(w[whole], x, found[whole])


@compiled
def collect(total, a, x):
    """Adds sum_b a_ib x_b to every row i of total (n, d)."""
    whole = total.shape[0] - total.shape[0] % 2
    for i in range(0, whole, 2):
        _gather_two(total[i], a[i], total[i + 1], a[i + 1], x)
    if whole < total.shape[0]:
        gather(total[whole], a[whole], x)


@compiled
def scatter(x, a, w):
    """Adds sum_i a_ib w_i to every x_b of x (B, d)."""
    whole = w.shape[0] - w.shape[0] % 2
    for i in range(0, whole, 2):
        spread_two(x, a[i], w[i], a[i + 1], w[i + 1])
    if whole < w.shape[0]:
        spread(x, a[whole], w[whole])


@compiled
def scatter_two(x, a, w, c, v):
    """Adds sum_i a_ib w_i + c_ib v_i to every x_b."""
    whole = w.shape[0] - w.shape[0] % 2
    for i in range(0, whole, 2):
        w0, w1, v0, v1 = w[i], w[i + 1], v[i], v[i + 1]
        for b in range(x.shape[0]):
            a0, a1, c0, c1, shown = a[i, b], a[i + 1, b], c[i, b], c[i + 1, b], x[b]
            for j in range(w.shape[1]):
                shown[j] = shown[j] + a0 * w0[j] + c0 * v0[j] + a1 * w1[j] + c1 * v1[j]
    if whole < w.shape[0]:
        spread_two(x, a[whole], w[whole], c[whole], v[whole])


# --- a layer at one presentation: learning, and its adjoint in two halves; the plasticity p is
# (n, d), or (n, 1) where all synapses of a neuron have one ---


@compiled
def _alike(p, w):
    """Whether they have."""
    return p.shape[1] < w.shape[1]


@within
def _forwards(code, w, bias, x, post, room):
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
def _learns(code, multiplier, w, p, mix, share, x, post, teaching, y, a, c, wanted):
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
def _relearns(code, multiplier, w, after, p, mix, share, x, post, teaching, y, a, c, wanted):
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
def _asks(
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
def _tells(code, gw, p, w, x, post, a, c, gy, gu, gp, g_bias, gx, with_x, moved):
    """Turns gw into the gradient of the weights before they moved; adds to gp, g_bias (n,), and gx
    (B, d) where asked."""
    for i in range(w.shape[0]):
        for b in range(x.shape[0]):
            gu[i, b] += gy[i, b] * slope(code.activation, post[b, i])
        g_bias[i] += _sum(gu[i])
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
            scatter_two(gx, a, moved, gu, w)
        collect(gw, gu, x)


# --- neuron by neuron ---


@compiled
def _own(e, tensor):
    """The index of an episode's own part, 0 where all share one."""
    return e if tensor.shape[0] > 1 else 0


@compiled
def forward_rows(
    code, multiplier, segment, blocks, first, last, keep,
    weight, plasticity, mix, bias, share, x, teaching, final, kept, post, room, y, a, c, wanted,
):  # fmt: skip
    """Episodes and blocks of neurons ``first`` to ``last``. Given: weight, plasticity (E, n, d),
    mix, bias (E, n), share (E, T, B), x (E, T, B, d), teaching (E, T, n, B); filled: final (E, n,
    d), kept (E, S, n, d) where asked and post (E, T, B, n); the rest is room for a group of
    neurons: room, a (G, B), c (G,), wanted (G, d), and y (B,).
    """
    presentations, n, group = x.shape[1], final.shape[1], c.shape[0]
    for item in range(first, last):
        e, block = item // blocks, item % blocks
        begins, p_e = borrowed(weight)[_own(e, weight)], borrowed(plasticity)[_own(e, plasticity)]
        mix_e, bias_e = borrowed(mix)[_own(e, mix)], borrowed(bias)[_own(e, bias)]
        share_e, x_e, taught_e = (
            borrowed(share)[_own(e, share)],
            borrowed(x)[e],
            borrowed(teaching)[e],
        )
        final_e, post_e = borrowed(final)[e], borrowed(post)[e]
        top = (block + 1) * n // blocks
        for begin in range(0, presentations, segment):
            for low in range(block * n // blocks, top, group):
                high = min(low + group, top)
                w = final_e[low:high]
                if begin == 0:
                    w[:, :] = begins[low:high]
                if keep:
                    borrowed(kept)[e, begin // segment][low:high, :] = w
                p, mixing, potential = p_e[low:high], mix_e[low:high], bias_e[low:high]
                for t in range(begin, min(presentations, begin + segment)):
                    seen = post_e[t][:, low:high]
                    _forwards(code, w, potential, x_e[t], seen, borrowed(room))
                    _learns(
                        code, multiplier, w, p, mixing, share_e[t], x_e[t], seen,
                        taught_e[t][low:high], borrowed(y), borrowed(a), borrowed(c),
                        borrowed(wanted)[: high - low],
                    )  # fmt: skip


@compiled
def backward_rows(
    code, multiplier, segment, blocks, first, last, with_post, with_x,
    plasticity, mix, share, x, teaching, kept, post, g_post,
    gw, gp, g_mix, g_bias, g_teaching, gx, rows, wanted, a, c, gy, gu, ga, moved, y,
):  # fmt: skip
    """The adjoint of ``forward_rows``. gw (E, n, d) comes as the gradient of ``final`` and leaves
    as that of the weights; gp, g_mix, g_bias and gx (blocks, E, T, B, d) are added to, g_teaching
    is filled; the rest is room: rows (segment + 1, G, d), wanted (segment, G, d), a (segment, G,
    B), c (segment, G), gy, gu, ga (G, B), moved (G, d) and y (B,).
    """
    presentations, n, group = x.shape[1], gw.shape[1], c.shape[1]
    for item in range(first, last):
        e, block = item // blocks, item % blocks
        p_e, mix_e = borrowed(plasticity)[_own(e, plasticity)], borrowed(mix)[_own(e, mix)]
        share_e, x_e, taught_e = (
            borrowed(share)[_own(e, share)],
            borrowed(x)[e],
            borrowed(teaching)[e],
        )
        post_e, g_taught_e, gw_e = borrowed(post)[e], borrowed(g_teaching)[e], borrowed(gw)[e]
        gp_e, g_mix_e, g_bias_e = borrowed(gp)[e], borrowed(g_mix)[e], borrowed(g_bias)[e]
        # Of no effect where there is no gradient to add.
        g_post_e = borrowed(g_post)[e] if with_post else x_e
        gx_e = borrowed(gx)[block, e] if with_x else x_e
        top = (block + 1) * n // blocks
        for s in range((presentations + segment - 1) // segment - 1, -1, -1):
            begin = s * segment
            end = min(presentations, begin + segment)
            for low in range(block * n // blocks, top, group):
                high = min(low + group, top)
                count = high - low
                p, mixing = p_e[low:high], mix_e[low:high]
                g_w, g_p, g_m = gw_e[low:high], gp_e[low:high], g_mix_e[low:high]
                g_b = g_bias_e[low:high]
                history, want = borrowed(rows), borrowed(wanted)
                history[0][:count, :] = borrowed(kept)[e, s][low:high]
                for t in range(begin, end):
                    q = t - begin
                    _relearns(
                        code, multiplier, history[q][:count], history[q + 1][:count], p, mixing,
                        share_e[t], x_e[t], post_e[t][:, low:high], taught_e[t][low:high],
                        borrowed(y), borrowed(a)[q], borrowed(c)[q],
                        want[q if x.shape[2] > 1 else 0][:count],
                    )  # fmt: skip
                for t in range(end - 1, begin - 1, -1):
                    q = t - begin
                    w, seen, g_y, g_u = (
                        history[q][:count],
                        post_e[t][:, low:high],
                        borrowed(gy),
                        borrowed(gu),
                    )
                    g_y[:, :] = 0
                    if with_post:
                        for b in range(x.shape[2]):
                            for r in range(count):
                                g_y[r, b] = g_post_e[t, b, low + r]
                    _asks(
                        code, multiplier, g_w, p, w, mixing, share_e[t], x_e[t], seen,
                        taught_e[t][low:high], borrowed(a)[q],
                        borrowed(c)[q], want[q if x.shape[2] > 1 else 0], g_p,
                        g_taught_e[t][low:high], g_y, g_u, g_m, borrowed(y), borrowed(ga),
                        borrowed(moved)[:count],
                    )  # fmt: skip
                    _tells(
                        code, g_w, p, w, x_e[t], seen, borrowed(a)[q], borrowed(c)[q], g_y, g_u,
                        g_p, g_b, gx_e[t], with_x, borrowed(moved)[:count],
                    )  # fmt: skip


# --- presentation by presentation ---


@compiled
def _error(classes, scale, output, target, error):
    """Fills error (B, K): target - output, or target - softmax, times scale."""
    for b in range(output.shape[0]):
        if not classes:
            for k in range(output.shape[1]):
                error[b, k] = scale * (target[b, k] - output[b, k])
            continue
        top = output[b].max()
        for k in range(output.shape[1]):
            error[b, k] = np.exp(output[b, k] - top)
        total = _sum(error[b])
        for k in range(output.shape[1]):
            error[b, k] = scale * (target[b, k] - error[b, k] / total)


@summing
def _mean(scale, error, target, g_error):
    """Of the gradient, by the shares of the softmax."""
    mean = error.dtype.type(0)
    for k in range(error.shape[0]):
        mean += (target[k] - error[k] / scale) * g_error[k]
    return mean


@compiled
def _error_adjoint(classes, scale, error, target, g_error, g_post):
    """Adds to g_post (n, B) what the error makes of the output."""
    for b in range(error.shape[0]):
        if not classes:
            for k in range(error.shape[1]):
                g_post[k, b] -= scale * g_error[b, k]
            continue
        mean = _mean(scale, error[b], target[b], g_error[b])
        for k in range(error.shape[1]):
            share = target[b, k] - error[b, k] / scale
            g_post[k, b] -= scale * share * (g_error[b, k] - mean)


@compiled
def _taught(feedback, error, teaching):
    """Fills teaching (n, B) with what feedback (n, K) makes of the error (B, K)."""
    products(feedback, error, teaching)


@compiled
def _taught_adjoint(feedback, error, g_teaching, g_feedback, g_error):
    """The adjoint of it: adds to g_feedback (n, K) and g_error (B, K)."""
    collect(g_feedback, g_teaching, error)
    scatter(g_error, g_teaching, feedback)


@compiled
def _sent_down(code, w, post, teaching, sent, below, room):
    """The error at the potentials, sent (n, B), through w as the teaching signal below (d, B)."""
    room[:] = 0
    for i in range(w.shape[0]):
        for b in range(post.shape[0]):
            sent[i, b] = teaching[i, b] * slope(code.activation, post[b, i])
    scatter(room, sent, w)
    for j in range(below.shape[0]):
        for b in range(post.shape[0]):
            below[j, b] = room[b, j]


@compiled
def _sent_down_adjoint(code, w, post, teaching, g_below, g_teaching, gu, room, sent, g_sent):
    """From the gradient of the teaching signal below, (d, B), turned round into room (B, d): adds
    those of teaching signal and potential, (n, B) each; fills sent as ``_sent_down`` does, and
    g_sent."""
    for j in range(g_below.shape[0]):
        for b in range(post.shape[0]):
            room[b, j] = g_below[j, b]
    products(w, room, g_sent)
    for i in range(w.shape[0]):
        for b in range(post.shape[0]):
            y = post[b, i]
            sent[i, b] = teaching[i, b] * slope(code.activation, y)
            g_teaching[i, b] += g_sent[i, b] * slope(code.activation, y)
            gu[i, b] += g_sent[i, b] * teaching[i, b] * bend(code.activation, y)


@compiled
def _turned(rows, columns):
    """Adds (B, d) to (d, B)."""
    for b in range(rows.shape[0]):
        for j in range(columns.shape[0]):
            columns[j, b] += rows[b, j]


@compiled
def forward_steps(
    codes, multipliers, descends, clamped, classes, segment, e, keep,
    weight, plasticity, mix, bias, share, feedback, scale, x, target,
    final, kept, post, teaching, error, sent, room, y, c, wanted,
):  # fmt: skip
    """One episode e through the stream. By layer, in tuples: weight, plasticity (E, n, d), mix,
    bias (E, n), share (E, T, B), feedback (E, n, K); what is filled: final (E, n, d), kept
    (E, S, n, d) where asked, post (E, T, B, n) and teaching (E, T, n, B). Also error (E, T, B, K).
    """
    layers, presentations, last = len(final), x.shape[1], len(final) - 1
    for at in range(layers):
        final[at][e, :, :] = weight[at][_own(e, weight[at])]
    for t in range(presentations):
        for at in range(layers):
            w = borrowed(final[at])[e]
            if keep and t % segment == 0:
                borrowed(kept[at])[e, t // segment, :, :] = w
            shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
            own_bias = borrowed(bias[at])[_own(e, bias[at])]
            _forwards(codes[at], w, own_bias, shown, borrowed(post[at])[e, t], borrowed(sent[at]))
        missing = borrowed(error)[e, t]
        _error(
            classes, scale[_own(e, scale), t], borrowed(post[last])[e, t], borrowed(target)[e, t],
            missing,
        )  # fmt: skip
        for at in range(layers - 1, -1, -1):
            taught = borrowed(teaching[at])[e, t]
            if at == last and (descends or clamped):
                for k in range(taught.shape[0]):
                    for b in range(taught.shape[1]):
                        taught[k, b] = missing[b, k]
            elif not descends:
                _taught(borrowed(feedback[at])[_own(e, feedback[at])], missing, taught)
            if descends and at > 0:
                _sent_down(
                    codes[at], borrowed(final[at])[e], borrowed(post[at])[e, t], taught,
                    borrowed(sent[at]), borrowed(teaching[at - 1])[e, t], borrowed(room[at]),
                )  # fmt: skip
        for at in range(layers):
            shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
            _learns(
                codes[at], multipliers[at], borrowed(final[at])[e],
                borrowed(plasticity[at])[_own(e, plasticity[at])],
                borrowed(mix[at])[_own(e, mix[at])],
                borrowed(share[at])[_own(e, share[at]), t], shown, borrowed(post[at])[e, t],
                borrowed(teaching[at])[e, t], y, borrowed(sent[at]), borrowed(c[at]),
                borrowed(wanted[at]),
            )  # fmt: skip


@compiled
def backward_steps(
    codes, multipliers, descends, clamped, classes, segment, e, with_x,
    plasticity, mix, share, feedback, scale, x, target, kept, post, teaching, error,
    gw, gp, g_mix, g_bias, g_feedback, gx,
    rows, wanted, a, c, g_teaching, gy, gu, ga, sent, room, g_shown, moved, g_error, y,
):  # fmt: skip
    """The adjoint of ``forward_steps``. gw (E, n, d) of every layer comes as the gradient of
    ``final`` and leaves as that of the weights; gp (E, n, d), g_mix, g_bias (E, n), g_feedback
    (E, n, K) and gx (E, T, B, d) are added to; the rest is room to work in: by layer rows
    (segment + 1, n, d), wanted (segment, n, d), a (segment, n, B), c (segment, n), g_teaching, gy,
    gu, ga, sent (n, B), room, g_shown (B, d), moved (n, d); also g_error (B, K) and y (B,).
    """
    layers, presentations, last = len(gw), x.shape[1], len(gw) - 1
    for s in range((presentations + segment - 1) // segment - 1, -1, -1):
        begin = s * segment
        end = min(presentations, begin + segment)
        for at in range(layers):
            history = borrowed(rows[at])
            history[0, :, :] = kept[at][e, s]
            own_p, own_m = _own(e, plasticity[at]), _own(e, mix[at])
            for t in range(begin, end):
                q = t - begin
                shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
                _relearns(
                    codes[at], multipliers[at], history[q], history[q + 1],
                    borrowed(plasticity[at])[own_p], borrowed(mix[at])[own_m],
                    borrowed(share[at])[_own(e, share[at]), t], shown, borrowed(post[at])[e, t],
                    borrowed(teaching[at])[e, t], y, borrowed(a[at])[q], borrowed(c[at])[q],
                    borrowed(wanted[at])[q if x.shape[2] > 1 else 0],
                )  # fmt: skip
        for t in range(end - 1, begin - 1, -1):
            q = t - begin
            missing = borrowed(error)[e, t]
            for at in range(layers):
                shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
                g_y = borrowed(gy[at])
                g_y[:, :] = 0
                _asks(
                    codes[at], multipliers[at], borrowed(gw[at])[e],
                    borrowed(plasticity[at])[_own(e, plasticity[at])], borrowed(rows[at])[q],
                    borrowed(mix[at])[_own(e, mix[at])], borrowed(share[at])[_own(e, share[at]), t],
                    shown, borrowed(post[at])[e, t], borrowed(teaching[at])[e, t],
                    borrowed(a[at])[q], borrowed(c[at])[q],
                    borrowed(wanted[at])[q if x.shape[2] > 1 else 0], borrowed(gp[at])[e],
                    borrowed(g_teaching[at]), g_y,
                    borrowed(gu[at]), borrowed(g_mix[at])[e], y, borrowed(ga[at]),
                    borrowed(moved[at]),
                )  # fmt: skip
            g_error[:, :] = 0
            for at in range(layers):
                taught = borrowed(g_teaching[at])
                if descends and at > 0:
                    _sent_down_adjoint(
                        codes[at], borrowed(rows[at])[q], borrowed(post[at])[e, t],
                        borrowed(teaching[at])[e, t], borrowed(g_teaching[at - 1]), taught,
                        borrowed(gu[at]), borrowed(room[at]), borrowed(sent[at]), borrowed(ga[at]),
                    )  # fmt: skip
                if at == last and (descends or clamped):
                    for k in range(taught.shape[0]):
                        for b in range(taught.shape[1]):
                            g_error[b, k] += taught[k, b]
                elif not descends:
                    _taught_adjoint(
                        borrowed(feedback[at])[_own(e, feedback[at])], missing, taught,
                        borrowed(g_feedback[at])[e], g_error,
                    )  # fmt: skip
            _error_adjoint(
                classes, scale[_own(e, scale), t], missing, borrowed(target)[e, t], g_error,
                borrowed(gy[last]),
            )  # fmt: skip
            for at in range(layers - 1, -1, -1):
                shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
                hidden = at > 0
                below = borrowed(gx)[e, t] if not hidden and with_x else borrowed(g_shown[at])
                if hidden:
                    below[:, :] = 0
                _tells(
                    codes[at], borrowed(gw[at])[e],
                    borrowed(plasticity[at])[_own(e, plasticity[at])],
                    borrowed(rows[at])[q], shown, borrowed(post[at])[e, t], borrowed(a[at])[q],
                    borrowed(c[at])[q], borrowed(gy[at]), borrowed(gu[at]), borrowed(gp[at])[e],
                    borrowed(g_bias[at])[e], below, hidden or with_x, borrowed(moved[at]),
                )  # fmt: skip
                if hidden:
                    _turned(below, borrowed(gy[at - 1]))
                if hidden and descends:
                    # What the errors that went through the weights make of them.
                    collect(borrowed(gw[at])[e], borrowed(sent[at]), borrowed(room[at]))
