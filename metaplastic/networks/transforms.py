"""The pieces of a layered network, each with its slope or its transposed map written by hand."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaplastic.errors import ConfigurationError, ShapeError, UnsupportedLayerError

SLOPES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Identity: lambda m, v, y: torch.ones_like(v),
    nn.ReLU: lambda m, v, y: (v > 0).to(v.dtype),
    nn.LeakyReLU: lambda m, v, y: torch.where(v > 0, torch.ones_like(v), m.negative_slope),
    nn.ELU: lambda m, v, y: torch.where(v > 0, 1.0, y + m.alpha),
    nn.Softplus: lambda m, v, y: torch.where(
        m.beta * v > m.threshold, torch.ones_like(v), torch.sigmoid(m.beta * v)
    ),
    nn.Tanh: lambda m, v, y: 1 - y * y,
    nn.Sigmoid: lambda m, v, y: y * (1 - y),
    nn.SiLU: lambda m, v, y: torch.sigmoid(v) + y * (1 - torch.sigmoid(v)),
}
"""Activation functions and their slopes, as functions of (module, potential v, activity y)."""


def without_inplace(module: nn.Module) -> nn.Module:
    """The module, or a shallow copy that does not overwrite its input."""
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        module.__dict__["inplace"] = False
    return module


class Transform(ABC):
    """What stands between one layer's activity and the next layer's synapses, (B, *) -> (B, *)."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    @property
    def mixes_examples(self) -> bool:
        """Whether one example's output depends on the others shown with it."""
        return False

    def __call__(self, x: Tensor) -> Tensor:
        """Forward map."""
        return self.module(x)

    @abstractmethod
    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        """Error at ``y`` = self(x) -> error at ``x``, the transposed Jacobian."""


class Activate(Transform):
    """An activation function that does not follow synapses directly."""

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        return error * SLOPES[type(self.module)](self.module, x, y)


class Flatten(Transform):
    """Unit view to one vector for each example."""

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        return error.reshape(x.shape)


class AveragePool(Transform):
    """``nn.AvgPool2d``, padding and all windows counted alike."""

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        m = self.module
        size = _pair(m.kernel_size)
        share = error.flatten(2).unsqueeze(2) / (size[0] * size[1])
        columns = share.expand(-1, -1, size[0] * size[1], -1).flatten(1, 2)
        return F.fold(columns, x.shape[2:], size, stride=_pair(m.stride), padding=_pair(m.padding))


