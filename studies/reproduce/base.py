"""What is trained on images: methods, their sizes, and what they are built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from metaplastic.errors import ConfigurationError
from metaplastic.learner import Learner
from metaplastic.seeds import streams
from studies.reproduce.phase import Phase
from studies.reproduce.training import Probe


@dataclass(frozen=True)
class Sizes:
    """How large a reproduction is."""

    images: int
    """Training images."""
    epochs: int
    seeds: tuple[int, ...]
    test: int = 10_000
    """Test images."""
    validation: int = 5000
    batch: int = 128


@dataclass(frozen=True)
class Trainee:
    """A learner and how it is trained."""

    learner: Learner
    phases: Sequence[Phase]
    """What an epoch is made of."""
    before: Sequence[Phase] = ()
    """What comes once, before the first epoch."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """What is measured after every epoch, and before the training, by name."""


@dataclass(frozen=True)
class Setup:
    """What a method is built from."""

    shape: tuple[int, ...]
    """Of one image."""
    classes: int
    seed: int
    sizes: Sizes
    options: Mapping[str, Any]
    level: float | None = None
    """The value of the sweep, None outside of one."""

    def generator(self, name: str) -> torch.Generator:
        """One of the streams of the seed, see ``metaplastic.seeds``; methods of one seed share
        their first weights.
        """
        return streams(self.seed)[name]


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    name: str
    about: str
    build: Callable[[Setup], Trainee]
    """At the top of a module."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its numbers, for the record and for ``build``; JSON has them."""
    published: float | None = None
    """Test accuracy in per cent that the paper or its code reports at the full size."""
    published_epochs: Mapping[int, float] = field(default_factory=dict)
    """The same after some epochs."""


@dataclass(frozen=True)
class Sweep:
    """Some methods again at several levels of one thing, each trained from the start."""

    name: str
    label: str
    """Of the axis."""
    methods: tuple[Method, ...]
    """Their names differ from those of the table."""
    levels: tuple[float, ...]
    """From 0, with which the others are compared."""
    sizes: Sizes


def resized(
    sizes: Sizes, images: int | None, epochs: int | None, seeds: Sequence[int] | None
) -> Sizes:
    """With what the user asks for instead.

    Raises ConfigurationError for counts below 1, fewer images than a batch, and seeds below 0.
    """
    own = replace(
        sizes,
        images=sizes.images if images is None else images,
        epochs=sizes.epochs if epochs is None else epochs,
        seeds=pick_seeds(sizes.seeds, seeds),
    )
    if own.epochs < 1 or own.images < own.batch:
        raise ConfigurationError(
            f"--epochs counts from 1 and --images from {own.batch}, one batch; got {own.epochs} "
            f"and {own.images}."
        )
    return own


def pick_seeds(own: tuple[int, ...], given: Sequence[int] | None) -> tuple[int, ...]:
    """What the user asks for instead, each once.

    Raises ConfigurationError for none, and for seeds below 0.
    """
    seeds = own if given is None else tuple(dict.fromkeys(given))
    if not seeds or min(seeds) < 0:
        raise ConfigurationError(f"seeds are from 0, and at least one; got {list(seeds)}.")
    return seeds
