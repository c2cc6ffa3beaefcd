"""The feedback synapses from the output to the network's input."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from metaplastic.credit.alignment import mirror_noise, mirror_signals
from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.errors import ConfigurationError, UnsupportedLayerError, check_choice
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.base import he_scale
from metaplastic.signals import Learn, Origin, Presentation, State, SynapseGroup

Feedback = Literal["projection", "factors", "mirror"]
STRENGTH = 0.05
"""Of the projection, as a share of what weights on the input are drawn with."""


class InputProjection(CreditAssignment):
    """F (n_0, K) from the output to the n_0 inputs, as one matrix or in factors.

    Args:
        weights, scale, feedback, mean_zero, sigma: see InputModulation.

    Raises:
        ConfigurationError: for options out of range or that contradict each other.
    """

    protocol = LayeredNetwork

    def __init__(
        self, weights: Origin, scale: float, feedback: Feedback, mean_zero: bool, sigma: float
    ) -> None:
        super().__init__(weights, scale)
        check_choice(feedback=(feedback, Feedback))
        if feedback != "projection" and not mean_zero:
            raise ConfigurationError(
                f"mean_zero=False is for feedback='projection', got {feedback!r}."
            )
        if not sigma > 0:
            raise ConfigurationError(f"sigma is a standard deviation above 0, got {sigma}.")
        self.feedback: Feedback = feedback
        self.mean_zero, self.sigma = mean_zero, sigma

    @abstractmethod
    def projects(self, network: LayeredNetwork, needs: Needs) -> bool:
        """Whether the plastic groups in ``needs`` depend on F."""

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        """F itself, or a factor beside each weight matrix and of its shape."""
        assert isinstance(network, LayeredNetwork)
        if not self.projects(network, needs):
            return
        inputs = prod(network.layers[0].in_shape)
        if self.feedback == "projection":
            size, layers = (inputs, network.outputs), len(network.layers)
            yield SynapseGroup("layer0_feedback", *size, "feedback", layers=layers, taught=False)
            return
        self._check_factors(network, inputs)
        for layer in network.layers:
            group = network.groups()[layer.names[0]]
            name, taught = f"{layer.name}_feedback", self.feedback == "mirror"
            yield replace(group, name=name, role="feedback", taught=taught)

    def _check_factors(self, network: LayeredNetwork, inputs: int) -> None:
        for layer in network.layers:
            if not isinstance(layer.synapses, nn.Linear):
                raise UnsupportedLayerError(
                    f"feedback in factors runs beside Linear layers, got {layer.synapses}: take "
                    "feedback='projection', or put the convolutions into the trunk."
                )
        if self.feedback == "mirror" and inputs * network.outputs == 1:
            raise ConfigurationError(
                "feedback='mirror' keeps the standard deviation of F, and from one input and one "
                "output it has none: take feedback='factors'."
            )

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh feedback weights, {group: (n_out, n_in)}: F uniform, or factors that are normal and
        give it the same standard deviation.
        """
        groups = list(self._groups.values())
        if not groups:
            return {}
        if self.feedback == "projection":
            size = groups[0].n_out, groups[0].n_in
            unit = torch.rand(size, generator=generator, dtype=torch.float64)
            limit = math.sqrt(3.0) * self._deviation(groups[0].n_out)
            drawn = limit * (2 * unit - 1 if self.mean_zero else unit)
            return {groups[0].name: drawn.to(torch.get_default_dtype())}
        inputs, *hidden = (group.n_in for group in groups)
        total = abs(self._deviation(inputs)) / math.sqrt(prod(hidden))
        each = total ** (1 / len(groups))
        return {g.name: torch.randn(g.n_out, g.n_in, generator=generator) * each for g in groups}

    def _deviation(self, inputs: int) -> float:
        """Standard deviation of F."""
        return self.scale * STRENGTH * he_scale(inputs)

    def projection(self, weights: dict[str, Tensor]) -> Tensor:
        """F, (n_0, K). Behind mirrors it is brought to the standard deviation that it is drawn
        with, whatever its factors grow to.
        """
        *lower, product = (weights[name] for name in self._groups)
        if self.feedback == "projection":
            return product
        for factor in reversed(lower):
            product = product @ factor
        if self.feedback == "mirror":
            product = product * (self._deviation(product.shape[1]) / product.std())
        return product.mT

    # --- mirrors --------------------------------------------------------------------------------

    @property
    def mirrors(self) -> bool:
        """Whether it draws noise for feedback to learn from."""
        return self.feedback == "mirror" and bool(self._groups)

    def mirror_noise(
        self, network: LayeredNetwork, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """(E, T, B, units)"""
        return mirror_noise(network.layers, lead, self.sigma, generator)

    def teach_feedback(
        self,
        network: LayeredNetwork,
        state: State,
        presentation: Presentation,
        noise: Tensor,
        learn: Learn,
    ) -> State:
        """What mirrors learn before the presentation itself from noise (B, units)."""
        if set(learn.needs).isdisjoint(self._groups):
            return state
        weight, weights = presentation.weight, state["weights"]
        return learn(state, mirror_signals(network.layers, weights, noise, learn.needs, weight))
