"""Named task distributions, run from the checkout. ``make_task`` makes one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from metaplastic.errors import ConfigurationError, UnknownNameError
from tasks.base import SPLITS, PoolTask, Split, Task
from tasks.glyphs import Glyphs
from tasks.images import Images, load_images
from tasks.mnist import Mnist
from tasks.omniglot import Omniglot
from tasks.sinusoid import Sinusoid

TASKS: dict[str, Callable[..., Task]] = {
    "sinusoid-continual": partial(Sinusoid, "continual"),
    "sinusoid-iid": partial(Sinusoid, "iid"),
    "glyphs-continual": partial(Glyphs, "continual"),
    "glyphs-iid": partial(Glyphs, "iid"),
    "omniglot-continual": partial(Omniglot, "continual"),
    "omniglot-iid": partial(Omniglot, "iid"),
    "mnist-continual": partial(Mnist, "continual"),
    "mnist-iid": partial(Mnist, "iid"),
}
"""Every named task; each takes its own options by keyword."""


def make_task(name: str, **options: Any) -> Task:
    """Make the task ``name`` of TASKS with ``options`` of its class.

    Raises UnknownNameError for another name and ConfigurationError for an option that the task
    does not take.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    accepted = list(inspect.signature(TASKS[name]).parameters)
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigurationError(
            f"task {name!r} takes no option {', '.join(map(repr, unknown))}; it accepts "
            f"{', '.join(accepted)}."
        )
    return TASKS[name](**options)


__all__ = [
    "SPLITS",
    "TASKS",
    "Glyphs",
    "Images",
    "Mnist",
    "Omniglot",
    "PoolTask",
    "Sinusoid",
    "Split",
    "Task",
    "load_images",
    "make_task",
]
