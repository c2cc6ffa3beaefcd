"""One layer of a chain: its synapses, and the two views of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic.errors import ShapeError, UnsupportedLayerError
from metaplastic.networks.transforms import SLOPES, Transform, check_input


@dataclass(frozen=True)
class LayerActivity:
    """One layer in one forward pass. N = B x sites rows."""

    pre: Tensor
    """(N, n_in) presynaptic activity."""
    potential: Tensor
    """(N, n_out)"""
    post: Tensor
    """(N, n_out) activity, the activation function at the potential."""
    path: tuple[Tensor, ...]
    """Unit view (B, *) after the layer and after each transform behind it."""


@dataclass(frozen=True)
class Layer:
    """Synapses, the activation function right behind them, and the transforms up to the next."""

    index: int
    synapses: nn.Linear | nn.Conv2d
    activation: nn.Module
    transforms: tuple[Transform, ...]
    in_shape: tuple[int, ...]
    unit_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"layer{self.index}"

    @property
    def names(self) -> tuple[str, str]:
        """Its synapse groups: weights and bias."""
        return f"{self.name}_weight", f"{self.name}_bias"

    @property
    def sites(self) -> int:
        """Rows for each example: the positions of a convolution."""
        return self.unit_shape[1] * self.unit_shape[2] if len(self.unit_shape) == 3 else 1

    @property
    def units(self) -> int:
        """Number of units, positions counted."""
        return self.unit_shape[0] * self.sites

    def gain(self, activity: LayerActivity) -> Tensor:
        """(N, n_out) slope of the activation function."""
        slope = SLOPES[type(self.activation)]
        return slope(self.activation, activity.potential, activity.post)

    def potential(self, pre: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """(N, n_out) what its synapses make of presynaptic activity (N, n_in)."""
        potential = pre @ weights[f"{self.name}_weight"].mT
        bias = weights.get(f"{self.name}_bias")
        return potential if bias is None else potential + bias.mT

    def forward(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Input (B, *) -> what the next layer's synapses see, (B, *)."""
        return self.onward(self.activation(self.potential(self.unfold(x), weights)))

    def onward(self, post: Tensor) -> Tensor:
        """Activity (N, n_out) -> what the next layer's synapses see, (B, *)."""
        return self.path(post)[-1]

    def path(self, post: Tensor) -> tuple[Tensor, ...]:
        """Activity (N, n_out) in the unit view, (B, *), and what it is after each transform."""
        found = [self.to_units(post)]
        for step in self.transforms:
            found.append(step(found[-1]))
        return tuple(found)

    def unfold(self, x: Tensor) -> Tensor:
        """Unit view of the input (B, *) -> synapse view (N, n_in)."""
        if isinstance(self.synapses, nn.Linear):
            return x
        return F.unfold(x, *self._window).mT.reshape(-1, self.synapses.weight[0].numel())

    def fold(self, error: Tensor) -> Tensor:
        """The transpose of ``unfold``: (N, n_in) -> (B, *)."""
        if isinstance(self.synapses, nn.Linear):
            return error
        columns = error.reshape(-1, self.sites, error.shape[-1]).mT
        return F.fold(columns, self.in_shape[1:], *self._window)

    def per_row(self, weight: Tensor | None) -> Tensor | None:
        """One number for each example, (B, 1), as one for each row, (N, 1)."""
        return None if weight is None else weight.expand(-1, self.sites).reshape(-1, 1)

    def to_units(self, rows: Tensor) -> Tensor:
        """Synapse view (N, n_out) -> unit view (B, *)."""
        if self.sites == 1 and len(self.unit_shape) == 1:
            return rows
        columns = rows.reshape(-1, self.sites, self.unit_shape[0]).mT
        return columns.reshape(-1, *self.unit_shape)

    def to_rows(self, units: Tensor) -> Tensor:
        """Unit view (B, *) -> synapse view (N, n_out)."""
        if len(self.unit_shape) == 1:
            return units
        return units.reshape(-1, self.unit_shape[0], self.sites).mT.reshape(-1, self.unit_shape[0])

    @property
    def _window(self) -> tuple:
        m = self.synapses
        return m.kernel_size, m.dilation, m.padding, m.stride


def shape_after(transforms: Sequence[Transform], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one example behind the transforms; two examples, for statistics over a batch."""
    with torch.no_grad():
        x = torch.zeros(2, *shape)
        for step in transforms:
            check_input(step.module, tuple(x.shape[1:]))
            like = next(step.module.parameters(), None)
            try:
                x = step(x if like is None else x.to(like))
            except RuntimeError as reason:
                raise ShapeError(
                    f"{step.module} cannot take examples of {tuple(x.shape[1:])}: {reason}"
                ) from reason
    return tuple(x.shape[1:])


def unit_shape(synapses: nn.Module, shape: tuple[int, ...], index: int) -> tuple[int, ...]:
    """Unit view of a layer's output for an input of ``shape``."""
    if isinstance(synapses, nn.Linear):
        if shape != (synapses.in_features,):
            raise ShapeError(
                f"layer {index}, {synapses}, takes ({synapses.in_features},) but gets {shape}: "
                "mend in_features, or put nn.Flatten() in front."
            )
        return (synapses.out_features,)
    assert isinstance(synapses, nn.Conv2d)
    m = synapses
    if m.groups != 1 or m.padding_mode != "zeros" or isinstance(m.padding, str):
        raise UnsupportedLayerError(
            f"{synapses}: plastic convolutions take groups=1, zero padding and padding in numbers."
        )
    if len(shape) != 3 or shape[0] != synapses.in_channels:
        raise ShapeError(
            f"layer {index}, {synapses}, takes ({synapses.in_channels}, height, width) but gets "
            f"{shape}: mend in_channels or input_shape."
        )
    size = [
        (shape[1 + i] + 2 * m.padding[i] - m.dilation[i] * (m.kernel_size[i] - 1) - 1)
        // m.stride[i]
        + 1
        for i in (0, 1)
    ]
    if min(size) < 1:
        raise ShapeError(f"layer {index}, {m}, does not fit into its input {shape}.")
    return (synapses.out_channels, *size)
