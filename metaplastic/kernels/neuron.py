"""What a compiled inner loop knows of the neurons of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from metaplastic.rules import Delta, Hebb, Oja
from metaplastic.rules.base import PlasticityRule
from metaplastic.signals import Kind, Reduction

IDENTITY, RELU, TANH, SIGMOID = range(4)
HEBB, OJA, DELTA = range(3)
ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.Identity: IDENTITY,
    nn.ReLU: RELU,
    nn.Tanh: TANH,
    nn.Sigmoid: SIGMOID,
}
FAMILIES: dict[type[PlasticityRule], int] = {Hebb: HEBB, Oja: OJA, Delta: DELTA}


class Code(NamedTuple):
    """A neuron in whole numbers, as kernels take it; see Neuron."""

    activation: int
    family: int
    bounded: int
    target: int
    derivative: int


@dataclass(frozen=True)
class Neuron:
    """Activation function and rule of a layer."""

    activation: int
    family: int
    bounded: bool = False
    """Hebb and Oja: the change is divided by 1 + <z^2>."""
    target: bool = False
    """Delta: the teaching signal is the wanted activity, not its change."""
    derivative: bool = False
    """Delta: the error is multiplied by the slope of the activation function."""
    multiplier: float = 1.0
    """Hebb and Oja: factor on the change."""

    @property
    def code(self) -> Code:
        """For kernels."""
        return Code(self.activation, self.family, self.bounded, self.target, int(self.derivative))


def neuron(activation: nn.Module, rule: PlasticityRule, kind: Kind, n_in: int) -> Neuron | None:
    """What kernels are told of a layer of Linear synapses with n_in inputs, None where it is not
    known to them.
    """
    code = ACTIVATIONS.get(type(activation))
    family = FAMILIES.get(type(rule))
    if code is None or family is None:
        return None
    if isinstance(rule, Hebb):
        factor = rule.multiplier / (n_in if rule.fan_in else 1)
        return Neuron(code, family, bounded=rule.bounded, multiplier=factor)
    assert isinstance(rule, Delta)
    if rule.decay.learned or rule.decay.value:
        return None
    return Neuron(code, family, target=kind == "target", derivative=rule.derivative)


def reduction(rule: PlasticityRule) -> Reduction:
    """How the examples of a presentation share a change."""
    assert isinstance(rule, Hebb | Delta)
    return rule.reduction
