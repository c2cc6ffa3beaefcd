"""What the inner loop keeps."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaplastic import Episodes, Implicit, Learner, LeastControl, MetaGradient, Unrolled
from tests.helpers import regression
from tests.lcp.parts import bilevel, local_field


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(method: MetaGradient, learner: Learner, episodes: Episodes) -> int:
    with Live() as live:
        method.gradient(learner, episodes)
    return live.peak


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        LeastControl("inversion", 0.05, rate=0.3),
        LeastControl("direct", 0.05, rate=0.3),
        LeastControl("contrastive", 0.05, rate=0.3),
        Implicit(rate=0.3),
    ],
    ids=["inversion", "direct", "contrastive", "implicit"],
)
def test_lcp_t19_memory_does_not_grow_with_the_inner_steps(method, steps):
    q = bilevel()

    def most(steps: int) -> int:
        return peak(replace(method, steps=steps, tolerance=1e9), q.learner, q.episodes)

    few, many = most(10), most(steps)
    assert few > 12 * 12 * 8  # the inputs, float64
    assert abs(many - few) < 0.01 * few


def test_lcp_t19_the_unrolled_one_grows_with_them():
    learner = local_field()
    short, long, longer = (
        peak(Unrolled(), learner, regression(2, count, 2, 2, 2)) for count in (10, 20, 30)
    )
    assert longer - long == pytest.approx(long - short, rel=0.05)
    assert longer > 2 * short
