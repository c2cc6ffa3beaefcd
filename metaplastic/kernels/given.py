"""What the kernels of the two kinds are told of a learner, from its network, rules and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from metaplastic.kernels.neuron import Neuron, neuron, reduction
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.rules import Hebb
from metaplastic.rules.base import PlasticityRule
from metaplastic.signals import Kind, LocalSignals

SEGMENT = 64
"""Presentations between weights that are kept for the way back, where nobody says otherwise."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class PlasticLayer:
    """One plastic layer, as kernels see it."""

    layer: Layer
    rule: PlasticityRule
    neuron: Neuron


def plastic_layers(learner: Learner, kind: Kind) -> dict[int, PlasticLayer] | str:
    """The plastic layers by index, or why kernels cannot run them. ``kind`` is how the rules are to
    read their teaching signal.
    """
    network = learner.network
    if type(network) is not LayeredNetwork:
        return f"the network is a {type(network).__name__}"
    layers: dict[int, PlasticLayer] = {}
    groups = learner.groups()
    for name, rule in learner.rules.items():
        group = groups[name]
        assert isinstance(rule, PlasticityRule)
        if group.role != "weight":
            return f"{name} is plastic, and kernels know weights alone"
        layer = network.layers[group.position]
        found = neuron(layer.activation, rule, kind, group.n_in)
        if not isinstance(layer.synapses, torch.nn.Linear):
            return f"{name} is a convolution"
        if found is None:
            return (
                f"{name} has {type(rule).__name__} behind {type(layer.activation).__name__}, and "
                "kernels know Hebb, Oja and Delta without decay behind ReLU, Tanh, Sigmoid or "
                "Identity"
            )
        layers[group.position] = PlasticLayer(layer, rule, found)
    if not layers:
        return "nothing is plastic"
    if any(t.mixes_examples for layer in network.layers for t in layer.transforms):
        return "a norm mixes the examples that are shown together"
    return layers


def once(tensor: Tensor) -> Tensor:
    """One episode's part of what is the same in all of them, so that it is read once."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def coefficients(rule: PlasticityRule, values: Weights, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of every synapse, (1, n_out, n_in), or of all of a neuron alike, (1, n_out, 1); and the share
    of the teaching signal, (1, n_out).
    """
    n_out = weight.shape[1]
    strength = values["plasticity" if isinstance(rule, Hebb) else "rate"]
    mix = values["mix"] if isinstance(rule, Hebb) else weight.new_zeros(1, 1)
    return strength.expand(1, n_out, strength.shape[-1]), mix.mT.expand(1, n_out)


def bias(layer: Layer, own: Weights, common: Weights, like: Tensor) -> Tensor:
    """(E or 1, n_out)"""
    name = layer.names[1]
    if name in own:
        return own[name].squeeze(-1)
    if name in common:
        return common[name].mT
    return like.new_zeros(1, layer.units)


def share(rule: PlasticityRule, weight: Tensor | None, x: Tensor) -> Tensor:
    """Of each example in a presentation's change, (E or 1, T, B)."""
    lead = x.shape[:3]
    how = reduction(rule)

    def own(weight: Tensor) -> Tensor:
        return LocalSignals(weight, weight, weight=weight).share(torch.ones_like(weight), how)

    if weight is not None:
        return vmap(vmap(own))(weight).squeeze(-1)
    ones = x.new_ones(lead[2], 1)
    return LocalSignals(ones, ones).share(ones, how).mT.expand(1, *lead[1:])


def each(
    function: Callable[[Tensor, Weights], Tensor],
    names: Iterable[str],
    own: Weights,
    common: Weights,
    x: Tensor,
) -> Tensor:
    """A function of examples (N, *) and weights, of the examples of a whole stream (E, T, B, *).
    The weights called ``names`` are each episode's own, or common to all.
    """
    lead = x.shape[:3]
    mine = {name: own[name] for name in names if name in own}
    if not mine:
        return function(x.flatten(0, 2), common).unflatten(0, lead)
    found = vmap(lambda x, mine: function(x, common | mine))(x.flatten(1, 2), mine)
    return found.unflatten(1, lead[1:])
