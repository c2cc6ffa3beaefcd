"""Neuron by neuron through the whole stream, compiled for a CPU."""

from __future__ import annotations

from metaplastic.kernels.cpu_compiler import borrowed, entry
from metaplastic.kernels.cpu_layers import asks, forwards, learns, part, relearns, tells


@entry
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
        begins, p_e = part(weight, e), part(plasticity, e)
        mix_e, bias_e = part(mix, e), part(bias, e)
        share_e, x_e, taught_e = part(share, e), borrowed(x)[e], borrowed(teaching)[e]
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
                    forwards(code, w, potential, x_e[t], seen, borrowed(room))
                    learns(
                        code, multiplier, w, p, mixing, share_e[t], x_e[t], seen,
                        taught_e[t][low:high], borrowed(y), borrowed(a), borrowed(c),
                        borrowed(wanted)[: high - low],
                    )  # fmt: skip


@entry
def backward_rows(
    code, multiplier, segment, blocks, first, last, with_post, with_x,
    plasticity, mix, share, x, teaching, kept, post, g_post,
    gw, gp, g_mix, g_bias, g_teaching, gx, rows, wanted, a, c, gy, gu, ga, moved, y,
):  # fmt: skip
    """The adjoint of ``forward_rows``. gw (E, n, d) comes as the gradient of ``final`` and leaves
    as that of the weights; gp and g_teaching are filled, g_mix, g_bias and gx (blocks, E, T, B, d)
    are added to; the rest is room: rows (segment + 1, G, d), wanted (segment, G, d), a (segment, G,
    B), c (segment, G), gy, gu, ga (G, B), moved (G, d) and y (B,).
    """
    presentations, n, group = x.shape[1], gw.shape[1], c.shape[1]
    for item in range(first, last):
        e, block = item // blocks, item % blocks
        p_e, mix_e = part(plasticity, e), part(mix, e)
        share_e, x_e, taught_e = part(share, e), borrowed(x)[e], borrowed(teaching)[e]
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
                if end == presentations:
                    g_p[:, :] = 0
                history, want = borrowed(rows), borrowed(wanted)
                history[0][:count, :] = borrowed(kept)[e, s][low:high]
                for t in range(begin, end):
                    q = t - begin
                    relearns(
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
                    asks(
                        code, multiplier, g_w, p, w, mixing, share_e[t], x_e[t], seen,
                        taught_e[t][low:high], borrowed(a)[q],
                        borrowed(c)[q], want[q if x.shape[2] > 1 else 0], g_p,
                        g_taught_e[t][low:high], g_y, g_u, g_m, borrowed(y), borrowed(ga),
                        borrowed(moved)[:count],
                    )  # fmt: skip
                    tells(
                        code, g_w, p, w, x_e[t], seen, borrowed(a)[q], borrowed(c)[q], g_y, g_u,
                        g_p, g_b, gx_e[t], with_x, borrowed(moved)[:count],
                    )  # fmt: skip
