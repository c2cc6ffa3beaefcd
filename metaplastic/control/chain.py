"""The layers that a controller acts on, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import linear

from metaplastic.errors import UnsupportedLayerError
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer
from metaplastic.networks.transforms import SLOPES, Flatten


class Units(NamedTuple):
    """The units of all controlled layers, input side first, each (B, n_i)."""

    basal: tuple[Tensor, ...]
    """W_i r_{i-1} + b_i, what arrives from below."""
    potential: tuple[Tensor, ...]
    """Basal and control together."""
    rate: tuple[Tensor, ...]
    """phi_i at the potential."""

    @property
    def output(self) -> Tensor:
        """(B, K)"""
        return self.rate[-1]


@dataclass(frozen=True)
class Chain:
    """Linear layers with nothing between them but their activation functions."""

    layers: tuple[Layer, ...]
    weights: tuple[Tensor, ...]
    """(n_i, n_{i-1}) of each layer."""
    biases: tuple[Tensor | None, ...]
    """(n_i, 1)"""
    inlet: Tensor
    """(B, n_0), the activity below the lowest controlled layer."""
    entry: Tensor = field(init=False)
    """(B, n_1), what the lowest controlled layer gets from it; the same under any control."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry", self._drive(0, self.inlet))

    @classmethod
    def of(
        cls, network: LayeredNetwork, weights: dict[str, Tensor], x: Tensor, lowest: int = 0
    ) -> tuple[Chain, Units]:
        """The layers from ``lowest`` on for features x (B, *), and their feed-forward activity."""
        _, activities = network.run(x, weights)
        layers, active = network.layers[lowest:], activities[lowest:]
        chain = cls(
            layers,
            tuple(weights[f"{i.name}_weight"] for i in layers),
            tuple(weights.get(f"{i.name}_bias") for i in layers),
            active[0].pre,
        )
        potential = tuple(a.potential for a in active)
        return chain, Units(potential, potential, tuple(a.post for a in active))

    def basal(self, index: int, rates: Sequence[Tensor]) -> Tensor:
        """W_i r_{i-1} + b_i of layer ``index``, (B, n_i), where the layers' rates are these."""
        return self.entry if index == 0 else self._drive(index, rates[index - 1])

    def _drive(self, index: int, below: Tensor) -> Tensor:
        bias = self.biases[index]
        return linear(below, self.weights[index], None if bias is None else bias.squeeze(-1))

    def rate(self, index: int, potential: Tensor) -> Tensor:
        """phi_i, (B, n_i)."""
        return self.layers[index].activation(potential)

    def slope(self, index: int, units: Units) -> Tensor:
        """phi_i' at the potential, (B, n_i)."""
        module = self.layers[index].activation
        return SLOPES[type(module)](module, units.potential[index], units.rate[index])

    def below(self, index: int, rates: Sequence[Tensor]) -> Tensor:
        """(B, n_{i-1}) the activity that layer ``index`` sees."""
        return self.inlet if index == 0 else rates[index - 1]

    def run(self, control: Sequence[Tensor]) -> Units:
        """One pass in which each layer gets ``control`` (B, n_i) beside what comes from below."""
        basal, potential, rate = [], [], []
        for i, added in enumerate(control):
            basal.append(self.basal(i, rate))
            potential.append(basal[-1] + added)
            rate.append(self.rate(i, potential[-1]))
        return Units(tuple(basal), tuple(potential), tuple(rate))


def check_controllable(network: LayeredNetwork, lowest: int) -> None:
    """Whether the layers from ``lowest`` on make a Chain.

    Raises:
        UnsupportedLayerError: for a convolution among them, or anything but an activation function
            and Flatten between them.
    """
    for layer in network.layers[lowest:]:
        wrong = [t.module for t in layer.transforms if not isinstance(t, Flatten)]
        wrong = wrong if len(layer.unit_shape) == 1 else [layer.synapses]
        if wrong:
            raise UnsupportedLayerError(
                f"a feedback controller acts on Linear layers with at most an activation function "
                f"and Flatten() between them, got {wrong[0]} at layer {layer.index}: keep the "
                "layers up to it fixed (a rule of None), or put them into the trunk."
            )
