"""The network axis: the contract, and weights that are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaplastic.errors import CompatibilityError
from metaplastic.signals import LocalSignals, Presentation, State, SynapseGroup

Needs = Mapping[str, frozenset[str]]
"""The plastic groups, and the optional signals that each one's rule asked for."""


def he_scale(n_in: int) -> float:
    """sqrt(2 / n_in), the standard deviation that keeps the scale of ReLUs (He et al. 2015)."""
    return math.sqrt(2.0 / n_in)


def he_normal(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(n_out, n_in) normal weights of that standard deviation, drawn on the CPU."""
    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (draw * he_scale(shape[1])).to(torch.get_default_dtype())


@dataclass(frozen=True)
class Observation:
    """What a network does while an example is shown and nobody teaches."""

    output: Tensor
    """(B, K)"""
    signals: dict[str, LocalSignals]
    """What the plastic groups see."""
    state: State
    """The network's own state afterwards."""


class Network(ABC, nn.Module):
    """Computes outputs from features and from weights that are passed in.

    Weights are seen as synapses: {group: (n_out, n_in)}. The module's own Parameters are the
    initial weights; nothing here ever changes them.
    """

    outputs: int
    """K, the number of output units."""
    provides: frozenset[str] = frozenset()
    """The optional fields of LocalSignals that ``observe`` can fill in."""

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

    def start(self, weights: dict[str, Tensor], batch: int) -> State:
        """The network's own state at the beginning of an episode of B examples at a time, {} where
        it has none.
        """
        del weights, batch
        return {}

    @abstractmethod
    def forward(
        self, features: Tensor, weights: dict[str, Tensor], state: State | None = None
    ) -> Tensor:
        """Output of features (B, *) under ``weights``, from ``state`` (as at the beginning of an
        episode where it is None), which stays as it is: (B, K).
        """

    def observe(
        self, presentation: Presentation, weights: dict[str, Tensor], state: State, needs: Needs
    ) -> Observation:
        """One presentation without teaching: what the plastic groups see, and how the network's own
        state moves.

        Raises:
            CompatibilityError: for a network that does not say it.
        """
        raise CompatibilityError(
            f"{type(self).__name__} does not say what its synapses see when nobody teaches: take a "
            "credit made for it, or give it an `observe`."
        )
