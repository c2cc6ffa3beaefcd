"""What a paper is made of: parts, of whatever kind, and the jobs that they are run by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from metaplastic.errors import UnknownNameError
from studies.presets import PRESETS
from studies.report import Picture
from studies.status import Report

if TYPE_CHECKING:
    from studies.reproduce.outcome import Outcome

Table = tuple[list[str], list[list[str]]]
"""Head and lines."""
Pictures = tuple[list[tuple[str, str, bytes]], list[str]]
"""Names, captions and contents, and the names of those left out, as of ``write_pictures``."""


class Ended(Protocol):
    """What every job comes to."""

    @property
    def part(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def diverged(self) -> str | None:
        """Why there is no score."""
        ...

    @property
    def words(self) -> str:
        """For the display."""
        ...


class Job(ABC):
    """One method with one seed, in a folder of its own; can be pickled."""

    out: Path

    @property
    @abstractmethod
    def setting(self) -> dict[str, Any]:
        """All that decides its outcome, as JSON has it."""

    @abstractmethod
    def work(self, report: Report) -> Ended:
        """Train and score; what was done before is not done again.

        Raises CheckpointError for a folder that is damaged or of another setting.
        """

    @abstractmethod
    def row(self) -> dict[str, Any]:
        """Its row of ``result.json``, once it has ended."""


@dataclass(frozen=True)
class PartReport:
    """What is told of a part in the end."""

    tables: list[Table]
    headline: str
    summary: list[dict[str, Any]] = field(default_factory=list)
    """A line for each method, for ``result.json``."""
    notes: list[str] = field(default_factory=list)
    """Below the tables."""


class Chosen(ABC):
    """What is to be run of a part."""

    of_images: ClassVar[bool]
    """Whether numbers of images and of epochs have a meaning."""
    note: ClassVar[str]
    """How its tables are to be read, for the page."""

    @property
    @abstractmethod
    def about(self) -> dict[str, str]:
        """Every method by name, and what it is."""

    @property
    @abstractmethod
    def setting(self) -> dict[str, int]:
        """The ``images`` and ``epochs`` that must not change when a study is gone on with."""

    @property
    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Its sizes, ``seeds`` among them, for ``result.json``."""

    @property
    @abstractmethod
    def sizes_text(self) -> str:
        """Its sizes in words."""

    @abstractmethod
    def named(self, names: Sequence[str]) -> Self:
        """The methods of these names alone, which may be none."""

    @abstractmethod
    def resized(self, images: int | None, epochs: int | None, seeds: Sequence[int] | None) -> Self:
        """With what the user asks for instead, as far as it has a meaning here.

        Raises ConfigurationError for what cannot be.
        """

    @abstractmethod
    def check(self, device: str) -> None:
        """Raises a MetaplasticError for data that is missing, before anything is made."""

    @abstractmethod
    def jobs(self, out: Path, device: str) -> Mapping[str, Job]:
        """Every job by the name of its folder."""

    @abstractmethod
    def report(self, paper: Paper, ended: Sequence[Any]) -> PartReport:
        """What came out of its jobs."""

    @abstractmethod
    def draw(self, out: Path, paper: Paper, ended: Sequence[Any]) -> Pictures:
        """Write its pictures, ``PART-NAME.png``."""


class Part(ABC):
    """One table of a paper."""

    @abstractmethod
    def choose(self, name: str, preset: str) -> Chosen | None:
        """All of it at a preset, None where the preset leaves it out; ``name`` is its own."""


@dataclass(frozen=True)
class Paper:
    """One paper; a new one is one file and one name in ``PAPERS``."""

    name: str
    title: str
    source: str
    """Authors and year."""
    about: str
    parts: Mapping[str, Part]
    """By what stands as the task in ``result.json``."""
    pictures: Sequence[Picture[Outcome]]
    """Of each part with images."""
    published_note: str = ""
    """Where the published numbers are from."""
    shown_epochs: tuple[int, ...] = ()
    """The epochs whose test accuracy stands in a table of its own."""
    slowness: int | None = None
    """The table has the slowness of the test curve up to this epoch."""


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
    every = {name: part.choose(name, preset) for name, part in paper.parts.items()}
    known = {name: one for name, one in every.items() if one is not None}
    for name in parts or ():
        if name not in known:
            raise UnknownNameError(f"part of {paper.name} at --preset {preset}", name, known)
    found = {name: one for name, one in known.items() if not parts or name in parts}
    methods = dict.fromkeys(method for one in found.values() for method in one.about)
    for name in names or ():
        if name not in methods:
            raise UnknownNameError(f"method of {paper.name}", name, methods)
    if names:
        found = {name: one.named(names) for name, one in found.items()}
    return {name: one for name, one in found.items() if one.about}
