"""Few-shot and continual episodes drawn from any labelled data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from metaplastic.episodes import Episodes, Order
from metaplastic.errors import (
    ConfigurationError,
    DataError,
    LabelError,
    ShapeError,
    UnknownNameError,
)


def check_counts(**counts: int) -> None:
    """Raise ConfigurationError unless every named count is a positive integer."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigurationError(f"{name} must be a positive integer, got {count!r}.")


def check_order(order: str, known: Sequence[str] = get_args(Order)) -> None:
    """Raise UnknownNameError unless ``order`` is one of ``known``."""
    if order not in known:
        raise UnknownNameError("order", order, known)


def check_generator(generator: torch.Generator) -> None:
    """Raise ConfigurationError unless the generator draws on the CPU."""
    if generator.device.type != "cpu":
        raise ConfigurationError(
            f"episodes are drawn by a CPU generator, so that every device sees the same ones; got "
            f"one on {generator.device}. Use torch.Generator().manual_seed(seed)."
        )


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    """Draw U[0, 1) numbers, in float64 so that the default dtype changes no episode."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


class LabelledPool:
    """Labelled examples from which episodes are drawn.

    ``x`` (n, *) holds the examples, at least one feature axis; it is kept as given, on its device.
    Floating point stays as it is; uint8 is kept small in memory and what is drawn becomes
    floating point in 0..1 (divided by 255). ``labels`` (n,) are any integers.

    With ``rotations`` each class turned by 0, 90, 180 and 270 degrees (in the last two axes,
    which must be square) is a class of its own: four times the classes.

    Raises DataError (empty, NaN, another dtype), ShapeError or LabelError.
    """

    def __init__(
        self, x: Tensor, labels: Tensor | Sequence[int], *, rotations: bool = False
    ) -> None:
        labels = _integers(labels)
        _check_data(x, labels, rotations)
        self._x = x
        self._turns = 4 if rotations else 1
        self._names, self._counts = labels.unique(return_counts=True)
        # Row c lists the examples of class c; what pads the shorter rows is never drawn.
        filled = torch.arange(int(self._counts.max())) < self._counts.unsqueeze(1)
        self._members = torch.zeros(filled.shape, dtype=torch.long)
        self._members[filled] = labels.argsort(stable=True)

    @classmethod
    def from_dataset(cls, dataset: Any, *, rotations: bool = False) -> LabelledPool:
        """Read a map-style data set (``len`` and ``[i] -> (x, label)``) into memory once.

        Every x is a tensor or an array, all of one shape, and every label an integer. Raises
        DataError, LabelError or ShapeError.
        """
        examples: list[Tensor] = []
        labels: list[int] = []
        for i in range(len(dataset)):
            x, label = dataset[i]
            if not isinstance(x, Tensor | np.ndarray):
                raise DataError(
                    f"example {i} is a {type(x).__name__}; tensors or arrays are expected. Give "
                    "the data set a transform that makes tensors, (channels, height, width) for "
                    "images."
                )
            # Copied: data sets hand out read-only arrays, which torch warns about.
            examples.append(x if isinstance(x, Tensor) else torch.from_numpy(np.array(x)))
            if examples[i].shape != examples[0].shape:
                raise ShapeError(
                    f"example {i} has shape {tuple(examples[i].shape)}, example 0 "
                    f"{tuple(examples[0].shape)}: resize them to one shape."
                )
            labels.append(int(_integers([label])))
        if not examples:
            raise DataError("the data set is empty: there is nothing to draw from.")
        return cls(torch.stack(examples), labels, rotations=rotations)

    @property
    def classes(self) -> int:
        """Number of classes, each rotation counted as one."""
        return len(self._names) * self._turns

    def draw(
        self,
        episodes: int,
        ways: int,
        shots: int,
        queries: int,
        *,
        order: Order = "continual",
        batch: int = 1,
        generator: torch.Generator,
    ) -> Episodes:
        """Draw E episodes of ``ways`` distinct classes, labelled 0..ways-1 in random order.

        Each class gives ``shots`` support and ``queries`` query examples, all distinct.
        ``"continual"`` presents class by class, class 0 first, with the label as the task;
        ``"iid"`` shuffles the same examples, so that a batch may hold several classes.

        Returns T = ways * shots / batch presentations of ``batch`` examples, and
        Q = ways * queries queries, class by class. Both orders consume the same draws: one seed
        gives the same examples in either order, and on every device.

        Raises DataError for too few classes or examples, ConfigurationError for options that
        do not fit, UnknownNameError for another order.
        """
        check_counts(episodes=episodes, ways=ways, shots=shots, queries=queries, batch=batch)
        check_order(order)
        check_generator(generator)
        per_block = shots if order == "continual" else ways * shots
        if per_block % batch:
            raise ConfigurationError(
                f"batch={batch} does not divide the {per_block} support examples of each "
                f"{'class' if order == 'continual' else 'episode'}: change shots or batch."
            )
        self._check_enough(ways, shots + queries)

        drawn = uniform(episodes, self.classes, generator=generator).argsort(1)[:, :ways]
        row, turns = drawn // self._turns, drawn % self._turns
        keys = uniform(episodes, ways, self._members.shape[1], generator=generator)
        padding = torch.arange(keys.shape[-1]) >= self._counts[row].unsqueeze(-1)
        picked = keys.masked_fill(padding, 2.0).topk(shots + queries, largest=False).indices
        examples = self._members[row.unsqueeze(-1), picked]
        shuffled = uniform(episodes, ways * shots, generator=generator).argsort(1)

        way = torch.arange(ways).repeat_interleave(shots).expand(episodes, -1)
        support = examples[..., :shots].flatten(1)
        if order == "iid":
            way, support = way.gather(1, shuffled), support.gather(1, shuffled)
        way, support = way.unflatten(1, (-1, batch)), support.unflatten(1, (-1, batch))
        query_way = torch.arange(ways).repeat_interleave(queries).expand(episodes, -1)
        query = examples[..., shots:].flatten(1)
        index = torch.arange(episodes)

        device, continual = self._x.device, order == "continual"
        query_y = query_way.to(device, copy=True)
        return Episodes(
            support_x=self._gather(support, turns[index.view(-1, 1, 1), way]),
            support_y=way.to(device, copy=True),
            query_x=self._gather(query, turns[index.view(-1, 1), query_way]),
            query_y=query_y,
            support_task=way[..., 0].to(device, copy=True) if continual else None,
            query_task=query_y if continual else None,
        )

    def _check_enough(self, ways: int, needed: int) -> None:
        if self.classes < ways:
            raise DataError(
                f"{ways} ways need {ways} classes and the pool has {self.classes}: lower ways or "
                "add classes."
            )
        fewest = int(self._counts.argmin())
        if int(self._counts[fewest]) < needed:
            raise DataError(
                f"class {int(self._names[fewest])} has {int(self._counts[fewest])} examples and "
                f"shots + queries = {needed} distinct ones are drawn: lower shots or queries, or "
                "leave this class out."
            )

    def _gather(self, index: Tensor, turns: Tensor) -> Tensor:
        """Examples at ``index`` (any shape), each turned by ``turns`` quarters, as floats."""
        device = self._x.device
        x = self._x[index.flatten().to(device)]
        for quarters in range(1, self._turns):
            rows = (turns.flatten() == quarters).nonzero().squeeze(1).to(device)
            x[rows] = x[rows].rot90(quarters, (-2, -1))
        if x.dtype == torch.uint8:
            x = x.to(torch.get_default_dtype()) / 255
        return x.unflatten(0, index.shape)


def _integers(labels: Tensor | Sequence[int]) -> Tensor:
    """Labels as a CPU tensor of int64."""
    try:
        given = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LabelError(f"labels must be integers: {error}") from error
    integral = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if given.numel() and not integral:
        raise LabelError(f"labels must be integers, got {given.dtype}; use labels.long().")
    return given.long()


def _check_data(x: Tensor, labels: Tensor, rotations: bool) -> None:
    if x.numel() == 0:
        raise DataError("the pool is empty: there is nothing to draw from.")
    if x.dim() < 2:
        raise ShapeError(f"x must be (n, *features), got {tuple(x.shape)}; use x.unsqueeze(1).")
    if labels.shape != x.shape[:1]:
        raise ShapeError(
            f"labels must be ({len(x)},), one for each example, got {tuple(labels.shape)}."
        )
    if rotations and (x.dim() < 3 or x.shape[-1] != x.shape[-2]):
        raise ShapeError(
            f"rotations need square images (n, *, side, side), got {tuple(x.shape)}: crop or "
            "resize them."
        )
    if x.is_floating_point():
        if not bool(torch.isfinite(x).all()):
            where = (~torch.isfinite(x)).nonzero()[0].tolist()
            raise DataError(
                f"x holds a NaN or an infinity, first at index {where}: clean the data first."
            )
    elif x.dtype != torch.uint8:
        raise DataError(f"x must be floating point or uint8, got {x.dtype}; use x.float().")
