"""The typed errors. Every message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MetaplasticError(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigurationError(MetaplasticError, ValueError):
    """Options that contradict each other or the network they are used with."""


class ShapeError(MetaplasticError, ValueError):
    """A tensor whose shape does not fit."""


class DataError(MetaplasticError, ValueError):
    """Data that cannot be learned from: NaN, empty, too few examples, an unreadable file."""


class LabelError(DataError):
    """A class label that is not an integer in range."""


class MissingDataError(DataError, FileNotFoundError):
    """A data set that is not where it was looked for."""


class UnsupportedLayerError(MetaplasticError, TypeError):
    """A layer that local plasticity cannot be run through."""


class CompatibilityError(MetaplasticError, TypeError):
    """Parts that do not speak the same protocol: a credit and a network, a teacher and a credit."""


class DivergenceError(MetaplasticError, ArithmeticError):
    """An inner loop that left the finite numbers where nothing can be left out."""


class CheckpointError(MetaplasticError, RuntimeError):
    """A checkpoint that is damaged or belongs to something else."""


class UnknownNameError(MetaplasticError, KeyError):
    """A name that is in no table; carries the nearest names as a suggestion."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        self.message = f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message
