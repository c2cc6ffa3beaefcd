"""The whole stream of a learner that learns from its own error, by kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.func import vmap

from metaplastic.credit import Backprop, DirectFeedback
from metaplastic.kernels import steps
from metaplastic.kernels.given import (
    SEGMENT,
    PlasticLayer,
    bias,
    coefficients,
    each,
    once,
    plastic_layers,
    share,
)
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.objectives import CrossEntropy, SquaredError
from metaplastic.signals import State

ROOM = 2**23
"""Bytes of the weights that are made again at a time on the way back."""


@dataclass(frozen=True)
class Descent:
    """A learner whose upper layers kernels can take through the stream, step by step."""

    learner: Learner
    layers: dict[int, PlasticLayer]
    """The plastic ones by index: the last ones of the network."""

    def advance(self, moving: State, shared: State, shown: dict[str, Tensor]) -> State:
        """What ``moving`` is after the presentations ``shown``, (E, T, B, *) each."""
        learner, network, credit = self.learner, self.learner.network, self.learner.credit
        assert isinstance(network, LayeredNetwork)
        own, common = moving["weights"], shared["weights"]
        x, weight, first = shown["x"], shown.get("weight"), min(self.layers)
        for layer in network.layers[:first]:
            x = each(layer.forward, layer.names, own, common, x)
        given = []
        for plastic in self.layers.values():
            layer = plastic.layer
            name, feedback = layer.names[0], f"{layer.name}_feedback1"
            values = shared["coefficients"][name]
            if feedback in own:
                matrix = own[feedback]
            elif feedback in common:
                matrix = common[feedback].unsqueeze(0)
            else:
                matrix = x.new_zeros(1, layer.units, 1)
            given.append(
                steps.Synapses(
                    once(own[name]),
                    *coefficients(plastic.rule, values, own[name]),
                    bias(layer, own, common, x),
                    share(plastic.rule, weight, x),
                    matrix,
                )
            )
        bytes_each = sum(layer.weight[0].nbytes for layer in given)
        chain = steps.Chain(
            neurons=tuple(plastic.neuron for plastic in self.layers.values()),
            descends=isinstance(credit, Backprop),
            clamped=not isinstance(credit, DirectFeedback) or credit.output == "clamp",
            classes=isinstance(learner.objective, CrossEntropy),
            segment=segment(bytes_each),
        )
        found = steps.scan(chain, given, x, shown["target"], self._scale(weight, x))
        after = {p.layer.names[0]: w for p, w in zip(self.layers.values(), found, strict=True)}
        return {**moving, "weights": own | after}

    def _scale(self, weight: Tensor | None, x: Tensor) -> Tensor:
        """The objective's factor on the error of each presentation, (E or 1, T)."""
        objective = self.learner.objective

        def one(weight: Tensor) -> Tensor:
            zeros = weight.new_zeros(len(weight), 1)
            return SquaredError(objective.scale).error(zeros, zeros + 1, weight)[0, 0]

        if weight is not None:
            return vmap(vmap(one))(weight)
        return one(x.new_ones(x.shape[2], 1)).expand(1, x.shape[1])


def segment(bytes_each: int) -> int:
    """Presentations between weights that are kept, where those of one take so many bytes."""
    return min(SEGMENT, max(4, ROOM // bytes_each))


def descent_of(learner: Learner) -> Descent | str:
    """The learner as kernels take it step by step, or why they cannot."""
    credit, network = learner.credit, learner.network
    if type(credit) is DirectFeedback:
        if credit.signal != "error" or credit.depth > 1 or credit.rectify or credit.bias:
            return "feedback is not one linear layer from the error"
        if credit.detach_error:
            return "the outer loop takes the error for a constant"
    elif type(credit) is not Backprop or credit.input_beta is not None or credit.linked:
        return f"the errors come from {type(credit).__name__}"
    if type(learner.objective) not in (SquaredError, CrossEntropy):
        return f"the objective is a {type(learner.objective).__name__}"
    layers = plastic_layers(learner, "error")
    if isinstance(layers, str):
        return layers
    assert isinstance(network, LayeredNetwork)
    if sorted(layers) != list(range(min(layers), len(network.layers))):
        return "a layer above the lowest plastic one stays as it is"
    if any(layer.transforms for layer in network.layers[min(layers) :]):
        return "something stands between the plastic layers"
    return Descent(learner, dict(sorted(layers.items())))
