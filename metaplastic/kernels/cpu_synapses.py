"""Synapses: of one row, w and its gradient (d,), and of a layer's, (n, d), compiled for a CPU.

x and its gradient are (B, d).
"""

from __future__ import annotations

from metaplastic.kernels.cpu_compiler import compiled, summing


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


# Of a layer: rows together, which share what is read of x.


@summing
def _dots_three(w, v, u, x, found, other, last):
    """Dots with all three."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        zero = w.dtype.type(0)
        s0, s1, s2, s3 = zero, zero, zero, zero
        r0, r1, r2, r3 = zero, zero, zero, zero
        q0, q1, q2, q3 = zero, zero, zero, zero
        for j in range(w.shape[0]):
            s0 += w[j] * x0[j]
            s1 += w[j] * x1[j]
            s2 += w[j] * x2[j]
            s3 += w[j] * x3[j]
            r0 += v[j] * x0[j]
            r1 += v[j] * x1[j]
            r2 += v[j] * x2[j]
            r3 += v[j] * x3[j]
            q0 += u[j] * x0[j]
            q1 += u[j] * x1[j]
            q2 += u[j] * x2[j]
            q3 += u[j] * x3[j]
        found[b], found[b + 1], found[b + 2], found[b + 3] = s0, s1, s2, s3
        other[b], other[b + 1], other[b + 2], other[b + 3] = r0, r1, r2, r3
        last[b], last[b + 1], last[b + 2], last[b + 3] = q0, q1, q2, q3
    for b in range(whole, x.shape[0]):
        found[b], other[b], last[b] = dot(w, x[b]), dot(v, x[b]), dot(u, x[b])


@compiled
def _gather_two(total, a, other, c, x):
    """Gathers both."""
    whole = x.shape[0] - x.shape[0] % 4
    for b in range(0, whole, 4):
        x0, x1, x2, x3 = x[b], x[b + 1], x[b + 2], x[b + 3]
        a0, a1, a2, a3 = a[b], a[b + 1], a[b + 2], a[b + 3]
        c0, c1, c2, c3 = c[b], c[b + 1], c[b + 2], c[b + 3]
        for j in range(total.shape[0]):
            y0, y1, y2, y3 = x0[j], x1[j], x2[j], x3[j]
            total[j] = total[j] + a0 * y0 + a1 * y1 + a2 * y2 + a3 * y3
            other[j] = other[j] + c0 * y0 + c1 * y1 + c2 * y2 + c3 * y3
    for b in range(whole, x.shape[0]):
        own, its, shown = a[b], c[b], x[b]
        for j in range(total.shape[0]):
            total[j] += own * shown[j]
            other[j] += its * shown[j]


@compiled
def products(w, x, found):
    """Fills found (n, B) with w_i . x_b."""
    whole = w.shape[0] - w.shape[0] % 3
    for i in range(0, whole, 3):
        _dots_three(w[i], w[i + 1], w[i + 2], x, found[i], found[i + 1], found[i + 2])
    for i in range(whole, w.shape[0]):
        dots(w[i], x, found[i])


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
    """Adds sum_i a_ib w_i to every x_b of x (B, d); to two of them at a time."""
    whole, last = w.shape[0] - w.shape[0] % 4, x.shape[0] - 1
    for i in range(0, whole, 4):
        w0, w1, w2, w3 = w[i], w[i + 1], w[i + 2], w[i + 3]
        for b in range(0, last, 2):
            a0, a1, a2, a3 = a[i, b], a[i + 1, b], a[i + 2, b], a[i + 3, b]
            c0, c1, c2, c3 = a[i, b + 1], a[i + 1, b + 1], a[i + 2, b + 1], a[i + 3, b + 1]
            shown, other = x[b], x[b + 1]
            for j in range(w.shape[1]):
                v0, v1, v2, v3 = w0[j], w1[j], w2[j], w3[j]
                shown[j] = shown[j] + a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                other[j] = other[j] + c0 * v0 + c1 * v1 + c2 * v2 + c3 * v3
        if last % 2 == 0:
            for r in range(i, i + 4):
                spread(x[last:], a[r, last:], w[r])
    for i in range(whole, w.shape[0]):
        spread(x, a[i], w[i])
