"""The whole stream of a learner whose teaching signal does not depend on its output, by kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from metaplastic.credit import DirectFeedback
from metaplastic.kernels.given import (
    SEGMENT,
    PlasticLayer,
    Weights,
    bias,
    coefficients,
    each,
    once,
    plastic_layers,
    share,
)
from metaplastic.kernels.rows import Scan, scan
from metaplastic.learner import Learner
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.rules import Hebb
from metaplastic.rules.base import PlasticityRule
from metaplastic.signals import State, Teacher


@dataclass(frozen=True)
class Stream:
    """A learner that kernels can take through the stream, layer after layer."""

    learner: Learner
    layers: dict[int, PlasticLayer]
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
                x = each(layer.forward, layer.names, own, common, x)
                continue
            taught = clamped
            maps = [n for n, g in credit.groups().items() if g.position == layer.index]
            if maps:
                feed = partial(_feedback, credit, layer)
                taught = each(feed, maps, own, common, sent)
            name = layer.names[0]
            start, potential = once(own[name]), bias(layer, own, common, x)
            strength, mix = coefficients(plastic.rule, shared["coefficients"][name], own[name])
            lead = share(plastic.rule, shown.get("weight"), x)
            how = Scan(plastic.neuron, segment)
            moved = None if maps else taught_rows(plastic.rule, taught)
            if moved is not None and len(moved) < layer.units:
                start, strength, mix, potential = (
                    t[:, moved] for t in (start, strength, mix, potential)
                )
                rows, _ = scan(how, start, strength, mix, potential, x, taught[..., moved], lead)
                after[name] = own[name].index_copy(1, moved, rows)
                break  # above the last layer there is nothing
            after[name], post = scan(how, start, strength, mix, potential, x, taught, lead)
            x = layer.onward(post.flatten(0, 2)).unflatten(0, post.shape[:3])
        return {**moving, "weights": after}


def stream_of(learner: Learner) -> Stream | str:
    """The learner as kernels take it neuron by neuron, or why they cannot."""
    credit = learner.credit
    if type(credit) is not DirectFeedback or credit.signal != "target":
        return f"the teaching signal of {type(credit).__name__} waits for the output"
    layers = plastic_layers(learner, credit.kind)
    return layers if isinstance(layers, str) else Stream(learner, layers)


def taught_rows(rule: PlasticityRule, taught: Tensor) -> Tensor | None:
    """The neurons (n,) that are ever taught anything but 0, where the rule makes all others stay as
    they are: in a head of many classes, those that are shown. None for rules that learn besides.
    """
    alone = isinstance(rule, Hebb) and not rule.mix.learned and rule.mix.value == 1.0
    return taught.flatten(0, -2).any(0).nonzero().flatten() if alone else None


def _feedback(credit: DirectFeedback, layer: Layer, sent: Tensor, weights: Weights) -> Tensor:
    return credit.feedback(layer, weights, sent)
