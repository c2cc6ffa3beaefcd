"""The whole stream of a learner whose teaching signal does not depend on its output, by kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from metaplastic.credit import DirectFeedback
from metaplastic.kernels.neuron import Neuron, neuron, reduction
from metaplastic.kernels.rows import Scan, scan
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.rules import Hebb
from metaplastic.rules.base import PlasticityRule
from metaplastic.signals import LocalSignals, State, Teacher

SEGMENT = 64
"""Presentations between weights that are kept for the way back, where nobody says otherwise."""
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class StreamLayer:
    """One plastic layer, as kernels see it."""

    layer: Layer
    rule: PlasticityRule
    neuron: Neuron


@dataclass(frozen=True)
class Stream:
    """A learner that kernels can take through the stream, layer after layer."""

    learner: Learner
    layers: dict[int, StreamLayer]
    """The plastic ones by index."""

    def advance(
        self,
        moving: State,
        shared: State,
        shown: dict[str, Tensor],
        segment: int = SEGMENT,
    ) -> State:
        """What ``moving`` is after the presentations ``shown``, (E, T, B, *) each."""
        learner, network, credit = self.learner, self.learner.network, self.learner.credit
        assert isinstance(network, LayeredNetwork)
        assert isinstance(credit, DirectFeedback)
        teacher = Teacher(learner.objective, shown["target"], shown.get("weight"))
        sent, clamped = credit.top(teacher, shown["target"])
        own, common = moving["weights"], shared["weights"]
        x, after = shown["x"], dict(own)
        for layer in network.layers[: max(self.layers) + 1]:
            plastic = self.layers.get(layer.index)
            if plastic is None:
                x = _each(layer.forward, layer.names, own, common, x)
                continue
            taught = clamped
            maps = [n for n, g in credit.groups().items() if g.position == layer.index]
            if maps:
                feed = partial(_feedback, credit, layer)
                taught = _each(feed, maps, own, common, sent)
            name = layer.names[0]
            after[name], post = scan(
                Scan(plastic.neuron, segment),
                _once(own[name]),
                *_coefficients(plastic.rule, shared["coefficients"][name], own[name]),
                _bias(layer, own, common, x),
                x,
                taught,
                _share(plastic.rule, shown.get("weight"), x),
            )
            x = layer.onward(post.flatten(0, 2)).unflatten(0, post.shape[:3])
        return {**moving, "weights": after}


def stream_of(learner: Learner) -> Stream | str:
    """The learner as kernels take it neuron by neuron, or why they cannot."""
    network, credit = learner.network, learner.credit
    if type(network) is not LayeredNetwork:
        return f"the network is a {type(network).__name__}"
    if type(credit) is not DirectFeedback or credit.signal != "target":
        return f"the teaching signal of {type(credit).__name__} waits for the output"
    layers: dict[int, StreamLayer] = {}
    groups = learner.groups()
    for name, rule in learner.rules.items():
        group = groups[name]
        assert isinstance(rule, PlasticityRule)
        if group.role != "weight":
            return f"{name} is plastic, and kernels know weights alone"
        layer = network.layers[group.position]
        found = neuron(layer.activation, rule, credit.kind, group.n_in)
        if group.sites != 1 or not isinstance(layer.synapses, torch.nn.Linear):
            return f"{name} is a convolution"
        if found is None:
            return (
                f"{name} has {type(rule).__name__} behind {type(layer.activation).__name__}, and "
                "kernels know Hebb, Oja and Delta without decay behind ReLU, Tanh, Sigmoid or "
                "Identity"
            )
        layers[group.position] = StreamLayer(layer, rule, found)
    if not layers:
        return "nothing is plastic"
    if any(t.mixes_examples for layer in network.layers for t in layer.transforms):
        return "a norm mixes the examples that are shown together"
    return Stream(learner, layers)


def _once(tensor: Tensor) -> Tensor:
    """One episode's part of what is the same in all of them, so that it is read once."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _coefficients(rule: PlasticityRule, values: Weights, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of every synapse, (1, n_out, n_in), and the share of the teaching signal, (1, n_out)."""
    n_out, n_in = weight.shape[1:]
    strength = values["plasticity" if isinstance(rule, Hebb) else "rate"]
    mix = values["mix"] if isinstance(rule, Hebb) else weight.new_zeros(1, 1)
    return strength.expand(1, n_out, n_in), mix.mT.expand(1, n_out)


def _bias(layer: Layer, own: Weights, common: Weights, like: Tensor) -> Tensor:
    """(E or 1, n_out)"""
    name = layer.names[1]
    if name in own:
        return own[name].squeeze(-1)
    if name in common:
        return common[name].mT
    return like.new_zeros(1, layer.units)


def _share(rule: PlasticityRule, weight: Tensor | None, x: Tensor) -> Tensor:
    """Of each example in a presentation's change, (E or 1, T, B)."""
    lead = x.shape[:3]
    how = reduction(rule)

    def own(weight: Tensor) -> Tensor:
        return LocalSignals(weight, weight, weight=weight).share(torch.ones_like(weight), how)

    if weight is not None:
        return vmap(vmap(own))(weight).squeeze(-1)
    ones = x.new_ones(lead[2], 1)
    return LocalSignals(ones, ones).share(ones, how).mT.expand(1, *lead[1:])


def _feedback(credit: DirectFeedback, layer: Layer, sent: Tensor, weights: Weights) -> Tensor:
    return credit.feedback(layer, weights, sent)


def _each(
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
