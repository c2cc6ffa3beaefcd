"""Where a layer and its gradients lie in the memory of a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple


class Layer(NamedTuple):
    """A layer in all episodes and presentations, or as ``gpu_layers.shown`` gives it in one."""

    n: Any
    """Neurons."""
    d: Any
    """Inputs."""
    weight: Any
    """(E, n, d)"""
    plasticity: Any
    """(E, n, d)"""
    plasticity_step: Any
    """Numbers from one episode's plasticity to the next, 0 where all share one."""
    mix: Any
    """(E, n)"""
    bias: Any
    """(E, n)"""
    share: Any
    """(E, T, B)"""
    feedback: Any
    """(E, n, K)"""
    feedback_step: Any
    """See plasticity_step."""
    x: Any
    """(E, T, B, d), what the layer sees."""
    post: Any
    """(E, T, B, n), its activity."""
    teaching: Any
    """(E, T, B, n)"""
    a: Any
    """(E, B, n), room for signals: of a neuron i, the change of the weights w is
    p o (sum_b a_bi x_b - c_i w)."""
    c: Any
    """(E, n)"""


class Adjoint(NamedTuple):
    """The gradients of a layer, shapes as there."""

    weight: Any
    plasticity: Any
    mix: Any
    bias: Any
    feedback: Any
    teaching: Any
    """(E, B, n) of one presentation, as is what follows."""
    potential: Any
    sent: Any
    """Room: the gradient of a, then the error that went down through the weights."""
