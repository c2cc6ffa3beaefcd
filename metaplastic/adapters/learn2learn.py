"""Learn2learn's task sets as Episodes. Learn2learn itself is not imported."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metaplastic.episodes import Episodes
from metaplastic.errors import ConfigurationError, DataError, LabelError, ShapeError
from metaplastic.sampling import check_counts, check_generator, check_order

TasksetOrder = Literal["continual", "iid", "given"]


def episodes_from_taskset(
    taskset: Any,
    count: int,
    *,
    ways: int,
    shots: int,
    order: TasksetOrder = "continual",
    generator: torch.Generator | None = None,
) -> Episodes:
    """Sample E = ``count`` tasks and split each into a support stream and queries.

    ``taskset`` is anything whose ``sample()`` gives data (n, *) and integer labels (n,), such as
    ``learn2learn.data.Taskset`` with ``LoadData``. Of each class the first ``shots`` examples are
    support, the others queries: T = ways * shots presentations of one example, and
    Q = n - ways * shots queries, in the order given. Labels outside 0..ways-1 are numbered in
    their order of appearance.

    ``order`` is ``"continual"`` (class by class, class 0 first, with the label as the task),
    ``"iid"`` (shuffled by the CPU ``generator``, which it needs) or ``"given"`` (as sampled).
    Which tasks are sampled is up to the task set, which draws from its own random numbers.

    Raises DataError for a task with another number of classes, too few examples or another number
    of queries than the first; ShapeError, LabelError or ConfigurationError for what does not fit.
    """
    check_counts(count=count, ways=ways, shots=shots)
    check_order(order, get_args(TasksetOrder))
    if generator is not None:
        check_generator(generator)
    elif order == "iid":
        raise ConfigurationError(
            "order='iid' shuffles the examples: pass generator=torch.Generator().manual_seed(seed)."
        )
    support_x, support_y, query_x, query_y = [], [], [], []
    for task in range(count):
        x, y = _read(taskset.sample(), task, ways)
        support, query = _divide(y, task, ways, shots)
        if order == "continual":
            support = support[y[support].argsort(stable=True)]
        elif order == "iid":
            support = support[torch.randperm(len(support), generator=generator)]
        support_x.append(x[support.to(x.device)])
        support_y.append(y[support])
        query_x.append(x[query.to(x.device)])
        query_y.append(y[query])
        if query_x[0].shape != query_x[-1].shape:
            raise DataError(
                f"task {task} has queries {tuple(query_x[-1].shape)} and task 0 "
                f"{tuple(query_x[0].shape)}: the tasks of one call must be of one size. Let the "
                "task set draw a fixed number of examples of each class (KShots)."
            )
    device = support_x[0].device
    labels = torch.stack(support_y).to(device)
    query_labels = torch.stack(query_y).to(device)
    return Episodes(
        support_x=torch.stack(support_x).unsqueeze(2),
        support_y=labels.unsqueeze(2),
        query_x=torch.stack(query_x),
        query_y=query_labels,
        support_task=labels if order == "continual" else None,
        query_task=query_labels if order == "continual" else None,
    )


def _read(sample: Any, task: int, ways: int) -> tuple[Tensor, Tensor]:
    """Data (n, *) of one sample and its labels 0..ways-1 (n,) on the CPU."""
    x, labels = (torch.as_tensor(part) for part in sample)
    labels = labels.detach().cpu()
    if x.dim() < 2 or labels.shape != x.shape[:1]:
        raise ShapeError(
            f"task {task} must give data (n, *features) and labels (n,), got {tuple(x.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise LabelError(f"task {task} must have integer labels, got {labels.dtype}.")
    # dict.fromkeys keeps the order of appearance, which Tensor.unique does not.
    seen = list(dict.fromkeys(labels.tolist()))
    if len(seen) != ways:
        raise DataError(
            f"task {task} has {len(seen)} classes and ways={ways}: let the task set draw that many "
            "(NWays), or change ways."
        )
    if min(seen) < 0 or max(seen) >= ways:
        number = {label: i for i, label in enumerate(seen)}
        labels = torch.tensor([number[label] for label in labels.tolist()])
    return x, labels.long()


def _divide(labels: Tensor, task: int, ways: int, shots: int) -> tuple[Tensor, Tensor]:
    """Positions of the first ``shots`` examples of each class, and of all others, in order."""
    one_hot = torch.nn.functional.one_hot(labels, ways)
    fewest = int(one_hot.sum(0).argmin())
    if int(one_hot.sum(0)[fewest]) <= shots:
        raise DataError(
            f"class {fewest} of task {task} has {int(one_hot.sum(0)[fewest])} examples; shots="
            f"{shots} and at least one query are needed. Let the task set draw more (KShots)."
        )
    rank = one_hot.cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1)
    return (rank <= shots).nonzero().squeeze(1), (rank > shots).nonzero().squeeze(1)
