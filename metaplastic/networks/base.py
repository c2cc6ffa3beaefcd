"""The network axis: the contract, and weights that are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from metaplastic.signals import State, SynapseGroup


def he_normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(n_out, n_in) normal weights of variance 2 / n_in, drawn on the CPU (He et al. 2015)."""
    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (draw * math.sqrt(2.0 / shape[1])).to(torch.get_default_dtype())


class Network(nn.Module, ABC):
    """Computes outputs from features and from weights that are passed in.

    Weights are seen as synapses: {group: (n_out, n_in)}. The module's own Parameters are the
    initial weights; nothing here ever changes them.
    """

    outputs: int
    """K, the number of output units."""

    @abstractmethod
    def groups(self) -> dict[str, SynapseGroup]:
        """The synapse groups by name, input side first."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The initial weights, {group: (n_out, n_in)}, with their graph to the Parameters."""

    @abstractmethod
    def parameter(self, group: str) -> Tensor:
        """The Parameter, in its own shape, that holds the initial weights of ``group``."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh initial weights, {group: (n_out, n_in)}."""

    def features(self, x: Tensor) -> Tensor:
        """What does not change within an episode, computed once: (B, *) -> (B, *)."""
        return x

    def start(self, weights: dict[str, Tensor]) -> State:
        """The network's own state at the beginning of an episode, {} where it has none."""
        del weights
        return {}

    @abstractmethod
    def forward(self, features: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Output of features (B, *) under ``weights``: (B, K)."""
