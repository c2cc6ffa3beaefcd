"""One program's work in gpu_steps: all layers of an episode through the whole stream, and back."""

from __future__ import annotations

import triton

from metaplastic.kernels.gpu_language import constexpr, tl
from metaplastic.kernels.gpu_layers import (
    activate,
    asked,
    learn,
    learn_adjoint,
    send_down,
    send_down_adjoint,
    shown,
    shown_adjoint,
    signals,
    signals_adjoint,
)
from metaplastic.kernels.gpu_neuron import slope
from metaplastic.kernels.gpu_output import miss, miss_adjoint
from metaplastic.kernels.gpu_tiles import collect, copy, multiply, read, spread, write


@triton.jit
def _keep(weight, kept, e, s, segments, n, d, BLOCKS: constexpr):
    """Sets those kept of segment s."""
    copy(weight + e * n * d, kept + (e * segments + s) * n * d, n, d, BLOCKS)


@triton.jit
def forward(layers, kept, target, scale, error, T, B, segment, HOW: constexpr, BLOCKS: constexpr):
    """Moves the layers' weights; fills their activity and teaching signals, error (E, T, B, K) and,
    where they are not None, kept (E, S, n, d) by layer.
    """
    e = tl.program_id(0).to(tl.int64)
    LAYERS: constexpr = len(HOW.codes)
    LAST: constexpr = LAYERS - 1
    K = layers[LAST].n
    for t in range(T):
        row = (e * T + t) * B
        missing = error + row * K
        if kept is not None:
            if t % segment == 0:
                for at in tl.static_range(LAYERS):
                    _keep(
                        layers[at].weight, kept[at], e, t // segment, tl.cdiv(T, segment),
                        layers[at].n, layers[at].d, BLOCKS,
                    )  # fmt: skip
        for at in tl.static_range(LAYERS):
            activate(shown(layers[at], e, e, row, B), B, HOW.codes[at], BLOCKS)
        miss(
            layers[LAST].post + row * K, target + row * K, scale + e * T + t, missing,
            B, K, HOW.classes, BLOCKS,
        )  # fmt: skip
        for at in tl.static_range(HOW.fed):
            _feed(shown(layers[at], e, e, row, B), missing, B, K, BLOCKS)
        if HOW.descends:
            for at in tl.static_range(LAST, 0, -1):
                below = layers[at - 1].teaching + row * layers[at].d
                send_down(shown(layers[at], e, e, row, B), below, B, HOW.codes[at], BLOCKS)
        for at in tl.static_range(LAYERS):
            _learn(shown(layers[at], e, e, row, B), B, HOW.codes[at], HOW.multipliers[at], BLOCKS)


@triton.jit
def _feed(layer, missing, B, K, BLOCKS: constexpr):
    multiply(missing, layer.feedback, None, layer.teaching, B, layer.n, K, BLOCKS)


@triton.jit
def _learn(layer, B, CODE: constexpr, MULTIPLIER: constexpr, BLOCKS: constexpr):
    signals(layer, B, CODE, MULTIPLIER, BLOCKS)
    learn(layer, layer.weight, B, BLOCKS)


@triton.jit
def _relearn(
    layer, kept, e, own, begin, length, T, B, segment,
    CODE: constexpr, MULTIPLIER: constexpr, BLOCKS: constexpr,
):  # fmt: skip
    """Fills the history of a segment, its weights (programs, segment, n, d) and signals."""
    size = layer.n * layer.d
    s = e * tl.cdiv(T, segment) + begin // segment
    copy(kept + s * size, layer.weight + own * segment * size, layer.n, layer.d, BLOCKS)
    for q in range(length):
        now = shown(layer, e, own * segment + q, (e * T + begin + q) * B, B)
        signals(now, B, CODE, MULTIPLIER, BLOCKS)
        if q + 1 < length:
            learn(now, now.weight + size, B, BLOCKS)


