"""What results are compared with, and what must not happen on the way."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

STEPS = (1e-6, 1e-5, 3e-5, 1e-7)
"""Widths tried for a central difference: the best one is free of kinks and of cancellation."""


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def leaves(tree: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of a nested dict (or of one tensor), by path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    return {k: t for name in tree for k, t in leaves(tree[name], f"{path}/{name}").items()}


def copied(tree: Any) -> Any:
    """A copy without its graph, for a look back."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    return {name: copied(value) for name, value in tree.items()}


def assert_structure(found: Any, wanted: Any) -> None:
    """The same paths, each with the same shape, precision and device."""
    assert _structure(found) == _structure(wanted)


def _structure(tree: Any) -> dict[str, tuple]:
    return {p: (tuple(t.shape), t.dtype, t.device.type) for p, t in leaves(tree).items()}


def assert_equal(found: Any, wanted: Any) -> None:
    """The same numbers, bit by bit."""
    assert_structure(found, wanted)
    theirs = leaves(wanted)
    differ = [p for p, t in leaves(found).items() if not torch.equal(t, theirs[p])]
    assert differ == []


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """The same entries, each within a tolerance relative to its largest number; what is 0 but for
    rounding is held against a thousandth of the largest number of all.
    """
    assert unlike(found, wanted, tolerance) == {}


def unlike(
    found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float
) -> dict[str, tuple[float, float]]:
    """The entries that ``assert_close`` objects to, {name: (error, size)}."""
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max((float(w.detach().abs().max()) for w in wanted.values()), default=0.0)
    wrong = {}
    for name, w in wanted.items():
        assert found[name].shape == w.shape, name
        size = max(float(w.detach().abs().max()), floor)
        error = float((found[name] - w).detach().abs().max())
        if not error <= tolerance * size:
            wrong[name] = (error, size)
    return wrong


@contextmanager
def without_autograd() -> Iterator[None]:
    """Inference mode, in which asking for a gradient is an error."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a local method called autograd")

    with (
        patch.object(torch.autograd, "grad", refuse),
        patch.object(torch.autograd, "backward", refuse),
        patch.object(Tensor, "backward", refuse),
        torch.inference_mode(),
    ):
        yield


@contextmanager
def global_chance_untouched() -> Iterator[None]:
    """No global random number may be drawn: of torch on any device, numpy or Python."""
    before = _global_chance()
    yield
    assert _global_chance() == before, "a global random number generator was used"


def _global_chance() -> list[bytes]:
    found = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available():
        found.append(torch.cuda.get_rng_state().numpy().tobytes())
    return [*found, pickle.dumps(np.random.get_state()), pickle.dumps(random.getstate())]


def direction(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction over the Parameters, one normal number for each of theirs."""
    g = seeded(seed)
    return {
        name: torch.randn(p.shape, generator=g, dtype=torch.float64).to(p)
        for name, p in module.named_parameters()
    }


def central_difference(
    module: nn.Module, along: dict[str, Tensor], h: float, loss: Callable[[], float]
) -> float:
    """Slope of the loss along a direction, the Parameters being put back afterwards."""
    parameters = dict(module.named_parameters())
    before = {name: parameters[name].data for name in along}
    sides = []
    for sign in (1.0, -1.0):
        for name, d in along.items():
            parameters[name].data = before[name] + sign * h * d
        sides.append(loss())
    for name, value in before.items():
        parameters[name].data = value
    return (sides[0] - sides[1]) / (2 * h)
