"""One presentation of any learner as one function, compiled by torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from metaplastic.errors import CompatibilityError
from metaplastic.learner import Learner
from metaplastic.networks import Network
from metaplastic.signals import State

Show = Callable[[Learner, Network | None, State, State, dict[str, Tensor]], State]
"""(learner, constant copy of its network or None, shared, moving, stream) -> moving after the
presentations of the stream, (E, T, B, *) each."""


class Compiled:
    """The same function by one that is compiled for a single presentation, on first use and for
    every layout of its arguments.

    Args:
        show: a function that torch.compile can trace whole.
        backend: of torch.compile.
    """

    def __init__(self, show: Show, backend: str | Callable = "inductor") -> None:
        assert isinstance(show, FunctionType)
        self._show, self._backend = show, backend
        self.functions: dict[Any, Show] = {}
        """{layout: the function compiled for it}"""

    def __call__(
        self,
        learner: Learner,
        constant: Network | None,
        shared: State,
        moving: State,
        stream: dict[str, Tensor],
        *,
        again: bool = False,
    ) -> State:
        """``again`` says that the way back will run it once more.

        Raises:
            CompatibilityError: where torch.compile fails.
        """
        if not torch.is_grad_enabled():
            shared = map_tensors(Tensor.detach, shared)
        graphs = stream["x"].is_cuda and not again
        layout = None
        for shown in _presentations(stream):
            moving = map_tensors(_uniform, moving)
            given = learner, constant, shared, moving, shown
            if layout is None:
                layout = torch.is_grad_enabled(), graphs, constant is None, *map(_layout, given[2:])
            if layout in self.functions:
                moving = self.functions[layout](*given)
            else:
                self.functions[layout], moving = self._first(given, graphs)
            if graphs:  # the next run of a CUDA graph takes the memory of its results
                moving = map_tensors(Tensor.clone, moving)
        return moving

    def _first(self, given: Any, graphs: bool) -> tuple[Show, State]:
        """A function for what is given, and its value there: the first use compiles it."""
        from torch._dynamo.exc import TorchDynamoException

        function = torch.compile(
            _copy(self._show),
            fullgraph=True,
            dynamic=False,
            backend=self._backend,
            mode="reduce-overhead" if graphs and self._backend == "inductor" else None,
        )
        with warnings.catch_warnings():
            # torch.compile looks at all there is of its inputs, and means nothing by it.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
            try:
                return function, function(*given)
            except TorchDynamoException as error:
                raise CompatibilityError(_advice(error)) from error


_KEPT: WeakKeyDictionary[Learner, Compiled] = WeakKeyDictionary()


def compiled(learner: Learner, show: Show) -> Compiled:
    """The learner's own, kept for as long as the learner is."""
    if learner not in _KEPT:
        _KEPT[learner] = Compiled(show)
    return _KEPT[learner]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A nested dict of a function's values."""
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    return function(tree)


def _copy(function: FunctionType) -> FunctionType:
    """The same with a code object of its own: by that torch.compile keeps what it made, and of each
    only so much.
    """
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _presentations(stream: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One after another, (E, 1, B, *) each, whose strides do not depend on T."""
    ahead = [
        t.transpose(0, 1).unsqueeze(2).clone(memory_format=torch.contiguous_format)
        for t in stream.values()
    ]
    return [dict(zip(stream, shown, strict=True)) for shown in zip(*ahead, strict=True)]


def _uniform(tensor: Tensor) -> Tensor:
    """The same at every presentation in what a compiled function is bound to: strides, and whether
    it needs a gradient.
    """
    tensor = tensor.contiguous()
    if not torch.is_grad_enabled():
        return tensor.detach()
    if tensor.requires_grad or not tensor.is_floating_point():
        return tensor
    return tensor.detach().requires_grad_()


def _layout(tree: Any) -> Any:
    if isinstance(tree, dict):
        return tuple((key, _layout(value)) for key, value in tree.items())
    return tree.shape, tree.dtype, tree.device, tree.requires_grad


def _advice(error: Exception) -> str:
    inner = getattr(error, "inner_exception", error)  # what the backend raised
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    reason = " ".join([*lines[:1], *(line for line in lines if line.startswith("Explanation"))])
    reason = f"{type(inner).__name__}: {reason.rstrip('.')}."
    advice = "take engine='auto' or 'plain'"
    if "C++ compiler" in reason:
        advice = f"install one (g++, say) or name it in the environment variable CXX, or {advice}"
    return f"torch.compile cannot make a function of a presentation: {reason} To go on, {advice}."
