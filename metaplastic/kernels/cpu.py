"""The compiled kernels of a CPU, told in tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaplastic.kernels import cpu_loops
from metaplastic.kernels.neuron import Neuron
from metaplastic.kernels.rows import blocks, parts


def forward(
    neuron: Neuron,
    weight: Tensor,
    plasticity: Tensor,
    mix: Tensor,
    bias: Tensor,
    share: Tensor,
    x: Tensor,
    teaching: Tensor,
    segment: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights after the stream (E, n, d), activity (E, T, B, n), and where ``keep`` says so the
    weights at every ``segment`` presentations, (E, S, n, d); see ``rows.scan``.
    """
    episodes, presentations, examples, n_in = x.shape
    n_out = weight.shape[1]
    final, post = x.new_empty(episodes, n_out, n_in), x.new_empty(*x.shape[:3], n_out)
    own = x.new_empty(episodes, n_out, presentations, examples)
    kept = x.new_empty(episodes, -(-presentations // segment) if keep else 0, n_out, n_in)
    given = _arrays(weight, plasticity, mix, bias, share, x, teaching, final, kept, own, post)
    count = blocks(episodes)
    multiplier = given[5].dtype.type(neuron.multiplier)

    def task(first: int, last: int) -> None:
        cpu_loops.forward_rows(
            neuron.code, multiplier, segment, count, first, last, keep, *given,
            *_arrays(x.new_empty(n_in)),
        )  # fmt: skip

    parts(episodes * count, x.numel() * n_out, task)
    return final, post, kept if keep else None


def backward(
    neuron: Neuron,
    plasticity: Tensor,
    mix: Tensor,
    share: Tensor,
    x: Tensor,
    teaching: Tensor,
    segment: int,
    kept: Tensor,
    post: Tensor,
    g_final: Tensor,
    g_post: Tensor | None,
    with_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of weights and plasticity (E, n, d), mix and bias (E, n), teaching signal
    (E, T, B, n) and, where ``with_x`` says so, x (E, T, B, d).
    """
    episodes, _, examples, n_in = x.shape
    n_out, count = g_final.shape[1], blocks(episodes)
    own = post.permute(0, 3, 1, 2).contiguous()
    gw, gp = g_final.clone(), torch.zeros_like(g_final)
    g_mix, g_bias = x.new_zeros(episodes, n_out), x.new_zeros(episodes, n_out)
    g_teaching = torch.empty_like(teaching)
    gx = x.new_zeros(count, *x.shape) if with_x else x.new_zeros(1, 1, 1, 1, 1)
    incoming = g_post if g_post is not None else x.new_zeros(1, 1, 1, 1)
    given = _arrays(
        plasticity, mix, share, x, teaching, kept, own, incoming,
        gw, gp, g_mix, g_bias, g_teaching, gx,
    )  # fmt: skip
    multiplier = given[3].dtype.type(neuron.multiplier)

    def task(first: int, last: int) -> None:
        room = _arrays(
            x.new_empty(segment + 1, n_in), x.new_empty(segment, n_in),
            x.new_empty(segment, examples), x.new_empty(n_in),
        )  # fmt: skip
        cpu_loops.backward_rows(
            neuron.code, multiplier, segment, count, first, last, g_post is not None, with_x,
            *given, *room,
        )  # fmt: skip

    parts(episodes * count, x.numel() * n_out, task)
    return gw, gp, g_mix, g_bias, g_teaching, gx.sum(0) if with_x else None


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.detach().numpy() for t in tensors]
