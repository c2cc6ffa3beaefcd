"""Errors sent down layer by layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from torch import Tensor

from metaplastic.credit.base import CreditAssignment, Needs
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.networks.layer import Layer, LayerActivity
from metaplastic.signals import Learn, LocalSignals, Origin, Presentation, State


class LayerwiseFeedback(CreditAssignment):
    r"""Each layer's error goes to the layer below through one matrix: e_{l-1} = (e_l o f'_l) M_l.

    A subclass says what M_l is, in the shape of the forward weights, (n_out, n_in); a convolution's
    acts on its patches, as the transposed convolution does. Layers below the lowest plastic one are
    not visited.

    Args:
        weights: origin of the feedback weights, if the subclass has any.
        scale: factor on their standard deviation.
        input_beta: the slope of input units, for rules that read the error there, is
            1 - exp(-beta x), as if they were softplus units (Shervani-Tabar & Rosenbaum 2023), and
            0 where x is negative; None takes 1.
        linked: the last layer's postsynaptic activity is the output in the target's units (the
            softmax of its logits), as there.
    """

    protocol = LayeredNetwork
    provides = frozenset({"teaching", "gain", "pre_teaching"})

    def __init__(
        self,
        weights: Origin = "fixed",
        scale: float = 1.0,
        *,
        input_beta: float | None = None,
        linked: bool = False,
    ) -> None:
        super().__init__(weights, scale)
        self.input_beta, self.linked = input_beta, linked

    @abstractmethod
    def matrix(self, layer: Layer, state: State, presentation: Presentation) -> Tensor:
        """(n_out, n_in) what carries the error down from ``layer``."""

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        return learn(state, self.descend(network, state, presentation, learn.needs))

    def descend(
        self, network: LayeredNetwork, state: State, presentation: Presentation, needs: Needs
    ) -> dict[str, LocalSignals]:
        """What the network's plastic groups see."""
        output, activities = network.run(presentation.x, state["weights"])
        error = presentation.teacher.error(output)
        lowest = lowest_plastic(network, needs)
        signals = {}
        for layer in reversed(network.layers[lowest:]):
            activity = activities[layer.index]
            reads = any("pre_teaching" in needs.get(name, ()) for name in layer.names)
            below = None
            if layer.index > lowest or reads:
                matrix = self.matrix(layer, state, presentation)
                below = layer.fold((error * layer.gain(activity)) @ matrix)
            signals |= network.signals(
                layer,
                activity,
                needs,
                teaching=error,
                pre_teaching=self._at_potentials(network, layer, activities, presentation.x, below)
                if below is not None and reads
                else None,
                weight=presentation.weight,
            )
            if layer.index > lowest:
                assert below is not None
                error = network.backward(layer.index, below, activities[layer.index - 1])
        if self.linked:
            post, names = presentation.teacher.link(output), network.layers[-1].names
            signals |= {n: replace(signals[n], post=post) for n in names if n in signals}
        return signals

    def _at_potentials(
        self,
        network: LayeredNetwork,
        layer: Layer,
        activities: tuple[LayerActivity, ...],
        x: Tensor,
        error: Tensor,
    ) -> Tensor:
        """Error at the activity of the presynaptic units, (B, *), times their slope: (N, n_in).
        What a pooling or a norm puts out has slope 1.
        """
        slope = network.slope_below(layer.index, activities)
        if layer.index == 0 and self.input_beta is not None:
            slope = -(-self.input_beta * x.clamp(min=0.0)).expm1()
        return layer.unfold(error if slope is None else error * slope)


def lowest_plastic(network: LayeredNetwork, needs: Needs) -> int:
    """Index of the lowest layer with plastic synapses, or the number of layers without any."""
    plastic = (i.index for i in network.layers if not set(needs).isdisjoint(i.names))
    return min(plastic, default=len(network.layers))
