"""Sinusoid regression, one function after the other (Lindsey & Litwin-Kumar 2020; OML)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from metaplastic.episodes import Episodes, Order
from metaplastic.errors import ConfigurationError
from metaplastic.objectives import SquaredError
from metaplastic.sampling import check_counts, check_generator, check_order, uniform
from tasks.base import SPLITS, Split, Task, check_split

POOLS: dict[Split, int] = {"train": 400, "validation": 200, "test": 1000}
"""How many functions each split has."""
FEWEST_STEPS = 4
"""The fewest batches of a function when the length varies."""
_ENTROPY = 2006_09549


class Sinusoid(Task):
    """Regression of y = amplitude * sin(x + phase) for several functions per episode.

    Amplitude U[0.1, 5.1), phase U[0, pi), x U[-5, 5), no noise. The input is the one-hot slot of
    the function (its place in the episode, ``functions`` units), then x * ``x_scale``; one output.

    Each presentation is one batch of ``batch`` points of one function. ``"continual"`` shows
    ``batches`` of them function by function, with the slot as the task; ``"iid"`` shuffles the
    same presentations. Queries are ``queries`` fresh points of each function. One generator state
    gives the same functions and points in either order.

    With ``vary_length`` each function is shown for U{4..batches} presentations; the rest of its
    block is zero with weight 0.

    Each split has its own fixed functions (400, 200 and 1000; ``pools`` changes these numbers),
    of which an episode takes distinct ones. Raises ConfigurationError for sizes that do not fit.
    """

    def __init__(
        self,
        order: Order,
        functions: int = 10,
        batches: int = 8,
        batch: int = 16,
        queries: int = 16,
        x_scale: float = 0.2,
        vary_length: bool = False,
        pools: Mapping[Split, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_order(order)
        check_counts(functions=functions, batches=batches, batch=batch, queries=queries)
        for split, size in (pools or {}).items():
            check_split(split)
            check_counts(**{f"pools[{split!r}]": size})
        if vary_length and batches < FEWEST_STEPS:
            raise ConfigurationError(
                f"vary_length draws {FEWEST_STEPS}..batches presentations per function, and "
                f"batches={batches}: raise batches or leave vary_length out."
            )
        self.name = f"sinusoid-{order}"
        self.objective = SquaredError()
        self.input_shape = (functions + 1,)
        self.outputs = 1
        self.chance = None
        self.order: Order = order
        self.functions, self.batches, self.batch, self.queries = functions, batches, batch, queries
        self.x_scale, self.vary_length = x_scale, vary_length
        self.device = torch.device(device)
        self._sizes: dict[Split, int] = {**POOLS, **(pools or {})}

    def pool(self, split: Split) -> Tensor:
        """Amplitude and phase of each function of ``split``, (functions, 2), float64."""
        check_split(split)
        # A stream of its own per split: resizing one split changes no function of another.
        seed = np.random.SeedSequence(_ENTROPY).spawn(len(SPLITS))[SPLITS.index(split)]
        unit = torch.from_numpy(np.random.default_rng(seed).random((self._sizes[split], 2)))
        return torch.stack((5 * (unit[:, 0] + 0.02), math.pi * unit[:, 1]), 1)

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        """Draw E = ``count`` episodes: T = functions * batches, Q = functions * queries."""
        check_counts(count=count)
        check_generator(generator)
        pool = self.pool(split)
        if len(pool) < self.functions:
            raise ConfigurationError(
                f"an episode takes {self.functions} distinct functions and split {split!r} has "
                f"{len(pool)}: lower functions or raise pools[{split!r}]."
            )
        chosen = uniform(count, len(pool), generator=generator).argsort(1)
        functions = pool[chosen[:, : self.functions]]
        steps = self.functions * self.batches
        x = _points(count, self.functions, self.batches, self.batch, generator=generator)
        query_x, query_y = self._observe(
            _points(count, self.functions, self.queries, generator=generator), functions
        )
        # Drawn in either order, so that both consume the same numbers.
        shuffled = uniform(count, steps, generator=generator).argsort(1)
        support_x, support_y = (part.flatten(1, 2) for part in self._observe(x, functions))
        weight = None
        if self.vary_length:
            weight = self._lengths(count, generator)
            support_x = support_x * weight.unsqueeze(-1)
            support_y = support_y * weight.unsqueeze(-1)
        support_task = query_task = None
        if self.order == "iid":
            index = torch.arange(count).unsqueeze(1)
            support_x, support_y = support_x[index, shuffled], support_y[index, shuffled]
            weight = None if weight is None else weight[index, shuffled]
        else:
            slots = torch.arange(self.functions)
            support_task = slots.repeat_interleave(self.batches).repeat(count, 1)
            query_task = slots.repeat_interleave(self.queries).repeat(count, 1)
        return Episodes(
            support_x=support_x,
            support_y=support_y,
            query_x=query_x.flatten(1, 2),
            query_y=query_y.flatten(1, 2),
            support_task=support_task,
            query_task=query_task,
            support_weight=weight,
        ).to(self.device)

    def _observe(self, x: Tensor, functions: Tensor) -> tuple[Tensor, Tensor]:
        """Points (E, functions, *) -> inputs (E, functions, *, functions + 1), targets (..., 1)."""
        trailing = (1,) * (x.dim() - 2)
        amplitude, phase = (part.unflatten(1, (-1, *trailing)) for part in functions.unbind(-1))
        slot = torch.eye(self.functions, dtype=x.dtype).unflatten(0, (-1, *trailing))
        inputs = torch.cat(
            (slot.expand(*x.shape, self.functions), (x * self.x_scale).unsqueeze(-1)), -1
        )
        target = (amplitude * torch.sin(x + phase)).unsqueeze(-1)
        dtype = torch.get_default_dtype()
        return inputs.to(dtype), target.to(dtype)

    def _lengths(self, count: int, generator: torch.Generator) -> Tensor:
        """Weights (E, T, B), 1 while a function is shown and 0 after, function by function."""
        shape = (count, self.functions, 1)
        length = torch.randint(FEWEST_STEPS, self.batches + 1, shape, generator=generator)
        shown = torch.arange(self.batches) < length
        weight = shown.flatten(1).to(torch.get_default_dtype())
        return weight.unsqueeze(-1).expand(-1, -1, self.batch).contiguous()


def _points(*shape: int, generator: torch.Generator) -> Tensor:
    """Points U[-5, 5) of ``shape``, float64."""
    return 10 * uniform(*shape, generator=generator) - 5
