"""Continual MNIST: handwritten digits (LeCun et al. 1998) in tasks, from the user's own copy."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
from torch import Tensor

from metaplastic.episodes import Episodes, Order
from metaplastic.errors import ConfigurationError, DataError, UnknownNameError
from metaplastic.sampling import LabelledPool, check_counts, uniform
from tasks.base import PoolTask, Split
from tasks.folders import data_folder
from tasks.mnist_files import OFFICIAL, SIDE, find_part, read_part

Stream = Literal["split", "permuted"]

DIGITS = 10
VALIDATION = slice(4, None, 5)
"""The images of the training files that are kept for validation: every fifth."""


class Mnist(PoolTask):
    """Classification of handwritten digits that come in ``tasks`` tasks, with one network head.

    Each episode draws its ``ways`` digits, labels them 0..ways-1 in random order, and draws its
    images. ``stream`` says what a task is:

    * ``"split"``: ways / tasks digits of its own. Task 0 has the first labels, and so on (Zenke,
      Poole & Ganguli 2017).
    * ``"permuted"``: all the digits, under a random permutation of the pixels that belongs to the
      task; no task shows them as they are. A digit has the same label in every task (Goodfellow
      et al. 2013).

    A task shows ``shots`` images of each of its digits in random order, ``batch`` at a time, and is
    asked about ``queries`` more of each at the end of the stream. All images of an episode are
    distinct, those of different tasks too. ``"continual"`` presents task after task; ``"iid"``
    shuffles the same images over the whole stream and has no task labels.

    The digits are the same in every split, the images are not: validation is every fifth image of
    the 60,000 training images, training the others, test the 10,000 test images. Labels are
    drawn per episode, so which digit has which label must be learned within it.

    Images are (1, size, size), ink 1 on 0; ``size`` is 28, or 14 by averaging over 2 x 2 pixels.
    ``root`` holds the folder ``MNIST/raw`` (or is that folder) with the official files; without it
    the environment variable METAPLASTIC_DATA says where.

    Raises MissingDataError where a file is not found; DataError for damaged files and for more
    images than there are (when the split is first used); UnknownNameError for another stream, and
    ConfigurationError for sizes that do not fit.
    """

    def __init__(
        self,
        order: Order,
        stream: Stream = "split",
        tasks: int = 5,
        ways: int = DIGITS,
        shots: int = 10,
        queries: int = 10,
        size: int = SIDE,
        root: str | os.PathLike[str] | None = None,
        batch: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if stream not in get_args(Stream):
            raise UnknownNameError("stream", stream, get_args(Stream))
        if size not in (SIDE, SIDE // 2):
            raise ConfigurationError(f"size must be {SIDE} or {SIDE // 2} pixels, got {size!r}.")
        super().__init__(
            "mnist",
            (1, size, size),
            order=order,
            ways=ways,
            shots=shots,
            queries=queries,
            batch=batch,
            device=device,
        )
        check_counts(tasks=tasks)
        if ways > DIGITS:
            raise ConfigurationError(f"ways={ways}, and there are {DIGITS} digits: lower ways.")
        if stream == "split" and ways % tasks:
            raise ConfigurationError(
                f"tasks={tasks} does not divide the {ways} digits into tasks of one size: change "
                "tasks or ways."
            )
        self.stream: Stream = stream
        self.tasks, self.size = tasks, size
        self._repeats = 1 if stream == "split" else tasks
        shown = ways * shots * self._repeats // (tasks if order == "continual" else 1)
        if shown % batch:
            raise ConfigurationError(
                f"batch={batch} does not divide the {shown} support images of each "
                f"{'task' if order == 'continual' else 'episode'}: change shots or batch."
            )
        self.folder = data_folder(root, "MNIST", "MNIST/raw", OFFICIAL)
        find_part(self.folder, "train")
        find_part(self.folder, "t10k")

    def load(self, split: Split) -> LabelledPool:
        """Read the images of ``split``, labelled by their digit."""
        images, digits = read_part(self.folder, "t10k" if split == "test" else "train")
        kept = torch.ones(len(digits), dtype=torch.bool)
        if split != "test":
            kept[VALIDATION] = False
            kept = kept if split == "train" else ~kept
        labels = torch.tensor(digits)[kept].long()
        self._check_enough(split, labels)
        x = torch.tensor(images)[kept].unsqueeze(1).to(self.device)
        if self.size != SIDE:
            x = torch.nn.functional.avg_pool2d(x.float(), 2).round().to(torch.uint8)
        return LabelledPool(x, labels)

    def episodes(self, split: Split, count: int, generator: torch.Generator) -> Episodes:
        """Draw E = ``count`` episodes of N = ways * shots images, of tasks * ways * shots when
        permuted: T = N / batch, and Q queries, likewise, task by task.

        One generator state gives the same images and permutations in either order.
        """
        drawn = self.pool(split).draw(
            count,
            self.outputs,
            self.shots * self._repeats,
            self.queries * self._repeats,
            generator=generator,
        )
        continual = self.order == "continual"
        shown = drawn.presentations // self.tasks
        keys = uniform(count, self.tasks, shown, generator=generator)
        place = keys.argsort(2) + shown * torch.arange(self.tasks).unsqueeze(1)
        place = (place if continual else keys.flatten(1).argsort(1)).reshape(count, -1, self.batch)

        support_x, support_y = drawn.support_x.squeeze(2), drawn.support_y.squeeze(2)
        query_x, query_y = drawn.query_x, drawn.query_y
        if self.stream == "permuted":
            pixels = uniform(count, self.tasks, self.size**2, generator=generator).argsort(2)
            pixels = pixels.to(self.device)
            support_x, query_x = self._permuted(support_x, pixels), self._permuted(query_x, pixels)
            support_y, query_y = self._by_task(support_y), self._by_task(query_y)
            support_y, query_y = support_y.flatten(1), query_y.flatten(1)
        place = place.to(self.device)
        index = torch.arange(count, device=self.device).view(-1, 1, 1)
        return Episodes(
            support_x=support_x[index, place],
            support_y=support_y[index, place],
            query_x=query_x,
            query_y=query_y,
            support_task=self._task_labels(count, place.shape[1]) if continual else None,
            query_task=self._task_labels(count, query_y.shape[1]) if continual else None,
        )

    def _by_task(self, drawn: Tensor) -> Tensor:
        """(E, N, *) digit by digit -> (E, tasks, N / tasks, *), each digit shared out evenly."""
        by_digit = drawn.unflatten(1, (self.outputs, self.tasks, -1))
        return by_digit.transpose(1, 2).flatten(2, 3)

    def _permuted(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Images (E, N, 1, size, size) digit by digit -> task by task, with their pixels taken from
        the places ``pixels`` (E, tasks, size * size) of the task.
        """
        flat = self._by_task(images.flatten(2))
        return flat.gather(3, pixels.unsqueeze(2).expand_as(flat)).reshape(images.shape)

    def _task_labels(self, count: int, length: int) -> Tensor:
        """(E, length), each task as often as the others, in order."""
        tasks = torch.arange(self.tasks, device=self.device)
        return tasks.repeat_interleave(length // self.tasks).repeat(count, 1)

    def _check_enough(self, split: Split, labels: Tensor) -> None:
        """Raise DataError where a digit has fewer images than an episode may show of it."""
        counts = labels.bincount(minlength=DIGITS)
        digit, needed = int(counts.argmin()), self._repeats * (self.shots + self.queries)
        if int(counts[digit]) < needed:
            each = "shots + queries" if self._repeats == 1 else "tasks * (shots + queries)"
            raise DataError(
                f"digit {digit} has {int(counts[digit])} images in split {split!r} and {each} = "
                f"{needed} distinct ones are drawn: lower shots or queries."
            )
