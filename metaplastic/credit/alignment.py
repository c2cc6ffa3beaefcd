"""Feedback alignment: matrices of its own send the errors down, and may learn to align."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from metaplastic.credit.base import Needs
from metaplastic.credit.layerwise import LayerwiseFeedback, lowest_plastic
from metaplastic.errors import ConfigurationError
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.layer import Layer, LayerActivity
from metaplastic.signals import (
    Learn,
    LocalSignals,
    Origin,
    Presentation,
    State,
    SynapseGroup,
)


class FeedbackAlignment(LayerwiseFeedback):
    """Errors sent down through matrices that do not know the forward weights (Lillicrap et al.
    2016), drawn as these are: ``layer1_feedback`` carries the error from layer 1 to layer 0.

    Args:
        weights: ``"fixed"`` as published, ``"learned"`` by the outer loop or ``"resampled"`` in
            every episode.
        scale: factor on the standard deviation sqrt(2 / n_in), n_in that of the forward weights.
        input_beta, linked: see LayerwiseFeedback.
    """

    taught: ClassVar[bool] = False
    """Whether the feedback synapses are plastic themselves."""

    def feedback_groups(self, network: Network, needs: Needs) -> Iterator[SynapseGroup]:
        assert isinstance(network, LayeredNetwork)
        lowest = lowest_plastic(network, needs) if needs else len(network.layers)
        for layer in network.layers[lowest:]:
            group = network.groups()[f"{layer.name}_weight"]
            reads = any("pre_teaching" in needs.get(name, ()) for name in layer.names)
            if layer.index > lowest or reads:
                yield self.feedback_group(group, f"{layer.name}_feedback")

    def feedback_group(self, forward: SynapseGroup, name: str) -> SynapseGroup:
        """The feedback synapses beside ``forward``, of the same shape."""
        return replace(forward, name=name, role="feedback", taught=self.taught)

    def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
        return state["weights"][f"{layer.name}_feedback"]


class KolenPollack(FeedbackAlignment):
    """Feedback alignment whose matrices get the same changes as the forward weights (Kolen &
    Pollack 1994; Akrout et al. 2019): with a decay in the rule, such as ``Delta(decay=0.01)``, the
    difference between the two dies out. Each pair shares its rule and coefficients.

    Arguments as for FeedbackAlignment.
    """

    taught = True

    def feedback_group(self, forward: SynapseGroup, name: str) -> SynapseGroup:
        return replace(super().feedback_group(forward, name), twin=forward.name)

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        signals = self.descend(network, state, presentation, learn.needs)
        twins = {n: signals[str(g.twin)] for n, g in self._groups.items() if n in learn.needs}
        return learn(state, signals | twins)


class WeightMirror(FeedbackAlignment):
    r"""Feedback alignment whose matrices learn the forward weights from noise (Akrout et al. 2019).

    Before every presentation each layer is shown noise xi alone, without bias; its feedback
    synapses see xi as presynaptic activity, and the response y = f(W xi) as postsynaptic activity
    and as their error. Under ``Delta(rate, decay=..., derivative=False)`` they follow
    dB = rate * <y xi^T> - decay * B, whose mean is in proportion to W, c sigma^2 W with c = 1 for
    linear units and 1/2 for ReLUs. Give that rule as ``"role:feedback"``.

    Args:
        weights: origin of the matrices at the start of an episode, see FeedbackAlignment.
        scale: see FeedbackAlignment.
        sigma: standard deviation of the noise.
        input_beta, linked: see LayerwiseFeedback.

    Raises:
        ConfigurationError: for sigma not above 0.
    """

    taught = True

    def __init__(
        self,
        weights: Origin = "fixed",
        scale: float = 1.0,
        *,
        sigma: float = 0.1,
        input_beta: float | None = None,
        linked: bool = False,
    ) -> None:
        super().__init__(weights, scale, input_beta=input_beta, linked=linked)
        if not sigma > 0:
            raise ConfigurationError(f"sigma is a standard deviation above 0, got {sigma}.")
        self.sigma = sigma

    def noise(
        self, network: Network, lead: tuple[int, ...], generator: torch.Generator
    ) -> Tensor | None:
        """Noise for the inputs of the mirrored layers, (E, T, B, units)."""
        assert isinstance(network, LayeredNetwork)
        return mirror_noise(self._mirrored(network), lead, self.sigma, generator)

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        signals = mirror_signals(
            self._mirrored(network),
            state["weights"],
            self.given_noise(presentation),
            learn.needs,
            presentation.weight,
        )
        return super().present(network, learn(state, signals), presentation, learn)

    def _mirrored(self, network: LayeredNetwork) -> list[Layer]:
        return [i for i in network.layers if f"{i.name}_feedback" in self._groups]


def mirror_noise(
    layers: Sequence[Layer], lead: tuple[int, ...], sigma: float, generator: torch.Generator
) -> Tensor:
    """Normal noise of standard deviation ``sigma`` for the inputs of mirrored layers, (*lead,
    units).
    """
    units = sum(prod(layer.in_shape) for layer in layers)
    return torch.randn(*lead, units, generator=generator) * sigma


def mirror_signals(
    layers: Sequence[Layer],
    weights: dict[str, Tensor],
    noise: Tensor,
    needs: Needs,
    weight: Tensor | None,
) -> dict[str, LocalSignals]:
    """What the feedback synapses beside the weights of ``layers`` see of noise (B, units): the
    noise, and the layer's response to it as their activity and as their error; see WeightMirror.
    ``weight`` (B, 1).
    """
    signals = {}
    for layer in layers:
        name, size = f"{layer.name}_feedback", prod(layer.in_shape)
        xi, noise = noise[:, :size], noise[:, size:]
        if name in needs:
            pre, asked = layer.unfold(xi.reshape(-1, *layer.in_shape)), needs[name]
            potential = pre @ weights[f"{layer.name}_weight"].mT
            activity = LayerActivity(pre, potential, layer.activation(potential), ())
            signals[name] = LocalSignals(
                pre,
                activity.post,
                activity.post if "teaching" in asked else None,
                gain=layer.gain(activity) if "gain" in asked else None,
                weight=layer.per_row(weight),
                sites=layer.sites,
            )
    return signals
