"""Populations of units, the pathways between them, and what they do at one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from metaplastic.networks.layer import Layer
from metaplastic.networks.transforms import SLOPES, Transform


@dataclass(frozen=True)
class Population:
    """Units with potentials, which are a slice of the network's state."""

    name: str
    activation: nn.Module
    transforms: tuple[Transform, ...]
    """Behind the activation function, on the way to all that it sends to."""
    shape: tuple[int, ...]
    start: int
    """Where its slice begins."""

    @property
    def size(self) -> int:
        """Number of units."""
        return prod(self.shape)

    def of(self, state: Tensor) -> Tensor:
        """Its potentials, (B, S) -> (B, *)."""
        return state[:, self.start : self.start + self.size].reshape(-1, *self.shape)

    def slope(self, potential: Tensor, rate: Tensor) -> Tensor:
        """Of the activation function, (B, *)."""
        return SLOPES[type(self.activation)](self.activation, potential, rate)


@dataclass(frozen=True)
class Synapses(Layer):
    """The synapses of a pathway; its activation function is that of the units it ends on."""

    label: str = ""

    @property
    def name(self) -> str:
        return self.label


@dataclass(frozen=True)
class Pathway:
    """From a population, or the features (None), to a population. Without synapses it hands on what
    it gets.
    """

    source: int | None
    target: int
    transforms: tuple[Transform, ...]
    """In front of the synapses."""
    synapses: Synapses | None


@dataclass(frozen=True)
class Wiring:
    """All of them. The last population is the output, which sends nothing."""

    populations: tuple[Population, ...]
    pathways: tuple[Pathway, ...]

    @property
    def size(self) -> int:
        """S, the number of all units."""
        return sum(p.size for p in self.populations)

    @property
    def outputs(self) -> int:
        """K"""
        return self.populations[-1].size


class WiredField:
    """dv/dt = g(v) - v for some features and weights; see ``equilibrium.Field``.

    Args:
        wiring: populations and pathways.
        weights: {group: (n_out, n_in)}
        features: (B, *)
    """

    def __init__(self, wiring: Wiring, weights: Mapping[str, Tensor], features: Tensor) -> None:
        self.wiring, self.weights, self.features = wiring, weights, features
        self.outputs = wiring.outputs
        entering = [features.new_zeros(len(features), *p.shape) for p in wiring.populations]
        for way in wiring.pathways:
            if way.source is None:
                arrived = self.arriving(way, path(way.transforms, features)[-1])
                entering[way.target] = entering[way.target] + arrived
        self.entering = entering
        """What the features bring to each population, (B, *), whatever the state."""

    def still(self) -> Tensor:
        """Potentials of 0, (B, S)."""
        return self.features.new_zeros(len(self.features), self.wiring.size)

    def at(self, state: Tensor) -> WiredPoint:
        return WiredPoint(self, state)

    def arriving(self, way: Pathway, sent: Tensor) -> Tensor:
        """What a pathway adds to the potentials, (B, *) -> (B, *)."""
        if way.synapses is None:
            return sent
        weight, bias = (self.weights.get(name) for name in way.synapses.names)
        assert weight is not None
        potential = way.synapses.unfold(sent) @ weight.mT
        return way.synapses.to_units(potential if bias is None else potential + bias.mT)


class WiredPoint:
    """The network at potentials (B, S); see ``equilibrium.Point``."""

    def __init__(self, field: WiredField, state: Tensor) -> None:
        self.field, self.state = field, state
        populations = field.wiring.populations
        self.rates = [p.activation(p.of(state)) for p in populations]
        """(B, *) of each population."""
        self._sent = [
            path(p.transforms, rate) for p, rate in zip(populations, self.rates, strict=True)
        ]
        self._ways = [
            path(w.transforms, field.features if w.source is None else self._sent[w.source][-1])
            for w in field.wiring.pathways
        ]
        called = list(field.entering)
        for way, along in zip(field.wiring.pathways, self._ways, strict=True):
            if way.source is not None:
                called[way.target] = called[way.target] + field.arriving(way, along[-1])
        self.called = torch.cat([c.flatten(1) for c in called], dim=-1)

    def before(self, index: int) -> Tensor:
        """What arrives at the synapses of a pathway, (B, *)."""
        return self._ways[index][-1]

    def transposed(self, error: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """g'(v)^T error, (B, S) -> (B, S); ``weights``, {pathway: (n_out, n_in)}, stand in for the
        network's own.
        """
        wiring = self.field.wiring
        errors = [torch.zeros_like(sent[-1]) for sent in self._sent]
        for way, along in zip(wiring.pathways, self._ways, strict=True):
            if way.source is not None:
                arrived = self._before(way, wiring.populations[way.target].of(error), weights)
                errors[way.source] = errors[way.source] + descend(way.transforms, along, arrived)
        found = []
        for p, sent, rate, error_sent in zip(
            wiring.populations, self._sent, self.rates, errors, strict=True
        ):
            slope = p.slope(p.of(self.state), rate)
            found.append((descend(p.transforms, sent, error_sent) * slope).flatten(1))
        return torch.cat(found, dim=-1)

    def _before(self, way: Pathway, error: Tensor, weights: Mapping[str, Tensor] | None) -> Tensor:
        """The error in front of a pathway's synapses, (B, *)."""
        if way.synapses is None:
            return error
        own = self.field.weights[way.synapses.names[0]]
        weight = own if weights is None else weights[way.synapses.name]
        return way.synapses.fold(way.synapses.to_rows(error) @ weight)


def path(transforms: Sequence[Transform], x: Tensor) -> list[Tensor]:
    """X (B, *), and what it is after each transform."""
    found = [x]
    for step in transforms:
        found.append(step(found[-1]))
    return found


def descend(transforms: Sequence[Transform], along: Sequence[Tensor], error: Tensor) -> Tensor:
    """The error behind the transforms as that in front of them, (B, *) -> (B, *)."""
    error = error.reshape(along[-1].shape)
    for i in reversed(range(len(transforms))):
        error = transforms[i].transpose(along[i], along[i + 1], error.reshape(along[i + 1].shape))
    return error.reshape(along[0].shape)
