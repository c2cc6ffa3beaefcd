"""The error at the output, and its adjoint, compiled for a GPU."""

from __future__ import annotations

import triton

from metaplastic.kernels.gpu_language import constexpr, tl
from metaplastic.kernels.gpu_neuron import slope
from metaplastic.kernels.gpu_tiles import read, write


@triton.jit
def _link(output, b, k, B, K, CLASSES: constexpr):
    """Examples b of the output (B, K), or their softmax."""
    found = read(output, b, k, B, K)
    if CLASSES:
        found = tl.where((k < K)[None, :], found, float("-inf"))
        found = tl.exp(found - tl.max(found, axis=1, keep_dims=True))
        found /= tl.sum(found, axis=1, keep_dims=True)
    return found


@triton.jit
def miss(output, target, scale, error, B, K, CLASSES: constexpr, BLOCKS: constexpr):
    """Fills error (B, K), then a barrier."""
    k = tl.arange(0, BLOCKS.k)
    for begin in range(0, B, BLOCKS.b):
        b = begin + tl.arange(0, BLOCKS.b)
        missing = read(target, b, k, B, K) - _link(output, b, k, B, K, CLASSES)
        write(error, b, k, B, K, tl.load(scale) * missing)
    tl.debug_barrier()


@triton.jit
def miss_adjoint(
    output, scale, g_error, g_potential, B, K,
    CODE: constexpr, CLASSES: constexpr, BLOCKS: constexpr,
):  # fmt: skip
    """Adds to the gradient of the last layer's potential (B, K), then a barrier."""
    k = tl.arange(0, BLOCKS.k)
    for begin in range(0, B, BLOCKS.b):
        b = begin + tl.arange(0, BLOCKS.b)
        g = tl.load(scale) * read(g_error, b, k, B, K)
        if CLASSES:
            share = _link(output, b, k, B, K, CLASSES)
            g = share * (g - tl.sum(share * g, axis=1, keep_dims=True))
        g *= slope(read(output, b, k, B, K), CODE.activation)
        write(g_potential, b, k, B, K, read(g_potential, b, k, B, K) - g)
    tl.debug_barrier()