class GlobalAverage(Transform):
    """``nn.AdaptiveAvgPool2d(1)``."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1), keepdim=True)

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        return error.expand_as(x) / (x.shape[-1] * x.shape[-2])


class MaxPool(Transform):
    """``nn.MaxPool2d``; the error goes to the unit that won."""

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        m = self.module
        _, won = F.max_pool2d(
            x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, return_indices=True
        )
        silent = torch.zeros_like(x.flatten(2))
        return silent.scatter_add(2, won.flatten(2), error.flatten(2)).reshape(x.shape)


class Normalise(Transform):
    """Layer, group and batch norm over statistics of the present input: the axes of ``view``."""

    def __call__(self, x: Tensor) -> Tensor:
        normal, _ = self._normal(x)
        return normal * self._scale(x) + self._affine(x, self.module.bias, 0.0)

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        normal, inverse = self._normal(x)
        shape, axes = self._view(x)
        g = (error * self._scale(x)).reshape(shape)
        n = normal.reshape(shape)
        centred = g - g.mean(axes, keepdim=True) - n * (g * n).mean(axes, keepdim=True)
        return (centred * inverse).reshape(x.shape)

    @property
    def mixes_examples(self) -> bool:
        return isinstance(self.module, nn.BatchNorm1d | nn.BatchNorm2d)

    def _normal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape, axes = self._view(x)
        v = x.reshape(shape)
        if 0 in axes and v[:, 0].numel() < 2:
            raise ShapeError(
                f"{self.module} under batch_norm='batch' needs at least two rows, got "
                f"{tuple(x.shape)}: show more examples at a time, or declare 'running'."
            )
        centred = v - v.mean(axes, keepdim=True)
        inverse = (centred.square().mean(axes, keepdim=True) + self.module.eps).rsqrt()
        return (centred * inverse).reshape(x.shape), inverse

    def _view(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        m = self.module
        if isinstance(m, nn.GroupNorm):
            return (x.shape[0], m.num_groups, -1), (2,)
        if isinstance(m, nn.LayerNorm):
            return tuple(x.shape), tuple(range(x.dim() - len(m.normalized_shape), x.dim()))
        return tuple(x.shape), (0, *range(2, x.dim()))

    def _scale(self, x: Tensor) -> Tensor | float:
        return self._affine(x, self.module.weight, 1.0)

    def _affine(self, x: Tensor, value: Tensor | None, default: float) -> Tensor | float:
        if value is None or isinstance(self.module, nn.LayerNorm):
            return default if value is None else value
        return value.reshape(-1, *(1,) * (x.dim() - 2))


class RunningNorm(Transform):
    """Batch norm on its running statistics, which stay as they are."""

    def __call__(self, x: Tensor) -> Tensor:
        m = self.module
        scale = self._scale(x)
        shift = 0.0 if m.bias is None else m.bias.reshape(scale.shape)
        return (x - m.running_mean.reshape(scale.shape)) * scale + shift

    def transpose(self, x: Tensor, y: Tensor, error: Tensor) -> Tensor:
        return error * self._scale(x)

    def _scale(self, x: Tensor) -> Tensor:
        m = self.module
        scale = (m.running_var + m.eps).rsqrt()
        scale = scale if m.weight is None else scale * m.weight
        return scale.reshape(-1, *(1,) * (x.dim() - 2))


def transform(module: nn.Module, batch_norm: str | None) -> Transform:
    """The transform of a module; raises UnsupportedLayerError, or ConfigurationError where a batch
    norm has no declared policy.
    """
    kind = type(module)
    if kind in SLOPES:
        return Activate(without_inplace(module))
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        if batch_norm not in ("running", "batch"):
            raise ConfigurationError(
                f"{kind.__name__} needs a declared policy: batch_norm='running' (its running "
                "statistics, never updated) or 'batch' (those of each presentation, at least two "
                f"rows); got {batch_norm!r}. LayerNorm and GroupNorm need none."
            )
        if batch_norm == "running" and module.running_mean is None:
            raise ConfigurationError("batch_norm='running' needs track_running_stats=True.")
        return (RunningNorm if batch_norm == "running" else Normalise)(module)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return Normalise(module)
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return Flatten(module)
    if isinstance(module, nn.AdaptiveAvgPool2d) and _pair(module.output_size) == (1, 1):
        return GlobalAverage(module)
    if isinstance(module, nn.AvgPool2d):
        plain = module.count_include_pad and not module.ceil_mode
        if plain and module.divisor_override is None:
            return AveragePool(module)
    if isinstance(module, nn.MaxPool2d):
        return MaxPool(module)
    advice = (
        "draw its masks from an explicit generator, or leave it out"
        if isinstance(module, nn.Dropout | nn.Dropout2d)
        else "put everything up to it into the trunk, which may be any module"
    )
    raise UnsupportedLayerError(
        f"{module} cannot stand between plastic layers: {advice}. Supported there: "
        f"{', '.join(sorted(k.__name__ for k in SLOPES))}, Flatten(), AvgPool2d, MaxPool2d, "
        "AdaptiveAvgPool2d(1), LayerNorm, GroupNorm, BatchNorm1d/2d."
    )


def check_input(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a norm fits examples of ``shape``; the other modules check it
    themselves, as they run."""
    wanted, given = None, None
    if isinstance(module, nn.LayerNorm):
        wanted = tuple(module.normalized_shape)
        given = shape[max(0, len(shape) - len(wanted)) :]
    elif isinstance(module, nn.GroupNorm):
        wanted, given = module.num_channels, shape[0]
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        wanted, given = module.num_features, shape[0]
    if wanted != given:
        raise ShapeError(f"{module} is made for {wanted} but gets {given} of examples {shape}.")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
