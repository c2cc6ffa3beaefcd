"""Matrices in memory, tile by tile, for programs on a GPU: reading, writing, and sums of products.

Tiles are (BLOCKS.b, BLOCKS.n, BLOCKS.d) of examples, neurons and inputs at most. Products are
summed as they are, never in the lower precision of a GPU's matrix units.
"""

from __future__ import annotations

import triton

from metaplastic.kernels.gpu_language import constexpr, tl


@triton.jit
def read(matrix, i, j, n, d):
    """Rows i and columns j of a matrix (n, d), 0 beyond its ends."""
    inside = (i < n)[:, None] & (j < d)[None, :]
    return tl.load(matrix + i[:, None] * d + j[None, :], mask=inside, other=0.0)


@triton.jit
def write(matrix, i, j, n, d, values):
    """Sets rows i and columns j of a matrix (n, d)."""
    inside = (i < n)[:, None] & (j < d)[None, :]
    tl.store(matrix + i[:, None] * d + j[None, :], values, mask=inside)


@triton.jit
def entries(vector, i, n):
    """Entries i of a vector (n,), 0 beyond its end."""
    return tl.load(vector + i, mask=i < n, other=0.0)


@triton.jit
def _synapses(w, p, i, j, n, d):
    """A tile of w, or of w o p where p is given."""
    found = read(w, i, j, n, d)
    if p is not None:
        found *= read(p, i, j, n, d)
    return found


@triton.jit
def upwards(x, w, p, b, i, B, n, d, BLOCKS: constexpr):
    """What rows i of w (n, d), or of w o p, make of examples b of x (B, d)."""
    total = tl.zeros((BLOCKS.b, BLOCKS.n, BLOCKS.d), w.dtype.element_ty)
    for first in range(0, d, BLOCKS.d):
        j = first + tl.arange(0, BLOCKS.d)
        total += read(x, b, j, B, d)[:, None, :] * _synapses(w, p, i, j, n, d)[None, :, :]
    return tl.sum(total, axis=2)


@triton.jit
def downwards(y, w, p, b, j, B, n, d, BLOCKS: constexpr):
    """What columns j of w (n, d), or of w o p, make of examples b of y (B, n)."""
    total = tl.zeros((BLOCKS.b, BLOCKS.n, BLOCKS.d), w.dtype.element_ty)
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        total += read(y, b, i, B, n)[:, :, None] * _synapses(w, p, i, j, n, d)[None, :, :]
    return tl.sum(total, axis=1)


@triton.jit
def outer(y, x, i, j, B, n, d, BLOCKS: constexpr):
    """Rows i and columns j of sum_b y_b x_b, for y (B, n) and x (B, d)."""
    total = tl.zeros((BLOCKS.b, BLOCKS.n, BLOCKS.d), x.dtype.element_ty)
    for first in range(0, B, BLOCKS.b):
        b = first + tl.arange(0, BLOCKS.b)
        total += read(y, b, i, B, n)[:, :, None] * read(x, b, j, B, d)[:, None, :]
    return tl.sum(total, axis=0)


# What follows goes over whole matrices; then all threads of the program may read what was written.


@triton.jit
def copy(matrix, other, n, d, BLOCKS: constexpr):
    """Fills the other matrix (n, d)."""
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, d, BLOCKS.d):
            j = begin + tl.arange(0, BLOCKS.d)
            write(other, i, j, n, d, read(matrix, i, j, n, d))
    tl.debug_barrier()


@triton.jit
def multiply(x, w, p, found, B, n, d, BLOCKS: constexpr):
    """Fills found (B, n) with what w (n, d), or w o p, makes of x (B, d)."""
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            write(found, b, i, B, n, upwards(x, w, p, b, i, B, n, d, BLOCKS))
    tl.debug_barrier()


@triton.jit
def spread(y, w, found, B, n, d, ADD: constexpr, BLOCKS: constexpr):
    """Fills found (B, d) with what the transposed w (n, d) makes of y (B, n), or adds it."""
    for first in range(0, d, BLOCKS.d):
        j = first + tl.arange(0, BLOCKS.d)
        for begin in range(0, B, BLOCKS.b):
            b = begin + tl.arange(0, BLOCKS.b)
            values = downwards(y, w, None, b, j, B, n, d, BLOCKS)
            if ADD:
                values += read(found, b, j, B, d)
            write(found, b, j, B, d, values)
    tl.debug_barrier()


@triton.jit
def collect(y, x, total, B, n, d, BLOCKS: constexpr):
    """Adds sum_b y_b x_b to total (n, d), for y (B, n) and x (B, d)."""
    for first in range(0, n, BLOCKS.n):
        i = first + tl.arange(0, BLOCKS.n)
        for begin in range(0, d, BLOCKS.d):
            j = begin + tl.arange(0, BLOCKS.d)
            values = read(total, i, j, n, d) + outer(y, x, i, j, B, n, d, BLOCKS)
            write(total, i, j, n, d, values)
    tl.debug_barrier()
