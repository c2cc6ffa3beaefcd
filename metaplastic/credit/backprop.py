"""Backpropagation, written by hand: the gradient baseline."""

from __future__ import annotations

from metaplastic.credit.base import CreditAssignment
from metaplastic.networks import LayeredNetwork, Network
from metaplastic.signals import Learn, Presentation, State


class Backprop(CreditAssignment):
    """Errors sent down through the transposed forward weights (Rumelhart et al. 1986).

    Not local (weight transport): with Delta it is gradient descent, which makes MAML (all layers
    plastic), ANIL (the last one) and OML (the upper ones) points of the same space. Layers below
    the lowest plastic one are not visited.
    """

    protocol = LayeredNetwork
    provides = frozenset({"teaching", "gain"})

    def present(
        self, network: Network, state: State, presentation: Presentation, learn: Learn
    ) -> State:
        assert isinstance(network, LayeredNetwork)
        output, activities = network.run(presentation.x, state["weights"])
        error = presentation.teacher.error(output)
        lowest = min(i.index for i in network.layers if not learn.needs.keys().isdisjoint(i.names))
        signals = {}
        for layer in reversed(network.layers[lowest:]):
            activity = activities[layer.index]
            signals |= network.signals(
                layer, activity, learn.needs, teaching=error, weight=presentation.weight
            )
            if layer.index > lowest:
                matrix = state["weights"][f"{layer.name}_weight"]
                error = network.backward(
                    layer.index, error * layer.gain(activity), matrix, activities[layer.index - 1]
                )
        return learn(state, signals)
