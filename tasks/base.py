"""What a named task distribution offers: its sizes, its objective and episodes of each split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch

from metaplastic.episodes import Episodes, Order
from metaplastic.errors import UnknownNameError
from metaplastic.objectives import CrossEntropy, Objective
from metaplastic.sampling import LabelledPool, check_counts, check_order

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def check_split(split: str) -> None:
    """Raise UnknownNameError unless ``split`` is train, validation or test."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)


class Task(ABC):
    """A distribution of episodes. What is learned in one split never occurs in another."""

    name: str
    """As in the table of tasks, such as ``"glyphs-continual"``."""
    objective: Objective
    input_shape: tuple[int, ...]
    """Features of one example, without batch axes."""
    outputs: int
    """K, the output units of a network that fits."""
    chance: float | None
    """Accuracy of guessing, 0..1; None for regression."""

    @abstractmethod
    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        """Draw E = ``count`` episodes of ``split`` with a CPU generator.

        The same generator state gives the same episodes. Raises UnknownNameError for another
        split and ConfigurationError or DataError where the options ask for too much.
        """


class PoolTask(Task):
    """Few-shot classification from one pool of labelled images per split.

    Pools are made when a split is first asked for, and stay in memory on ``device``.
    """

    def __init__(
        self,
        kind: str,
        input_shape: tuple[int, ...],
        *,
        order: Order,
        ways: int,
        shots: int,
        queries: int,
        batch: int,
        device: torch.device | str,
    ) -> None:
        check_order(order)
        check_counts(ways=ways, shots=shots, queries=queries, batch=batch)
        self.name = f"{kind}-{order}"
        self.objective = CrossEntropy()
        self.input_shape = input_shape
        self.outputs = ways
        self.chance = 1 / ways
        self.order: Order = order
        self.shots, self.queries, self.batch = shots, queries, batch
        self.device = torch.device(device)
        self._pools: dict[Split, LabelledPool] = {}

    @abstractmethod
    def load(self, split: Split) -> LabelledPool:
        """Make the pool of ``split`` on ``self.device``."""

    def pool(self, split: Split) -> LabelledPool:
        """Return the pool of ``split``, made at the first call."""
        check_split(split)
        if split not in self._pools:
            self._pools[split] = self.load(split)
        return self._pools[split]

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        """Draw E = ``count`` episodes: T = ways * shots / batch, Q = ways * queries."""
        return self.pool(split).draw(
            count,
            self.outputs,
            self.shots,
            self.queries,
            order=self.order,
            batch=self.batch,
            generator=generator,
        )
