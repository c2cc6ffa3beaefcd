"""Neuron by neuron through the whole stream, compiled for a GPU by Triton.

Where the teaching signal does not depend on the output, a neuron's weights through all
presentations follow from its inputs alone: one program takes one neuron of one episode, holds its
row of weights in registers and loops over all presentations, so that nothing is launched for a
presentation and programs never wait for each other. The adjoint starts anew from a kept row every
``segment`` presentations and never runs the rule backwards, which would lose all digits in single
precision.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from metaplastic.kernels import gpu_row_programs
from metaplastic.kernels.neuron import Neuron

TILE = 4096
"""At most so many inputs of a presentation are held at once, one example at least."""
PROGRAMS = 4096
"""Programs of the adjoint that run together, each with a history (segment, d) of its own."""


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
    """The final weights (E, n, d), the activity (E, T, B, n) and, where ``keep``, the weights
    before every ``segment``-th presentation (E, S, n, d), S = ceil(T / segment).

    Args:
        neuron: activation function and rule.
        weight: initial weights (E, n, d), or (1, n, d) for all episodes alike; the same holds of
            the four that follow.
        plasticity: P (E, n, d), or (E, n, 1) where all synapses of a neuron have the same.
        mix: share of the teaching signal (E, n).
        bias: (E, n), which is not plastic.
        share: weight of each example in its presentation's change (E, T, B).
        x: presynaptic activity (E, T, B, d).
        teaching: teaching signal (E, T, B, n).
        segment: presentations between kept weights.
        keep: whether the adjoint will be asked for.
    """
    E, T, B, d = x.shape
    n = weight.shape[1]
    final, post = x.new_empty(E, n, d), x.new_empty(E, T, B, n)
    kept = x.new_empty(E, triton.cdiv(T, segment), n, d) if keep else None
    plasticity = of_synapses(plasticity, d)
    with torch.cuda.device_of(x):
        gpu_row_programs.forward[(E * n,)](
            weight.contiguous(), plasticity, mix.contiguous(), bias.contiguous(),
            share.contiguous(), x.contiguous(), teaching.contiguous(), final, post, kept,
            step(weight), step(plasticity), step(mix), step(bias), step(share) // B,
            T, B, n, d, segment, **_settings(neuron, B, d),
        )  # fmt: skip
    return final, post, kept


def backward(
    neuron: Neuron,
    plasticity: Tensor,
    mix: Tensor,
    share: Tensor,
    x: Tensor,
    teaching: Tensor,
    segment: int,
    checkpoints: Tensor,
    post: Tensor,
    grad_final: Tensor,
    grad_post: Tensor | None,
    want_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of weight (E, n, d), plasticity, mix and bias (E, n), each episode's own, of
    teaching (E, T, B, n) and, where ``want_x``, of x (E, T, B, d).

    Neurons add to the gradient of x in any order, so its last digits vary from call to call; all
    else is the same every time.

    Args:
        neuron: as in forward, as are plasticity, mix, share, x, teaching and segment.
        plasticity: see forward.
        mix: see forward.
        share: see forward.
        x: see forward.
        teaching: see forward.
        segment: see forward.
        checkpoints: the weights that forward kept.
        post: the activity that forward gave.
        grad_final: gradient of the final weights (E, n, d).
        grad_post: gradient of the activity (E, T, B, n), None for zero.
        want_x: whether to give the gradient of x.
    """
    E, T, B, d = x.shape
    n = plasticity.shape[1]
    rows = min(E * n, PROGRAMS)
    history = x.new_empty(rows, segment, d)
    g_weight, g_plasticity = x.new_empty(E, n, d), x.new_empty(E, n, d)
    g_mix, g_bias, g_teaching = x.new_empty(E, n), x.new_empty(E, n), x.new_empty(E, T, B, n)
    g_x = x.new_zeros(E, T, B, d) if want_x else None
    p, mix, share = of_synapses(plasticity, d), mix.contiguous(), share.contiguous()
    x, teaching, post = x.contiguous(), teaching.contiguous(), post.contiguous()
    checkpoints, grad_final = checkpoints.contiguous(), grad_final.contiguous()
    grad_post = None if grad_post is None else grad_post.contiguous()
    with torch.cuda.device_of(x):
        for first in range(0, E * n, rows):
            gpu_row_programs.backward[(min(rows, E * n - first),)](
                p, mix, share, x, teaching, checkpoints, post, history,
                grad_final, grad_post, g_weight, g_plasticity, g_mix, g_bias, g_teaching, g_x,
                step(p), step(mix), step(share) // B, first, T, B, n, d, segment,
                **_settings(neuron, B, d),
            )  # fmt: skip
    g_plasticity = of_neurons(g_plasticity, plasticity)
    return g_weight, g_plasticity, g_mix, g_bias, g_teaching, g_x


def of_synapses(plasticity: Tensor, n_in: int) -> Tensor:
    """That of each, (E, n, d), from (E, n, d) or (E, n, 1)."""
    return plasticity.expand(-1, -1, n_in).contiguous()


def of_neurons(gradient: Tensor, plasticity: Tensor) -> Tensor:
    """The adjoint of ``of_synapses``."""
    return gradient.sum(-1, keepdim=True) if plasticity.shape[-1] == 1 else gradient


def step(tensor: Tensor) -> int:
    """Numbers from one episode to the next, 0 where all share them."""
    return tensor[0].numel() if tensor.shape[0] > 1 else 0


def _settings(neuron: Neuron, examples: int, n_in: int) -> dict[str, Any]:
    """What the kernels are compiled for."""
    block_d = triton.next_power_of_2(n_in)
    block_b = min(triton.next_power_of_2(examples), max(1, TILE // block_d))
    return {
        "ACTIVATION": neuron.activation,
        "FAMILY": neuron.family,
        "BOUNDED": bool(neuron.bounded),
        "TARGET": bool(neuron.target),
        "DERIVATIVE": bool(neuron.derivative),
        "MULTIPLIER": float(neuron.multiplier),
        "BLOCK_B": block_b,
        "BLOCKS": triton.cdiv(examples, block_b),
        "BLOCK_D": block_d,
        "enable_fp_fusion": True,
        "num_warps": min(8, max(1, block_b * block_d // 256)),
    }
