"""What a paper to reproduce is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from metaplastic.errors import ConfigurationError, UnknownNameError
from metaplastic.learner import Learner
from metaplastic.seeds import streams
from studies.presets import PRESETS
from studies.report import Picture
from studies.reproduce.phase import Phase
from studies.reproduce.training import Probe
from tasks.images import Scaling

if TYPE_CHECKING:
    from studies.reproduce.outcome import Outcome


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


@dataclass(frozen=True)
class PaperPart:
    """One data set and the methods that are compared on it: one table, and pictures of its own."""

    data: str
    """See ``tasks.load_images``."""
    methods: Callable[[str], Sequence[Method]]
    """Every method at a preset."""
    sizes: Mapping[str, Sizes]
    """By preset; at others the part is left out."""
    reference: str = "bp"
    """The method that the others are compared with, seed by seed."""
    sweep: Callable[[str], Sweep | None] = lambda preset: None
    """By preset."""
    scaling: Scaling = "standard"
    """Of the pixels, see ``tasks.load_images``."""


@dataclass(frozen=True)
class Paper:
    """One paper; a new one is one file and one name in ``PAPERS``."""

    name: str
    title: str
    source: str
    """Authors and year."""
    about: str
    parts: Mapping[str, PaperPart]
    """By what stands as the task in ``result.json``."""
    pictures: Sequence[Picture[Outcome]]
    """Of each part."""
    published_note: str = ""
    """Where the published numbers are from."""
    shown_epochs: tuple[int, ...] = ()
    """The epochs whose test accuracy stands in a table of its own."""
    slowness: int | None = None
    """The table has the slowness of the test curve up to this epoch."""


@dataclass(frozen=True)
class Chosen:
    """What is to be run of a part."""

    part: PaperPart
    sizes: Sizes
    methods: tuple[Method, ...]
    sweep: Sweep | None

    @property
    def every(self) -> tuple[Method, ...]:
        """Those of the table and of the sweep."""
        return (*self.methods, *(self.sweep.methods if self.sweep else ()))


def chosen(
    paper: Paper,
    preset: str,
    names: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> dict[str, Chosen]:
    """The methods of these names in these parts, in the paper's order; all where none is named, and
    no part where none of them is.

    Raises UnknownNameError for a preset, part or method that there is not.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    known = {name: part for name, part in paper.parts.items() if preset in part.sizes}
    for name in parts or ():
        if name not in known:
            raise UnknownNameError(f"part of {paper.name} at --preset {preset}", name, known)
    found = {
        name: Chosen(part, part.sizes[preset], tuple(part.methods(preset)), part.sweep(preset))
        for name, part in known.items()
        if not parts or name in parts
    }
    methods = [method.name for one in found.values() for method in one.every]
    for name in names or ():
        if name not in methods:
            raise UnknownNameError(f"method of {paper.name}", name, dict.fromkeys(methods))
    named = {name: _named(one, names) for name, one in found.items()}
    return {name: one for name, one in named.items() if one.every}


def _named(whole: Chosen, names: Sequence[str] | None) -> Chosen:
    def keep(some: Sequence[Method]) -> tuple[Method, ...]:
        return tuple(method for method in some if not names or method.name in names)

    kept = () if whole.sweep is None else keep(whole.sweep.methods)
    sweep = replace(whole.sweep, methods=kept) if whole.sweep and kept else None
    return replace(whole, methods=keep(whole.methods), sweep=sweep)


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
        seeds=sizes.seeds if seeds is None else tuple(dict.fromkeys(seeds)),
    )
    if own.epochs < 1 or own.images < own.batch:
        raise ConfigurationError(
            f"--epochs counts from 1 and --images from {own.batch}, one batch; got {own.epochs} "
            f"and {own.images}."
        )
    if not own.seeds or min(own.seeds) < 0:
        raise ConfigurationError(f"seeds are from 0, and at least one; got {list(own.seeds)}.")
    return own
