"""The typed errors. Every message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args


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


REMEDY = (
    "lower the plasticity there or its outer rate, scale the input down, use the bounded rule "
    "(bounded=True) or clip the meta-gradient"
)


class DivergenceError(MetaplasticError, ArithmeticError):
    """An inner loop that left the finite numbers where nothing can be left out."""


class MemoryBudgetError(MetaplasticError, MemoryError):
    """A computation that needs more memory than it was given."""


class UnconvergedWarning(UserWarning):
    """Examples whose control or equilibrium was not found; they are counted and change nothing."""


class KernelsWarning(UserWarning):
    """Compiled kernels that would fit and whose compiler is not installed."""


class CheckpointError(MetaplasticError, RuntimeError):
    """A checkpoint that is damaged or belongs to something else."""


class RuleFileError(MetaplasticError, RuntimeError):
    """A rule file that is damaged, of a newer version, or of other rules than asked for."""


class TransferError(MetaplasticError, ValueError):
    """A learned rule that does not fit a network under the policy that was asked for."""


def check_choice(**options: tuple[object, object]) -> None:
    """Check options that are one of a few words: ``name=(value, Literal[...] or None allowed)``.

    Raises:
        ConfigurationError: naming the option, what was given and what is accepted.
    """
    for name, (value, literal) in options.items():
        accepted = get_args(literal)
        if value not in accepted:
            words = ", ".join(map(repr, accepted))
            raise ConfigurationError(f"{name} must be one of {words}; got {value!r}.")


class UnknownNameError(MetaplasticError, KeyError):
    """A name that is in no table; carries the nearest names as a suggestion."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        self.message = f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
        super().__init__(self.message)
        self._made_of = (kind, name, known)

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), self._made_of  # so that it comes whole out of a worker process

    def __str__(self) -> str:
        return self.message
