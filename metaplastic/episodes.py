"""Episodes: streams of examples with the queries that score them, and how to draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from metaplastic.errors import DataError, ShapeError

Order = Literal["continual", "iid"]


@dataclass(frozen=True)
class Episodes:
    """E independent episodes: T presentations of B examples each, then Q queries.

    Raises ShapeError, LabelError or DataError where the tensors do not fit, are empty or hold NaN.
    """

    support_x: Tensor
    """(E, T, B, *) what is shown, in order."""
    support_y: Tensor
    """(E, T, B) integer labels, or (E, T, B, K) floating-point targets."""
    query_x: Tensor
    """(E, Q, *)"""
    query_y: Tensor
    """(E, Q) or (E, Q, K)"""
    support_task: Tensor | None = None
    """(E, T) integer: the task that each presentation belongs to, 0.. in order of appearance."""
    query_task: Tensor | None = None
    """(E, Q) integer: the task that each query belongs to."""
    support_weight: Tensor | None = None
    """(E, T, B) weight of each example; 0 is padding, so that ragged episodes are exact."""
    query_weight: Tensor | None = None
    """(E, Q) weight of each query in the episode's loss."""

    def __post_init__(self) -> None:
        if self.support_x.dim() < 4 or self.support_x.numel() == 0:
            raise ShapeError(
                "support_x must be (E, T, B, *features) with no empty axis, got "
                f"{tuple(self.support_x.shape)}. One example at a time is B = 1."
            )
        episodes, presentations, batch = self.support_x.shape[:3]
        if self.query_x.dim() < 3 or self.query_x.numel() == 0:
            raise ShapeError(
                f"query_x must be (E, Q, *features) with no empty axis, got "
                f"{tuple(self.query_x.shape)}."
            )
        queries = self.query_x.shape[1]
        if self.query_x.shape[0] != episodes or self.query_x.shape[2:] != self.support_x.shape[3:]:
            raise ShapeError(
                f"query_x {tuple(self.query_x.shape)} must have the episodes and features of "
                f"support_x {tuple(self.support_x.shape)}."
            )
        lead = {
            "support_y": (episodes, presentations, batch),
            "query_y": (episodes, queries),
            "support_task": (episodes, presentations),
            "query_task": (episodes, queries),
            "support_weight": (episodes, presentations, batch),
            "query_weight": (episodes, queries),
        }
        for name, shape in lead.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None:
                continue
            exact = not name.endswith("_y")
            if tensor.shape[: len(shape)] != shape or (exact and tensor.dim() != len(shape)):
                raise ShapeError(f"{name} must be {shape}, got {tuple(tensor.shape)}.")
        for name in ("support_weight", "query_weight"):
            weight: Tensor | None = getattr(self, name)
            if weight is not None and not bool((weight.isfinite() & (weight >= 0)).all()):
                raise DataError(f"{name} must be finite and 0 or more; got {weight.aminmax()}.")
        if self.query_weight is not None and bool((self.query_weight.sum(1) == 0).any()):
            raise DataError(
                "query_weight is 0 for all queries of an episode, which leaves nothing to score: "
                "give at least one query a weight, or leave the episode out."
            )
        for name in ("support_x", "support_y", "query_x", "query_y"):
            values: Tensor = getattr(self, name)
            if values.is_floating_point() and not bool(values.isfinite().all()):
                where = (~values.isfinite()).nonzero()[0].tolist()
                raise DataError(
                    f"{name} holds a NaN or an infinity, first at index {where}: clean the data "
                    "before it is presented."
                )

    def __len__(self) -> int:
        return self.support_x.shape[0]

    @property
    def presentations(self) -> int:
        """T."""
        return self.support_x.shape[1]

    def __getitem__(self, index: slice | Sequence[int]) -> Episodes:
        """Some of the episodes, as Episodes; the episode axis stays."""
        picked = index if isinstance(index, slice) else list(index)
        return self._map(lambda t: t[picked])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Episodes:
        """On another device; ``dtype`` converts the floating-point tensors only."""
        return self._map(
            lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None)
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Episodes:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in values.items() if v is not None})
