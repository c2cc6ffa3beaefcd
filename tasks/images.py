"""Labelled images for standalone supervised training: MNIST and CIFAR-10, in three parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metaplastic.errors import ConfigurationError, DataError, UnknownNameError, check_choice
from tasks.cifar import OFFICIAL as CIFAR_OFFICIAL
from tasks.cifar import read_cifar
from tasks.folders import data_folder
from tasks.mnist_files import OFFICIAL as MNIST_OFFICIAL
from tasks.mnist_files import read_part

Scaling = Literal["standard", "unit"]
Pairs = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images (n, C, H, W) uint8 and labels (n,) of the training files and of the test files."""

VALIDATION = 5000
"""The last so many training images are kept for validation."""


@dataclass(frozen=True)
class Part:
    """Some labelled images."""

    x: Tensor
    """(N, C, H, W) float32"""
    y: Tensor
    """(N,) int64"""

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int) -> Part:
        """The first ``count`` of them, or all."""
        return Part(self.x[:count], self.y[:count])


@dataclass(frozen=True)
class Images:
    """A data set in three parts that share no image."""

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int


@dataclass(frozen=True)
class _Source:
    read: Callable[[str | os.PathLike[str] | None], Pairs]
    mean: tuple[float, ...]
    """Of each channel over the training images, in units of 255."""
    std: tuple[float, ...]


def _mnist(root: str | os.PathLike[str] | None) -> Pairs:
    folder: Path = data_folder(root, "MNIST", "MNIST/raw", MNIST_OFFICIAL)
    (train, train_y), (test, test_y) = read_part(folder, "train"), read_part(folder, "t10k")
    return (train[:, None], train_y), (test[:, None], test_y)


def _cifar(root: str | os.PathLike[str] | None) -> Pairs:
    arrays = read_cifar(data_folder(root, "CIFAR-10", "", CIFAR_OFFICIAL))
    return arrays["train"], arrays["test"]


SOURCES = {
    "mnist": _Source(_mnist, (0.1307,), (0.3081,)),
    "cifar10": _Source(_cifar, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Every data set by name."""
CLASSES = 10


def load_images(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    images: int | None = None,
    scaling: Scaling = "standard",
    validation: int = VALIDATION,
    device: torch.device | str = "cpu",
) -> Images:
    """Read a data set from the user's own copy.

    Args:
        name: ``"mnist"`` (1, 28, 28) or ``"cifar10"`` (3, 32, 32).
        root: the folder of data sets; without it METAPLASTIC_DATA says where.
        images: take the first so many training images only.
        scaling: ``"standard"``, pixels in units of 255 less the mean of their channel and divided
            by its standard deviation, or ``"unit"``, 0..1.
        validation: the last so many of the training files are for validation.
        device: where the tensors go.

    Raises UnknownNameError for another name, MissingDataError where files are not found, DataError
    where they are damaged or too few, and ConfigurationError for counts below 1.
    """
    if name not in SOURCES:
        raise UnknownNameError("data set", name, SOURCES)
    check_choice(scaling=(scaling, Scaling))
    if validation < 1 or (images is not None and images < 1):
        raise ConfigurationError(
            f"images and validation count from 1, got {images} and {validation}."
        )
    source = SOURCES[name]
    (x, y), (test_x, test_y) = source.read(root)
    count = len(x) - validation
    if count < 1 or (images or 0) > count:
        raise DataError(
            f"{name} has {len(x)} training images, {validation} of them for validation, and "
            f"{images or 1} are asked for: ask for fewer."
        )

    def part(x: np.ndarray, y: np.ndarray) -> Part:
        pixels = torch.tensor(x).to(device).float() / 255
        if scaling == "standard":
            mean, std = (pixels.new_tensor(v).view(-1, 1, 1) for v in (source.mean, source.std))
            pixels = (pixels - mean) / std
        return Part(pixels, torch.tensor(y).long().to(device))

    taken = count if images is None else images
    return Images(
        name,
        part(x[:taken], y[:taken]),
        part(x[count:], y[count:]),
        part(test_x, test_y),
        CLASSES,
    )