@triton.jit(do_not_specialize=["first"])
def backward(
    layers, adjoints, kept, target, scale, error, g_error, g_x, first, T, B, segment,
    HOW: constexpr, BLOCKS: constexpr,
):  # fmt: skip
    """Adds to the layers' gradients, where that of the last weights comes as that of the weights;
    fills g_x (E, T, B, d) where it is not None. The first program takes episode ``first``; each has
    room of its own for the weights and signals of a segment and for g_error (programs, B, K).
    """
    own = tl.program_id(0).to(tl.int64)
    e = own + first
    LAYERS: constexpr = len(HOW.codes)
    LAST: constexpr = LAYERS - 1
    K = layers[LAST].n
    g_missing = g_error + own * B * K
    segments = tl.cdiv(T, segment)
    for back in range(segments):
        begin = (segments - 1 - back) * segment
        length = tl.minimum(segment, T - begin)
        for at in tl.static_range(LAYERS):
            _relearn(
                layers[at], kept[at], e, own, begin, length, T, B, segment,
                HOW.codes[at], HOW.multipliers[at], BLOCKS,
            )  # fmt: skip
        for ahead in range(length):
            q = length - 1 - ahead
            t, place = begin + q, own * segment + q
            row = (e * T + t) * B
            for at in tl.static_range(LAYERS):
                _ask(
                    shown(layers[at], e, place, row, B),
                    asked(adjoints[at], layers[at], e, own, B, K),
                    B, HOW.codes[at], HOW.multipliers[at], BLOCKS,
                )  # fmt: skip
            for at in tl.static_range(HOW.fed):
                _feed_adjoint(
                    shown(layers[at], e, place, row, B),
                    asked(adjoints[at], layers[at], e, own, B, K),
                    error + row * K, g_missing, B, K, at > 0 or HOW.fed < LAYERS, BLOCKS,
                )  # fmt: skip
            if HOW.descends:
                for at in tl.static_range(1, LAYERS):
                    send_down_adjoint(
                        shown(layers[at], e, place, row, B),
                        asked(adjoints[at], layers[at], e, own, B, K),
                        adjoints[at - 1].teaching + own * B * layers[at].d,
                        B, HOW.codes[at], BLOCKS,
                    )  # fmt: skip
            miss_adjoint(
                layers[LAST].post + row * K, scale + e * T + t, g_missing,
                adjoints[LAST].potential + own * B * K, B, K, HOW.codes[LAST], HOW.classes, BLOCKS,
            )  # fmt: skip
            for at in tl.static_range(LAST, 0, -1):
                _tell(
                    shown(layers[at], e, place, row, B),
                    asked(adjoints[at], layers[at], e, own, B, K),
                    asked(adjoints[at - 1], layers[at - 1], e, own, B, K),
                    B, HOW.codes[at - 1], HOW.descends, BLOCKS,
                )  # fmt: skip
            _tell_first(
                shown(layers[0], e, place, row, B),
                asked(adjoints[0], layers[0], e, own, B, K),
                g_x, row, B, BLOCKS,
            )  # fmt: skip


@triton.jit
def _ask(layer, g, B, CODE: constexpr, MULTIPLIER: constexpr, BLOCKS: constexpr):
    multiply(layer.x, g.weight, layer.plasticity, g.sent, B, layer.n, layer.d, BLOCKS)
    signals_adjoint(layer, g, B, CODE, MULTIPLIER, BLOCKS)


@triton.jit
def _feed_adjoint(layer, g, missing, g_missing, B, K, ADD: constexpr, BLOCKS: constexpr):
    collect(g.teaching, missing, g.feedback, B, layer.n, K, BLOCKS)
    spread(g.teaching, layer.feedback, g_missing, B, layer.n, K, ADD, BLOCKS)


@triton.jit
def _tell(layer, g, below, B, CODE: constexpr, DESCENDS: constexpr, BLOCKS: constexpr):
    """Of a layer above another, whose gradients are ``below`` and whose code is CODE."""
    d = layer.d
    for first in range(0, d, BLOCKS.d):
        j = first + tl.arange(0, BLOCKS.d)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            gy = shown_adjoint(layer, g, b, j, B, BLOCKS)
            gu = read(below.potential, b, j, B, d)
            gu += gy * slope(read(layer.x, b, j, B, d), CODE.activation)
            write(below.potential, b, j, B, d, gu)
    tl.debug_barrier()
    learn_adjoint(layer, g, below.teaching if DESCENDS else None, B, BLOCKS)


@triton.jit
def _tell_first(layer, g, g_x, row, B, BLOCKS: constexpr):
    """Of the layer that sees x."""
    d = layer.d
    if g_x is not None:
        for first in range(0, d, BLOCKS.d):
            j = first + tl.arange(0, BLOCKS.d)
            for begin in range(0, B, BLOCKS.b):
                b = begin + tl.arange(0, BLOCKS.b)
                write(g_x + row * d, b, j, B, d, shown_adjoint(layer, g, b, j, B, BLOCKS))
        tl.debug_barrier()
    learn_adjoint(layer, g, None, B, BLOCKS)
