"""What the output is asked for: the loss, the error at the output, and the link."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import LabelError, ShapeError, check_choice

Scale = Literal["example", "batch"]


@dataclass(frozen=True)
class Objective(ABC):
    """A loss with its output error. Leading axes ``...`` are free; K is the number of outputs.

    ``scale`` says what one presentation's error is the gradient of: each example's own loss
    (``"example"``), or the mean over the B examples shown together (``"batch"``: errors shrink
    with B, as they do when the error is read off a mean loss).
    """

    scale: Scale = "example"

    def __post_init__(self) -> None:
        check_choice(scale=(self.scale, Scale))

    @abstractmethod
    def encode(self, y: Tensor, outputs: int) -> Tensor:
        """Targets as the data set gives them -> targets at the output, (..., K), floating point."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each example: output and target (..., K) -> (...)."""

    @abstractmethod
    def link(self, output: Tensor) -> Tensor:
        """The output in the target's units, (..., K)."""

    def correct(self, output: Tensor, target: Tensor) -> Tensor | None:
        """Whether each example is right, (...) of 0 or 1; None where that has no meaning."""
        del output, target
        return None

    def error(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Wanted change of the output, target - link(output), (B, K); positive means more.
        ``weight`` (B, 1) says which rows count as examples."""
        error = target - self.link(output)
        if self.scale == "example":
            return error
        examples = output.shape[0] if weight is None else weight.sum().clamp(min=1.0)
        return error / examples


@dataclass(frozen=True)
class SquaredError(Objective):
    """Regression. ``loss`` is the mean square over the K outputs; ``error`` is minus the gradient
    of half the summed square, y - output, the convention of Lindsey & Litwin-Kumar (2020).
    """

    def encode(self, y: Tensor, outputs: int) -> Tensor:
        if not y.is_floating_point() or y.shape[-1] != outputs:
            raise ShapeError(
                f"SquaredError needs floating-point targets (..., {outputs}), one for each output "
                f"unit; got {y.dtype} {tuple(y.shape)}. Use CrossEntropy for class labels."
            )
        return y

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(-1)

    def link(self, output: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Classification by softmax over K logits; targets are integer labels in 0..K-1.
    ``error`` is onehot - softmax, minus the gradient of the cross-entropy of each example.
    """

    def encode(self, y: Tensor, outputs: int) -> Tensor:
        if y.is_floating_point() or y.dtype == torch.bool:
            raise LabelError(f"CrossEntropy needs integer labels, got {y.dtype}; use y.long().")
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= outputs):
            raise LabelError(
                f"labels must lie in 0..{outputs - 1}, the network has {outputs} outputs; got "
                f"{int(y.min())}..{int(y.max())}. Re-map the labels of each episode to 0..ways-1 "
                "or widen the last layer."
            )
        return torch.nn.functional.one_hot(y.long(), outputs).to(torch.get_default_dtype())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * output.log_softmax(-1)).sum(-1)

    def link(self, output: Tensor) -> Tensor:
        return output.softmax(-1)

    def correct(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.argmax(-1) == target.argmax(-1)).to(output.dtype)
