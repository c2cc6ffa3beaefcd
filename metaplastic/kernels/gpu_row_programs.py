"""One program's work in gpu_rows: a neuron of an episode through all presentations, and back."""

from __future__ import annotations

import triton
import triton.language as tl

from metaplastic.kernels.gpu_neuron import (
    activity,
    factors,
    factors_adjoint,
    signal,
    signal_adjoint,
)


@triton.jit
def _examples(x, teaching, share, row, own_row, k, i, columns, B, n, d, BLOCK_B: tl.constexpr):
    """The k-th block of a presentation's examples: their places in (E T B), which of them there
    are, their inputs (BLOCK_B, BLOCK_D), teaching signals and shares, 0 where there is no example.
    """
    b = k * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = b < B
    place = row * B + b
    wanted = inside[:, None] & (columns < d)[None, :]
    xs = tl.load(x + place[:, None] * d + columns[None, :], mask=wanted, other=0.0)
    r = tl.load(teaching + place * n + i, mask=inside, other=0.0)
    s = tl.load(share + own_row * B + b, mask=inside, other=0.0)
    return place, inside, xs, r, s


@triton.jit
def forward(
    weight, plasticity, mix, bias, share, x, teaching, final, post, kept,
    weight_step, plasticity_step, mix_step, bias_step, share_step,  # 0 where all share one
    T, B, n, d, segment,
    ACTIVATION: tl.constexpr, FAMILY: tl.constexpr, BOUNDED: tl.constexpr, TARGET: tl.constexpr,
    DERIVATIVE: tl.constexpr, MULTIPLIER: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Fills final (E, n, d), post (E, T, B, n) and, where it is not None, kept (E, S, n, d)."""
    item = tl.program_id(0).to(tl.int64)
    e, i = item // n, item % n
    columns = tl.arange(0, BLOCK_D)
    inside_d = columns < d
    w = tl.load(weight + e * weight_step + i * d + columns, mask=inside_d, other=0.0)
    p = tl.load(plasticity + e * plasticity_step + i * d + columns, mask=inside_d, other=0.0)
    own_mix = tl.load(mix + e * mix_step + i)
    own_bias = tl.load(bias + e * bias_step + i)
    own_share = e * share_step
    nothing, zero = tl.zeros_like(w), tl.zeros_like(own_mix)
    for t in range(T):
        if kept is not None:
            if t % segment == 0:
                row = (e * tl.cdiv(T, segment) + t // segment) * n + i
                tl.store(kept + row * d + columns, w, mask=inside_d)
        total = nothing
        energy = zero
        for k in range(BLOCKS):
            place, inside, xs, r, s = _examples(
                x, teaching, share, e * T + t, own_share + t, k, i, columns,
                B, n, d, BLOCK_B,
            )  # fmt: skip
            y = activity(tl.sum(w[None, :] * xs, axis=1) + own_bias, ACTIVATION)
            tl.store(post + place * n + i, y, mask=inside)
            v, z = signal(y, r, s, own_mix, ACTIVATION, FAMILY, TARGET, DERIVATIVE)
            total += tl.sum(v[:, None] * xs, axis=0)
            energy += tl.sum(v * z, axis=0)
        f, c = factors(energy, MULTIPLIER, FAMILY, BOUNDED)
        w += p * (f * total - c * w)
    tl.store(final + item * d + columns, w, mask=inside_d)


@triton.jit(do_not_specialize=["first"])
def backward(
    plasticity, mix, share, x, teaching, kept, post, history, grad_final, grad_post,
    g_weight, g_plasticity, g_mix, g_bias, g_teaching, g_x,
    plasticity_step, mix_step, share_step, first, T, B, n, d, segment,
    ACTIVATION: tl.constexpr, FAMILY: tl.constexpr, BOUNDED: tl.constexpr, TARGET: tl.constexpr,
    DERIVATIVE: tl.constexpr, MULTIPLIER: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Fills all g_*, adds to g_x where it is not None; the first program takes row ``first``."""
    item = (first + tl.program_id(0)).to(tl.int64)
    e, i = item // n, item % n
    columns = tl.arange(0, BLOCK_D)
    inside_d = columns < d
    past = history + tl.program_id(0).to(tl.int64) * segment * d + columns
    p = tl.load(plasticity + e * plasticity_step + i * d + columns, mask=inside_d, other=0.0)
    own_mix = tl.load(mix + e * mix_step + i)
    own_share = e * share_step
    gw = tl.load(grad_final + item * d + columns, mask=inside_d, other=0.0)
    nothing, zero = tl.zeros_like(gw), tl.zeros_like(own_mix)
    gp, gm, gb = nothing, zero, zero
    segments = tl.cdiv(T, segment)
    for back in range(segments):
        begin = (segments - 1 - back) * segment
        length = tl.minimum(segment, T - begin)
        row = (e * segments + segments - 1 - back) * n + i
        w = tl.load(kept + row * d + columns, mask=inside_d, other=0.0)
        # Threads read what others of their program wrote.
        tl.debug_barrier()
        for q in range(length):
            tl.store(past + q * d, w, mask=inside_d)
            total = nothing
            energy = zero
            for k in range(BLOCKS):
                place, inside, xs, r, s = _examples(
                    x, teaching, share, e * T + begin + q, own_share + begin + q, k, i, columns,
                    B, n, d, BLOCK_B,
                )  # fmt: skip
                y = tl.load(post + place * n + i, mask=inside, other=0.0)
                v, z = signal(y, r, s, own_mix, ACTIVATION, FAMILY, TARGET, DERIVATIVE)
                total += tl.sum(v[:, None] * xs, axis=0)
                energy += tl.sum(v * z, axis=0)
            f, c = factors(energy, MULTIPLIER, FAMILY, BOUNDED)
            w += p * (f * total - c * w)
        tl.debug_barrier()
        for ahead in range(length):
            q = length - 1 - ahead
            w = tl.load(past + q * d, mask=inside_d, other=0.0)
            gd = gw * p
            total = nothing
            energy = zero
            gf = zero
            for k in range(BLOCKS):
                place, inside, xs, r, s = _examples(
                    x, teaching, share, e * T + begin + q, own_share + begin + q, k, i, columns,
                    B, n, d, BLOCK_B,
                )  # fmt: skip
                y = tl.load(post + place * n + i, mask=inside, other=0.0)
                v, z = signal(y, r, s, own_mix, ACTIVATION, FAMILY, TARGET, DERIVATIVE)
                total += tl.sum(v[:, None] * xs, axis=0)
                energy += tl.sum(v * z, axis=0)
                gf += tl.sum(v * tl.sum(gd[None, :] * xs, axis=1), axis=0)
            f, c = factors(energy, MULTIPLIER, FAMILY, BOUNDED)
            gc = tl.sum(-gd * w, axis=0)
            ge = factors_adjoint(energy, f, gf, gc, FAMILY, BOUNDED)
            gp += gw * (f * total - c * w)
            gw -= c * gd
            for k in range(BLOCKS):
                place, inside, xs, r, s = _examples(
                    x, teaching, share, e * T + begin + q, own_share + begin + q, k, i, columns,
                    B, n, d, BLOCK_B,
                )  # fmt: skip
                y = tl.load(post + place * n + i, mask=inside, other=0.0)
                gv = f * tl.sum(gd[None, :] * xs, axis=1)
                if grad_post is None:
                    gy = tl.zeros_like(y)
                else:
                    gy = tl.load(grad_post + place * n + i, mask=inside, other=0.0)
                gu, gr, one_mix = signal_adjoint(
                    y, r, s, own_mix, gv, ge, gy, ACTIVATION, FAMILY, TARGET, DERIVATIVE
                )
                tl.store(g_teaching + place * n + i, gr, mask=inside)
                gm += tl.sum(one_mix, axis=0)
                gb += tl.sum(gu, axis=0)
                gw += tl.sum(gu[:, None] * xs, axis=0)
                if g_x is not None:
                    v, z = signal(y, r, s, own_mix, ACTIVATION, FAMILY, TARGET, DERIVATIVE)
                    one_x = (f * v)[:, None] * gd[None, :] + gu[:, None] * w[None, :]
                    at = g_x + place[:, None] * d + columns[None, :]
                    wanted = inside[:, None] & inside_d[None, :]
                    tl.atomic_add(at, one_x, mask=wanted, sem="relaxed")
    tl.store(g_weight + item * d + columns, gw, mask=inside_d)
    tl.store(g_plasticity + item * d + columns, gp, mask=inside_d)
    tl.store(g_mix + item, gm)
    tl.store(g_bias + item, gb)
