"""All layers through the stream together, presentation by presentation, compiled for a CPU."""

from __future__ import annotations

import numpy as np

from metaplastic.kernels.cpu_compiler import borrowed, compiled, entry, summing
from metaplastic.kernels.cpu_layers import asks, forwards, learns, part, relearns, tells
from metaplastic.kernels.cpu_neurons import bend, slope, summed
from metaplastic.kernels.cpu_synapses import collect, products, scatter


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
        total = summed(error[b])
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


@entry
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
        final[at][e, :, :] = part(weight[at], e)
    for t in range(presentations):
        for at in range(layers):
            w = borrowed(final[at])[e]
            if keep and t % segment == 0:
                borrowed(kept[at])[e, t // segment, :, :] = w
            shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
            own_bias = part(bias[at], e)
            forwards(codes[at], w, own_bias, shown, borrowed(post[at])[e, t], borrowed(sent[at]))
        missing = borrowed(error)[e, t]
        _error(
            classes, part(scale, e)[t], borrowed(post[last])[e, t], borrowed(target)[e, t],
            missing,
        )  # fmt: skip
        for at in range(layers - 1, -1, -1):
            taught = borrowed(teaching[at])[e, t]
            if at == last and (descends or clamped):
                for k in range(taught.shape[0]):
                    for b in range(taught.shape[1]):
                        taught[k, b] = missing[b, k]
            elif not descends:
                _taught(part(feedback[at], e), missing, taught)
            if descends and at > 0:
                _sent_down(
                    codes[at], borrowed(final[at])[e], borrowed(post[at])[e, t], taught,
                    borrowed(sent[at]), borrowed(teaching[at - 1])[e, t], borrowed(room[at]),
                )  # fmt: skip
        for at in range(layers):
            shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
            learns(
                codes[at], multipliers[at], borrowed(final[at])[e],
                part(plasticity[at], e),
                part(mix[at], e),
                part(share[at], e)[t], shown, borrowed(post[at])[e, t],
                borrowed(teaching[at])[e, t], y, borrowed(sent[at]), borrowed(c[at]),
                borrowed(wanted[at]),
            )  # fmt: skip


@entry
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
            p, mixing = part(plasticity[at], e), part(mix[at], e)
            for t in range(begin, end):
                q = t - begin
                shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
                relearns(
                    codes[at], multipliers[at], history[q], history[q + 1],
                    p, mixing,
                    part(share[at], e)[t], shown, borrowed(post[at])[e, t],
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
                asks(
                    codes[at], multipliers[at], borrowed(gw[at])[e],
                    part(plasticity[at], e), borrowed(rows[at])[q],
                    part(mix[at], e), part(share[at], e)[t],
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
                        part(feedback[at], e), missing, taught,
                        borrowed(g_feedback[at])[e], g_error,
                    )  # fmt: skip
            _error_adjoint(
                classes, part(scale, e)[t], missing, borrowed(target)[e, t], g_error,
                borrowed(gy[last]),
            )  # fmt: skip
            for at in range(layers - 1, -1, -1):
                shown = borrowed(x)[e, t] if at == 0 else borrowed(post[at - 1])[e, t]
                hidden = at > 0
                below = borrowed(gx)[e, t] if not hidden and with_x else borrowed(g_shown[at])
                if hidden:
                    below[:, :] = 0
                tells(
                    codes[at], borrowed(gw[at])[e],
                    part(plasticity[at], e),
                    borrowed(rows[at])[q], shown, borrowed(post[at])[e, t], borrowed(a[at])[q],
                    borrowed(c[at])[q], borrowed(gy[at]), borrowed(gu[at]), borrowed(gp[at])[e],
                    borrowed(g_bias[at])[e], below, hidden or with_x, borrowed(moved[at]),
                )  # fmt: skip
                if hidden:
                    _turned(below, borrowed(gy[at - 1]))
                if hidden and descends:
                    # What the errors that went through the weights make of them.
                    collect(borrowed(gw[at])[e], borrowed(sent[at]), borrowed(room[at]))
