"""The credit axis: the contract."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from metaplastic.networks import Network
from metaplastic.signals import Learn, Presentation, State, SynapseGroup


class CreditAssignment(nn.Module, ABC):
    """Carries the teaching signal to the synapses. It transports and never mixes.

    The lifetime: the user's credit is a template. ``bind`` makes one that fits a network, with its
    feedback synapses as Parameters (or buffers where they are fixed). ``start`` makes its state for
    one episode; ``present`` runs once for each presentation. All weights, its own feedback weights
    included, are read from ``state["weights"]``.
    """

    protocol: ClassVar[type[Network]] = Network
    """The kind of network that it can run through."""
    provides: ClassVar[frozenset[str]] = frozenset({"teaching"})
    """The optional fields of LocalSignals that it can fill in."""

    resampled: bool = False
    """Whether its feedback synapses are drawn anew for every episode."""

    def bind(self, network: Network, plastic: frozenset[str], generator: torch.Generator) -> Self:
        """A copy whose feedback synapses fit ``network``, drawn from ``generator``. Only the
        network's ``plastic`` groups need signals; feedback that no one reads is not made.
        """
        del network, plastic, generator
        return copy.deepcopy(self)

    def groups(self) -> dict[str, SynapseGroup]:
        """The feedback synapses that it owns, {} where it has none."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """Their initial weights, {group: (n_out, n_in)}, with their graph to the Parameters."""
        return {}

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh feedback weights, {group: (n_out, n_in)}."""
        del generator
        return {}

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """The noise of many presentations, (*lead, *), or None; lead is (E, T, B)."""
        del network, lead, generator
        return None

    def start(self, network: Network, weights: dict[str, Tensor], batch: int) -> State:
        """Its own state at the beginning of an episode of B examples at a time."""
        del network, weights, batch
        return {}

    @abstractmethod
    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        """One presentation. Calls ``learn(state, {group: LocalSignals})`` as often as the method
        learns, goes on with the weights as ``learn`` left them, and returns the new state.
        """
