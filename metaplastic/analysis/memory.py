"""What a computation keeps alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and still alive, on any device:

        with LiveBytes() as live:
            metagradient.gradient(learner, episodes)
        live.peak

    What the allocator keeps in reserve and what an operation needs within itself are not counted,
    so the numbers are the same on every machine. Under ``vmap`` batched tensors count with all
    their episodes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive at present."""
        self.peak = 0
        """The most bytes that were alive at once."""
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf.untyped_storage()
