"""All layers through the whole stream as one differentiable function, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metaplastic.kernels.backend import backend
from metaplastic.kernels.neuron import Neuron


class Synapses(NamedTuple):
    """What one layer comes with; what all episodes share has 1 in the place of E."""

    weight: Tensor
    """(E, n, d) at the beginning."""
    plasticity: Tensor
    """(E, n, d) of every synapse."""
    mix: Tensor
    """(E, n) share of the teaching signal, for rules that mix."""
    bias: Tensor
    """(E, n)"""
    share: Tensor
    """(E, T, B) of each example in a presentation's change."""
    feedback: Tensor
    """(E, n, K) from the error at the output; of no effect where it comes another way."""


@dataclass(frozen=True)
class Passed:
    """What a pass through the stream left behind, by layer: the last weights, (E, n, d), those at
    the beginning of every segment, (E, S, n, d), activity (E, T, B, n) and teaching signal
    (E, T, n, B); and the error at the output, (E, T, B, K).
    """

    final: list[Tensor]
    kept: list[Tensor]
    post: list[Tensor]
    teaching: list[Tensor]
    error: Tensor


@dataclass(frozen=True)
class Chain:
    """How a chain of layers learns from its own error."""

    neurons: tuple[Neuron, ...]
    descends: bool
    """Whether errors come down through the transposed weights; else straight to every layer."""
    clamped: bool
    """Whether the last layer gets the error itself."""
    classes: bool
    """Whether the error is target - softmax(output); else target - output."""
    segment: int
    """Presentations between weights that are kept for the way back."""


def scan(
    chain: Chain, layers: Sequence[Synapses], x: Tensor, target: Tensor, scale: Tensor
) -> list[Tensor]:
    """The weights after the stream, (E, n, d) of each layer; differentiable once in all but share,
    target and scale.

    Args:
        chain: see Chain.
        layers: see Synapses.
        x: (E, T, B, d) what the first layer sees.
        target: (E, T, B, K)
        scale: (E or 1, T) factor on the error of each presentation.
    """
    flat = [t.contiguous() for layer in layers for t in layer]
    found = _Steps.apply(chain, x.contiguous(), target.contiguous(), scale.contiguous(), *flat)
    return list(found)  # type: ignore[arg-type]


def _layers(flat: Sequence[Tensor]) -> list[Synapses]:
    size = len(Synapses._fields)
    return [Synapses(*flat[i : i + size]) for i in range(0, len(flat), size)]


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chain: Chain, x: Tensor, target: Tensor, scale: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        keep = any(ctx.needs_input_grad)
        ctx.set_materialize_grads(False)  # what nobody asks for is None, and costs nothing
        passed = backend(x).forward_steps(
            chain, _layers(flat), x, target, scale, chain.segment, keep
        )
        if keep:
            ctx.chain, ctx.count = chain, len(chain.neurons)
            ctx.save_for_backward(
                x, target, scale, *flat, *passed.kept, *passed.post, *passed.teaching, passed.error
            )
        return tuple(passed.final)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *g_final: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, target, scale, *rest = ctx.saved_tensors
        count = ctx.count
        flat, rest = rest[: count * len(Synapses._fields)], rest[count * len(Synapses._fields) :]
        layers = _layers(flat)
        kept, post, teaching = (rest[i * count : (i + 1) * count] for i in range(3))
        passed = Passed([], kept, post, teaching, rest[-1])
        given = [
            torch.zeros_like(k[:, 0]) if g is None else g.contiguous()
            for g, k in zip(g_final, kept, strict=True)
        ]
        found, gx = backend(x).backward_steps(
            ctx.chain, layers, x, target, scale, ctx.chain.segment, passed, given,
            ctx.needs_input_grad[1],
        )  # fmt: skip
        own = [
            None if field == "share" else (g.sum(0, keepdim=True) if len(was) == 1 else g)
            for layer, gradient in zip(layers, found, strict=True)
            for field, was, g in zip(Synapses._fields, layer, gradient, strict=True)
        ]
        return None, gx, None, None, *own
