"""Plasticity without a teacher."""

from __future__ import annotations

from typing import Self

import torch

from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.networks import Network
from metaplastic.signals import Learn, Presentation, State


class Unsupervised(CreditAssignment):
    """Synapses see what the network itself says, and nobody teaches.

    It sends what the network's ``observe`` provides: activities, slopes, and the modulator of a
    network that has one. What is to be learned must then be among the inputs, as the instruction
    of a RecurrentNetwork is.
    """

    provides = frozenset()

    def __init__(self) -> None:
        super().__init__()

    def bind(self, network: Network, needs: Needs, generator: torch.Generator) -> Self:
        own = super().bind(network, needs, generator)
        own.provides = network.provides
        return own

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        seen = network.observe(presentation, state["weights"], state["network"], learn.needs)
        return learn({**state, "network": seen.state}, seen.signals)
