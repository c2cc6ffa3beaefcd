"""A layer through the whole stream as one differentiable function, neuron by neuron."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaplastic.kernels.backend import backend
from metaplastic.kernels.neuron import Neuron

BLOCKS = 4
"""Independent pieces of work at least; fixed, so that sums do not depend on the number of
threads."""
ALONE = 2**18
"""Synapses times presentations below which threads cost more than they save."""


@dataclass(frozen=True)
class Scan:
    """How a layer goes through the stream.

    ``neuron`` says what its neurons do, ``segment`` every how many presentations the weights are
    kept for the way back.
    """

    neuron: Neuron
    segment: int


def scan(
    how: Scan,
    weight: Tensor,
    plasticity: Tensor,
    mix: Tensor,
    bias: Tensor,
    x: Tensor,
    teaching: Tensor,
    share: Tensor,
) -> tuple[Tensor, Tensor]:
    """The weights after the stream, (E, n, d), and the activity, (E, T, B, n).

    Differentiable once in all but ``share``. What all episodes share has 1 in the place of E.

    Args:
        how: see Scan.
        weight: (E, n, d) at the beginning.
        plasticity: (E, n, d) of every synapse.
        mix: (E, n) share of the teaching signal, for rules that mix.
        bias: (E, n)
        x: (E, T, B, d) presynaptic activity.
        teaching: (E, T, B, n) teaching signal.
        share: (E, T, B) of each example in a presentation's change.
    """
    given = [t.contiguous() for t in (weight, plasticity, mix, bias, x, teaching, share)]
    final, post = _Scan.apply(how, *given)  # type: ignore[misc]
    return final, post


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Scan, *given: Tensor) -> tuple[Tensor, Tensor]:
        weight, plasticity, mix, bias, x, teaching, share = given
        ctx.how, ctx.with_x = how, ctx.needs_input_grad[5]
        ctx.set_materialize_grads(False)  # what nobody asks for is None, and costs nothing
        ctx.sizes = [len(weight), len(plasticity), len(mix), len(bias)]
        keep = any(ctx.needs_input_grad)
        final, post, kept = backend(x).forward(
            how.neuron, weight, plasticity, mix, bias, share, x, teaching, how.segment, keep
        )
        if keep:
            ctx.save_for_backward(plasticity, mix, share, x, teaching, kept, post)
        return final, post

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        g_final, g_post = gradients
        plasticity, mix, share, x, teaching, kept, post = ctx.saved_tensors
        if g_final is None:
            g_final = torch.zeros_like(kept[:, 0])
        found = backend(x).backward(
            ctx.how.neuron, plasticity, mix, share, x, teaching, ctx.how.segment, kept, post,
            g_final.contiguous(), None if g_post is None else g_post.contiguous(), ctx.with_x,
        )  # fmt: skip
        *shared, g_teaching, gx = found
        own = [
            g.sum(0, keepdim=True) if size == 1 else g
            for g, size in zip(shared, ctx.sizes, strict=True)
        ]
        return None, *own, gx, g_teaching, None


def parts(items: int, work: int, task: Callable[[int, int], None]) -> None:
    """Run ``task(first, last)`` over all items, on as many threads as PyTorch has."""
    threads = min(torch.get_num_threads(), items) if work >= ALONE else 1
    if threads == 1:
        task(0, items)
        return
    edges = [k * items // threads for k in range(threads + 1)]
    others = [_pool(threads - 1).submit(task, *edges[k : k + 2]) for k in range(1, threads)]
    task(0, edges[1])
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: a new one often begins where its parent runs, and waits for it."""
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)


def blocks(episodes: int) -> int:
    """Pieces that the rows of each episode are divided into."""
    return -(-BLOCKS // episodes)
