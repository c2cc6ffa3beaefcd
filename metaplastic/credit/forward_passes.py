"""Forward passes layer by layer, under dropout masks that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaplastic.credit.base import Needs
from metaplastic.errors import ConfigurationError
from metaplastic.networks import LayeredNetwork
from metaplastic.networks.layer import Layer, LayerActivity
from metaplastic.signals import Kind, LocalSignals


@dataclass(frozen=True)
class Dropout:
    """The masks of one presentation, the same in every pass: 1 / keep for a unit that stays, 0 for
    one that is left out.
    """

    keep: float
    """Probability that a unit stays, above 0 and up to 1."""
    uniform: tuple[Tensor, ...]
    """(B, units) numbers in [0, 1) for each layer from the first on; layers without any have no
    mask."""

    def mask(self, layer: Layer) -> Tensor | None:
        """(N, n_out), or None."""
        if layer.index >= len(self.uniform):
            return None
        uniform = layer.to_rows(self.uniform[layer.index].reshape(-1, *layer.unit_shape))
        return (uniform < self.keep).to(uniform.dtype) / self.keep


@dataclass(frozen=True)
class Passed:
    """One layer in one pass."""

    layer: Layer
    activity: LayerActivity
    """Without dropout."""
    mask: Tensor | None
    post: Tensor
    """(N, n_out) activity under dropout."""
    above: Tensor
    """(B, *) what the next layer's synapses get, or the output."""


@dataclass(frozen=True)
class ForwardPasses:
    """What passes through a network with the same weights and masks have in common."""

    network: LayeredNetwork
    weights: dict[str, Tensor]
    dropout: Dropout

    def step(self, layer: Layer, x: Tensor) -> Passed:
        """One layer on the input of its synapses, (B, *)."""
        pre = layer.unfold(x)
        potential = layer.potential(pre, self.weights)
        active = layer.activation(potential)
        mask = self.dropout.mask(layer)
        post = active if mask is None else active * mask
        above = layer.to_units(post)
        for transform in layer.transforms:
            above = transform(above)
        return Passed(layer, LayerActivity(pre, potential, active, ()), mask, post, above)

    def run(self, x: Tensor, layers: Iterable[Layer]) -> Iterator[Passed]:
        """The layers one after another from the first on; none but the present one is kept."""
        for layer in layers:
            passed = self.step(layer, x)
            x = passed.above
            yield passed
            del passed

    def output(self, x: Tensor) -> Tensor:
        """(B, K)"""
        for passed in self.run(x, self.network.layers):
            x = passed.above
        return x

    def signals(
        self,
        passed: Passed,
        needs: Needs,
        *,
        teaching: Tensor,
        kind: Kind = "error",
        pre: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, LocalSignals]:
        """What the plastic groups of a layer see of a pass; ``teaching`` (N, n_out), ``pre``
        (N, n_in) in place of the pass's own, ``weight`` (B, 1).
        """
        activity = passed.activity if pre is None else replace(passed.activity, pre=pre)
        seen = self.network.signals(
            passed.layer, activity, needs, teaching=teaching, kind=kind, weight=weight
        )
        if passed.mask is None:
            return seen
        return {name: _masked(s, passed.post, passed.mask) for name, s in seen.items()}


def _masked(signals: LocalSignals, post: Tensor, mask: Tensor) -> LocalSignals:
    gain = None if signals.gain is None else signals.gain * mask
    return replace(signals, post=post, gain=gain)


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Whether small differences between two passes are kept.

    Raises:
        ConfigurationError: for half precision, and on a GPU where products in float32 are rounded
            to TF32.
    """
    if dtype in (torch.float16, torch.bfloat16):
        raise ConfigurationError(
            "the difference between two passes is lost in half precision: take float32 or float64, "
            f"got {dtype}."
        )
    if device.type != "cuda" or dtype != torch.float32:
        return
    matmul = torch.backends.cuda.matmul
    # Where there is the newer setting, reading the older one after it was set is an error.
    newer = hasattr(matmul, "fp32_precision")
    exact = matmul.fp32_precision in ("none", "ieee") if newer else not matmul.allow_tf32
    if not exact:
        raise ConfigurationError(
            "the difference between two passes is lost where float32 products are rounded to TF32: "
            "call torch.set_float32_matmul_precision('highest'), or compute in float64."
        )
